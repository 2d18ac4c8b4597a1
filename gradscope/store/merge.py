"""Merge what several ranks recorded of a step, so that it equals one measurement of the whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradscope.columns import Column

Values = Mapping[str, np.ndarray]


def merge_groups(
    columns: Mapping[str, Column], values: Values, starts: np.ndarray, sizes: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Merge rows into groups by each column's declared rule; undeclared columns keep the first value.

    Rows of a group are adjacent and `starts` holds the index of each group's first. sizes: entries of each
    group's whole parameter, 0 if unknown; what ranks hold of it are shards or copies. A missing value (NaN)
    doesn't contribute; it makes the merged value missing where its rank saw non-finite entries instead.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return {name: _merge(name, columns.get(name), values, starts, sizes) for name in values}


def _merge(
    name: str, column: Column | None, values: Values, starts: np.ndarray, sizes: np.ndarray | None
) -> np.ndarray:
    x = values[name]
    rule = column.merge if column else "first"
    if rule == "sum":
        return _sum(x, starts)
    if rule == "extent":
        return _extent(x, starts, sizes)
    weights = values.get(column.weight) if column and column.weight else None
    if rule == "first":
        merged = _first(x, starts)
    elif rule == "min":
        merged = np.fmin.reduceat(x, starts)
    elif rule == "max":
        merged = np.fmax.reduceat(x, starts)
    elif rule == "mean":
        merged = _mean(x, weights, starts)
    elif rule == "root-mean-square":
        merged = _root_mean_square(x, weights, starts)
    elif rule == "norm":
        merged = _norm(x, weights, starts, sizes)
    elif rule == "ratio":
        counts = values.get("count")
        above, below = values[name.replace("_ratio", "_norm")], x if weights is None else weights
        base = _norm(below, counts, starts, sizes)
        merged = np.where(base > 0, _norm(above, counts, starts, sizes) / base, np.nan)
    else:
        merged = _spread(x, values.get(name.replace("_std", "_mean")), weights, starts)
    return np.where(_any(_poisoned(name, values), starts), np.nan, merged)


def _sum(x: np.ndarray, starts: np.ndarray) -> np.ndarray:
    total: np.ndarray = np.add.reduceat(np.nan_to_num(x, nan=0.0), starts)
    return np.where(_any(~np.isnan(x), starts), total, np.nan)


def _extent(counts: np.ndarray, starts: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
    """Return how many entries of a parameter the ranks hold together, copies counted once."""
    total, most = _sum(counts, starts), np.fmax.reduceat(counts, starts)
    whole = most if sizes is None else np.fmax(sizes, most)
    extent: np.ndarray = np.minimum(total, whole)
    return extent


def _norm(
    x: np.ndarray, counts: np.ndarray | None, starts: np.ndarray, sizes: np.ndarray | None
) -> np.ndarray:
    """Return the norm of whole parameters from those of what the ranks hold of them, shards or copies.

    The root mean square over everything that was held is that of the parameter, however often it is held.
    """
    if counts is None:
        return _first(x, starts)
    rms = _root_mean_square(x / np.sqrt(counts), counts, starts)
    norm: np.ndarray = rms * np.sqrt(_extent(counts, starts, sizes))
    return norm


def _poisoned(name: str, values: Values) -> np.ndarray:
    """Return the rows whose value is missing because of non-finite entries: the whole would miss it too."""
    nonfinite = values.get(f"{name.partition('_')[0]}_nonfinite")
    missing = np.isnan(values[name])
    return missing & (nonfinite > 0) if nonfinite is not None else np.zeros_like(missing)


def _any(condition: np.ndarray, starts: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.logical_or.reduceat(condition, starts)
    return result


def _first(x: np.ndarray, starts: np.ndarray) -> np.ndarray:
    places = np.where(np.isnan(x), len(x), np.arange(len(x)))
    first = np.minimum.reduceat(places, starts)
    return np.where(first < len(x), x[np.minimum(first, len(x) - 1)], np.nan)


def _mean(x: np.ndarray, weights: np.ndarray | None, starts: np.ndarray) -> np.ndarray:
    """Return the weighted mean of each group; unweighted where no weight is known."""
    present = ~np.isnan(x)
    given = np.ones_like(x) if weights is None else np.nan_to_num(weights, nan=0.0)
    given = np.where(present, given, 0.0)
    unknown = np.add.reduceat(given, starts) == 0
    given = np.where(_spread_out(unknown, starts, len(x)), present, given)
    total = np.add.reduceat(given, starts)
    scaled = np.where(given > 0, x * (given / _spread_out(total, starts, len(x), 1.0)), 0.0)
    return np.where(total > 0, np.add.reduceat(scaled, starts), np.nan)


def _root_mean_square(x: np.ndarray, weights: np.ndarray | None, starts: np.ndarray) -> np.ndarray:
    """Return the weighted root mean square of each group, scaled so that no square leaves the range."""
    largest = np.fmax.reduceat(np.abs(x), starts)
    scale = np.where(np.isfinite(largest) & (largest > 0), largest, 1.0)
    scaled = x / _spread_out(scale, starts, len(x))
    result: np.ndarray = scale * np.sqrt(_mean(scaled * scaled, weights, starts))
    return result


def _spread(
    x: np.ndarray, mean: np.ndarray | None, weights: np.ndarray | None, starts: np.ndarray
) -> np.ndarray:
    """Return the standard deviation about the merged mean (Chan, Golub & LeVeque, 1983).

    Where no mean is known all are the same: those of copies.
    """
    known = np.where(np.isnan(x), np.nan, 0.0 if mean is None else np.nan_to_num(mean, nan=0.0))
    distance = known - _spread_out(_mean(known, weights, starts), starts, len(x))
    return _root_mean_square(np.hypot(x, distance), weights, starts)


def _spread_out(group: np.ndarray, starts: np.ndarray, rows: int, zero: float | None = None) -> np.ndarray:
    """Return each group's value once for each of its rows; zeros replaced by `zero` where given."""
    values = group if zero is None else np.where(group == 0, zero, group)
    spread: np.ndarray = np.repeat(values, np.diff(np.append(starts, rows)))
    return spread
