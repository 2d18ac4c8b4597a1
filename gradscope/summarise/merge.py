"""Merge the statistics of a layer's calls in one step, exactly, on the host."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

MOMENTS = ("mean", "std", "rms", "min", "max", "zero_fraction", "nonfinite")
MAGNITUDES = ("rms", "absmax", "zero_fraction", "nonfinite")
OUTPUTS = (*MOMENTS, "saturated_fraction", "cosine")


def merge_calls(
    names: tuple[str, ...], table: Table, counts: Table, owners: NDArray[np.intp], size: int
) -> tuple[Table, Table]:
    """Return the merged statistics and entry counts of each owner.

    table: (statistics, calls), statistics by name; counts: entries of each call; owners: the layer of each
    call. Returns (statistics, size) and (size,); NaN for owners without calls. A call with non-finite entries
    makes all statistics of its owner absent but their count; one without a cosine only its own.
    """
    total: Table = np.bincount(owners, counts, size).astype(np.float64)
    merged = np.full((len(names), size), np.nan)
    if np.bincount(owners).max() == 1:
        merged[:, owners] = table
    else:
        _merge_several(merged, names, table, counts, owners, total)
    return merged, total


def _merge_several(
    merged: Table,
    names: tuple[str, ...],
    table: Table,
    counts: Table,
    owners: NDArray[np.intp],
    total: Table,
) -> None:
    values, size, seen = dict(zip(names, table, strict=True)), len(total), np.unique(owners)
    results: dict[str, Table] = {}
    with np.errstate(invalid="ignore", divide="ignore"):

        def mean(of: Table) -> Table:
            weighted: Table = np.bincount(owners, of * counts, size) / total
            return weighted

        for name in names:
            if name in ("mean", "zero_fraction", "saturated_fraction"):
                results[name] = mean(values[name])
            elif name == "cosine":
                known = ~np.isnan(values[name])
                weights = np.bincount(owners[known], counts[known], size)
                results[name] = np.bincount(owners[known], (values[name] * counts)[known], size) / weights
            elif name == "rms":
                results[name] = np.sqrt(mean(values[name] ** 2))
            elif name == "std":
                centre = mean(values["mean"])
                results[name] = np.sqrt(mean(values["std"] ** 2 + (values["mean"] - centre[owners]) ** 2))
            elif name == "nonfinite":
                results[name] = np.bincount(owners, values[name], size).astype(np.float64)
            else:
                results[name] = _extreme(
                    values[name], owners, size, np.minimum if name == "min" else np.maximum
                )
    for row, name in enumerate(names):
        merged[row, seen] = results[name][seen]


def _extreme(values: Table, owners: NDArray[np.intp], size: int, pick: np.ufunc) -> Table:
    result = np.full(size, np.inf if pick is np.minimum else -np.inf)
    pick.at(result, owners, values)
    return result
