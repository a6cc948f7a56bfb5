"""The axes whose lengths an exported graph has written into it: with another length it would answer, and wrongly."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, fx

from neural_tune_pytorch.calling import Calling


def is_free(size: object) -> bool:
    """Return whether torch.export kept a length symbolic; a symbol that a guard ties to one number is not free."""
    node = getattr(size, "node", None)
    return node is not None and node.maybe_as_int() is None


def with_fixed_axes(calling: Calling, graph: fx.Graph) -> Calling:
    """Return `calling` with the axes that the graph fixed, as its inputs' descriptions say; where they say nothing, as in foreign files, none is checked."""
    places = [node for node in graph.nodes if node.op == "placeholder"]
    inputs = []
    for info, place in zip(calling.inputs, places, strict=True):
        value = place.meta.get("val")
        sizes = tuple(value.shape) if isinstance(value, Tensor) else ()
        fixed = tuple((axis, int(size)) for axis, size in enumerate(sizes) if not is_free(size))
        inputs.append(replace(info, fixed=fixed))
    return replace(calling, inputs=tuple(inputs))
