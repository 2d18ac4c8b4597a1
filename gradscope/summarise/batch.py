"""Statistics of many tensors in host memory that are read together, step after step, such as parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.summarise.entries import stored_entries
from gradscope.summarise.host import INSIDE_WANTED, RESULT, TYPES, Array, passes, readable

# Entries of large tensors are sampled in lines of this length: 64 bytes of float32.
LINE = 16
_UNREADABLE, _STEADY, _MOVED = range(3)  # as in passes.c
# A sampled tensor of more entries is read from RUNS runs of RUN entries, evenly spread.
LARGE, RUNS, RUN = 1 << 16, 64, 64


class Batch:
    """A number of tensors that are read together, step after step, and copies of what they held before.

    sampled: of tensors with more than LARGE entries, only RUNS × RUN evenly spread ones are measured.
    """

    def __init__(self, count: int, sampled: bool = False) -> None:
        self._count, self._sampled = count, sampled
        self._jobs = np.zeros((count, 6), np.int64)
        self._measured = self._jobs  # of sampled tensors, with the addresses of the sample
        self._results = np.empty((count, RESULT))
        self._addresses = self._jobs.ctypes.data, self._results.ctypes.data
        self._known: list[int] = []
        self._copies: list[Tensor] = []

    def point(self, tensors: Sequence[Tensor], steady: bool = False) -> None:
        """Say where the tensors' entries lie now; those that can't be read there are copied.

        They must outlive the reading. steady: a tensor that lies where it did is as it was.
        """
        if steady and self._known and [item.data_ptr() for item in tensors] == self._known:
            return
        in_place = passes.point(list(tensors), self._addresses[0])
        if in_place:
            self._begin()
        else:
            self._measured = self._jobs
            self._copy(tensors)
        self._known = self._jobs[:, 0].tolist() if steady and in_place else []

    def gather(self, holders: Sequence[dict[str, Any]], name: str) -> bool:
        """Point at what dictionaries hold under a name, as steady; return False if it can't be read there."""
        outcome = passes.gather(holders, name, self._addresses[0])
        if outcome == _MOVED:
            self._begin()
        return outcome != _UNREADABLE

    def _begin(self) -> None:
        """Prepare to read tensors that lie where they did not before."""
        self._measured, self._sizes = self._jobs, self._jobs[:, 1].copy()
        self._sample()

    def _copy(self, tensors: Sequence[Tensor]) -> None:
        """Copy what is to be measured, and have it measured there."""
        entries = [stored_entries(item) for item in tensors]
        self._sizes = np.array([item.numel() for item in entries])
        if self._sampled:
            entries = [_evenly_spread(item) if item.numel() > LARGE else item for item in entries]
        self._copies = [readable(item) for item in entries]
        self._jobs[:, :3] = [(item.data_ptr(), item.numel(), TYPES[item.dtype]) for item in self._copies]

    def _sample(self) -> None:
        """If large tensors are to be sampled, have their evenly spread entries copied and measured there."""
        large = self._sizes > LARGE
        if self._sampled and large.any():
            self.reserve([_starts_of_lines(size) if size > LARGE else None for size in self.sizes().tolist()])
            self._jobs[~large, 5] = 0
            self._measured = self._jobs.copy()
            self._measured[large, :2] = [(kept, RUNS * RUN) for kept in self._jobs[large, 5]]

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of entries that each tensor stores: (tensors,)."""
        return self._sizes

    def measure(self, wanted: int, highs: Sequence[float] | None = None) -> Array:
        """Return results (RESULT, tensors); with `highs`, also which share of each lies below its limit."""
        if self._measured is not self._jobs:
            self.keep()
        jobs, results = self._measured.ctypes.data, self._addresses[1]
        if highs is None:
            passes.measure_jobs(wanted, jobs, 0, results, self._count)
        else:
            limits = np.array(highs, np.float64)
            passes.measure_jobs(wanted | INSIDE_WANTED, jobs, limits.ctypes.data, results, self._count)
        self._drop_copies()
        return self._results.T.copy()

    def _drop_copies(self) -> None:
        """Let go of copies; to read their tensors again they must be pointed at again."""
        if self._copies:
            self._copies = []
            self._jobs[:, 0] = 0

    def reserve(self, starts: Sequence[Tensor | None]) -> None:
        """Make room for copies of the tensors, or of lines of LINE entries of them that start there."""
        self._starts = starts  # the jobs hold their addresses
        sampled = np.array([0 if chosen is None else chosen.numel() for chosen in starts])
        sizes = np.where(sampled > 0, sampled * LINE, self._jobs[:, 1])
        places = np.concatenate([[0], np.cumsum(sizes)])  # each may take as much as float64 does
        self._room = np.empty(places[-1])
        self._jobs[:, 3] = [0 if chosen is None else chosen.data_ptr() for chosen in starts]
        self._jobs[:, 4] = sampled
        self._jobs[:, 5] = self._room.ctypes.data + 8 * places[:-1]

    def keep(self) -> None:
        """Copy what was reserved room for."""
        passes.keep(self._addresses[0], self._count)

    def change(self) -> Array:
        """Return the norm of each tensor's change since `keep`, over what was kept: (tensors,)."""
        norms = np.empty(self._count)
        passes.change(self._addresses[0], norms.ctypes.data, self._count)
        self._drop_copies()
        return norms


def _evenly_spread(entries: Tensor) -> Tensor:
    """Return RUNS × RUN entries, in runs evenly spread over a vector that has more."""
    step = entries.stride(0)
    return entries.as_strided((RUNS, RUN), (entries.numel() // RUNS * step, step), entries.storage_offset())


@cache
def _starts_of_lines(entries: int) -> Tensor:
    """Return where the lines begin that make up those runs."""
    runs = torch.arange(RUNS) * (entries // RUNS)
    return (runs[:, None] + torch.arange(0, RUN, LINE)).view(-1)
