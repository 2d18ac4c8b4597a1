"""Collect what hooks see: small tensors are copied side by side, large ones are summarised at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.observe.activations import Limits
from gradscope.summarise import (
    count_between,
    dense_entries,
    live_units,
    magnitudes_of_rows,
    magnitudes_of_whole,
    moments_of_rows,
    moments_of_whole,
    sample_of,
)

# A tensor of at most this many entries is copied; that is cheaper than the calls that summarising it takes.
SMALL = 16384
# No more entries than this are held of one shape; then they are summarised before the step's end.
HELD = 1 << 21


class Reading(NamedTuple):
    """What is read of a layer's tensors: the moments of an output, or the magnitudes of a signal.

    limits: between which an entry is not saturated; unit_axis: of a rectifier, whose live units are wanted.
    """

    signal: bool = False
    limits: Limits | None = None
    unit_axis: int | None = None


OUTPUT, SIGNAL = Reading(), Reading(signal=True)


@dataclass(frozen=True)
class Measured:
    """Statistics of some calls, still on the device: one column a call."""

    reading: Reading
    owners: list[int]
    entries: int
    table: Tensor
    saturated: Tensor | None
    live: Tensor | None


class Stage:
    """Room for tensors of one shape that are read alike."""

    def __init__(self, reading: Reading, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self.reading, self.shape = reading, shape
        self.owners: list[int] = []
        self._most = max(8, HELD // max(1, math.prod(shape)))
        self._allocate(8, dtype, device)

    def _allocate(self, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self._stack = torch.empty((rows, *self.shape), dtype=dtype, device=device)
        self.rows = list(self._stack.unbind(0))

    def summarise(self) -> Measured:
        """Return the statistics of the tensors held, and forget them; make room if it was full."""
        used, owners = len(self.owners), self.owners
        measured = _measure_stack(self.reading, owners, self._stack[:used])
        self.owners = []
        if used == len(self.rows) and used < self._most:
            self._allocate(min(4 * used, self._most), self._stack.dtype, self._stack.device)
        return measured


class Collector:
    """Gathers the outputs and signals of one recorded step."""

    def __init__(self) -> None:
        self._stages: dict[tuple[Reading, torch.Size, torch.dtype, torch.device], Stage] = {}
        self._measured: list[Measured] = []

    def add(self, reading: Reading, owner: int, tensor: Tensor) -> None:
        """Take the statistics of a tensor that belongs to layer `owner`; the tensor is not kept."""
        if 0 < tensor.numel() <= SMALL:
            key = (reading, tensor.shape, tensor.dtype, tensor.device)
            stage = self._stages.get(key)
            if stage is None:
                stage = self._stages[key] = Stage(reading, tensor.shape, _wide(tensor.dtype), tensor.device)
            owners, rows = stage.owners, stage.rows
            rows[len(owners)].copy_(tensor.abs() if tensor.dtype.is_complex else tensor)
            owners.append(owner)
            if len(owners) == len(rows):
                self._measured.append(stage.summarise())
        elif tensor.numel():
            self._measured.append(_measure_whole(reading, owner, tensor))

    def take(self) -> list[Measured]:
        """Return everything gathered since the last call; stages that were of no use are dropped."""
        idle = [key for key, stage in self._stages.items() if not stage.owners]
        for stage in self._stages.values():
            if stage.owners:
                self._measured.append(stage.summarise())
        for key in idle if len(self._stages) > 64 else ():
            del self._stages[key]
        taken, self._measured = self._measured, []
        return taken


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def _measure_stack(reading: Reading, owners: list[int], stack: Tensor) -> Measured:
    matrix = stack.view(len(owners), -1)
    table = magnitudes_of_rows(matrix) if reading.signal else moments_of_rows(matrix)
    limits, axis = reading.limits, reading.unit_axis
    saturated = 1.0 - count_between(matrix, limits.low, limits.high) if limits else None
    live = live_units(stack, axis) if axis is not None else None
    return Measured(reading, owners, matrix.shape[1], table, saturated, live)


def _measure_whole(reading: Reading, owner: int, tensor: Tensor) -> Measured:
    tensor = tensor.abs() if tensor.dtype.is_complex else tensor
    entries = dense_entries(tensor)
    table = (magnitudes_of_whole if reading.signal else moments_of_whole)(entries)[:, None]
    saturated = live = None
    if reading.limits:
        sample = sample_of(entries).reshape(1, -1)
        saturated = 1.0 - count_between(
            sample if sample.dtype.itemsize >= 4 else sample.float(), *reading.limits
        )
    if reading.unit_axis is not None:
        live = live_units(tensor[None], reading.unit_axis)
    return Measured(reading, [owner], entries.numel(), table, saturated, live)
