"""The networks of the TensorFlow benchmarks: standard shapes, random weights (speed and size mean something, accuracy does not).

Biases and batch norms are random as well. Keras starts them at zero and one, which TensorFlow's optimizer drops, and without a bias it does not fuse the
activation behind it: the float graph would be slower than that of a trained network.
"""

from __future__ import annotations

import warnings

import numpy as np

from neural_tune_tensorflow.runtime import tf  # noqa: F401 - sets the environment before keras is imported

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras


def resnet50(batch: int = 4):
    """ResNet-50 at 224."""
    return _as_trained(keras.applications.ResNet50(weights=None)), _images(batch, 224)


def mobilenet_v2(batch: int = 8):
    """MobileNetV2 at 224."""
    return _as_trained(keras.applications.MobileNetV2(weights=None)), _images(batch, 224)


def mlp(batch: int = 256):
    """Five layers of 1024."""
    entry = keras.Input((1024,), name="x")
    x = entry
    for _ in range(5):
        x = keras.layers.Dense(1024, activation="relu")(x)
    model = keras.Model(entry, keras.layers.Dense(10)(x), name="mlp")
    return _as_trained(model), _normal(batch, 1024)


def encoder(batch: int = 2, layers: int = 6, width: int = 768, heads: int = 12, length: int = 128):
    """Transformer encoder, base size, six layers, 128 tokens."""
    kit = keras.layers
    entry = keras.Input((length, width), name="x")
    x = entry
    for _ in range(layers):
        attended = kit.MultiHeadAttention(heads, width // heads)(x, x)
        x = kit.LayerNormalization(epsilon=1e-6)(kit.Add()([x, attended]))
        y = kit.Dense(4 * width, activation="gelu")(x)
        x = kit.LayerNormalization(epsilon=1e-6)(kit.Add()([x, kit.Dense(width)(y)]))
    model = keras.Model(entry, kit.Dense(2)(kit.GlobalAveragePooling1D()(x)), name="encoder")
    return _as_trained(model), _normal(batch, length, width)


def _as_trained(model: keras.Model) -> keras.Model:
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(generator.uniform(0.8, 1.2, weight.shape))
        elif weight.name in ("bias", "beta", "moving_mean"):
            weight.assign(generator.normal(0.0, 0.1, weight.shape))
    return model


def _images(batch: int, size: int):
    return _normal(batch, size, size, 3)


def _normal(*shape: int):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


NETWORKS = {"resnet50": resnet50, "mobilenet_v2": mobilenet_v2, "mlp": mlp, "encoder": encoder}
