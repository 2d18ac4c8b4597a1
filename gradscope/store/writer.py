"""Write a run directory, append-only: one writer a rank, no locks, readable at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from gradscope.columns import LAYER_COLUMNS, PARAMETER_COLUMNS, STEP_COLUMNS, Column
from gradscope.errors import RunError
from gradscope.records import FORMAT_VERSION, Event, RunInfo, Status, StepRecord, storable
from gradscope.settings import Settings
from gradscope.store.documents import DocumentError, dump_event, dump_info, format_version, load_info
from gradscope.store.journal import Header, Journal, JournalError
from gradscope.store.schema import (
    TABLES,
    SegmentName,
    events_name,
    parse_journal_name,
    parse_parquet_name,
)
from gradscope.store.segments import seal, write_atomically


class RunWriter:
    """The writer of one rank's part of a run.

    Call `begin` once, then `append` for every recorded step, `close` at the end. What was appended survives
    the death of the process at any moment. Where the disk refuses, methods raise OSError and lose nothing
    that was written before; they can be called again.
    """

    def __init__(self, path: Path, rank: int = 0, settings: Settings | None = None) -> None:
        self.path = Path(path)
        self.rank = rank
        self._segment_steps = (settings or Settings()).segment_steps
        self._info: RunInfo | None = None
        self._journal: Journal | None = None
        self._attempt = 0
        self._number = 0
        self._resumed = False

    def begin(self, info: RunInfo) -> None:
        """Open the run; where this rank has recorded before, go on as a restart, else start a new run.

        RunError if the directory cannot be written or holds a run of a newer format.
        """
        try:
            self._prepare()
            before = self._earlier_info()
            if before is not None:
                self._attempt = max(self._attempt, before.restarts + 1)
            started = (before.started if before else "") or info.started or _now()
            self._info = replace(info, started=started, restarts=self._attempt)
            self._resumed = self.rank == 0 and self._attempt > 0
            self._write_info()
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunError(
                f"cannot write a run into {self.path}: {reason}; choose another run_dir"
            ) from error

    def update(self, info: RunInfo) -> None:
        """Replace what run.json says, and from the next step on the tables that the matrices follow."""
        begun = self._begun()
        self._info = replace(info, started=begun.started, restarts=begun.restarts)
        self._write_info()
        if _row_names(begun) != _row_names(info):
            self._seal()

    def append(self, record: StepRecord) -> None:
        """Add one step; on disk when this returns. ValueError if its matrices don't fit the run's tables."""
        journal = self._journal
        if journal is None or not journal.holds(record):
            journal = self._open_journal(record)
        journal.append(record)
        if journal.records >= self._segment_steps:
            self._seal()

    def event(self, event: Event) -> None:
        """Add one event; on disk when this returns."""
        file = os.open(self.path / events_name(self.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, dump_event(event, self._attempt))
        finally:
            os.close(file)

    def close(self, status: Status, exception: str = "") -> None:
        """Seal what is open and say how the run ended; harmless a second time."""
        if self._info is None:
            return
        try:
            self._seal()
            self._seal_left()
        finally:
            self._info = replace(self._info, status=status, exception=exception, ended=_now())
            self._write_info()
            self._info = None

    def _begun(self) -> RunInfo:
        if self._info is None:
            raise RunError("the run is not open; call begin first")
        return self._info

    def _prepare(self) -> None:
        """Make the directories and seal what an earlier attempt left in its journals."""
        for name in ("live", *(table.name for table in TABLES)):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        earlier = _segment_names(self.path, self.rank)
        self._attempt = max((name.attempt + 1 for name in earlier), default=0)
        self._seal_left()

    def _earlier_info(self) -> RunInfo | None:
        """Return what an earlier attempt wrote; None if there is none or it is damaged."""
        try:
            data = (self.path / "run.json").read_bytes()
            if (format_version(data) or 0) > FORMAT_VERSION:
                raise RunError(f"{self.path} holds a run of a newer gradscope; choose another run_dir")
            return load_info(data)
        except (FileNotFoundError, DocumentError):
            return None

    def _write_info(self) -> None:
        if self.rank == 0:
            info = replace(self._begun(), format_version=FORMAT_VERSION)
            write_atomically(self.path / "run.json", dump_info(info))

    def _open_journal(self, record: StepRecord) -> Journal:
        """Start a journal that has a place for every column of this step."""
        info = self._begun()
        self._seal()
        known = _names(STEP_COLUMNS)
        header = Header(
            self.rank,
            self._attempt,
            self._number,
            (*known, *(name for name in record.step if name not in known)),
            _names(LAYER_COLUMNS),
            _names(PARAMETER_COLUMNS),
            *_row_names(info),
        )
        name = SegmentName(self.rank, self._attempt, self._number)
        self._journal = Journal(self.path / "live" / name.journal, header)
        self._number += 1
        if self._resumed:
            self._resumed = False
            self.event(Event("restart", int(record.step["step"]), "training was started again in this run"))
        return self._journal

    def _seal(self) -> None:
        """Turn the open journal into segments."""
        if self._journal is not None:
            journal, self._journal = self._journal, None
            journal.close()
            seal(self.path, journal.path)

    def _seal_left(self) -> None:
        """Seal the journals that a killed process or a full disk left; those damaged stay for the reader."""
        for name in _segment_names(self.path, self.rank):
            journal = self.path / "live" / name.journal
            if journal.exists():
                with suppress(JournalError):
                    seal(self.path, journal)


def _segment_names(run: Path, rank: int) -> list[SegmentName]:
    """Return what a rank has in a run directory, sealed or live, in order of writing."""
    journals = (parse_journal_name(entry) for entry in os.listdir(run / "live"))
    parsed = (parse_parquet_name(entry) for table in TABLES for entry in os.listdir(run / table.name))
    found = {name for name in journals if name} | {pair[0] for pair in parsed if pair}
    return sorted(name for name in found if name.rank == rank)


def _row_names(info: RunInfo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    layers = tuple(storable(layer.name) for layer in info.layers)
    return layers, tuple(storable(parameter.name) for parameter in info.parameters)


def _names(columns: Iterable[Column]) -> tuple[str, ...]:
    return tuple(column.name for column in columns)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
