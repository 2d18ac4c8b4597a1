"""Statistics of tensors in host memory that come one after the other, each read at once: layers' outputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradscope.summarise.host import INSIDE_WANTED, RESULT, Array, Limits, passes

_ROW = 8 * RESULT  # bytes


class Ledger:
    """Statistics of tensors that come one after the other: each is read at once, into a row of its own."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._owners: list[int] = []
        self._entries: list[int] = []
        self._reserve(64)

    def _reserve(self, rows: int) -> None:
        self._rows = np.empty((rows, RESULT))
        self._start, self._end = self._rows.ctypes.data, rows

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, owner: int, tensor: Tensor, limits: Limits | None = None) -> bool:
        """Read a tensor; with limits, also which share lies strictly between them.

        Return False if it can't be read where it lies.
        """
        place = len(self._owners)
        if place == self._end:
            full = self._rows
            self._reserve(4 * place)
            self._rows[:place] = full
        row = self._start + _ROW * place
        if limits is None:
            entries = passes.measure(self._wanted, tensor, 0.0, 0.0, row)
        else:
            entries = passes.measure(self._wanted | INSIDE_WANTED, tensor, *limits, row)
        if not entries:
            return False
        self._owners.append(owner)
        self._entries.append(entries)
        return True

    def take(self) -> tuple[list[int], list[int], Array]:
        """Return owners, numbers of entries and results (RESULT, tensors); forget what was added."""
        owners, entries = self._owners, self._entries
        self._owners, self._entries = [], []
        return owners, entries, self._rows[: len(owners)].T.copy()


class Marks:
    """Which units of rectifiers were above zero since the last `take`, all owners' side by side."""

    def __init__(self) -> None:
        self._spans: dict[int, tuple[int, int]] = {}  # of each owner: start, number of units
        self._marked: dict[int, None] = {}
        self._reserve(np.zeros(4096, np.uint8))

    def _reserve(self, marks: NDArray[np.uint8]) -> None:
        self._marks, self._start, self._used = marks, marks.ctypes.data, 0

    def add(self, owner: int, tensor: Tensor, unit_axis: int) -> None:
        """Mark the units of a readable tensor that are above zero anywhere."""
        start, units = self._spans.get(owner) or self._span(owner, tensor.shape[unit_axis])
        if not passes.mark_live(tensor, unit_axis, units, self._start + start):
            start, units = self._span(owner, tensor.shape[unit_axis])
            passes.mark_live(tensor, unit_axis, units, self._start + start)
        self._marked[owner] = None

    def _span(self, owner: int, units: int) -> tuple[int, int]:
        start = self._used
        if start + units > len(self._marks):
            grown = np.zeros(2 * (start + units), np.uint8)
            grown[:start] = self._marks[:start]
            self._reserve(grown)
        self._used = start + units
        self._spans[owner] = start, units
        return start, units

    def take(self) -> dict[int, NDArray[np.bool_]]:
        """Return by owner which units were above zero, and forget them."""
        marks = self._marks[: self._used].view(np.bool_).copy()
        self._marks[: self._used] = 0
        marked, self._marked = self._marked, {}
        spans = {owner: self._spans[owner] for owner in marked}
        if self._used > sum(units for _, units in self._spans.values()):  # some have changed their width
            self._spans, self._used = {}, 0
        return {owner: marks[start : start + units] for owner, (start, units) in spans.items()}
