"""Statistics of one large tensor: each pass over it reads its memory once, copies are avoided."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradscope.summarise.precision import CANCELLATION, LARGEST, SMALLEST, accumulator, on_host

# Shares (of zeros, of saturated entries) of a tensor with more than SAMPLE entries are taken from RUNS × RUN
# of them, evenly spread: counting costs five times a sum. The standard error of a share is 0.008 if they are
# independent.
SAMPLE, RUNS, RUN = 8192, 32, 128
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
    if entries.numel() <= SAMPLE:
        return entries[None]
    step = entries.stride(0)
    return entries.as_strided((RUNS, RUN), (entries.numel() // RUNS * step, step))


def moments_of_whole(entries: Tensor) -> Tensor:
    """Return what `moments_of_rows` returns for one vector: (7,), float64; the share of zeros is sampled."""
    if not on_host(entries):
        return _on_device(entries)[:7]
    numbers = numbers_of_whole(entries, moments=True)
    if math.isnan(numbers[0]):
        return torch.tensor(numbers, dtype=torch.float64)
    numbers[5] = _zeros(entries, numbers[3], numbers[4])
    return torch.tensor(numbers, dtype=torch.float64)


def numbers_of_whole(entries: Tensor, moments: bool) -> list[float]:
    """Return the moments, or the magnitudes, of a vector on the host as numbers; 0 for the share of zeros."""
    entries = _wide(entries)
    count = entries.numel()
    low, high = (value.item() for value in torch.aminmax(entries))
    absmax = max(-low, high)
    if not absmax < math.inf:
        nonfinite = float((~torch.isfinite(entries)).sum())
        return [math.nan] * (6 if moments else 3) + [nonfinite]
    square = _square_sum(entries, absmax) / count
    if not moments:
        return [square**0.5, absmax, 0.0, 0.0]
    mean = entries.sum().item() / count
    variance = max(square - mean * mean, 0.0)
    if variance < CANCELLATION * square:
        variance = _square_sum(entries, absmax, mean) / count
    return [mean, variance**0.5, square**0.5, low, high, 0.0, 0.0]


def magnitudes_of_whole(entries: Tensor) -> Tensor:
    """Return what `magnitudes_of_rows` returns, for one vector: (4,); the share of zeros is sampled."""
    if not on_host(entries):
        return _on_device(entries)[[2, 7, 5, 6]]
    numbers = numbers_of_whole(entries, moments=False)
    if not math.isnan(numbers[0]):
        numbers[2] = _zeros(entries, -numbers[1], numbers[1])
    return torch.tensor(numbers, dtype=torch.float64)


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
