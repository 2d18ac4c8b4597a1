"""Statistics of many small tensors at once: one row each, a dozen operations for all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.summarise.precision import CANCELLATION, accumulator, on_host, out_of_range


def moments_of_rows(matrix: Tensor) -> Tensor:
    """Return mean, std, rms, min, max, share of zeros and count of non-finite entries of each row.

    matrix: (rows, entries), float32 or float64, at least one entry. Returns (7, rows), float64; a row with
    non-finite entries has NaN in all but the last.
    """
    entries = matrix.shape[1]
    low, high = matrix.amin(1), matrix.amax(1)
    mean = matrix.sum(1, dtype=accumulator(matrix)).double() / entries
    absmax = torch.maximum(low.neg(), high)
    square = _mean_square(matrix, absmax)
    variance = (square - mean.square()).clamp_(min=0.0)
    if on_host(matrix):
        variance = _repair_cancellation(matrix, mean, square, variance)
    statistics = [mean, variance.sqrt_(), square.sqrt_(), low.double(), high.double()]
    return _with_counts(matrix, absmax, statistics)


def magnitudes_of_rows(matrix: Tensor) -> Tensor:
    """Return rms, largest magnitude, share of zeros and count of non-finite entries of rows: (4, rows)."""
    absmax = torch.maximum(matrix.amin(1).neg(), matrix.amax(1))
    rms = _mean_square(matrix, absmax).sqrt_()
    return _with_counts(matrix, absmax, [rms, absmax.double()])


def norms_of_rows(matrix: Tensor) -> Tensor:
    """Return the Euclidean norm of each row: (rows,), float64; NaN or infinite where entries are."""
    norm: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=accumulator(matrix)).double()
    if on_host(matrix) and matrix.dtype != torch.float64:
        doubtful = (~(norm > 1e-15)) | ~(norm < 1e18)
        if doubtful.any():
            norm[doubtful] = torch.linalg.vector_norm(matrix[doubtful].double(), dim=1)
    return norm


def count_between(matrix: Tensor, low: float, high: float) -> Tensor:
    """Return the share of each row's entries that lie strictly between two limits: (rows,), float64."""
    inside: Tensor = torch.gt(matrix, low, out=torch.empty_like(matrix))
    inside.mul_(torch.lt(matrix, high, out=torch.empty_like(matrix)))
    return inside.sum(1).double().div_(matrix.shape[1])


def live_units(stack: Tensor, unit_axis: int) -> Tensor:
    """Return which units are above zero anywhere: (rows, units), bool.

    stack: (rows, *shape of an output); unit_axis: the axis of that shape which counts units.
    """
    others = [axis + 1 for axis in range(stack.dim() - 1) if axis != unit_axis]
    return (stack.amax(others) if others else stack) > 0


def _mean_square(matrix: Tensor, absmax: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=accumulator(matrix)).double()
    if on_host(matrix) and matrix.dtype != torch.float64:
        doubtful = out_of_range(absmax)
        if doubtful.any():
            norm[doubtful] = torch.linalg.vector_norm(matrix[doubtful].double(), dim=1)
    return norm.square_().div_(matrix.shape[1])


def _repair_cancellation(matrix: Tensor, mean: Tensor, square: Tensor, variance: Tensor) -> Tensor:
    """Compute again, about the mean, where the mean square is nearly all mean."""
    doubtful = variance < CANCELLATION * square
    if not doubtful.any():
        return variance
    rows = matrix[doubtful]
    centred = rows - mean[doubtful].to(rows.dtype)[:, None]
    absmax = centred.abs().amax(1)
    variance[doubtful] = (
        _mean_square(centred, absmax) - centred.sum(1).double().div_(matrix.shape[1]).square_()
    )
    return variance.clamp_(min=0.0)


def _with_counts(matrix: Tensor, absmax: Tensor, statistics: list[Tensor]) -> Tensor:
    """Append the share of zeros and the count of non-finite entries; blank the rows that have any."""
    zeros = torch.eq(matrix, 0, out=torch.empty_like(matrix)).sum(1).double().div_(matrix.shape[1])
    broken = ~torch.isfinite(absmax)
    nonfinite = torch.zeros_like(zeros)
    if not on_host(matrix):
        nonfinite = (~torch.isfinite(matrix)).sum(1).double()
    elif broken.any():
        nonfinite[broken] = (~torch.isfinite(matrix[broken])).sum(1).double()
    else:
        return torch.stack([*statistics, zeros, nonfinite])
    table = torch.stack([*statistics, zeros]).masked_fill_(broken, torch.nan)
    return torch.cat([table, nonfinite[None]])


def moments_of_padded(matrix: Tensor, sizes: Tensor) -> Tensor:
    """Return std, rms, largest magnitude, share of zeros and count of non-finite entries of padded rows.

    matrix: (rows, width), of which each row's first `sizes` entries count and the rest is 0. Returns
    (5, rows), float64.
    """
    absmax = torch.maximum(matrix.amin(1).neg(), matrix.amax(1))
    mean = matrix.sum(1, dtype=accumulator(matrix)).double() / sizes
    square = _mean_square(matrix, absmax).mul_(matrix.shape[1]).div_(sizes)
    variance = (square - mean.square()).clamp_(min=0.0)
    if on_host(matrix):
        for row in torch.nonzero((variance < CANCELLATION * square) & (square > 0)).flatten().tolist():
            variance[row] = matrix[row, : int(sizes[row])].double().var(correction=0)
    table = _with_counts(matrix, absmax, [variance.sqrt_(), square.sqrt_(), absmax.double()])
    padding = matrix.shape[1] - sizes
    table[-2] = (table[-2] * matrix.shape[1] - padding) / sizes
    return table
