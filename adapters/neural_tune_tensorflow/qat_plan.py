"""Where fake_quant goes in a Keras model, so that training sees what the int8 graph will compute.

The int8 graph is made of ops and tensors with node names of the canonical graph; a Keras model is made of layers. A node name begins
with the scope of the layer it came from ("net/stem/convolution"), which is how the two are joined. Three facts decide the places:

* a tensor that an int8 op *writes* is codes for every reader: fake_quant sits on the output of the layer that ends the fused chain;
* a tensor that a float op writes is codes for its int8 readers only: fake_quant sits on the input of each of them;
* weights are codes per output channel, which batch norm only rescales, so the grid of the raw weight is that of the folded one.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from neural_tune_tensorflow.runtime import tf  # isort: skip - tensorflow has to come up before keras
import keras

from neural_tune.errors import CapabilityError
from neural_tune.values import FLOAT, Candidate, DType, Granularity, Mode, OpConfig
from neural_tune_tensorflow.qat_layers import FakeQuant, Grid, RangeKind, TensorRange, WeightGrid
from neural_tune_tensorflow.source import from_keras

_BITS = {DType.INT4: 4, DType.UINT4: 4, DType.INT8: 8, DType.UINT8: 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """What is put around one layer.

    Attributes:
        weights: Grids of its weights.
        reads: Tensor whose range its input is laid over; "" for none.
        writes: Tensor whose range its output is laid over; "" for none.
        batch_norm: Name of the batch norm that will be folded into its weight; "" for none. Matters for per_tensor weights only.
    """

    weights: tuple[WeightGrid, ...] = ()
    reads: str = ""
    writes: str = ""
    batch_norm: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QatPlan:
    """fake_quant for a whole model.

    Attributes:
        layers: Layer name -> what is put around it.
        tensors: Tensor -> its codes, for every tensor that `layers` names.
        left: Op -> why it is not trained, and so stays in float.
    """

    layers: Mapping[str, LayerPlan]
    tensors: Mapping[str, Grid]
    left: Mapping[str, str] = field(default_factory=dict)


def check_model(model: Any) -> None:
    """Refuse what cannot be rebuilt layer by layer.

    Raises:
        CapabilityError: it is no Keras model, a subclassed one, or not built.
    """
    if not isinstance(model, keras.Model):
        message = (
            "quantization-aware training needs the Keras model object itself (or a .keras file): a SavedModel, a .pb or a tf.function has "
            "no layers to train"
        )
        raise CapabilityError(message)
    kind = type(model)
    if kind is not keras.Sequential and kind.__name__ != "Functional":
        message = (
            f"quantization-aware training takes functional and Sequential Keras models, found the subclass {kind.__name__}: its call method "
            "cannot be rebuilt layer by layer. Build the model from keras.Input and keras.Model(inputs, outputs), or quantize it after training"
        )
        raise CapabilityError(message)
    if not model.built:
        raise CapabilityError("the Sequential model has no weights yet: give it an Input layer, or call it once")
    # Layers are joined by name, here and in the copies: one name for two would give one of them the other's weights.
    distinct = {id(layer): name for name, layer in _walk(model)}
    twice = sorted(name for name, count in Counter(distinct.values()).items() if count > 1)
    if twice:
        message = (
            f"quantization-aware training tells layers apart by name, and {len(twice)} names stand for several layers of nested models, "
            f"{twice[0]!r} among them: give every layer a name of its own"
        )
        raise CapabilityError(message)


@dataclass(frozen=True, slots=True)
class Scopes:
    """Which layer a node of the graph came from.

    Attributes:
        layers: Scope, such as "net/stem" -> name of the layer.
        calls: Layer -> how often it is called.
    """

    layers: Mapping[str, str]
    calls: Mapping[str, int]

    def owner(self, node: str) -> str:
        """Return the innermost layer whose scope holds `node`; "" for none."""
        parts = node.split(":", maxsplit=1)[0].split("/")
        found = ("/".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        return next((self.layers[scope] for scope in found if scope in self.layers), "")


def scopes_of(model: Any) -> Scopes:
    """Return the scopes under which the layers of `model` are traced; it is not changed, a copy is traced.

    TensorFlow makes scopes unique as it goes ("re_lu_1" may be layer "re_lu" or layer "re_lu_1"), so they are noted while it does.
    """
    copy = copied(model, _plain_copy)
    layers: dict[str, str] = {}
    calls: Counter[str] = Counter()

    def noted(name: str, call: Any) -> Any:
        @functools.wraps(call)
        def run(*inputs: Any, **named: Any) -> Any:
            layers[tf.compat.v1.get_default_graph().get_name_scope()] = name
            calls[name] += 1
            return call(*inputs, **named)

        return run

    for name, layer in _walk(copy):
        layer.call = noted(name, layer.call)
    from_keras(copy)
    return Scopes(layers, calls)


def untrainable_ops(model: Any, scopes: Scopes, candidate: Candidate) -> dict[str, str]:
    """Return the ops of `candidate` that cannot be trained here, each with the reason."""
    layers = dict(_walk(model))
    left = {}
    for name, config in candidate.ops.items():
        layer = scopes.owner(name)
        if config.mode is Mode.CAST:
            left[name] = "qat: bf16 needs no training"
        elif not layer:
            left[name] = "qat: no layer of the Keras model owns it"
        elif scopes.calls[layer] > 1:
            left[name] = (
                f"qat: layer {layer!r} is called {scopes.calls[layer]} times, and every call has ranges of its own"
            )
        elif not _weighted(layers[layer]):
            kind = type(layers[layer]).__name__
            left[name] = f"qat: inside layer {layer!r} ({kind}), whose inner tensors cannot be reached"
    return left


def without(candidate: Candidate, ops: Iterable[str]) -> Candidate:
    """Return `candidate` with `ops` in float."""
    return candidate.with_ops(dict.fromkeys(ops, FLOAT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """The tensors that are codes in an int8 graph.

    Attributes:
        roots: Tensor -> the tensor that stands for all that share its range.
        grids: Root -> its codes.
        entered: Tensors that float ops write and int8 ops read.
        written: Tensor that an int8 op writes -> the op.
        sources: Op -> the tensor it reads.
        bare: Ops that no activation is fused into.
        refused: Op -> why it stays float in that graph.
    """

    roots: Mapping[str, str]
    grids: Mapping[str, Grid]
    entered: frozenset[str]
    written: Mapping[str, str]
    sources: Mapping[str, str]
    bare: frozenset[str]
    refused: Mapping[str, str] = field(default_factory=dict)


def hidden_codes(model: Any, scopes: Scopes, coded: Coded) -> dict[str, str]:
    """Return the ops that write codes where no wrapper reaches, each with the reason."""
    layers, norms = dict(_walk(model)), _batch_norms(model)
    found = {}
    for tensor, op in coded.written.items():
        writer, own = scopes.owner(tensor), scopes.owner(op)
        if not writer or scopes.calls[writer] != 1:
            found[op] = "qat: its codes are written by a function or a layer that is called more than once"
        elif writer == own and op in coded.bare and not (_is_linear(layers[own]) or own in norms):
            found[op] = (
                f"qat: its codes lie in front of the activation inside layer {own!r}: give it an Activation layer of its own"
            )
    return found


def plan(model: Any, scopes: Scopes, candidate: Candidate, coded: Coded, left: Mapping[str, str]) -> QatPlan:
    """Return the places of fake_quant for `candidate`.

    Args:
        model: The caller's Keras model.
        scopes: Of that model.
        candidate: Without the ops of `left`.
        coded: What is codes in its int8 graph.
        left: Ops that cannot be trained, with reasons.
    """
    layers, norms = dict(_walk(model)), _batch_norms(model)
    drafts: dict[str, LayerPlan] = {}
    ends = {scopes.owner(tensor): tensor for tensor in coded.written}
    # What a float op writes gets its codes where it is read.
    loose = {coded.roots[name] for name in coded.entered}
    for name, config in candidate.ops.items():
        layer = scopes.owner(name)
        root = coded.roots[coded.sources[name]]
        drafts[layer] = LayerPlan(
            weights=_weights(layers[layer], config),
            reads=root if root in loose else "",
            batch_norm=norms.get(layer, ""),
        )
    for layer, tensor in ends.items():
        drafts[layer] = replace(drafts.get(layer, LayerPlan()), writes=coded.roots[tensor])
    used = {name for item in drafts.values() for name in (item.reads, item.writes) if name}
    return QatPlan(layers=drafts, tensors={name: coded.grids[name] for name in sorted(used)}, left=dict(left))


def rebuild(model: Any, plan: QatPlan, kind: RangeKind = "ema") -> tuple[Any, dict[str, TensorRange]]:
    """Return a copy of `model` with fake_quant where `plan` says, its weights included, and the ranges by tensor.

    Raises:
        CapabilityError: Keras cannot copy the model.
    """
    ranges = {
        name: TensorRange(bits=grid.bits, sign=grid.sign, kind=kind, name=f"range_{number}")
        for number, (name, grid) in enumerate(plan.tensors.items())
    }

    def clone(layer: Any) -> Any:
        copy = _plain_copy(layer)
        place = plan.layers.get(layer.name)
        if place is None:
            return copy
        return FakeQuant(
            copy,
            weights=place.weights,
            reads=ranges.get(place.reads),
            writes=ranges.get(place.writes),
            name=layer.name,
            trainable=layer.trainable,
        )

    trainee = copied(model, clone)
    found = dict(_walk(trainee))
    for name, place in plan.layers.items():
        if place.batch_norm and any(not grid.per_channel for grid in place.weights):
            found[name].fold_with(_folding(_inner(found[place.batch_norm])))
    return trainee, ranges


def plain(model: Any, trainee: Any) -> Any:
    """Return a copy of `model` without any fake_quant that has the weights of `trainee`."""
    result = copied(model, _plain_copy)
    copy_weights(trainee, result)
    return result


def copied(model: Any, clone: Any) -> Any:
    """Return a copy of `model` with every layer made by `clone`, under the same input names and with the same weights."""
    try:
        with_inputs = keras.tree.map_structure(
            lambda item: keras.Input(batch_shape=item.shape, dtype=item.dtype, name=item.name),
            # A Sequential model that was never called keeps its graph in a functional one.
            (getattr(model, "_functional", None) or model).input,
        )
        result = keras.models.clone_model(model, input_tensors=with_inputs, clone_function=clone)
    except (TypeError, ValueError, NotImplementedError) as error:
        message = f"Keras cannot copy the model layer by layer: {str(error).strip().splitlines()[0]}"
        raise CapabilityError(message) from error
    copy_weights(model, result)
    return result


def copy_weights(source: Any, target: Any) -> None:
    """Set the weights of every layer of `target` to those of the layer of the same name in `source`; wrappers are looked through."""
    layers = {name: _inner(layer) for name, layer in _walk(source)}
    for name, layer in _walk(target):
        inner = _inner(layer)
        if inner.weights and name in layers:
            inner.set_weights(layers[name].get_weights())


def _plain_copy(layer: Any) -> Any:
    return layer.__class__.from_config(layer.get_config())


def _walk(model: Any) -> list[tuple[str, Any]]:
    """Return (name, layer) for every layer that clone_model meets, nested models left out for what they hold."""
    found = []
    for layer in model.layers:
        found.append((layer.name, layer))
        if isinstance(layer, keras.Model):
            found.extend(_walk(layer))
    return found


def _inner(layer: Any) -> Any:
    return layer.layer if isinstance(layer, FakeQuant) else layer


def _is_linear(layer: Any) -> bool:
    return getattr(layer, "activation", None) in (None, keras.activations.linear)


def _weighted(layer: Any) -> bool:
    """Return whether a wrapper reaches the weight, the input and the output of a layer."""
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
    return isinstance(layer, kinds) and not isinstance(layer, keras.layers.Conv2DTranspose)


def _weights(layer: Any, config: OpConfig) -> tuple[WeightGrid, ...]:
    if config.weight is None:
        return ()
    per_channel = config.weight.granularity is Granularity.PER_CHANNEL
    bits = _BITS.get(config.weight.dtype, 8)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        # Shape (rows, columns, channels, multiplier); every (channel, multiplier) is an output channel. Keras 3 calls it kernel.
        return (WeightGrid(variable="kernel", per_channel=per_channel, bits=bits, channel_axes=(-2, -1)),)
    if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
        return (WeightGrid(variable="kernel", per_channel=per_channel, bits=bits),)
    return ()


def _batch_norms(model: Any) -> dict[str, str]:
    """Return layer -> the batch norm that is the only reader of its output."""
    found = {}
    for name, layer in _walk(model):
        readers = [node.operation for node in layer._outbound_nodes]  # noqa: SLF001 - Keras has no public way to the graph
        if _is_linear(layer) and len(readers) == 1 and isinstance(readers[0], keras.layers.BatchNormalization):
            found[name] = readers[0].name
    return found


def _folding(norm: Any) -> Any:
    def factor() -> Any:
        scale = 1.0 if norm.gamma is None else norm.gamma
        return scale * keras.ops.rsqrt(norm.moving_variance + norm.epsilon)

    return factor
