"""The parts of a run directory, journals and sealed segments, as plain arrays."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from gradscope.store.journal import JournalError, read_journal
from gradscope.store.schema import TABLES, SegmentName, Table, parse_journal_name, parse_parquet_name
from gradscope.store.segments import arrow_tables, read_segment

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Rows:
    """Rows of one table: their steps, what they are about (codes into names), their statistics."""

    step: np.ndarray
    codes: np.ndarray
    names: tuple[str, ...]
    statistics: dict[str, np.ndarray]


@dataclass(frozen=True)
class Part:
    """What one journal or one sealed segment holds, by table; a damaged table is missing."""

    name: SegmentName
    rows: dict[str, Rows] = field(default_factory=dict)


def read_parts(run: Path) -> tuple[list[Part], list[str]]:
    """Read all parts in order of writing, and say what could not be read.

    Safe while a writer seals: journals are read before the segments are listed, and a journal counts only
    while the steps of its segment, which are written last, are not there.
    """
    problems: list[str] = []
    journals = _read_journals(run, problems)
    segments = _list_segments(run, problems)
    sealed = set(segments[TABLES[-1].name])
    orphans = {name for files in segments.values() for name in files} - sealed - set(journals)
    chosen = [name for name in sorted(sealed | orphans) if name in sealed or _is_orphan(run, name)]
    wanted = [(name, table) for name in chosen for table in TABLES]
    with ThreadPoolExecutor(max_workers=4) as pool:
        results = list(pool.map(lambda item: _read_table(segments, *item), wanted))
    parts = {name: Part(name) for name in chosen}
    for (name, table), result in zip(wanted, results, strict=True):
        if isinstance(result, Rows):
            parts[name].rows[table.name] = result
        elif name in journals:
            parts[name] = journals[name]
        else:
            problems.append(result)
    unsealed = {name: part for name, part in journals.items() if name not in parts}
    return [part for _, part in sorted({**parts, **unsealed}.items())], problems


def _read_journals(run: Path, problems: list[str]) -> dict[SegmentName, Part]:
    parts = {}
    for file, name in _files(run / "live", parse_journal_name, problems):
        try:
            content = read_journal(run / "live" / file)
        except FileNotFoundError:
            continue  # sealed since the folder was listed
        except (OSError, JournalError) as error:
            problems.append(f"live/{file} was not read: {_reason(error)}")
            continue
        if content is None:
            continue
        if content.damaged:
            problems.append(f"live/{file}: {content.damaged} damaged steps were left out")
        tables = arrow_tables(content)
        parts[name] = Part(name, {table.name: _rows(table, tables[table.name]) for table in TABLES})
    return parts


def _list_segments(run: Path, problems: list[str]) -> dict[str, dict[SegmentName, tuple[Path, int]]]:
    """List each table's segments with their checksums; the steps first, so that theirs are all there."""
    listed: dict[str, dict[SegmentName, tuple[Path, int]]] = {}
    for table in reversed(TABLES):
        found = _files(run / table.name, parse_parquet_name, problems)
        listed[table.name] = {name: (run / table.name / file, checksum) for file, (name, checksum) in found}
    return listed


def _files(
    folder: Path, parse: Callable[[str], Parsed | None], problems: list[str]
) -> list[tuple[str, Parsed]]:
    """Return the folder's files with what their names say; name those that aren't gradscope's."""
    try:
        entries = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except OSError as error:
        problems.append(f"{folder.name}/ was not read: {_reason(error)}")
        return []
    parsed = [(entry, parse(entry)) for entry in entries]
    problems += [
        f"{folder.name}/{entry} is not gradscope's and was left out" for entry, name in parsed if not name
    ]
    return [(entry, name) for entry, name in parsed if name]


def _is_orphan(run: Path, name: SegmentName) -> bool:
    """Say whether a segment without steps lost them, rather than being sealed at this moment."""
    return not (run / "live" / name.journal).exists() and not list(
        (run / TABLES[-1].name).glob(f"{name}-*.parquet")
    )


def _read_table(
    segments: dict[str, dict[SegmentName, tuple[Path, int]]], name: SegmentName, table: Table
) -> Rows | str:
    """Return the rows of one segment file, or the line that says why there are none."""
    if name not in segments[table.name]:
        return f"{table.name}/{name}-*.parquet is missing"
    path, checksum = segments[table.name][name]
    try:
        return _rows(table, read_segment(path, checksum))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        return f"{table.name}/{path.name} was left out: {_reason(error)}"


def _rows(table: Table, content: pa.Table) -> Rows:
    """Return an Arrow table as arrays, without copies where Arrow allows."""
    step = content.column("step").to_numpy()
    if table.key is None:
        codes, names = np.zeros(len(step), dtype=np.int32), [""]
    else:
        keys = content.column(table.key).unify_dictionaries().combine_chunks()
        keys = keys.chunk(0) if isinstance(keys, pa.ChunkedArray) else keys
        codes, names = keys.indices.to_numpy(), keys.dictionary.to_pylist()
    statistics = {
        field.name: content.column(field.name).to_numpy()
        for field in content.schema
        if field.type == pa.float64()
    }
    return Rows(step, codes, tuple(names), statistics)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
