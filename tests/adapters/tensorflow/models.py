"""Small Keras models and graphs with random weights, and the stock way to run them that the tests compare with."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import Candidate
from neural_tune_tensorflow.adapter import TensorFlowAdapter
from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.model import OnednnModel
from neural_tune_tensorflow.runtime import tf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras

ADAPTER = TensorFlowAdapter()


def graph_of(build: Any, shapes: dict[str, tuple[int | None, ...]], outputs: tuple[str, ...] = ("y",)) -> Any:
    """Return the GraphDef of `build(placeholders)`; the results get the names of `outputs`."""
    graph = tf.Graph()
    with graph.as_default():
        feeds = [tf.compat.v1.placeholder(tf.float32, shape, name=name) for name, shape in shapes.items()]
        results = build(*feeds)
        for name, result in zip(outputs, results if isinstance(results, tuple) else (results,), strict=True):
            tf.identity(result, name=name)
    return graph.as_graph_def()


def run_graph(graph_def: Any, feeds: dict[str, Any], outputs: tuple[str, ...] = ("y",)) -> list[Any]:
    """Run a graph as TensorFlow users do, without any of our passes."""
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    names = [name if ":" in name else f"{name}:0" for name in outputs]
    with tf.compat.v1.Session(graph=graph) as session:
        return list(session.run(names, {f"{name}:0": value for name, value in feeds.items()}))


def hold_of(model: Any, **options: Any) -> OnednnModel:
    """Load a model for the onednn backend."""
    return ADAPTER.load(model, AdapterOptions(**options))


def full(hold: OnednnModel) -> Candidate:
    """Return full int8 in the preferred precision."""
    return TuningSpace.of(ADAPTER.query(hold)).preferred()


def ops_of(graph: Any) -> list[str]:
    """Return the op types of a Graph or GraphDef without constants, in order."""
    nodes = graph if isinstance(graph, Graph) else graph.node
    return [node.op for node in nodes if node.op != "Const"]


def small_cnn() -> Any:
    """Conv, batch norm, relu; depthwise; residual add; pooling; Dense - on 8x8x4 images, wide enough that weights count."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    x = entry = keras.Input((8, 8, 4), name="image")
    x = layers.ReLU()(
        layers.BatchNormalization()(layers.Conv2D(32, 3, padding="same", use_bias=False, name="conv1")(x))
    )
    y = layers.ReLU(max_value=6.0)(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x))
    y = layers.Conv2D(32, 1, name="conv2")(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.MaxPooling2D()(x)
    x = layers.ReLU()(layers.Conv2D(32, 3, name="conv3")(x))
    x = layers.Dense(5, name="head")(layers.Flatten()(x))
    model = keras.Model(entry, x, name="small")
    randomize(model)
    return model


def randomize(model: Any, seed: int = 5) -> None:
    """Give every weight a random value of a sensible size; variances stay positive."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        fan = max(1, int(np.prod(variable.shape[:-1])))
        values = generator.normal(size=variable.shape) * np.sqrt(2.0 / fan) if len(variable.shape) > 1 else None
        if values is None:
            values = (
                generator.uniform(0.5, 1.5, variable.shape)
                if "variance" in variable.path or "gamma" in variable.path
                else generator.normal(size=variable.shape) * 0.2
            )
        variable.assign(values.astype(np.float32))


def export(model: Any, folder: Any) -> None:
    """Let Keras write a SavedModel; what it prints and warns about on the way is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(str(folder), verbose=False)


def save(model: Any, path: Any) -> None:
    """Let Keras write a file, with the deprecations it raises in numpy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
