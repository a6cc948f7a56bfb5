"""fake_quant in a Keras 3 model: a wrapper around one layer, and the range of one tensor that wrappers share.

The grids are those of the int8 kernels. Unsigned: codes 0..2^b-1, scale = high / (2^b - 1). Signed: codes -(2^(b-1)-1)..2^(b-1)-1,
scale = max|x| / (2^(b-1) - 1), zero is code 0. Gradients pass straight through inside the range and are cut outside (Jacob et al. 2018,
arXiv:1712.05877; Bengio et al. 2013, arXiv:1308.3432).

Two ways to a range: `ema`, the moving average of what a batch shows, and `learned`, where the bound is a weight that the optimizer moves (the
kernel of fake_quant has a gradient for it; Jain et al. 2020, arXiv:1903.08066).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neural_tune_tensorflow.runtime import tf  # isort: skip - tensorflow has to come up before keras
import keras

RangeKind = Literal["ema", "learned"]
Sign = Literal["signed", "unsigned", "auto"]
MOMENTUM = 0.95
_PACKAGE = "neural_tune"
# A tensor (or channel) of zeros still needs a scale.
_SMALLEST = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The codes of one tensor.

    Attributes:
        bits: 2 to 8.
        sign: "signed" codes are symmetric around zero, "unsigned" ones start at zero; "auto" is unsigned until a negative value is seen.
    """

    bits: int = 8
    sign: Sign = "unsigned"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGrid:
    """The codes of a weight: always signed and symmetric.

    Attributes:
        variable: Attribute of the layer that holds it, such as "kernel".
        per_channel: One scale per output channel, or one for all.
        bits: 2 to 8.
        channel_axes: Axes of the variable that make up the output channels.
    """

    variable: str
    per_channel: bool = True
    bits: int = 8
    channel_axes: tuple[int, ...] = (-1,)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class TensorRange(keras.layers.Layer):
    """fake_quant of one activation tensor; every layer that reads or writes the tensor shares it."""

    def __init__(
        self,
        bits: int = 8,
        sign: Sign = "unsigned",
        kind: RangeKind = "ema",
        momentum: float = MOMENTUM,
        **options: Any,
    ) -> None:
        """Make a range that has seen nothing yet.

        Args:
            bits: Bits of a code.
            sign: As in `Grid`.
            kind: "ema" or "learned".
            momentum: Share of the old range that an update keeps.
            options: Keras's own.
        """
        super().__init__(**options)
        self.grid = Grid(bits=bits, sign=sign)
        self.kind = kind
        self.momentum = momentum
        # `high` is the largest value that has a code; of `low` only the sign matters, and only where the grid is "auto".
        self.low = self.add_weight(shape=(), initializer="zeros", trainable=False, name="low")
        self.high = self.add_weight(shape=(), initializer="zeros", trainable=kind == "learned", name="high")
        self.batches = self.add_weight(shape=(), initializer="zeros", trainable=False, name="batches")
        # The tf kernels of fake_quant are meant here; XLA on the CPU is an order of magnitude slower on convolutions besides.
        self.supports_jit = False
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Return `inputs` on the grid; while training the range follows them first. Unseen ranges pass them as they are."""
        if training:
            self._follow(inputs)
        values = tf.convert_to_tensor(inputs)
        return tf.cond(self.batches > 0, lambda: self._on_grid(values), lambda: values)

    def set_range(self, low: float, high: float) -> None:
        """Start from (or stay at) a known range, such as that of a calibration."""
        negative = min(low, 0.0)
        is_signed = self.grid.sign == "signed" or (self.grid.sign == "auto" and negative < 0.0)
        self.low.assign(negative)
        self.high.assign(max(high, -negative) if is_signed else max(high, 0.0))
        self.batches.assign(1.0)

    def bounds(self) -> tuple[float, float] | None:
        """Return the (low, high) of the grid: low is -high for signed codes and 0 for unsigned ones; None when it has seen nothing."""
        if float(self.batches) == 0.0:
            return None
        high = float(self._bound())
        return (-high, high) if bool(self._is_signed()) else (0.0, high)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        own = {"bits": self.grid.bits, "sign": self.grid.sign, "kind": self.kind, "momentum": self.momentum}
        return {**super().get_config(), **own}

    def _is_signed(self) -> Any:
        return self.low < 0.0 if self.grid.sign == "auto" else tf.constant(self.grid.sign == "signed")

    def _bound(self) -> Any:
        return tf.maximum(tf.convert_to_tensor(self.high), _SMALLEST)

    def _on_grid(self, values: Any) -> Any:
        def signed() -> Any:
            bound, bits = self._bound(), self.grid.bits
            return tf.quantization.fake_quant_with_min_max_vars(values, -bound, bound, num_bits=bits, narrow_range=True)

        def unsigned() -> Any:
            bound, bits = self._bound(), self.grid.bits
            return tf.quantization.fake_quant_with_min_max_vars(values, tf.zeros_like(bound), bound, num_bits=bits)

        if self.grid.sign == "auto":
            return tf.cond(self._is_signed(), signed, unsigned)
        return signed() if self.grid.sign == "signed" else unsigned()

    def _follow(self, values: Any) -> None:
        values = tf.stop_gradient(tf.convert_to_tensor(values))
        # The first batch sets the range; a learned one is the optimizer's from there on.
        later = 1.0 if self.kind == "learned" else self.momentum
        keep = tf.where(self.batches == 0, 0.0, later)
        self.low.assign(keep * self.low + (1.0 - keep) * tf.minimum(tf.reduce_min(values), 0.0))
        largest = tf.where(self._is_signed(), tf.reduce_max(tf.abs(values)), tf.maximum(tf.reduce_max(values), 0.0))
        self.high.assign(keep * self.high + (1.0 - keep) * largest)
        self.batches.assign(self.batches + 1.0)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class FakeQuant(keras.layers.Wrapper):
    """One layer with fake_quant on its weights, on what it reads and on what it writes; the layer itself stays as it is."""

    def __init__(
        self,
        layer: Any,
        weights: tuple[WeightGrid, ...] | list[Mapping[str, Any]] = (),
        reads: TensorRange | None = None,
        writes: TensorRange | None = None,
        **options: Any,
    ) -> None:
        """Wrap `layer`.

        Args:
            layer: A Keras layer.
            weights: The weights that get codes.
            reads: Range of its (only) input; None leaves it as it comes.
            writes: Range of its output; None leaves it as it is.
            options: Keras's own.
        """
        super().__init__(_revived(layer), **options)
        self.grids = tuple(item if isinstance(item, WeightGrid) else _grid(item) for item in weights)
        self.reads = _revived(reads)
        self.writes = _revived(writes)
        self.supports_jit = False
        # Set after cloning: per output channel, the factor by which batch norm scales the weight when it is folded.
        self._fold: Callable[[], Any] | None = None

    def fold_with(self, factor: Callable[[], Any]) -> None:
        """Take the grid of weight times `factor()` (one per output channel), which is what batch norm leaves when it is folded."""
        self._fold = factor

    def call(self, inputs: Any, training: bool = False, **others: Any) -> Any:
        """Return the layer's output, computed from values on their grids."""
        if self.reads is not None:
            inputs = self.reads(inputs, training=training)
        if getattr(self.layer, "_call_has_training_arg", False):
            others["training"] = training
        # Within the scope the layer sees the values on the grid where it has variables; gradients reach the variables behind them.
        mapping = [(variable, self._on_grid(variable, grid)) for grid, variable in self._quantized()]
        if mapping:
            with keras.StatelessScope(state_mapping=mapping):
                outputs = self.layer(inputs, **others)
        else:
            outputs = self.layer(inputs, **others)
        return outputs if self.writes is None else self.writes(outputs, training=training)

    def compute_output_spec(self, *inputs: Any, **named: Any) -> Any:
        """Return shape and type of what the layer gives."""
        if not getattr(self.layer, "_call_has_training_arg", False):
            named.pop("training", None)
        return self.layer.compute_output_spec(*inputs, **named)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        words = [
            {
                "variable": grid.variable,
                "per_channel": grid.per_channel,
                "bits": grid.bits,
                "channel_axes": list(grid.channel_axes),
            }
            for grid in self.grids
        ]
        ends = {
            name: None if item is None else keras.saving.serialize_keras_object(item)
            for name, item in (("reads", self.reads), ("writes", self.writes))
        }
        return {**super().get_config(), "weights": words, **ends}

    def _quantized(self) -> list[tuple[WeightGrid, Any]]:
        return [(grid, _variable(self.layer, grid.variable)) for grid in self.grids]

    def _on_grid(self, variable: Any, grid: WeightGrid) -> Any:
        values = tf.convert_to_tensor(variable)
        if grid.per_channel or self._fold is None:
            return on_weight_grid(values, grid)
        # One scale for all channels: batch norm changes their sizes, so the grid is that of the folded weight.
        factor = _along_channels(tf.stop_gradient(tf.convert_to_tensor(self._fold())), values.shape, grid.channel_axes)
        factor = tf.where(tf.abs(factor) < _SMALLEST, _SMALLEST, factor)
        return on_weight_grid(values * factor, grid) / factor


def on_weight_grid(values: Any, grid: WeightGrid) -> Any:
    """Return a weight on its signed symmetric grid, per output channel or as a whole; gradients pass straight through."""
    if not grid.per_channel:
        bound = tf.maximum(tf.reduce_max(tf.abs(tf.stop_gradient(values))), _SMALLEST)
        return tf.quantization.fake_quant_with_min_max_vars(
            values, -bound, bound, num_bits=grid.bits, narrow_range=True
        )
    # The kernel wants channels as the last axis.
    rank = len(values.shape)
    axes = [axis % rank for axis in grid.channel_axes]
    order = [axis for axis in range(rank) if axis not in axes] + axes
    moved = tf.transpose(values, order)
    flat = tf.reshape(moved, [-1, _product(values.shape, axes)])
    bound = tf.maximum(tf.reduce_max(tf.abs(tf.stop_gradient(flat)), axis=0), _SMALLEST)
    codes = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        flat, -bound, bound, num_bits=grid.bits, narrow_range=True
    )
    back = [order.index(axis) for axis in range(rank)]
    return tf.transpose(tf.reshape(codes, tf.shape(moved)), back)


def _along_channels(factor: Any, shape: Any, axes: tuple[int, ...]) -> Any:
    rank = len(shape)
    positive = [axis % rank for axis in axes]
    return tf.reshape(factor, [int(shape[axis]) if axis in positive else 1 for axis in range(rank)])


def _product(shape: Any, axes: list[int]) -> int:
    total = 1
    for axis in axes:
        total *= int(shape[axis])
    return total


def _variable(layer: Any, name: str) -> Any:
    """Return the variable behind an attribute; `Dense.kernel` is a property that may add to it."""
    return getattr(layer, f"_{name}", None) if hasattr(layer, f"_{name}") else getattr(layer, name)


def _grid(words: Mapping[str, Any]) -> WeightGrid:
    return WeightGrid(
        variable=words["variable"],
        per_channel=words["per_channel"],
        bits=words["bits"],
        channel_axes=tuple(words["channel_axes"]),
    )


def _revived(item: Any) -> Any:
    return keras.saving.deserialize_keras_object(item) if isinstance(item, Mapping) else item
