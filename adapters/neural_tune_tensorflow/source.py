"""Whatever the caller calls a model, as one frozen graph: no variables, no functions to trace any more, named inputs and outputs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune_tensorflow.backend import Port
from neural_tune_tensorflow.runtime import GraphDef, tf

DEFAULT_SIGNATURE = "serving_default"
_RUNTIME_ERRORS = (ValueError, TypeError, KeyError, OSError, RuntimeError, AttributeError, tf.errors.OpError)
# Parts of a graph that are not a model's result, though nobody reads them.
_NO_RESULT = frozenset({"Const", "NoOp", "Assert", "Placeholder", "PlaceholderWithDefault"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FloatGraph:
    """The caller's float model, frozen.

    Attributes:
        graph_def: A GraphDef in which every weight is a constant.
        inputs: What it takes; `tensor` is a tensor of the graph such as "x:0".
        outputs: What it gives.
        structure: "single", "list" or "dict": how the caller's model hands out its outputs.
        signature: Name of the signature to save it under.
        form: "saved_model" or "pb": how to save a candidate of it.
        keras: The caller's own Keras model, which is never changed; None for anything else.
        notes: What a person should know.
    """

    graph_def: Any = field(repr=False)
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    structure: str = "single"
    signature: str = DEFAULT_SIGNATURE
    form: str = "saved_model"
    keras: Any = field(default=None, repr=False)
    notes: tuple[str, ...] = ()


def read(model: object, options: AdapterOptions) -> FloatGraph:
    """Return `model` as a frozen graph; the caller's object or file is only read.

    Raises:
        AdapterError: it cannot be read or traced.
        CapabilityError: it is nothing this adapter knows, or names of inputs, outputs or signatures do not exist.
    """
    try:
        with _quiet():
            return _read(model, options)
    except _RUNTIME_ERRORS as error:
        message = f"the model cannot be read: {type(error).__name__}: {first_line(error)}"
        raise AdapterError(message) from error


def first_line(error: BaseException) -> str:
    """Return what matters of a TensorFlow message: its first line."""
    text = getattr(error, "message", None) or str(error)
    return str(text).strip().split("\n", 1)[0][:400]


def is_keras(model: object) -> bool:
    """Return whether `model` is a Keras 3 model or layer."""
    return any(
        kind.__module__.split(".")[0] == "keras" and kind.__qualname__ == "Layer" for kind in type(model).__mro__
    )


def from_keras(model: Any) -> FloatGraph:
    """Return a Keras 3 model as a frozen graph, traced for inference."""
    specs, pack = _keras_inputs(model)
    names: list[str] = []
    shape: list[str] = []

    def call(*args: Any) -> Any:
        results = model(pack(args), training=False)
        names[:], shape[:] = _output_names(results, getattr(model, "output_names", None))
        return tf.nest.flatten(results)

    concrete = tf.function(call, autograph=False).get_concrete_function(*specs)
    frozen = _frozen(concrete)
    inputs = tuple(_port(spec.name, tensor) for spec, tensor in zip(specs, frozen.inputs, strict=True))
    outputs = tuple(_port(name, tensor) for name, tensor in zip(names, frozen.outputs, strict=True))
    return FloatGraph(
        graph_def=frozen.graph.as_graph_def(), inputs=inputs, outputs=outputs, structure=shape[0], keras=model
    )


def write_saved_model(graph: FloatGraph, folder: Path) -> Path:
    """Write `graph` as a SavedModel with its signature below `folder`, and return the folder."""
    from neural_tune_tensorflow import save  # noqa: PLC0415 - save knows the source's values

    content = save.saved_model(graph.graph_def, graph.inputs, graph.outputs, graph.signature, graph.structure)
    return save.write_saved_model(content, folder)


def _read(model: object, options: AdapterOptions) -> FloatGraph:
    if isinstance(model, str | Path):
        return _from_path(Path(model), options)
    if is_keras(model):
        return _select(from_keras(model), options)
    if isinstance(model, GraphDef):
        return _from_graph_def(model, options)
    if hasattr(model, "get_concrete_function"):
        return _select(_from_concrete(_only_concrete(model), DEFAULT_SIGNATURE), options)
    if hasattr(model, "structured_input_signature"):
        return _select(_from_concrete(model, DEFAULT_SIGNATURE), options)
    if hasattr(model, "signatures"):
        return _select(_from_signatures(model, options), options)
    message = (
        f"found a {type(model).__name__}, expected a Keras 3 model, a SavedModel folder, a .keras, .h5 or .pb file, "
        "a tf.function or a ConcreteFunction"
    )
    raise CapabilityError(message)


def _from_path(path: Path, options: AdapterOptions) -> FloatGraph:
    if path.is_dir():
        loaded = tf.saved_model.load(str(path))
        return _select(_from_signatures(loaded, options), options)
    if not path.is_file():
        message = f"found no file or folder {str(path)!r}"
        raise AdapterError(message)
    suffix = path.suffix.lower()
    if suffix in (".keras", ".h5"):
        import keras  # noqa: PLC0415 - seconds, and only this kind of file needs it

        # Safe mode: a model file is data, and must not run code of its own (Lambda layers).
        return _select(from_keras(keras.models.load_model(path, compile=False, safe_mode=True)), options)
    if suffix == ".pb":
        graph_def = GraphDef()
        try:
            graph_def.ParseFromString(path.read_bytes())
        except Exception as error:
            message = f"{str(path)!r} is no frozen GraphDef: {first_line(error)}"
            raise AdapterError(message) from error
        return _from_graph_def(graph_def, options)
    message = f"found {str(path)!r}, expected a SavedModel folder, a .keras, .h5 or .pb file"
    raise CapabilityError(message)


def _from_graph_def(graph_def: Any, options: AdapterOptions) -> FloatGraph:
    variables = [node.name for node in graph_def.node if node.op in ("VariableV2", "Variable", "VarHandleOp")]
    if variables:
        message = f"the graph holds variables ({', '.join(variables[:3])}): freeze it first, or pass the SavedModel"
        raise AdapterError(message)
    inputs = options.inputs or tuple(
        node.name for node in graph_def.node if node.op in ("Placeholder", "PlaceholderWithDefault")
    )
    outputs = options.outputs or sinks(graph_def)
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")

    def port(name: str) -> Port:
        try:
            tensor = graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
        except (KeyError, ValueError) as error:
            message = f"the graph has no tensor {name!r}"
            raise CapabilityError(message) from error
        return _port(name.removesuffix(":0"), tensor)

    return FloatGraph(
        graph_def=graph_def,
        inputs=tuple(port(name) for name in inputs),
        outputs=tuple(port(name) for name in outputs),
        structure="single" if len(outputs) == 1 else "dict",
        form="pb",
    )


def sinks(graph_def: Any) -> tuple[str, ...]:
    """Return the nodes of a graph that nobody reads: its results, in the order in which they are written."""
    read_somewhere = {name.lstrip("^").split(":")[0] for node in graph_def.node for name in node.input}
    return tuple(node.name for node in graph_def.node if node.name not in read_somewhere and node.op not in _NO_RESULT)


def _from_signatures(loaded: Any, options: AdapterOptions) -> FloatGraph:
    known = dict(getattr(loaded, "signatures", {}))
    wanted = str(options.extra.get("signature", "")) or (
        DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in known or len(known) != 1 else next(iter(known))
    )
    if wanted not in known:
        message = f"signature {wanted!r}: the SavedModel has {', '.join(sorted(known)) or 'none'}; name one with options={{'signature': ...}}"
        raise CapabilityError(message)
    return _from_concrete(known[wanted], wanted)


def _only_concrete(function: Any) -> Any:
    if function.input_signature is not None:
        return function.get_concrete_function()
    traced = function._list_all_concrete_functions()  # noqa: SLF001 - tensorflow has no public way to ask
    if len(traced) != 1:
        message = (
            f"a tf.function with {len(traced)} traces and no input_signature: pass "
            "function.get_concrete_function(tf.TensorSpec(...)) to say which one is meant"
        )
        raise CapabilityError(message)
    return traced[0]


def _from_concrete(concrete: Any, signature: str) -> FloatGraph:
    frozen = _frozen(concrete)
    args, kwargs = concrete.structured_input_signature
    specs = [spec for spec in tf.nest.flatten((args, kwargs)) if isinstance(spec, tf.TensorSpec)]
    tensors = list(frozen.inputs)
    if len(specs) != len(tensors):
        message = f"the function takes {len(tensors)} tensors, but its signature names {len(specs)}"
        raise AdapterError(message)
    # Keyword arguments of a signature are flattened in the order of their names, as the graph's inputs are.
    names = [spec.name or tensor.op.name for spec, tensor in zip(specs, tensors, strict=True)]
    results = concrete.structured_outputs
    labels, kind = _output_names(results, None)
    return FloatGraph(
        graph_def=frozen.graph.as_graph_def(),
        inputs=tuple(_port(name, tensor) for name, tensor in zip(names, tensors, strict=True)),
        outputs=tuple(_port(name, tensor) for name, tensor in zip(labels, frozen.outputs, strict=True)),
        # A signature always answers with a dictionary; whoever has one output means that output.
        structure="single" if len(labels) == 1 else kind[0],
        signature=signature,
    )


def _frozen(concrete: Any) -> Any:
    from tensorflow.python.framework.convert_to_constants import (  # noqa: PLC0415 - has no public name
        convert_variables_to_constants_v2,
    )

    return convert_variables_to_constants_v2(concrete, lower_control_flow=False)


def _select(graph: FloatGraph, options: AdapterOptions) -> FloatGraph:
    """Hold the user's choice of inputs and outputs to what there is; outputs may be left out, inputs may not."""
    names = [port.name for port in graph.inputs]
    if options.inputs and set(options.inputs) != set(names):
        message = f"inputs: found {list(options.inputs)}, but the model needs exactly {names}"
        raise CapabilityError(message)
    if not options.outputs:
        return graph
    known = {port.name: port for port in graph.outputs}
    missing = [name for name in options.outputs if name not in known]
    if missing:
        message = f"outputs: the model has no {', '.join(missing)}; it has {', '.join(known)}"
        raise CapabilityError(message)
    outputs = tuple(known[name] for name in options.outputs)
    structure = "single" if len(outputs) == 1 and graph.structure != "dict" else graph.structure
    return FloatGraph(
        graph_def=graph.graph_def,
        inputs=graph.inputs,
        outputs=outputs,
        structure=structure,
        signature=graph.signature,
        form=graph.form,
        keras=graph.keras,
    )


def _keras_inputs(model: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """Return the specs of a Keras model's inputs and a function that packs tensors as the model takes them."""
    tensors = getattr(model, "inputs", None)
    if tensors:
        struct = getattr(model, "_inputs_struct", None)
        specs = [tf.TensorSpec(item.shape, item.dtype, name=item.name) for item in tensors]
        if isinstance(struct, dict):
            # The names by which users feed a dictionary are its keys.
            keys = {id(value): str(key) for key, value in struct.items()}
            specs = [tf.TensorSpec(item.shape, item.dtype, name=keys.get(id(item), item.name)) for item in tensors]
            return specs, lambda args: {spec.name: value for spec, value in zip(specs, args, strict=True)}
        return specs, lambda args: args[0] if len(args) == 1 else list(args)
    from keras.src.export.export_utils import get_input_signature  # noqa: PLC0415 - subclassed models have no other way

    signature = get_input_signature(model)
    if not signature:
        raise AdapterError("the Keras model was never called, so its inputs are unknown: call it once on a batch")
    flat = tf.nest.flatten(signature)
    specs = [
        tf.TensorSpec(item.shape, item.dtype, name=item.name or f"input_{number}") for number, item in enumerate(flat)
    ]
    packed = signature[0] if isinstance(signature, list | tuple) and len(signature) == 1 else signature
    return specs, lambda args: tf.nest.pack_sequence_as(packed, list(args))


def _output_names(results: Any, known: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return a name for every output and, in a list, how they are handed out."""
    if isinstance(results, dict):
        return [str(key) for key in sorted(results)], ["dict"]
    if isinstance(results, list | tuple):
        flat = tf.nest.flatten(results)
        names = list(known) if known is not None and len(set(known)) == len(flat) else []
        return names or [f"output_{number}" for number in range(len(flat))], ["list"]
    return [known[0] if known else "output_0"], ["single"]


def _port(name: str, tensor: Any) -> Port:
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return Port(name=name, tensor=tensor.name, dtype=np.dtype(tensor.dtype.as_numpy_dtype), shape=shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the warnings that tracing and loading raise inside tensorflow and keras out of the caller's log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
