"""Weights in blocks of 4 or 8 bits, in the layout of the runtime's MatMulNBits: codes, scales and zero points per column and block of rows.

Round to nearest takes the same scales, zero points and codes as the runtime's own tool (`MatMulNBitsQuantizer`, its default algorithm), bit for bit. The
search for a clipping ratio per block follows the idea of the weight clipping of AWQ (Lin et al. 2023, arXiv:2306.00978, section 3.2 and its code):
a smaller range cuts off the largest weights and rounds all others finer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from neural_tune.errors import CapabilityError
from neural_tune.values import DType, QuantSpec

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]

BITS = {DType.INT4: 4, DType.UINT4: 4, DType.INT8: 8, DType.UINT8: 8}
# Shares of the range that clipping tries besides the whole of it.
RATIOS = tuple(1.0 - 0.05 * step for step in range(1, 10))
# Columns whose clipping ratios are searched together: bounds the memory of the search.
_COLUMNS = 256
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """A weight of K rows (inputs) and N columns (outputs) in blocks.

    Attributes:
        codes: uint8, shape (N, K / block rounded up, block); rows behind K hold code 0.
        scale: float32, shape (N, blocks per column).
        zero: uint8, shaped as `scale`.
        bits: 4 or 8.
        rows: K.
    """

    codes: Bytes
    scale: Floats
    zero: Bytes
    bits: int
    rows: int

    def packed(self) -> Bytes:
        """Return the codes as MatMulNBits reads them, shape (N, blocks, block * bits / 8); of two 4-bit codes the first is the low half."""
        return _pack(self.codes, self.bits)

    def packed_zero(self) -> Bytes:
        """Return the zero points as MatMulNBits reads them, shape (N, blocks * bits / 8 rounded up)."""
        return _pack(self.zero, self.bits, 1 << (self.bits - 1))

    def values(self) -> Floats:
        """Return the real values, shape (K, N)."""
        real = (self.codes.astype(np.float32) - self.zero.astype(np.float32)[..., None]) * self.scale[..., None]
        return np.ascontiguousarray(real.reshape(real.shape[0], -1)[:, : self.rows].T)


def bits_of(spec: QuantSpec) -> int:
    """Return the bits of a code.

    Raises:
        CapabilityError: MatMulNBits has no such number format.
    """
    if spec.dtype not in BITS:
        message = f"dtype {spec.dtype.value}: blocks of weights are int4, uint4, int8 or uint8"
        raise CapabilityError(message)
    return BITS[spec.dtype]


def block_parameters(blocks: NDArray[np.floating], bits: int, *, symmetric: bool) -> tuple[Floats, Bytes]:
    """Return scales and zero points of blocks of weights.

    Symmetric: the value that is largest in magnitude gets the lowest code, so that its sign decides the sign of the scale and no code is
    wasted. Asymmetric: from the smallest to the largest value, zero included.

    Args:
        blocks: Shape (..., block).
        bits: 4 or 8.
        symmetric: Whether zero has the code in the middle.
    """
    low, high = blocks.min(-1).astype(np.float32), blocks.max(-1).astype(np.float32)
    middle, last = 1 << (bits - 1), (1 << bits) - 1
    if symmetric:
        extreme = np.where(np.abs(high) > np.abs(low), high, low)
        scale = _normal(extreme / np.float32(-middle))
        return scale, np.full(scale.shape, middle, np.uint8)
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    scale = _normal((high - low) / np.float32(last))
    zero = np.divide(-low, scale, out=np.zeros_like(scale), where=scale != 0)
    return scale, np.clip(_rounded(zero), 0, last).astype(np.uint8)


def encode(values: NDArray[np.floating], scale: Floats, zero: Bytes, bits: int) -> Bytes:
    """Return the codes of `values`; scale and zero point are broadcast against them. Halves are rounded away from zero."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes = _rounded(values.astype(np.float32) * inverse + zero.astype(np.float32))
    return np.clip(codes, 0, (1 << bits) - 1).astype(np.uint8)


def round_to_nearest(weight: NDArray[np.floating], spec: QuantSpec) -> Blocks:
    """Return `weight`, shape (K, N), in the blocks of `spec`."""
    bits, size = bits_of(spec), spec.group_size or 32
    blocks = _blocked(weight, size)
    scale, zero = block_parameters(blocks, bits, symmetric=spec.symmetric)
    codes = encode(blocks, scale[..., None], zero[..., None], bits)
    return Blocks(_without_padding(codes, weight.shape[0]), scale, zero, bits, weight.shape[0])


def clipped(weight: NDArray[np.floating], spec: QuantSpec, hessian: NDArray[np.floating] | None = None) -> Blocks:
    """Return `weight` in blocks whose range is cut where that lowers the error of the product.

    Args:
        weight: Shape (K, N).
        spec: Bits, block size and symmetry.
        hessian: Mean of x x^T over the inputs x, shape (K, K): the error of a block is then that of its part of the output. Without it all
            inputs count the same.
    """
    bits, size = bits_of(spec), spec.group_size or 32
    rows, columns = weight.shape
    count = -(-rows // size)
    parts = np.zeros((count, size, size), np.float32)
    for block in range(count):
        begin, end = block * size, min(rows, (block + 1) * size)
        part = np.eye(end - begin) if hessian is None else hessian[begin:end, begin:end]
        parts[block, : end - begin, : end - begin] = part
    chosen = [
        _clip(_blocked(weight[:, begin : begin + _COLUMNS], size), parts, bits, symmetric=spec.symmetric)
        for begin in range(0, columns, _COLUMNS)
    ]
    codes, scale, zero = (np.concatenate(item) for item in zip(*chosen, strict=True))
    return Blocks(_without_padding(codes, rows), scale, zero, bits, rows)


def _clip(blocks: Floats, parts: Floats, bits: int, *, symmetric: bool) -> tuple[Bytes, Floats, Bytes]:
    """Return codes, scales and zero points with the ratio of least error, per block."""
    scale, zero = block_parameters(blocks, bits, symmetric=symmetric)
    codes = encode(blocks, scale[..., None], zero[..., None], bits)
    least = _errors(blocks, codes, scale, zero, parts)
    for ratio in RATIOS:
        narrow, shifted = block_parameters(blocks * np.float32(ratio), bits, symmetric=symmetric)
        tried = encode(blocks, narrow[..., None], shifted[..., None], bits)
        error = _errors(blocks, tried, narrow, shifted, parts)
        better = error < least
        least[better], codes[better] = error[better], tried[better]
        scale[better], zero[better] = narrow[better], shifted[better]
    return codes, scale, zero


def _errors(blocks: Floats, codes: Bytes, scale: Floats, zero: Bytes, parts: Floats) -> Floats:
    """Return, per block, the error e of its weights as e^T H e."""
    off = (codes.astype(np.float32) - zero[..., None].astype(np.float32)) * scale[..., None] - blocks
    found: Floats = np.einsum("nbi,bij,nbj->nb", off, parts, off, optimize=True)
    return found


def _blocked(weight: NDArray[np.floating], size: int) -> Floats:
    """Return (K, N) as float32 (N, blocks, size), filled up with zeros."""
    rows, columns = weight.shape
    count = -(-rows // size)
    filled = np.zeros((columns, count * size), np.float32)
    filled[:, :rows] = weight.T
    return filled.reshape(columns, count, size)


def _without_padding(codes: Bytes, rows: int) -> Bytes:
    """Set the codes of rows that do not exist to 0, as the runtime's tool leaves them."""
    flat = codes.reshape(codes.shape[0], -1)
    flat[:, rows:] = 0
    return flat.reshape(codes.shape)


def _normal(scale: NDArray[np.floating]) -> Floats:
    """Return scales whose inverse is finite: the weights of a unit that decayed to nothing (below 1e-38) become zero, not infinity times zero."""
    return np.where(np.abs(scale) < _TINY, np.float32(0), scale).astype(np.float32)


def _rounded(values: Floats) -> Floats:
    """Return `values` rounded to whole numbers; halves away from zero, as C does."""
    return np.trunc(values + np.copysign(np.float32(0.5), values))


def _pack(codes: Bytes, bits: int, filler: int = 0) -> Bytes:
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.full((*codes.shape[:-1], 1), filler, np.uint8)], axis=-1)
    return np.ascontiguousarray(codes[..., ::2] | codes[..., 1::2] << 4)
