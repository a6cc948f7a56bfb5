"""The networks of the TensorFlow benchmarks: standard shapes, random weights (speed and size mean something, accuracy does not)."""

from __future__ import annotations

import warnings

import numpy as np

from neural_tune_tensorflow.runtime import tf  # noqa: F401 - sets the environment before keras is imported

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras


def resnet50():
    """ResNet-50 at 224, batch 4."""
    return keras.applications.ResNet50(weights=None), images(4, 224)


def mobilenet_v2():
    """MobileNetV2 at 224, batch 8."""
    return keras.applications.MobileNetV2(weights=None), images(8, 224)


def mlp():
    """Five layers of 1024, batch 256."""
    entry = keras.Input((1024,), name="x")
    x = entry
    for _ in range(5):
        x = keras.layers.Dense(1024, activation="relu")(x)
    model = keras.Model(entry, keras.layers.Dense(10)(x), name="mlp")
    return model, np.random.default_rng(0).normal(size=(256, 1024)).astype(np.float32)


def encoder(layers: int = 6, width: int = 768, heads: int = 12, length: int = 128, batch: int = 2):
    """Transformer encoder, base size, six layers, batch 2, 128 tokens."""
    kit = keras.layers
    entry = keras.Input((length, width), name="x")
    x = entry
    for _ in range(layers):
        attended = kit.MultiHeadAttention(heads, width // heads)(x, x)
        x = kit.LayerNormalization(epsilon=1e-6)(kit.Add()([x, attended]))
        y = kit.Dense(4 * width, activation="gelu")(x)
        x = kit.LayerNormalization(epsilon=1e-6)(kit.Add()([x, kit.Dense(width)(y)]))
    model = keras.Model(entry, kit.Dense(2)(kit.GlobalAveragePooling1D()(x)), name="encoder")
    return model, np.random.default_rng(0).normal(size=(batch, length, width)).astype(np.float32)


def images(batch: int, size: int):
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


NETWORKS = {"resnet50": resnet50, "mobilenet_v2": mobilenet_v2, "mlp": mlp, "encoder": encoder}
