"""Collect what hooks see where nothing may wait: small tensors are copied, and summarised together.

On an accelerator the price of a tensor is the number of operations started for it: of a small one, one copy.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gradscope.observe.reading import Measured, Reading
from gradscope.summarise import (
    OUTPUTS,
    count_between,
    dense_entries,
    live_units,
    magnitudes_of_rows,
    mean_cosine,
    moments_of_rows,
    stored_values,
)

# A tensor of at most this many entries is copied; that is cheaper than the operations that summarise it.
SMALL = 16384
# No more entries than this are held of one shape; then they are summarised before the step's end.
HELD = 1 << 21


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
        measured = _measure(self.reading, owners, self._stack[:used])
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
        if not tensor.numel():
            return
        if tensor.layout is not torch.strided:
            self._measured.append(_measure_sparse(reading, owner, tensor))
            return
        tensor = tensor.abs() if tensor.dtype.is_complex else tensor
        if tensor.numel() > SMALL:
            self._measured.append(_measure(reading, [owner], tensor[None]))
        else:
            key = (reading, tensor.shape, tensor.dtype, tensor.device)
            stage = self._stages.get(key)
            if stage is None:
                stage = self._stages[key] = Stage(reading, tensor.shape, _wide(tensor.dtype), tensor.device)
            owners, rows = stage.owners, stage.rows
            rows[len(owners)].copy_(tensor)
            owners.append(owner)
            if len(owners) == len(rows):
                self._measured.append(stage.summarise())

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
    return torch.float64 if dtype is torch.float64 else torch.float32


def _measure(reading: Reading, owners: list[int], stack: Tensor) -> Measured:
    """Return the statistics of tensors along the first axis."""
    matrix = dense_entries(stack).view(1, -1) if len(stack) == 1 else stack.flatten(1)
    numbers, entries = np.array(owners, np.intp), np.full(len(owners), float(matrix.shape[1]))
    if reading.signal:
        return Measured(True, numbers, entries, magnitudes_of_rows(matrix))
    moments = moments_of_rows(matrix)
    limits = reading.limits
    inside = count_between(matrix, *limits) if limits else torch.full_like(moments[0], torch.nan)
    table = torch.cat([moments, 1.0 - inside[None], mean_cosine(stack, reading.rows)[None]])
    live = live_units(stack, reading.unit_axis) if reading.unit_axis is not None else None
    return Measured(False, numbers, entries, table, live)


def _measure_sparse(reading: Reading, owner: int, tensor: Tensor) -> Measured:
    """Return the statistics of a sparse tensor; entries that it doesn't store are zeros."""
    values, size = stored_values(tensor), tensor.numel()
    values = (values.abs() if values.dtype.is_complex else values).reshape(1, -1)
    measure = magnitudes_of_rows if reading.signal else moments_of_rows
    table = measure(values, size if values.numel() < size else None)
    if not reading.signal:  # neither saturation nor cosines are looked for
        table = torch.cat([table, table.new_full((len(OUTPUTS) - len(table), 1), torch.nan)])
    return Measured(reading.signal, np.array([owner], np.intp), np.array([float(size)]), table)
