"""What an adapter says can be quantized in one model on the installed runtime."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from neural_tune.errors import PluginError
from neural_tune.values.quant import FLOAT, OpConfig


class Role(StrEnum):
    """The part an op plays in an int8 region.

    An ANCHOR gains from int8 by itself (convolution, matrix product). A COMPANION becomes int8 only where it joins
    int8 anchors. A PASS_THROUGH op has no choice of its own: it carries whatever its neighbours hand on (Reshape),
    or is folded into one (Relu). NEVER: no int8 kernel, or one that always loses.
    """

    ANCHOR = "anchor"
    COMPANION = "companion"
    PASS_THROUGH = "pass_through"  # noqa: S105 - a role, not a password
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCapability:
    """The choices of one op.

    Attributes:
        name: Unique name in the normalised model.
        type: The framework's op type, such as "Conv".
        role: The part it plays in an int8 region.
        choices: Precisions to search over, most preferred first, always ending in FLOAT.
        extra: Precisions that the runtime also runs, but that are slower or less accurate here: used only where a
            user rule asks for them.
        group: Ops with the same non-empty group name must share one choice.
        why: Why something is missing (no kernel, dynamic weight, measured loss); shown for ops that stay float.
        inputs: Names of the activation tensors it reads (constants left out).
        outputs: Names of the tensors it writes.
        parameters: Number of constant elements it owns.

    Raises:
        PluginError: `choices` is empty, does not end in FLOAT, or holds a precision twice.
    """

    name: str
    type: str
    role: Role
    choices: tuple[OpConfig, ...]
    extra: tuple[OpConfig, ...] = ()
    group: str = ""
    why: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    parameters: int = 0

    def __post_init__(self) -> None:
        """Hold the adapter to the one rule every strategy relies on."""
        if not self.choices or self.choices[-1] != FLOAT or FLOAT in self.choices[:-1]:
            message = f"op {self.name!r}: choices must end in FLOAT and hold it once, found {self.choices}"
            raise PluginError(message)
        if len(set(self.choices)) != len(self.choices):
            twice = sorted({choice.describe() for choice in self.choices if self.choices.count(choice) > 1})
            message = (
                f"op {self.name!r}: choices hold {', '.join(twice)} twice; strategies count choices, list each once"
            )
            raise PluginError(message)

    @property
    def is_quantizable(self) -> bool:
        """True when there is anything besides float, with or without a user rule."""
        return len(self.choices) > 1 or bool(self.extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """The choices of one model.

    Attributes:
        framework: Name of the adapter, such as "onnxruntime".
        runtime_version: Version of the runtime that was probed.
        instruction_set: What decides the fast kernels, such as "x86 avx512_vnni".
        ops: Every op of the model, in execution order.
        inputs: Names of the model's inputs, in order.
        recipes: Names of function-preserving or whole-model recipes on offer.
        notes: Things the user should know about the model (for instance a shape that could not be inferred).
    """

    framework: str
    runtime_version: str
    instruction_set: str
    ops: tuple[OpCapability, ...]
    inputs: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Names are keys everywhere: refuse duplicates here, once."""
        names = [op.name for op in self.ops]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            message = f"{self.framework} names ops twice: {', '.join(twice)}"
            raise PluginError(message)
        # A group without a name is known by its only op, so the two kinds of names share one table.
        grouped = {op.group for op in self.ops if op.group}
        outside = sorted(op.name for op in self.ops if op.name in grouped and op.group != op.name)
        if outside:
            message = f"{self.framework} names groups like ops that are not in them: {', '.join(outside)}"
            raise PluginError(message)
