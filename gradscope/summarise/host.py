"""Statistics of tensors in host memory by the compiled passes, which read each tensor once."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.summarise.cosine import Between
from gradscope.summarise.entries import stored_entries

try:
    from gradscope.summarise import _passes
except ImportError:  # there was no compiler: torch's operations do the same, more slowly
    _passes = None  # type: ignore[assignment]

# What a pass reads beside the root mean square; the same bits as in passes.c.
_SUM, _RANGE, _ZEROS, _INSIDE = 1, 2, 4, 8
MOMENTS_WANTED, MAGNITUDES_WANTED, NORM_WANTED = _SUM | _RANGE | _ZEROS, _RANGE | _ZEROS, 0
# Rows of a result; the first seven are those of MOMENTS.
MEAN, STD, RMS, LOW, HIGH, ZEROS, NONFINITE, INSIDE, RESULT = range(9)
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
# Entries of large parameters are sampled in lines of this length: 64 bytes of float32.
LINE = 16

_ROW = 8 * RESULT  # bytes
if _passes is not None:
    _passes.know(Tensor, nn.Parameter, torch.float32, torch.float64, torch.bfloat16, torch.strided)


def use_threads_of_torch() -> None:
    """Let the passes share large tensors among as many threads as torch uses now, by its own OpenMP."""
    if _passes is not None:
        _passes.use_team(_openmp(), torch.get_num_threads())


@cache
def _openmp() -> int:
    """Return the address of the function that runs OpenMP's team, 0 if there is none that torch uses, too."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value or 0
    except (AttributeError, TypeError, OSError):
        return 0


Limits = tuple[float, float]
Array = NDArray[np.float64]


def is_compiled() -> bool:
    """Return whether the compiled passes are there."""
    return _passes is not None


def readable(tensor: Tensor) -> Tensor:
    """Return a strided tensor as the passes can read it, copied where they cannot read it in place."""
    plain = tensor.detach().resolve_neg().contiguous()
    plain = plain.abs() if plain.dtype.is_complex else plain
    return plain if plain.dtype in _TYPES else plain.float()


def absmax(results: Array) -> Array:
    """Return the largest magnitudes from results (RESULT, tensors) that have the extremes: (tensors,)."""
    magnitudes: Array = np.maximum(-results[LOW], results[HIGH])
    return magnitudes


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor holds floats in host memory, so that it is readable at least as a copy."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.numel() > 0
        and (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
    )


def cosine_in_place(tensor: Tensor, between: Between) -> float | None:
    """Return the mean cosine between rows, as `mean_cosine`; None if the tensor can't be read in place."""
    shape = tensor.shape
    if len(shape) < 2:
        return math.nan
    if between == "tokens":
        return _passes.cosine(tensor, shape[0], shape[-1])
    return _passes.cosine(tensor, 1, shape[1] if len(shape) == 2 else math.prod(shape[1:]))


def in_memory_order(tensor: Tensor) -> list[int]:
    """Return a tensor's axes, the outermost in memory first."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


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
            entries = _passes.measure(self._wanted, tensor, 0.0, 0.0, row)
        else:
            entries = _passes.measure(self._wanted | _INSIDE, tensor, *limits, row)
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
        if not _passes.mark_live(tensor, unit_axis, units, self._start + start):
            start, units = self._span(owner, tensor.shape[unit_axis])
            _passes.mark_live(tensor, unit_axis, units, self._start + start)
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


class Batch:
    """A number of tensors that are read together, step after step, and copies of what they held before."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._jobs = np.zeros((count, 6), np.int64)
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
        in_place = _passes.point(list(tensors), self._addresses[0])
        if not in_place:
            self._copies = [readable(stored_entries(item)) for item in tensors]
            self._jobs[:, :3] = [(item.data_ptr(), item.numel(), _TYPES[item.dtype]) for item in self._copies]
        self._known = self._jobs[:, 0].tolist() if steady and in_place else []

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of entries of each tensor: (tensors,)."""
        return self._jobs[:, 1]

    def measure(self, wanted: int, highs: Sequence[float] | None = None) -> Array:
        """Return results (RESULT, tensors); with `highs`, also which share of each lies below its limit."""
        jobs, results = self._addresses
        if highs is None:
            _passes.measure_jobs(wanted, jobs, 0, results, self._count)
        else:
            limits = np.array(highs, np.float64)
            _passes.measure_jobs(wanted | _INSIDE, jobs, limits.ctypes.data, results, self._count)
        self._drop_copies()
        return self._results.T.copy()

    def _drop_copies(self) -> None:
        """Let go of copies; to read their tensors again they must be pointed at again."""
        if self._copies:
            self._copies = []
            self._jobs[:, 0] = 0

    def reserve(self, lines: Sequence[Tensor | None]) -> None:
        """Make room for copies of the tensors, or of those lines of LINE entries of them that are named."""
        self._lines = lines  # the jobs hold their addresses
        sampled = np.array([0 if chosen is None else chosen.numel() for chosen in lines])
        sizes = np.where(sampled > 0, sampled * LINE, self._jobs[:, 1])
        starts = np.concatenate([[0], np.cumsum(sizes)])  # each may take as much as float64 does
        self._room = np.empty(starts[-1])
        self._jobs[:, 3] = [0 if chosen is None else chosen.data_ptr() for chosen in lines]
        self._jobs[:, 4] = sampled
        self._jobs[:, 5] = self._room.ctypes.data + 8 * starts[:-1]

    def keep(self) -> None:
        """Copy what was reserved room for."""
        _passes.keep(self._addresses[0], self._count)

    def change(self) -> Array:
        """Return the norm of each tensor's change since `keep`, over what was kept: (tensors,)."""
        norms = np.empty(self._count)
        _passes.change(self._addresses[0], norms.ctypes.data, self._count)
        self._drop_copies()
        return norms
