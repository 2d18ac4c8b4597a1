"""Merge the statistics of a layer's calls in one step, exactly, on the host."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

MOMENTS = ("mean", "std", "rms", "min", "max", "zero_fraction", "nonfinite")
MAGNITUDES = ("rms", "absmax", "zero_fraction", "nonfinite")
OUTPUTS = (*MOMENTS, "saturated_fraction", "cosine")
# Statistics that are not merged as means.
_MERGES = {"min": np.minimum, "max": np.maximum, "absmax": np.maximum, "nonfinite": np.add}


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
        seen, values = _merge_several(names, table, counts, owners)
        merged[:, seen] = values
    return merged, total


def _merge_several(
    names: tuple[str, ...], table: Table, counts: Table, owners: NDArray[np.intp]
) -> tuple[NDArray[np.intp], Table]:
    """Return the owners that have calls, and their merged statistics (statistics, owners)."""
    order = np.argsort(owners, kind="stable")
    owners, counts, values = owners[order], counts[order], table[:, order]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    row = {name: place for place, name in enumerate(names)}

    def mean(of: Table, weights: Table) -> Table:
        weighted: Table = np.add.reduceat(of * weights, starts, axis=-1) / np.add.reduceat(weights, starts)
        return weighted

    with np.errstate(invalid="ignore", divide="ignore"):
        terms = values.copy()
        terms[row["rms"]] = values[row["rms"]] ** 2
        if "std" in row:  # a variance about the common mean
            means = values[row["mean"]]
            common = np.repeat(mean(means, counts), np.diff(starts, append=len(owners)))
            terms[row["std"]] = values[row["std"]] ** 2 + (means - common) ** 2
        merged = mean(terms, counts)
        for name in {"rms", "std"} & row.keys():
            merged[row[name]] = np.sqrt(merged[row[name]])
        if "cosine" in row:
            known = ~np.isnan(values[row["cosine"]])
            merged[row["cosine"]] = mean(np.where(known, values[row["cosine"]], 0.0), known * counts)
    for name in _MERGES.keys() & row.keys():
        merged[row[name]] = _MERGES[name].reduceat(values[row[name]], starts)
    return owners[starts], merged
