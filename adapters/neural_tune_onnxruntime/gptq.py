"""GPTQ: rows of a weight are rounded one after the other, and every row that is left makes up for the error so far.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv:2210.17323. The error is that of the product on
the calibration inputs, |X W - X Q|^2, whose curvature is H = X^T X. Rounding row i moves the rows behind it by -e_i U[i, i+1:] with U the upper
Cholesky factor of the inverse of H. Rows are worked off in blocks, so that the bulk of the updates is one matrix product per block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neural_tune.errors import AdapterError
from neural_tune.values import QuantSpec
from neural_tune_onnxruntime import nbits
from neural_tune_onnxruntime.nbits import Blocks

# Share of the mean of the diagonal that is added to it (the paper's 1 %), raised tenfold while the factorization fails.
DAMPING = (0.01, 0.1, 1.0)
_ROWS = 128


def quantize(weight: NDArray[np.floating], spec: QuantSpec, hessian: NDArray[np.floating]) -> Blocks:
    """Return `weight`, shape (K, N), in the blocks of `spec`, rounded so that errors make up for each other.

    Scale and zero point of a block are taken when its first row is reached, from its rows as they then are.

    Args:
        weight: Shape (K, N).
        spec: Bits, block size and symmetry.
        hessian: Mean (or sum) of x x^T over the inputs x, shape (K, K).

    Raises:
        AdapterError: the inputs hold values that are not finite.
    """
    rows, columns = weight.shape
    bits, size = nbits.bits_of(spec), spec.group_size or 32
    left, factor = _prepare(weight, hessian)
    codes = np.zeros((columns, -(-rows // size) * size), np.uint8)
    scales: list[nbits.Floats] = []
    zeros: list[nbits.Bytes] = []
    step = max(_ROWS, size)
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        errors = np.zeros((end - begin, columns))
        for row in range(begin, end):
            if row % size == 0:
                # Of the rows of this block, those inside the step are up to date; blocks never reach beyond the step.
                block = left[row : min(row + size, rows)].T
                scale, zero = nbits.block_parameters(block, bits, symmetric=spec.symmetric)
                scales.append(scale)
                zeros.append(zero)
            code = nbits.encode(left[row], scales[-1], zeros[-1], bits)
            codes[:, row] = code
            real = (code.astype(np.float64) - zeros[-1]) * scales[-1]
            errors[row - begin] = (left[row] - real) / factor[row, row]
            left[row + 1 : end] -= np.outer(factor[row, row + 1 : end], errors[row - begin])
        left[end:] -= factor[begin:end, end:].T @ errors
    shape = (columns, -1, size)
    return Blocks(codes.reshape(shape), np.stack(scales, 1), np.stack(zeros, 1), bits, rows)


def _prepare(
    weight: NDArray[np.floating], hessian: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weight with rows of dead inputs set to zero, and the upper Cholesky factor of the inverse of the damped Hessian."""
    curvature = np.array(hessian, np.float64)
    if not np.isfinite(curvature).all():
        raise AdapterError(
            "GPTQ: the inputs of a product are not finite on the calibration data; use 'rtn' for this op"
        )
    left = np.array(weight, np.float64)
    diagonal = np.einsum("ii->i", curvature)
    dead = diagonal <= 0.0
    diagonal[dead] = 1.0
    left[dead] = 0.0  # whatever it is multiplied with is zero
    mean = float(diagonal.mean())
    added = 0.0
    for share in DAMPING:
        diagonal += share * mean - added
        added = share * mean
        try:
            lower = np.linalg.cholesky(curvature)
            inverse = np.linalg.inv(lower)
            return left, np.linalg.cholesky(inverse.T @ inverse).T
        except np.linalg.LinAlgError:
            continue
    raise AdapterError(
        "GPTQ: the curvature of a product cannot be factorized even with full damping; use 'rtn' for this op"
    )
