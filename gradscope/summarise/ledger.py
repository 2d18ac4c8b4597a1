"""Statistics of layers' tensors in host memory, which come one after the other: each is read at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradscope.summarise.cosine import Between
from gradscope.summarise.host import INSIDE_WANTED, RESULT, Array, Limits, passes

# As in passes.c: what a row holds beyond a result, how a layer's tensors are read, and what becomes of them.
_COSINE, _ENTRIES, _ALIKE, _ROW = range(RESULT, RESULT + 4)
_READING = np.dtype(
    [("what", "i8"), ("low", "f8"), ("high", "f8")]
    + [(name, "i8") for name in ("between", "axis", "units", "start", "marked")]
)
_UNREADABLE, _READ, _UNPLACED = range(3)
_BETWEEN = {None: 0, "samples": 1, "tokens": 2}


class Live(NamedTuple):
    """Which units of some layers were active: layers and their numbers of units, all units side by side."""

    layers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    active: NDArray[np.bool_]


class Ledger:
    """Reads tensors of numbered owners into a row each, and marks which units were above zero in any.

    Several tensors of one owner are merged, exactly, as if they were one.
    """

    def __init__(self, owners: int, wanted: int) -> None:
        self._header = np.zeros(2, np.int64)
        self._readings = np.zeros(owners, _READING)
        self._readings["what"], self._readings["axis"] = wanted, -1
        start, size = self._readings.ctypes.data, _READING.itemsize
        self._addresses = self._header.ctypes.data, [start + size * owner for owner in range(owners)]
        self._wanted, self._placed = wanted, 0
        self._rows = np.zeros((owners, _ROW))
        self._header[0] = self._rows.ctypes.data
        self._reserve_marks(np.zeros(4096, np.uint8))

    def _reserve_marks(self, marks: NDArray[np.uint8]) -> None:
        self._marks, self._header[1] = marks, marks.ctypes.data

    def read_as(
        self,
        owner: int,
        limits: Limits | None = None,
        between: Between | None = None,
        unit_axis: int | None = None,
    ) -> None:
        """Say how an owner's tensors are read.

        limits: which share lies strictly between them is counted; between: what rows the mean cosine is of;
        unit_axis: along which units are marked.
        """
        reading = self._readings[owner]
        reading["what"] = self._wanted | (INSIDE_WANTED if limits else 0)
        reading["low"], reading["high"] = limits or (0.0, 0.0)
        reading["between"], reading["axis"] = _BETWEEN[between], -1 if unit_axis is None else unit_axis

    def add(self, owner: int, tensor: Tensor, cosine: float = math.nan) -> bool:
        """Read a tensor; return False if it can't be read where it lies.

        cosine: of one that is read as having none.
        """
        header, readings = self._addresses
        outcome = passes.note(header, readings[owner], owner, tensor, cosine)
        if outcome == _UNPLACED:
            self._place(owner, tensor.shape[self._readings[owner]["axis"]])
            outcome = passes.note(header, readings[owner], owner, tensor, cosine)
        return outcome == _READ

    def add_turned(self, owner: int, tensor: Tensor, order: list[int], cosine: float) -> bool:
        """Read a tensor whose axes were put in this order, and whose cosine is known; return as `add`."""
        reading = self._readings[owner]
        between, axis = reading["between"], reading["axis"]
        reading["between"], reading["axis"] = 0, order.index(axis) if axis in order else -1
        is_read = self.add(owner, tensor, cosine)
        reading["between"], reading["axis"] = between, axis
        return is_read

    def _place(self, owner: int, units: int) -> None:
        """Give an owner's units a place among the marks; those of a former number are forgotten."""
        start, end = self._placed, self._placed + units
        if end > len(self._marks):
            self._reserve_marks(np.concatenate([self._marks, np.zeros(2 * end, np.uint8)]))
        self._placed = end
        reading = self._readings[owner]
        reading["units"], reading["start"], reading["marked"] = units, start, 0

    @property
    def is_empty(self) -> bool:
        """Return whether nothing was read since the last call of `take`."""
        return not self._rows[:, _ENTRIES].any()

    def take(self) -> tuple[NDArray[np.intp], Array, Array]:
        """Return what was read since the last call, and forget it.

        Owners and numbers of entries: (owners,); results, and below them cosines: (RESULT + 1, owners).
        """
        owners = np.flatnonzero(self._rows[:, _ENTRIES])
        rows = self._rows.T.take(owners, axis=1)
        self._rows[:, [_ENTRIES, _ALIKE]] = 0.0
        return owners, rows[_ENTRIES], rows[: _COSINE + 1]

    def take_marks(self) -> Live:
        """Return which units were above zero since the last call, and forget them."""
        readings = self._readings
        owners = np.flatnonzero(readings["marked"])
        owners = owners[np.argsort(readings["start"][owners])]
        starts, sizes = readings["start"][owners], readings["units"][owners]
        marks = self._marks[: self._placed].view(np.bool_).copy()
        self._marks[: self._placed], readings["marked"] = 0, 0
        if sizes.sum() < self._placed:  # not all that have a place were marked
            spans = zip(starts.tolist(), sizes.tolist(), strict=True)
            marks = np.concatenate([marks[:0], *(marks[start : start + size] for start, size in spans)])
            if readings["units"].sum() < self._placed:  # some have changed their width: all are placed anew
                readings["units"], self._placed = 0, 0
        return Live(owners, sizes, marks)
