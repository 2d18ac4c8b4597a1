"""Statistics of the rows of a matrix by torch's operations: nothing looks at a value, so nothing waits.

For accelerators, and for tensors in host memory where the compiled passes are missing or can't read them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def accumulator(tensor: Tensor) -> torch.dtype:
    """Return the dtype that reductions accumulate in: float64, but for devices that don't have it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def moments_of_rows(matrix: Tensor, size: int | None = None) -> Tensor:
    """Return mean, std, rms, min, max, share of zeros and count of non-finite entries of each row.

    matrix: (rows, entries), at least one entry; size: of how many entries these are all that aren't zero, at
    least one more. Returns (7, rows), float64; a row with non-finite entries has NaN in all but the last.
    """
    return _of_rows(matrix, size)[:7]


def magnitudes_of_rows(matrix: Tensor, size: int | None = None) -> Tensor:
    """Return rms, largest magnitude, share of zeros and count of non-finite entries of rows: (4, rows)."""
    return _of_rows(matrix, size)[[2, 7, 5, 6]]


def moments_of_padded(matrix: Tensor, sizes: Tensor) -> Tensor:
    """Return std, rms, largest magnitude, share of zeros and count of non-finite entries of padded rows.

    matrix: (rows, width), of which each row's first `sizes` entries count; the rest is 0. Returns (5, rows).
    """
    return _statistics(matrix, sizes)[[1, 2, 7, 5, 6]]


def norms_of_rows(matrix: Tensor) -> Tensor:
    """Return the Euclidean norm of each row: (rows,); NaN or infinite where entries are."""
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=accumulator(matrix))
    return norms


def count_between(matrix: Tensor, low: float, high: float) -> Tensor:
    """Return the share of each row's entries that lie strictly between two limits: (rows,)."""
    inside = (matrix > low) & (matrix < high)
    return inside.sum(1).to(accumulator(matrix)) / matrix.shape[1]


def shares_below(matrix: Tensor, floors: Sequence[float], sizes: Tensor) -> Tensor:
    """Return the share of each padded row's entries that are below its floor: (rows,)."""
    limits = torch.tensor(floors, dtype=matrix.dtype).to(matrix.device, non_blocking=True)
    below = (matrix < limits[:, None]).sum(1).to(accumulator(matrix))
    return (below - (matrix.shape[1] - sizes) * (limits > 0)) / sizes


def live_units(stack: Tensor, unit_axis: int) -> Tensor:
    """Return which units are above zero anywhere: (rows, units), bool.

    stack: (rows, *shape of an output); unit_axis: the axis of that shape which counts units.
    """
    others = [axis + 1 for axis in range(stack.dim() - 1) if axis != unit_axis]
    return (stack.amax(others) if others else stack) > 0


def _of_rows(matrix: Tensor, size: int | None) -> Tensor:
    if size is None:
        return _statistics(matrix, matrix.shape[1])
    return _statistics(torch.nn.functional.pad(matrix, (0, 1)), size)  # one zero, for the extremes


def _statistics(matrix: Tensor, sizes: Tensor | int) -> Tensor:
    """Return the seven moments of padded rows, then their largest magnitude: (8, rows)."""
    width, wide = matrix.shape[1], accumulator(matrix)
    low, high = matrix.amin(1), matrix.amax(1)
    mean = matrix.sum(1, dtype=wide) / sizes
    square = torch.linalg.vector_norm(matrix, dim=1, dtype=wide).square() / sizes
    std = (square - mean.square()).clamp_(min=0.0).sqrt_()
    zeros = ((matrix == 0).sum(1).to(wide) - (width - sizes)) / sizes
    nonfinite = (~torch.isfinite(matrix)).sum(1)
    statistics = [mean, std, square.sqrt(), low, high, zeros, nonfinite, torch.maximum(-low, high)]
    table = torch.stack([statistic.to(wide) for statistic in statistics])
    blank = (nonfinite > 0) & (torch.arange(len(table), device=matrix.device) != 6)[:, None]
    return table.masked_fill_(blank, torch.nan)
