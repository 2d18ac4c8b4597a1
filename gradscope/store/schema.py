"""The run directory's format: its tables and its file names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradscope.columns import LAYER_COLUMNS, PARAMETER_COLUMNS, STEP_COLUMNS, Column

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Table:
    """A table of the run directory: its folder, the column that names what a row is about, its statistics."""

    name: str
    key: str | None
    columns: tuple[Column, ...]


STEPS = Table("steps", None, STEP_COLUMNS)
LAYERS = Table("layers", "layer", LAYER_COLUMNS)
PARAMETERS = Table("parameters", "parameter", PARAMETER_COLUMNS)

# In the order of writing: a segment counts as sealed once its steps are there.
TABLES = (LAYERS, PARAMETERS, STEPS)


def arrow_schema(table: Table, columns: list[str]) -> pa.Schema:
    """Return the Arrow schema of a segment: step, attempt, rank, the named row, the statistics as float64."""
    import pyarrow as pa

    names = [] if table.key is None else [(table.key, pa.dictionary(pa.int32(), pa.string()))]
    statistics = [(column, pa.float64()) for column in columns if column != "step"]
    return pa.schema(
        [("step", pa.int64()), *names, ("rank", pa.int32()), ("attempt", pa.int32()), *statistics]
    )


@dataclass(frozen=True, order=True)
class SegmentName:
    """Which part of a run a file holds: rank, attempt (restarts before it) and number within the attempt."""

    rank: int
    attempt: int
    number: int

    def __str__(self) -> str:
        return f"{self.rank:04d}-{self.attempt:03d}-{self.number:06d}"

    @property
    def journal(self) -> str:
        """Return the file name of its journal in live/."""
        return f"{self}.journal"

    def parquet(self, checksum: int) -> str:
        """Return the file name of a sealed segment; it ends with the CRC-32 of the file's bytes."""
        return f"{self}-{checksum:08x}.parquet"


_JOURNAL = re.compile(r"(\d{4,9})-(\d{3,9})-(\d{6,9})\.journal")
_PARQUET = re.compile(r"(\d{4,9})-(\d{3,9})-(\d{6,9})-([0-9a-f]{8})\.parquet")


def parse_journal_name(name: str) -> SegmentName | None:
    """Return what a file of live/ holds, None if gradscope gave no such name."""
    match = _JOURNAL.fullmatch(name)
    return SegmentName(*map(int, match.groups())) if match else None


def parse_parquet_name(name: str) -> tuple[SegmentName, int] | None:
    """Return what a Parquet file holds and its checksum, None if gradscope gave no such name."""
    match = _PARQUET.fullmatch(name)
    return (SegmentName(*map(int, match.groups()[:3])), int(match[4], 16)) if match else None


def events_name(rank: int) -> str:
    """Return the file name of a rank's events."""
    return "events.jsonl" if rank == 0 else f"events-{rank:04d}.jsonl"


def rank_of_events(name: str) -> int | None:
    """Return the rank whose events a file holds, None if gradscope gave no such name."""
    match = re.fullmatch(r"events(?:-(\d{4,9}))?\.jsonl", name)
    return int(match[1] or 0) if match else None
