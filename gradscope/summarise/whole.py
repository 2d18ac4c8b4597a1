"""Statistics of one large tensor: each pass over it reads its memory once, copies are avoided."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.summarise.precision import CANCELLATION, LARGEST, SMALLEST, accumulator, on_host

# Shares (of zeros, of saturated entries) of a large tensor are taken from this many entries, evenly spread:
# counting costs five times a sum. The standard error of a share is 0.006 if they are independent.
SAMPLE, RUNS = 8192, 32
# Of parameters with more entries, and of their gradients, all but norms and sums is taken from such a sample.
LARGE = 1 << 16
CHUNK = 131072


def dense_entries(tensor: Tensor) -> Tensor:
    """Return all entries as a vector, in memory order and without a copy where the memory has no gaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    if torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return tensor.reshape(-1)


def sample_of(entries: Tensor) -> Tensor:
    """Return a fixed sample of a vector, in short runs spread evenly over it; all of it if it is short.

    Runs, since reading single entries here and there costs a cache line each. Returns (runs, entries).
    """
    every = entries.numel() // RUNS
    if every <= SAMPLE // RUNS:
        return entries[None]
    return entries[: every * RUNS].view(RUNS, every)[:, : SAMPLE // RUNS]


def moments_of_whole(entries: Tensor) -> Tensor:
    """Return what `moments_of_rows` returns for one vector: (7,), float64; the share of zeros is sampled."""
    if not on_host(entries):
        return _on_device(entries)[:7]
    entries = _wide(entries)
    count = entries.numel()
    low, high = (float(value) for value in torch.aminmax(entries))
    if not (abs(low) < torch.inf and abs(high) < torch.inf):
        return _broken(entries, 7)
    mean = float(entries.sum()) / count
    square = _square_sum(entries, max(-low, high)) / count
    variance = max(square - mean * mean, 0.0)
    if variance < CANCELLATION * square:
        variance = _square_sum(entries, max(-low, high), mean) / count
    zeros = _zeros(entries, low, high)
    return torch.tensor([mean, variance**0.5, square**0.5, low, high, zeros, 0.0], dtype=torch.float64)


def magnitudes_of_whole(entries: Tensor, sampled: bool = False) -> Tensor:
    """Return what `magnitudes_of_rows` returns, for one vector: (4,); the share of zeros is sampled.

    sampled: whether the largest magnitude too may be that of a sample, if there are more than LARGE entries.
    """
    if not on_host(entries):
        return _on_device(entries)[[2, 7, 5, 6]]
    entries = _wide(entries)
    if sampled and entries.numel() > LARGE:
        return _magnitudes_by_sample(entries)
    low, high = (float(value) for value in torch.aminmax(entries))
    if not (abs(low) < torch.inf and abs(high) < torch.inf):
        return _broken(entries, 4)
    absmax = max(-low, high)
    rms = (_square_sum(entries, absmax) / entries.numel()) ** 0.5
    return torch.tensor([rms, absmax, _zeros(entries, low, high), 0.0], dtype=torch.float64)


def _magnitudes_by_sample(entries: Tensor) -> Tensor:
    sample = sample_of(entries)
    norm = float(norm_of_whole(entries))
    if not norm < torch.inf:
        return _broken(entries, 4)
    low, high = (float(value) for value in torch.aminmax(sample))
    zeros = _zeros(sample, low, high)
    return torch.tensor([norm / entries.numel() ** 0.5, max(-low, high), zeros, 0.0], dtype=torch.float64)


def spread_of_whole(entries: Tensor) -> Tensor:
    """Return std, rms, largest magnitude, share of zeros and count of non-finite entries of a vector: (5,).

    Of more than LARGE entries all but the rms and the count is taken from a sample.
    """
    if on_host(entries) and entries.numel() > LARGE:
        entries = _wide(entries)
        magnitudes = _magnitudes_by_sample(entries)
        return torch.cat([sample_of(entries).double().std(correction=0).view(1), magnitudes])
    statistics = moments_of_whole(entries)
    _, std, rms, low, high, zeros, nonfinite = statistics.unbind(0)
    return torch.stack([std, rms, torch.maximum(-low, high), zeros, nonfinite])


def norm_of_whole(entries: Tensor) -> Tensor:
    """Return the Euclidean norm of a vector: (), float64."""
    if not on_host(entries):
        norm: Tensor = torch.linalg.vector_norm(entries, dtype=torch.float64)
        return norm
    entries = _wide(entries)
    square = float(torch.dot(entries, entries))
    if entries.dtype != torch.float64 and not SMALLEST**2 * entries.numel() < square < LARGEST**2:
        return torch.tensor(_exact_square_sum(entries, 0.0) ** 0.5, dtype=torch.float64)
    return torch.tensor(square**0.5, dtype=torch.float64)


def _wide(entries: Tensor) -> Tensor:
    return entries if entries.dtype in (torch.float32, torch.float64) else entries.float()


def _square_sum(entries: Tensor, absmax: float, shift: float = 0.0) -> float:
    """Return sum (x − shift)²: in float32 where its range allows, else exactly."""
    if entries.dtype != torch.float64 and absmax and not SMALLEST < absmax < LARGEST:
        return _exact_square_sum(entries, shift)
    if not shift:
        return float(torch.dot(entries, entries))
    total = 0.0
    for chunk in entries.split(CHUNK):
        centred = chunk - shift
        total += float(torch.dot(centred, centred))
    return total


def _exact_square_sum(entries: Tensor, shift: float) -> float:
    total = 0.0
    for chunk in entries.split(CHUNK):
        centred = chunk.double().sub_(shift)
        total += float(torch.dot(centred, centred))
    return total


def _zeros(entries: Tensor, low: float, high: float) -> float:
    if low > 0 or high < 0:
        return 0.0
    sample = sample_of(entries)
    return (sample.numel() - int(torch.count_nonzero(sample))) / sample.numel()


def _broken(entries: Tensor, statistics: int) -> Tensor:
    """Return the statistics of a vector with non-finite entries: their count, all else absent."""
    values = torch.full((statistics,), torch.nan, dtype=torch.float64)
    values[-1] = (~torch.isfinite(entries)).sum()
    return values


def _on_device(entries: Tensor) -> Tensor:
    """Return moments and the largest magnitude without looking at a value; double width costs nothing there.

    (8,): the seven moments, then the largest magnitude.
    """
    wide = accumulator(entries)
    low, high = torch.aminmax(entries)
    rms = torch.linalg.vector_norm(entries, dtype=wide) / entries.numel() ** 0.5
    mean = entries.sum(dtype=wide) / entries.numel()
    std = (rms.square() - mean.square()).clamp(min=0.0).sqrt()
    sample = sample_of(entries)
    zeros = 1.0 - torch.count_nonzero(sample).to(rms.dtype) / sample.numel()
    nonfinite = (~torch.isfinite(entries)).sum()
    statistics = [mean, std, rms, low, high, zeros, nonfinite, torch.maximum(-low, high)]
    table = torch.stack([statistic.to(rms.dtype) for statistic in statistics])
    blank = (nonfinite > 0) & (torch.arange(len(table), device=entries.device) != 6)
    return table.masked_fill(blank, torch.nan)
