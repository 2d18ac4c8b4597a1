"""From parts to tidy tables: restarts resolved, ranks merged, rows sorted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradscope.store.merge import merge_groups
from gradscope.store.parts import Part, Rows
from gradscope.store.schema import Table


@dataclass(frozen=True)
class Restarts:
    """Where restarts took over: the first step that each attempt of each rank recorded.

    Like TensorBoard's purge: training that was started again from a checkpoint replaces all that follows
    its first step, also the steps that it hasn't reached. Ranks that a restart no longer has end with it.
    """

    first: Mapping[int, Mapping[int, float]]
    ranks: int

    def limit(self, rank: int, attempt: int) -> float:
        """Return the step from which an attempt no longer counts."""
        later = [step for other, step in self.first.get(rank, {}).items() if other > attempt]
        main = self.first.get(0, {})
        if rank >= self.ranks and len(main) > 1:
            later.append(main[max(main)])
        return min(later, default=np.inf)


def restarts(parts: Sequence[Part], ranks: int) -> Restarts:
    """Return where restarts took over in a run of this many ranks."""
    first: dict[int, dict[int, float]] = defaultdict(dict)
    for part in parts:
        steps = [float(rows.step.min()) for rows in part.rows.values() if len(rows.step)]
        known = first[part.name.rank].get(part.name.attempt, np.inf)
        first[part.name.rank][part.name.attempt] = min([known, *steps])
    return Restarts(first, ranks)


def assemble(
    table: Table, parts: Sequence[Part], cut: Restarts, sizes: Mapping[str, int] | None = None
) -> pd.DataFrame:
    """Return one table of the run; rows sorted by step and in the order of names.

    sizes: the names, and of parameters how many entries each has.
    """
    names, sizes = list(sizes or ()), sizes or {}
    pieces = [(part, part.rows[table.name]) for part in parts if table.name in part.rows]
    order = list(dict.fromkeys([*names, *(name for _, rows in pieces for name in rows.names)]))
    columns = _columns(table, [rows for _, rows in pieces])
    kept = [_kept(rows, cut.limit(part.name.rank, part.name.attempt)) for part, rows in pieces]
    step = _concatenate([rows.step for rows in kept], np.int64)
    codes = _concatenate([_recoded(rows, order) for rows in kept], np.int32)
    ranks = _concatenate(
        [np.full(len(rows.step), part.name.rank) for (part, _), rows in zip(pieces, kept, strict=True)],
        np.int32,
    )
    values = {name: _concatenate([_column(rows, name) for rows in kept], np.float64) for name in columns}
    if not _is_sorted(step, codes):
        extents = np.array([sizes.get(name, 0) for name in order], np.float64)
        step, codes, values = _merged(table, step, codes, ranks, values, extents)
    key = (
        {}
        if table.key is None
        else {table.key: pd.Categorical.from_codes(codes, pd.Index(order, dtype=object))}
    )
    return pd.DataFrame({"step": step, **key, **values}, copy=False)


def with_whole_norms(steps: pd.DataFrame, parameters: pd.DataFrame) -> pd.DataFrame:
    """Replace the norms over all gradients by those of all shards together; a rank knows only its own."""
    if not len(parameters):
        return steps
    places = pd.Index(steps["step"]).get_indexer(pd.Index(parameters["step"]))
    broken = _per_step(places, parameters["gradient_nonfinite"].to_numpy(), len(steps)) > 0
    whole = {}
    for name, column in (("grad_norm", "gradient_norm"), ("clipped_grad_norm", "clipped_gradient_norm")):
        square = _per_step(places, np.square(parameters[column].to_numpy()), len(steps))
        known = steps[name].notna().to_numpy() & ~np.isnan(square) & ~broken
        whole[name] = np.where(known, np.sqrt(square), np.nan)
    whole["clip_coefficient"] = np.divide(
        whole["clipped_grad_norm"],
        whole["grad_norm"],
        out=np.full(len(steps), np.nan),
        where=whole["grad_norm"] > 0,
    )
    return steps.assign(**whole)


def _per_step(places: np.ndarray, values: np.ndarray, steps: int) -> np.ndarray:
    """Return the sum of the values that each step has, NaN where it has none."""
    known = ~np.isnan(values) & (places >= 0)
    counts = np.bincount(places[known], minlength=steps)
    total: np.ndarray = np.bincount(places[known], values[known], steps)
    return np.where(counts > 0, total, np.nan)


def with_all_steps(steps: pd.DataFrame, others: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Add empty rows for steps that only the other tables know, where a damaged segment took the rest."""
    known = [other["step"].to_numpy() for other in others]
    lost = np.setdiff1d(np.unique(np.concatenate(known)), steps["step"].to_numpy())
    if not len(lost):
        return steps
    added = pd.DataFrame({"step": lost}).reindex(columns=steps.columns)
    return pd.concat([steps, added]).sort_values("step", ignore_index=True)


def _columns(table: Table, pieces: list[Rows]) -> list[str]:
    """Return the declared columns, then any that the parts have beside them (lr_1, ...)."""
    declared = [column.name for column in table.columns if column.name != "step"]
    return list(dict.fromkeys([*declared, *(name for rows in pieces for name in rows.statistics)]))


def _kept(rows: Rows, limit: float) -> Rows:
    """Return the rows before a step."""
    if not len(rows.step) or rows.step.max() < limit:
        return rows
    keep = rows.step < limit
    statistics = {name: values[keep] for name, values in rows.statistics.items()}
    return Rows(rows.step[keep], rows.codes[keep], rows.names, statistics)


def _recoded(rows: Rows, order: list[str]) -> np.ndarray:
    """Return the rows' codes into the run's order of names."""
    if not order or rows.names == tuple(order[: len(rows.names)]):
        return rows.codes
    places = {name: index for index, name in enumerate(order)}
    recoded: np.ndarray = np.array([places[name] for name in rows.names], dtype=np.int32)[rows.codes]
    return recoded


def _column(rows: Rows, name: str) -> np.ndarray:
    values = rows.statistics.get(name)
    return np.full(len(rows.step), np.nan) if values is None else values


def _concatenate(arrays: list[np.ndarray], kind: type[np.generic]) -> np.ndarray:
    return np.concatenate(arrays, dtype=kind) if arrays else np.empty(0, dtype=kind)


def _is_sorted(step: np.ndarray, codes: np.ndarray) -> bool:
    """Say whether each (step, name) comes once and in order, as one rank without restarts writes them."""
    ahead = np.diff(step)
    return bool(((ahead > 0) | ((ahead == 0) & (np.diff(codes) > 0))).all())


def _merged(
    table: Table,
    step: np.ndarray,
    codes: np.ndarray,
    ranks: np.ndarray,
    values: dict[str, np.ndarray],
    extents: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Sort the rows, keep the last of what one rank wrote twice, and merge what several ranks wrote."""
    order = np.lexsort((ranks, codes, step))
    keys = np.stack([step, codes, ranks])[:, order]
    last = np.append((keys[:, 1:] != keys[:, :-1]).any(axis=0), True)
    order, keys = order[last], keys[:, last]
    starts = np.flatnonzero(np.append(True, (keys[:2, 1:] != keys[:2, :-1]).any(axis=0)))
    sorted_values = {name: column[order] for name, column in values.items()}
    if len(starts) < len(order):
        declared = {column.name: column for column in table.columns}
        sizes = extents[keys[1, starts]] if len(extents) else None
        sorted_values = merge_groups(declared, sorted_values, starts, sizes)
    return keys[0, starts], keys[1, starts].astype(np.int32), sorted_values
