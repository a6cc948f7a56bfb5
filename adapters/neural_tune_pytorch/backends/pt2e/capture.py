"""The float model as an exported graph in one normal form.

Normal form: inference only, batch normalization folded into the convolution or linear before it, products with a constant matrix written as `aten.linear`,
no dropout, no dead nodes. What is quantized later are edges of this graph, so that its node names are the names of tensors.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from neural_tune.errors import CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune.values import FrozenMap
from neural_tune_pytorch import model as models
from neural_tune_pytorch.backend import Feed, Source
from neural_tune_pytorch.backends.pt2e import axes, memory
from neural_tune_pytorch.backends.pt2e.ops import Op, find_ops
from neural_tune_pytorch.calling import Calling
from neural_tune_pytorch.libraries import x86_inductor

aten = torch.ops.aten
_NOTHING = {
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.detach.default,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captured:
    """The float model as this backend holds it.

    Attributes:
        graph: The normalised float graph. Never changed: candidates are graphs of their own over the same weights.
        ops: Its ops, in execution order.
        calling: How the original is called.
        example: One batch.
        has_free_batch: Whether the batch axis may have any length.
        has_free_rows: Whether, besides, the rows of a batch do not see each other (tried on the example), so that a batch may be padded.
        options: What the configuration says.
        notes: Findings of the capture.
        changes: What recipes did to the constants.
        cache: Quantized weights by name, and the compiled float network: results that depend on the float model only.
    """

    graph: fx.GraphModule
    ops: tuple[Op, ...]
    calling: Calling
    example: Feed
    has_free_batch: bool
    has_free_rows: bool
    options: AdapterOptions
    notes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def compiles(self) -> bool:
        """Whether networks are compiled; `options={"compile": False}` runs the Q/DQ graph node by node instead."""
        return bool(self.options.extra.get("compile", True))

    def uncompiled(self) -> Captured:
        """Return the same model for networks that run node by node; what is cached is shared."""
        extra = FrozenMap({**self.options.extra, "compile": False})
        return replace(self, options=replace(self.options, extra=extra))


def capture(source: Source, options: AdapterOptions) -> Captured:
    """Return `source` exported and normalised.

    Raises:
        CapabilityError: torch.export refuses the module; the message says what stopped it.
    """
    x86_inductor()
    program, is_free = _exported(source)
    graph = program.module(check_guards=False)
    normalise(graph)
    notes = (
        []
        if is_free
        else [
            f"torch.export could not keep the batch axis free: the model takes batches of {_batch(source.example)} only"
        ]
    )
    if state := list(memory.buffers(graph)):
        notes.append(
            f"the model changes its own buffers at every call ({', '.join(state[:5])}): calibration, candidates and the float model share them here, "
            "so that outputs depend on the calls before; a saved model starts with the values at the time of saving"
        )
    return Captured(
        graph=graph,
        ops=find_ops(graph),
        calling=axes.with_fixed_axes(source.calling, graph.graph),
        example=source.example,
        has_free_batch=is_free,
        has_free_rows=is_free and _has_free_rows(graph, widened(source.example)),
        options=options,
        notes=tuple(notes),
    )


def export(module: nn.Module, example: Feed, *, free_batch: bool) -> torch.export.ExportedProgram:
    """Return `module` (flat tensors in, a tuple out) as an exported program. Raises what torch.export raises."""
    shapes: Any = None
    if free_batch:
        shapes = (tuple(_free_axes(tensor) for tensor in example),)
        if isinstance(module, fx.GraphModule):  # its signature names every input instead of *tensors
            shapes = shapes[0]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)


def _free_axes(tensor: Tensor) -> dict[int, Any]:
    """Return the axes that may have any length if the model allows it: the batch, and of token ids and masks their length."""
    axes = 2 if tensor.ndim == 2 and not tensor.is_floating_point() else min(tensor.ndim, 1)
    return dict.fromkeys(range(axes), torch.export.Dim.AUTO)


def _has_free_rows(graph: fx.GraphModule, feed: Feed) -> bool:
    """Return whether the first row gives the same outputs beside the rows of the example, beside itself and beside a row unlike it.

    Where no such row can be made (single token ids), nothing is proven, and the rows count as bound to each other.
    """
    if not all(tensor.ndim for tensor in feed):
        return False
    twice = tuple(torch.cat([tensor[:1], tensor[:1]]) for tensor in feed)
    mixed = tuple(_beside_another(tensor) for tensor in feed)
    if all(torch.equal(one, two) for one, two in zip(twice, mixed, strict=True)):
        return False
    with torch.no_grad(), memory.kept(graph):
        whole, *others = graph(*feed), graph(*twice), graph(*mixed)
    rows = feed[0].shape[0]
    return all(
        one.ndim and one.shape[0] == rows and torch.allclose(one[:1], two[:1], rtol=1e-4, atol=1e-5)
        for other in others
        for one, two in zip(whole, other, strict=True)
    )


def _beside_another(tensor: Tensor) -> Tensor:
    """Return the first row and a row unlike it: mirrored, and floats moved."""
    first = tensor[:1]
    other = first.flip(tuple(range(1, first.ndim))) if first.ndim > 1 else first
    return torch.cat([first, other * 1.5 + 0.25 if other.is_floating_point() else other])


def widened(feed: Feed) -> Feed:
    """Return a batch of at least two rows: torch.export takes a length of one for a constant."""
    lengths = {tensor.shape[0] for tensor in feed if tensor.ndim}
    return tuple(torch.cat([tensor, tensor]) if tensor.ndim else tensor for tensor in feed) if lengths == {1} else feed


def normalise(graph_module: fx.GraphModule) -> None:
    """Bring an exported graph into the normal form, in place."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _NOTHING:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)  # a dropout counts as impure, so that no dead code elimination takes it
        elif node.target in (aten.matmul.default, aten.mm.default, aten.addmm.default):
            _to_linear(graph_module, node)
        elif node.target is aten.batch_norm.default:
            _fold(graph_module, node)
        elif node.target is torch.ops.aten._assert_tensor_metadata.default:  # noqa: SLF001 - the op's name
            graph.erase_node(node)  # checks of dtypes that tracing left behind; they hold for every candidate
    plain(graph_module)


def plain(graph_module: fx.GraphModule) -> None:
    """Let an exported module take flat tensors and return a tuple: the tree structures are ours to rebuild (`calling`). In place."""
    graph = graph_module.graph
    result = next(node for node in graph.nodes if node.op == "output")
    result.args = (tuple(result.args[0]),)
    graph.set_codegen(fx.graph.CodeGen())
    graph.eliminate_dead_code()
    graph.lint()
    graph_module.recompile()


def attribute(module: nn.Module, path: str) -> Tensor:
    """Return the tensor at a dotted path."""
    return operator.attrgetter(path)(module)


def constant(module: nn.Module, node: object) -> Tensor | None:
    """Return the tensor behind a `get_attr` node; None for anything else."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        found = attribute(module, str(node.target))
        return found if isinstance(found, Tensor) else None
    return None


def _exported(source: Source) -> tuple[torch.export.ExportedProgram, bool]:
    """Export with a free batch axis; with a fixed one where that fails, or where it turns out not to be free."""
    flat = models.flat(source)
    reasons: list[BaseException] = []
    for free in (True, False):
        try:
            example = widened(source.example) if free else source.example
            program = export(flat, example, free_batch=free)
        except Exception as error:  # noqa: BLE001 - tracing runs the user's code, which may raise anything
            reasons.append(error)
            continue
        if not free or _is_free(program):
            return program, free
    where = _what_stopped(reasons[-1])
    raise CapabilityError(
        f"torch.export cannot capture the model: {where}. Make that part traceable (torch.cond, torch.where), or use backend='eager', which quantizes module by module"
    ) from reasons[-1]


def _is_free(program: torch.export.ExportedProgram) -> bool:
    """Return whether the first axis of every input with axes stayed symbolic."""
    inputs = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    return all(axes.is_free(value.shape[0]) for value in values if isinstance(value, Tensor) and value.ndim)


def _what_stopped(error: BaseException) -> str:
    """Return the first lines of an export error, with the user's line of code where it names one."""
    first = models.first_line(error)
    code = [line.strip() for line in str(error).splitlines() if "(_refs" not in line and ".py:" in line]
    return f"{type(error).__name__}: {first}" + (f" [{code[-1][:200]}]" if code else "")


def _batch(feed: Sequence[Tensor]) -> int:
    return next((tensor.shape[0] for tensor in feed if tensor.ndim), 1)


def _fold(module: fx.GraphModule, norm: fx.Node) -> None:
    """Fold a batch normalization in eval mode into the convolution or linear before it, where nothing else reads that one's output."""
    source, *rest = norm.args
    if not isinstance(source, fx.Node) or source.op != "call_function" or len(source.users) != 1 or rest[4]:
        return
    is_linear = source.target is aten.linear.default
    if not is_linear and source.target not in (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default):
        return
    if is_linear and getattr(source.meta.get("val"), "ndim", 2) != 2:  # over another axis than the output features
        return
    arguments = list(source.args) + [None] * (3 - len(source.args))
    weight, bias = constant(module, arguments[1]), constant(module, arguments[2])
    scale, shift, mean, variance = (constant(module, item) for item in rest[:4])
    if weight is None or mean is None or variance is None or not _is_only_read_by(arguments[1], source):
        return
    scale = torch.ones_like(mean) if scale is None else scale
    shift = torch.zeros_like(mean) if shift is None else shift
    fuse = nn.utils.fusion.fuse_linear_bn_weights if is_linear else nn.utils.fusion.fuse_conv_bn_weights
    folded = fuse(weight, bias, mean, variance, float(rest[6]), scale, shift)
    for position, values in zip((1, 2), folded, strict=True):
        arguments[position] = _new_constant(module, f"{source.name}_folded_{position}", values.detach(), before=source)
    source.args = tuple(arguments)
    norm.replace_all_uses_with(source)


def _is_only_read_by(node: object, reader: fx.Node) -> bool:
    return isinstance(node, fx.Node) and set(node.users) == {reader}


def _to_linear(module: fx.GraphModule, node: fx.Node) -> None:
    """Write a product with a constant matrix as a linear: its weight is that matrix, transposed."""
    bias, left, right = node.args if node.target is aten.addmm.default else (None, *node.args)
    matrix = constant(module, right)
    plain = not node.kwargs  # alpha and beta would scale
    if matrix is None or matrix.ndim != 2 or not plain or not isinstance(left, fx.Node) or left.op == "get_attr":
        return
    if bias is not None and (constant(module, bias) is None or constant(module, bias).ndim != 1):  # type: ignore[union-attr]
        return
    weight = _new_constant(module, f"{node.name}_transposed", matrix.t().contiguous(), before=node)
    with module.graph.inserting_before(node):
        linear = module.graph.call_function(aten.linear.default, (left, weight, bias))
    linear.meta = dict(node.meta)
    node.replace_all_uses_with(linear)
    module.graph.erase_node(node)


def _new_constant(module: fx.GraphModule, name: str, values: Tensor, *, before: fx.Node) -> fx.Node:
    free = name
    while hasattr(module, free):
        free += "_"
    module.register_buffer(free, values)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(free)
    node.meta["val"] = values
    return node
