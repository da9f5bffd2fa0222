"""GPTQ: a column is rounded, and the columns after it are moved so as to undo its error on the inputs that occur.

With H the mean of x x^T over the inputs x of a linear layer (calibrate.py), and U upper triangular with
U^T U = (H + D)^-1, column j of every row w is rounded to q_j, and the error handed on:

    w_k -= (w_j - q_j) / U_jj * U_jk    for k > j

Rows are independent of each other. The scale of a block is chosen when its first column is reached, for the least
squared error weighted by the mean square of each input, the diagonal of H.

The paper's D is a hundredth of the mean diagonal. That trusts every correlation that a few thousand tokens show, and
on other texts it can be worse than plain rounding; D = diag(H) halves all correlations. Error of the outputs of 20
matrices of SmolLM2-135M on a text that was not calibrated on, against plain rounding: 0.43 (geometric mean; worst
0.96); with D = 0.1 diag(H) also 0.43, but 1.5 at worst; with the weighted scales alone 0.66.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323, algorithm 1, eq. 3, section 3.3; the weighting of scales as in llama.cpp's importance matrix.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datong.quantize.rounding import Grid, encode, scales
from datong.quantize.source import F32

SHRINK = 1.0
FLOOR = 1e-4  # of the mean diagonal: inputs that are hardly ever other than 0


def factor(gram: F32) -> F32:
    """U of a gram matrix [n, n], symmetric and positive semi-definite -> [n, n], upper triangular."""
    wide = gram.astype(np.float64)
    diagonal = np.diagonal(wide)
    floor = FLOOR * float(diagonal.mean()) or 1.0  # inputs that are all 0: any code is right
    wide[np.diag_indices(len(wide))] += SHRINK * diagonal + floor
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(wide)).T, np.float32)


def feed_back(rows: F32, gram: F32, upper: F32, grid: Grid) -> tuple[F32, npt.NDArray[np.float16]]:
    """Codes and scales of some rows.

    Args:
        rows:  [r, n], n a multiple of the block.
        gram:  [n, n], H.
        upper: [n, n], `factor` of it.
        grid:  of the format.

    Returns:
        Codes [r, n], whole numbers; scales [r * n / block, 1], row by row.
    """
    size, (count, width) = grid.format.block, rows.shape
    work, codes = (
        np.ascontiguousarray(rows.T),
        np.empty((width, count), np.float32),
    )  # by column: they are taken in turn
    found = np.empty((count, width // size), np.float16)
    weights = np.diagonal(gram)[None]
    for start in range(0, width, size):
        stop = start + size
        block = work[start:stop]
        scale = scales(np.ascontiguousarray(block.T), grid, weights[:, start:stop])
        found[:, start // size] = scale[:, 0]
        errors = np.empty_like(block)
        for j in range(size):
            u = upper[start + j, start:stop]
            codes[start + j] = encode(block[j][:, None], scale, grid)[:, 0]
            errors[j] = (block[j] - codes[start + j] * scale[:, 0].astype(np.float32)) / u[j]
            block[j + 1 :] -= u[j + 1 :, None] * errors[j]
        work[stop:] -= upper[start:stop, stop:].T @ errors
    return np.ascontiguousarray(codes.T), found.reshape(-1, 1)
