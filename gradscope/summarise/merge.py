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
        seen, values = _merge_several(names, table, counts, owners)
        merged[:, seen] = values
    return merged, total


def _merge_several(
    names: tuple[str, ...], table: Table, counts: Table, owners: NDArray[np.intp]
) -> tuple[NDArray[np.intp], Table]:
    """Return the owners that have calls, and their merged statistics (statistics, owners)."""
    order = np.argsort(owners, kind="stable")
    owners, counts, row = owners[order], counts[order], {name: place for place, name in enumerate(names)}
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    totals = np.add.reduceat(counts, starts)

    def mean(values: Table) -> Table:
        weighted: Table = np.add.reduceat(values * counts, starts, axis=-1) / totals
        return weighted

    values = table[:, order]
    summed = values.copy()  # what is merged as a mean: squares of deviations and of root mean squares
    summed[row["rms"]] **= 2
    if "std" in row:
        centres = np.repeat(mean(values[row["mean"]]), np.diff(starts, append=len(owners)))
        summed[row["std"]] = values[row["std"]] ** 2 + (values[row["mean"]] - centres) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        merged = mean(summed)
        for name in {"rms", "std"} & row.keys():
            merged[row[name]] = np.sqrt(merged[row[name]])
        if "cosine" in row:
            known = ~np.isnan(values[row["cosine"]])
            weight = np.add.reduceat(counts * known, starts)
            merged[row["cosine"]] = (
                np.add.reduceat(np.where(known, values[row["cosine"]] * counts, 0.0), starts) / weight
            )
    for name, merge in (
        ("min", np.minimum),
        ("max", np.maximum),
        ("absmax", np.maximum),
        ("nonfinite", np.add),
    ):
        if name in row:
            merged[row[name]] = merge.reduceat(values[row[name]], starts)
    return owners[starts], merged
