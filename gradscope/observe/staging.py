"""Collect what hooks see: small tensors are copied side by side, large ones are summarised at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.observe.activations import Limits
from gradscope.observe.probes import SMALL
from gradscope.summarise import (
    count_between,
    dense_entries,
    live_units,
    magnitudes_of_rows,
    magnitudes_of_whole,
    moments_of_rows,
    moments_of_whole,
    numbers_of_whole,
    sample_of,
)

# No more entries than this are held of one shape; then they are summarised before the step's end.
HELD = 1 << 21
# Tensors that were held until the step's end are summarised so many entries at a time: they fit the cache.
BLOCK = 1 << 19


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
        self.measured: list[Measured] = []
        self._wholes: list[_Whole] = []

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
                self.measured.append(stage.summarise())
        elif tensor.numel() and tensor.device.type == "cpu":
            self._wholes.append(_Whole.of(reading, owner, tensor))
        elif tensor.numel():
            self.measured.append(_measure_whole(reading, owner, tensor))

    def take(self) -> list[Measured]:
        """Return everything gathered since the last call; stages that were of no use are dropped."""
        idle = [key for key, stage in self._stages.items() if not stage.owners]
        for stage in self._stages.values():
            if stage.owners:
                self.measured.append(stage.summarise())
        wholes, self._wholes = self._wholes, []
        self.measured += _measure_wholes(wholes)
        for key in idle if len(self._stages) > 64 else ():
            del self._stages[key]
        taken, self.measured = self.measured, []
        return taken


class Bench:
    """Where the tensors that were held in a step are laid side by side, a block at a time, and summarised.

    Models repeat themselves: how the tensors are grouped is kept until a step differs.
    """

    def __init__(self) -> None:
        self._owners: list[int] = []
        self._readings: list[Reading] = []
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []
        self._groups: list[_Group] = []
        self._room: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @torch.no_grad()
    def measure(self, owners: list[int], readings: list[Reading], tensors: list[Tensor]) -> list[Measured]:
        """Return the statistics of tensors, each with its owner and how it is read."""
        kinds = [(tensor.shape, tensor.dtype) for tensor in tensors]
        if owners != self._owners or kinds != self._kinds or readings != self._readings:
            self._owners, self._readings, self._kinds = owners, readings, kinds
            self._groups = _grouped(owners, readings, tensors)
        measured: list[Measured] = []
        for group in self._groups:
            members = [tensors[place] for place in group.places]
            measured += group.measure(*self._stack(members))
        return measured

    def _stack(self, members: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the tensors side by side, and as much scratch."""
        first = members[0]
        if first.dtype.is_complex:
            members = [member.abs() for member in members]
        dtype, device, entries = _wide(first.dtype), first.device, first.numel() * len(members)
        room = self._room.get((dtype, device))
        if room is None or room.numel() < 2 * entries:
            room = self._room[dtype, device] = torch.empty(2 * entries, dtype=dtype, device=device)
        stack = room[:entries].view(len(members), *first.shape)
        return torch.stack(members, out=stack), room[entries : 2 * entries].view(len(members), -1)


@dataclass(frozen=True)
class _Group:
    """Tensors of one shape: their places among all, and where those that are read alike begin and end."""

    places: list[int]
    spans: list[tuple[Reading, int, int, list[int]]]

    def measure(self, stack: Tensor, scratch: Tensor) -> list[Measured]:
        matrix = stack.view(len(self.places), -1)
        signal = self.spans[0][0].signal
        table = (magnitudes_of_rows if signal else moments_of_rows)(matrix, scratch)
        measured = []
        for reading, start, end, owners in self.spans:
            saturated, live = _further(reading, stack[start:end])
            measured.append(Measured(reading, owners, matrix.shape[1], table[:, start:end], saturated, live))
        return measured


def _grouped(owners: Sequence[int], readings: Sequence[Reading], tensors: Sequence[Tensor]) -> list[_Group]:
    """Group tensors by shape, type and device, in each group those together that are read alike."""
    kinds: dict[object, dict[Reading, list[int]]] = {}
    for place, (tensor, reading) in enumerate(zip(tensors, readings, strict=True)):
        kind = (reading.signal, tensor.shape, tensor.dtype, tensor.device)
        kinds.setdefault(kind, {}).setdefault(reading, []).append(place)
    groups = []
    for alike in kinds.values():
        ordered = [(reading, place) for reading, places in alike.items() for place in places]
        most = max(1, BLOCK // tensors[ordered[0][1]].numel())
        for start in range(0, len(ordered), most):
            groups.append(_group(ordered[start : start + most], owners))
    return groups


def _group(ordered: list[tuple[Reading, int]], owners: Sequence[int]) -> _Group:
    spans: list[tuple[Reading, int, int, list[int]]] = []
    for row, (reading, place) in enumerate(ordered):
        if not spans or spans[-1][0] != reading:
            spans.append((reading, row, row, []))
        last = spans[-1]
        last[3].append(owners[place])
        spans[-1] = (reading, last[1], row + 1, last[3])
    return _Group([place for _, place in ordered], spans)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def _measure_stack(reading: Reading, owners: list[int], stack: Tensor) -> Measured:
    matrix = stack.view(len(owners), -1)
    table = magnitudes_of_rows(matrix) if reading.signal else moments_of_rows(matrix)
    return Measured(reading, owners, matrix.shape[1], table, *_further(reading, stack))


def _further(reading: Reading, stack: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the share of saturated entries and the live units of each row, where they are wanted."""
    limits, axis = reading.limits, reading.unit_axis
    saturated = 1.0 - count_between(stack.view(len(stack), -1), *limits) if limits else None
    live = live_units(stack, axis) if axis is not None else None
    return saturated, live


class _Whole(NamedTuple):
    """What was read of a large tensor on the host, and a sample of it for what takes longer to count."""

    reading: Reading
    owner: int
    entries: int
    numbers: list[float]
    sample: Tensor
    live: Tensor | None

    @classmethod
    def of(cls, reading: Reading, owner: int, tensor: Tensor) -> _Whole:
        tensor = tensor.abs() if tensor.dtype.is_complex else tensor
        entries = dense_entries(tensor)
        live = live_units(tensor[None], reading.unit_axis) if reading.unit_axis is not None else None
        numbers = numbers_of_whole(entries, not reading.signal)
        sample = sample_of(entries).to(_wide(entries.dtype), copy=True)
        return cls(reading, owner, entries.numel(), numbers, sample, live)


def _measure_wholes(wholes: list[_Whole]) -> list[Measured]:
    """Count zeros and saturated entries in the samples of all, those of one size together."""
    kinds: dict[tuple[Reading, torch.Size, torch.dtype], list[_Whole]] = {}
    for whole in wholes:
        kinds.setdefault((whole.reading, whole.sample.shape, whole.sample.dtype), []).append(whole)
    measured = []
    for (reading, _, _), alike in kinds.items():
        samples = torch.stack([whole.sample for whole in alike]).flatten(1)
        table = torch.tensor([whole.numbers for whole in alike], dtype=torch.float64).T
        zeros = torch.eq(samples, 0, out=torch.empty_like(samples)).sum(1).double() / samples.shape[1]
        table[-2] = torch.where(table[0].isnan(), torch.nan, zeros)
        saturated = 1.0 - count_between(samples, *reading.limits) if reading.limits else None
        for row, whole in enumerate(alike):
            share = saturated[row : row + 1] if saturated is not None else None
            column = table[:, row : row + 1]
            measured.append(Measured(reading, [whole.owner], whole.entries, column, share, whole.live))
    return measured


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
