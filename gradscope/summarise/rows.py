"""Statistics of many small tensors at once: one row each, a dozen operations for all of them.

On the CPU a torch operation on a hundred numbers takes longer than numpy's, so there only the passes over the
matrix are torch's. On a device nothing may look at a value, so there everything is torch's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.summarise.precision import CANCELLATION, LARGEST, SMALLEST, accumulator, on_host

Array = NDArray[np.float64]


def moments_of_rows(matrix: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Return mean, std, rms, min, max, share of zeros and count of non-finite entries of each row.

    matrix: (rows, entries), float32 or float64, at least one entry; scratch: room of the same shape to
    overwrite. Returns (7, rows), float64; a row with non-finite entries has NaN in all but the last.
    """
    if on_host(matrix):
        return _moments_on_host(matrix, None, scratch)
    return _moments_on_device(matrix, matrix.shape[1])


def magnitudes_of_rows(matrix: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Return rms, largest magnitude, share of zeros and count of non-finite entries of rows: (4, rows)."""
    if not on_host(matrix):
        return _moments_on_device(matrix, matrix.shape[1])[[2, 7, 5, 6]]
    width = matrix.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):
        absmax = _absmax(matrix)
        rms = np.sqrt(_square_sums(matrix, absmax, scratch) / width)
    return _table(matrix, absmax, [rms, absmax, _zeros(matrix, scratch) / width])


def moments_of_padded(matrix: Tensor, sizes: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Return std, rms, largest magnitude, share of zeros and count of non-finite entries of padded rows.

    matrix: (rows, width), of which each row's first `sizes` entries count and the rest is 0; scratch: room of
    the same shape. Returns (5, rows), float64.
    """
    if on_host(matrix):
        table = _moments_on_host(matrix, sizes.numpy(), scratch)
        table[4] = torch.maximum(-table[3], table[4])
        return table[[1, 2, 4, 5, 6]]
    return _moments_on_device(matrix, sizes)[[1, 2, 7, 5, 6]]


def norms_of_rows(matrix: Tensor) -> Tensor:
    """Return the Euclidean norm of each row: (rows,), float64; NaN or infinite where entries are."""
    if not on_host(matrix):
        norms: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=accumulator(matrix)).double()
        return norms
    norm: Array = torch.linalg.vector_norm(matrix, dim=1).numpy().astype(np.float64)
    if matrix.dtype != torch.float64:
        doubtful = ~((norm > SMALLEST * matrix.shape[1] ** 0.5) & (norm < LARGEST))
        if doubtful.any():
            rows = _chosen(matrix, doubtful)
            norm[doubtful] = _scaled_norms(rows, _absmax(rows), None)
    return torch.from_numpy(norm)


def count_between(matrix: Tensor, low: float, high: float) -> Tensor:
    """Return the share of each row's entries that lie strictly between two limits: (rows,), float64."""
    inside: Tensor = torch.gt(matrix, low, out=torch.empty_like(matrix))
    inside.mul_(torch.lt(matrix, high, out=torch.empty_like(matrix)))
    return inside.sum(1).double().div_(matrix.shape[1])


def shares_below(matrix: Tensor, floors: Sequence[float], sizes: Tensor, scratch: Tensor) -> Tensor:
    """Return the share of each padded row's entries that are below its floor: (rows,), float64."""
    limits = torch.tensor(floors, dtype=matrix.dtype).to(matrix.device, non_blocking=True)
    below = torch.lt(matrix, limits[:, None], out=scratch).sum(1).double()
    return (below - (matrix.shape[1] - sizes) * (limits > 0)) / sizes


def live_units(stack: Tensor, unit_axis: int) -> Tensor:
    """Return which units are above zero anywhere: (rows, units), bool.

    stack: (rows, *shape of an output); unit_axis: the axis of that shape which counts units.
    """
    others = [axis + 1 for axis in range(stack.dim() - 1) if axis != unit_axis]
    return (stack.amax(others) if others else stack) > 0


def _moments_on_host(matrix: Tensor, sizes: Array | None, scratch: Tensor | None) -> Tensor:
    """Return what `moments_of_rows` returns; with `sizes` only so many entries of each row count."""
    width = matrix.shape[1]
    counts = width if sizes is None else sizes
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = matrix.amin(1).numpy(), matrix.amax(1).numpy()
        absmax = np.maximum(-low, high)
        mean = matrix.sum(1).numpy().astype(np.float64) / counts
        square = _square_sums(matrix, absmax, scratch) / counts
        variance = square - mean * mean
        doubtful = variance < CANCELLATION * square
        if doubtful.any():
            variance[doubtful] = _variance_about(matrix, mean, counts, doubtful)
        std = np.sqrt(np.maximum(variance, 0.0))
        zeros = (_zeros(matrix, scratch) - (width - counts)) / counts
    return _table(matrix, absmax, [mean, std, np.sqrt(square), low, high, zeros])


def _variance_about(matrix: Tensor, mean: Array, counts: Array | int, doubtful: NDArray[np.bool_]) -> Array:
    """Return the variance of the rows whose mean square is nearly all mean, computed about their mean."""
    chosen = torch.from_numpy(doubtful)
    rows = matrix[chosen].double()
    if isinstance(counts, int):
        whole: Array = rows.var(1, correction=0).numpy()
        return whole
    centred = rows - torch.from_numpy(mean)[chosen][:, None]
    inside = torch.arange(matrix.shape[1]) < torch.from_numpy(counts)[chosen][:, None]
    variance: Array = centred.mul_(inside).square_().sum(1).numpy() / counts[doubtful]
    return variance


def _absmax(matrix: Tensor) -> Array:
    absmax: Array = np.maximum(-matrix.amin(1).numpy(), matrix.amax(1).numpy())
    return absmax


def _chosen(matrix: Tensor, rows: NDArray[np.bool_]) -> Tensor:
    """Return some of the rows, without a copy where they follow each other."""
    places = np.flatnonzero(rows)
    first, last = int(places[0]), int(places[-1])
    return matrix[first : last + 1] if len(places) == last + 1 - first else matrix[torch.from_numpy(rows)]


def _square_sums(matrix: Tensor, absmax: Array, scratch: Tensor | None) -> Array:
    """Return the sum of squares of each row, scaled while it is computed if it would not fit float32."""
    fits = matrix.dtype == torch.float64 or (absmax.min() > SMALLEST and absmax.max() < LARGEST)
    total = (
        torch.linalg.vector_norm(matrix, dim=1).numpy().astype(np.float64)
        if fits
        else _scaled_norms(matrix, absmax, scratch)
    )
    return np.square(total, out=total)


def _scaled_norms(matrix: Tensor, absmax: Array, scratch: Tensor | None) -> Array:
    """Return the norms of rows whose squares may leave float32: each is scaled by a power of two."""
    usual = (absmax > 0) & (absmax < np.inf)
    _, exponents = np.frexp(np.where(usual, absmax, 1.0))
    exponents = np.clip(exponents, -120, 120)
    factors = torch.from_numpy(np.ldexp(np.float32(1.0), -exponents))[:, None]
    room = torch.empty_like(matrix) if scratch is None else scratch
    norms = torch.linalg.vector_norm(torch.mul(matrix, factors, out=room), dim=1).numpy()
    scaled: Array = np.ldexp(norms.astype(np.float64), exponents)
    return scaled


def _zeros(matrix: Tensor, scratch: Tensor | None) -> Array:
    """Return how many entries of each row are zero; comparing into floats is faster than into booleans."""
    equal = torch.eq(matrix, 0, out=torch.empty_like(matrix) if scratch is None else scratch)
    return equal.sum(1).numpy().astype(np.float64)


def _table(matrix: Tensor, absmax: NDArray[np.floating], statistics: list[NDArray[np.floating]]) -> Tensor:
    """Append the count of non-finite entries, and blank the rows that have any."""
    table = np.zeros((len(statistics) + 1, len(matrix)))
    table[:-1] = statistics
    broken = ~np.isfinite(absmax)
    if broken.any():
        table[:-1, broken] = np.nan
        table[-1, broken] = (~torch.isfinite(matrix[torch.from_numpy(broken)])).sum(1).numpy()
    return torch.from_numpy(table)


def _moments_on_device(matrix: Tensor, sizes: Tensor | int) -> Tensor:
    """Return the seven moments of padded rows, then their largest magnitude: (8, rows)."""
    width, wide = matrix.shape[1], accumulator(matrix)
    low, high = matrix.amin(1), matrix.amax(1)
    mean = matrix.sum(1, dtype=wide) / sizes
    rms = torch.linalg.vector_norm(matrix, dim=1, dtype=wide) / (
        sizes.sqrt() if isinstance(sizes, Tensor) else sizes**0.5
    )
    std = (rms.square() - mean.square()).clamp_(min=0.0).sqrt_()
    zeros = ((matrix == 0).sum(1).to(rms.dtype) - (width - sizes)) / sizes
    nonfinite = (~torch.isfinite(matrix)).sum(1)
    statistics = [mean, std, rms, low, high, zeros, nonfinite, torch.maximum(-low, high)]
    table = torch.stack([statistic.to(rms.dtype) for statistic in statistics]).to(wide)
    blank = (nonfinite > 0) & (torch.arange(len(table), device=matrix.device) != 6)[:, None]
    return table.masked_fill_(blank, torch.nan)
