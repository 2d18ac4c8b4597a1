"""Reduce a statistic of all layers at all steps to a grid that is small enough to draw.

A picture has a few hundred pixels each way: more rows or columns than that cannot be seen, only downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd

from gradscope.columns import meaning_of
from gradscope.present import wording
from gradscope.records import ParameterInfo, Run

GRID_ROWS = 120
GRID_COLUMNS = 240
# A map of shares that never exceed this, or of rows that never come so close, is one flat colour: a
# sentence says it better.
QUIET_FRACTION, QUIET_DISTANCE = 0.005, 0.1
ZERO, NONFINITE = 1, 2

DISTANCE = "1 - activation_cosine"  # not recorded as such, but it is what shows how close to 1 cosines come
_FARTHEST = 0.3  # log10 of 2, the distance between opposite rows

Scale = Literal["log10", "fraction"]
Worst = Literal["low", "high"]  # how a block of fractions is merged, and what its summary tells


@dataclass(frozen=True)
class Grid:
    """One statistic: layers (or parameters) down in execution order, recorded steps across.

    values: log10 of the statistic, or a fraction; None where nothing was measured. marks: ZERO where the
    statistic is exactly 0, NONFINITE where NaN or infinity was met, else 0. low, high: the colour range.
    """

    key: str
    title: str
    meaning: str
    scale: Scale
    rows: tuple[str, ...]
    columns: tuple[int, ...]
    values: tuple[tuple[float | None, ...], ...]
    marks: tuple[tuple[int, ...], ...]
    low: float
    high: float
    worst: Worst
    summary: str

    def has(self, mark: int) -> bool:
        """Return whether any cell carries this mark."""
        return any(mark in row for row in self.marks)


@dataclass(frozen=True)
class _Source:
    """Where a grid comes from: its statistic and the counters that tell when values were not finite."""

    key: str
    title: str
    meaning: str
    scale: Scale
    column: str
    nonfinite: tuple[str, ...] = ()
    of: Literal["layer", "weight"] = "layer"
    worst: Worst = "high"
    optional: bool = False  # most runs have none of it, and need not be told


_SOURCES = (
    _Source(
        "signal",
        "Gradient signal",
        "log10 of the rms gradient of the loss with respect to each layer's output",
        "log10",
        "signal_rms",
        ("signal_nonfinite",),
    ),
    _Source(
        "activation",
        "Activations",
        "log10 of the rms of each layer's output",
        "log10",
        "activation_rms",
        ("activation_nonfinite",),
    ),
    _Source(
        "update",
        "Update ratio",
        "log10 of |Δw| / |w|: how far one step moves each weight",
        "log10",
        "update_ratio",
        ("gradient_nonfinite", "weight_nonfinite"),
        "weight",
    ),
    _Source(
        "dead",
        "Dead units",
        "share of each rectifier's units that were active for no sample in the last recorded steps",
        "fraction",
        "activation_dead_unit_fraction",
    ),
    _Source(
        "saturated",
        "Saturated entries",
        "share of each bounded activation's entries where its derivative has all but gone",
        "fraction",
        "activation_saturated_fraction",
    ),
    _Source(
        "distance",
        "Distance between rows",
        "log10 of 1 − cosine between the rows (samples, or tokens of one) of each layer's output; "
        "it falls as the layers lose what tells the rows apart",
        "log10",
        DISTANCE,
        worst="low",
        optional=True,
    ),
    _Source(
        "entropy",
        "Attention entropy",
        meaning_of("attention_entropy").split(";")[0],
        "fraction",
        "attention_entropy",
        worst="low",
        optional=True,
    ),
    _Source(
        "sharpest",
        "Attention entropy of the sharpest head",
        "the same of each layer's head with the lowest: near 0 it looks at a single position",
        "fraction",
        "attention_entropy_lowest",
        worst="low",
        optional=True,
    ),
)


def grids(run: Run) -> tuple[tuple[Grid, ...], tuple[str, ...]]:
    """Return the grids that have something to show, and a sentence for each that has not."""
    drawn, silent = [], []
    for source in _SOURCES:
        values = source_table(run, source.of, source.column)
        bad = sum(
            (source_table(run, source.of, column).fillna(0) for column in source.nonfinite),
            start=pd.DataFrame(0.0, values.index, values.columns),
        )
        bad = (bad > 0) | np.isinf(values)
        values = values.mask(bad)
        shown = values.columns[(values.notna() | bad).any()]
        reason = _why_not(source, values[shown])
        if not reason:
            drawn.append(_grid(source, values[shown], bad[shown]))
        elif len(shown) or not source.optional:
            silent.append(f"{source.title}: {reason}.")
    return tuple(drawn), tuple(silent)


def _why_not(source: _Source, values: pd.DataFrame) -> str:
    """Return why a map would show nothing, "" if it shows something."""
    if not values.shape[1]:
        return "nothing was recorded"
    if source.column == DISTANCE and values.min().min() > QUIET_DISTANCE:
        return f"none worth a map, cosine under {1 - QUIET_DISTANCE:g} in every layer at every step"
    if source.scale == "fraction" and source.worst == "high" and not values.max().max() >= QUIET_FRACTION:
        return "none worth a map, under 0.5 % in every layer at every step"
    return ""


def source_table(run: Run, of: Literal["layer", "weight"], column: str) -> pd.DataFrame:
    """Return a statistic of all layers, or of all weights (of tables, too) in execution order."""
    if column == DISTANCE:
        return (1 - run.layer_table("activation_cosine")).clip(lower=0)  # below is only rounding
    if of == "layer":
        return run.layer_table(column)
    return run.parameter_table(column)[[weight.name for weight in weights(run)]]


def weights(run: Run) -> list[ParameterInfo]:
    """Return the trained parameters that are neither biases nor gains, by the depth of their layer."""
    depth = {layer.name: layer.depth for layer in run.layers}
    chosen = [item for item in run.parameters if item.trained and item.role not in ("bias", "gain")]
    return sorted(chosen, key=lambda item: depth.get(item.layer, len(depth)))


def _grid(source: _Source, values: pd.DataFrame, bad: pd.DataFrame) -> Grid:
    middle = "median" if source.scale == "log10" else "max" if source.worst == "high" else "min"
    small = _blocks(_blocks(values, GRID_COLUMNS, middle).T, GRID_ROWS, middle).T
    bad_small = _blocks(_blocks(bad, GRID_COLUMNS, "max").T, GRID_ROWS, "max").T
    array = small.to_numpy(dtype="float64").T
    marks = np.where(bad_small.to_numpy(dtype=bool).T, NONFINITE, 0)
    if source.scale == "log10":
        marks = np.where((array == 0) & (marks == 0), ZERO, marks)
        array = _log10(array)
    starts = edges(len(values), GRID_COLUMNS)[:-1]
    return Grid(
        source.key,
        source.title,
        source.meaning,
        source.scale,
        _row_names(list(values.columns)),
        tuple(int(step) for step in values.index[starts]),
        tuple(tuple(rounded(row, 2 if source.scale == "log10" else 3)) for row in array),
        tuple(tuple(int(mark) for mark in row) for row in marks),
        *_colour_range(array, source),
        source.worst,
        _grid_summary(source, values, bad),
    )


def edges(length: int, most: int) -> np.ndarray:
    """Return the boundaries of at most `most` blocks of equal length; the last may be shorter."""
    return np.append(np.arange(0, length, max(1, -(-length // most))), length)


def _blocks(table: pd.DataFrame, most: int, how: str) -> pd.DataFrame:
    """Merge neighbouring rows until no more than `most` are left; NaN only where all are NaN."""
    if len(table) <= most:
        return table
    block = np.searchsorted(edges(len(table), most), np.arange(len(table)), side="right") - 1
    merged: pd.DataFrame = table.set_axis(np.arange(len(table))).groupby(block).agg(how)
    return merged


def _row_names(names: list[str]) -> tuple[str, ...]:
    return tuple(
        wording.name(names[start])
        if end - start == 1
        else f"{wording.name(names[start])} … {wording.name(names[end - 1])}"
        for start, end in pairwise(edges(len(names), GRID_ROWS))
    )


def _log10(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: np.ndarray = np.where(values > 0, np.log10(values), np.nan)
    return logs


def rounded(values: Sequence[float] | np.ndarray, digits: int) -> list[float | None]:
    """Return the values with so many decimals, None for those that are not finite."""
    return [round(float(value), digits) if np.isfinite(value) else None for value in values]


def _colour_range(array: np.ndarray, source: _Source) -> tuple[float, float]:
    """Return the range of colours; at least four decades, so that a healthy run looks as calm as it is."""
    if source.scale == "fraction":
        return 0.0, 1.0
    finite = array[np.isfinite(array)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if source.column == DISTANCE:
        return round(min(low, _FARTHEST - 4.0), 2), _FARTHEST
    spare = max(0.0, 4.0 - (high - low)) / 2
    return round(low - spare, 2), round(high + spare, 2)


def _typical(source: _Source, values: pd.DataFrame) -> tuple[str, pd.Series]:
    """Return what stands for each row of a map, and its name."""
    if source.scale == "log10":
        return "Median over the run", values.median()
    if source.worst == "low":
        return "Lowest in the run", values.min()
    return "Highest share in the run", values.max()


def _grid_summary(source: _Source, values: pd.DataFrame, bad: pd.DataFrame) -> str:
    text = wording.figure if source.scale == "log10" else wording.percent
    what, middle = _typical(source, values)
    parts = []
    if middle.notna().any():
        low, high = str(middle.idxmin()), str(middle.idxmax())
        least, most = text(float(middle[low])), text(float(middle[high]))
        parts.append(
            f"{what}: {least} in each."
            if least == most
            else f"{what}: from {least} in {wording.name(low)} to {most} in {wording.name(high)}."
        )
    zeros = int((values == 0).all().sum())
    if zeros and source.scale == "log10":
        parts.append(f"Exactly 0 at every step in {zeros:,} of {values.shape[1]:,}.")
    if bad.any().any():
        step = int(bad.index[bad.any(axis=1)][0])
        where = wording.name(bad.columns[bad.loc[bad.index == step].any()][0])
        parts.append(
            f"Not finite in {int(bad.any().sum()):,} of {bad.shape[1]:,}, first at step {step:,} in {where}."
        )
    return " ".join(parts)
