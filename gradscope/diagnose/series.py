"""Questions that many rules ask of a series over steps or over depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnose.rule import require
from gradscope.records import Run

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Stretch:
    """A stretch of recorded steps in which a condition held: rows, training steps, and whether it lasted."""

    first_row: int
    last_row: int
    first_step: int
    last_step: int
    ongoing: bool

    @property
    def rows(self) -> slice:
        """Return the rows of the stretch."""
        return slice(self.first_row, self.last_row + 1)


def steps_of(run: Run) -> NDArray[np.int64]:
    """Return the recorded steps' numbers."""
    return np.asarray(run.steps["step"].to_numpy(dtype=np.int64))


def column(run: Run, name: str) -> Array:
    """Return a column of the step table, NaN where it is absent."""
    if name not in run.steps:
        return np.full(len(run.steps), np.nan)
    return run.steps[name].to_numpy(dtype=np.float64)


def require_steps(run: Run, fewest: int) -> None:
    """Raise Undecided unless at least this many steps were recorded."""
    number = len(run.steps)
    require(number >= fewest, f"needs {fewest} recorded steps, the run has {number}")


def longest_stretch(condition: Mask, run: Run, patience: int) -> Stretch | None:
    """Return the longest stretch in which a condition held, gaps shorter than `patience` / 2 bridged.

    None if it never lasted `patience` rows. A stretch is ongoing if it reaches the last tenth of the run.
    """
    rows = np.flatnonzero(condition)
    if len(rows) == 0:
        return None
    breaks = np.flatnonzero(np.diff(rows) > max(1, patience // 2) + 0.5)
    starts = rows[np.concatenate([[0], breaks + 1])]
    ends = rows[np.concatenate([breaks, [len(rows) - 1]])]
    longest = int(np.argmax(ends - starts))
    first, last = int(starts[longest]), int(ends[longest])
    if int(condition[first : last + 1].sum()) < patience:
        return None
    steps = steps_of(run)
    ongoing = last >= len(condition) - 1 - max(2, len(condition) // 10)
    return Stretch(first, last, int(steps[first]), int(steps[last]), ongoing)


def mostly(condition: Mask, share: float = 0.8) -> bool:
    """Say whether a condition held in at least this share of the rows."""
    return bool(len(condition)) and float(np.mean(condition)) >= share


def typical(values: Array, rows: slice = slice(None)) -> Array:
    """Return the median over steps of each column, NaN for a column without values."""
    chosen = values[rows]
    return np.array([_median(chosen[:, index]) for index in range(chosen.shape[1])])


def _median(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def median(values: Array) -> float:
    """Return the median of the finite values, NaN if there are none."""
    return _median(np.asarray(values, dtype=np.float64).ravel())


def slope(depths: Array, values: Array) -> Array:
    """Return each row's least-squares slope of `values` over `depths`, NaN entries left out."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    x = np.where(known, depths[None, :], 0.0)
    y = np.where(known, values, 0.0)
    safe = np.maximum(count, 1)
    centred = np.where(known, x - (x.sum(axis=1) / safe)[:, None], 0.0)
    spread = (centred**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count >= 2, (centred * y).sum(axis=1) / spread, np.nan)


def log(values: Array) -> Array:
    """Return the natural logarithm; NaN for zero, negative and missing values."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log(np.where(values > 0, values, 1.0)), np.nan)
