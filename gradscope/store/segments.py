"""Sealed segments: what a journal held, as one immutable Parquet file for each table."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradscope.store.journal import Content, Header, read_pieces
from gradscope.store.schema import LAYERS, PARAMETERS, STEPS, TABLES, SegmentName, Table, arrow_schema

# Significant bits that a statistic keeps, and those of one whose distance from 1 matters.
SIGNIFICANT, NEAR_ONE = 21, {"activation_cosine": 30}
# So much of a journal is turned into a row group at a time: sealing costs a few times this memory.
AT_ONCE = 1 << 20


def seal(run: Path, journal: Path) -> None:
    """Turn a journal into segments, then delete it; a crash on the way leaves the journal in force."""
    hidden = {table: run / table.name / f".{journal.name}.{os.getpid()}" for table in TABLES}
    try:
        header = _write_segments(hidden, journal)
        if header is not None:
            name = SegmentName(header.rank, header.attempt, header.number)
            for table in TABLES:
                _place(hidden[table], run / table.name / name.parquet(_checksum(hidden[table])))
    finally:
        for path in hidden.values():
            path.unlink(missing_ok=True)
    journal.unlink()


def _write_segments(paths: Mapping[Table, Path], journal: Path) -> Header | None:
    """Write a journal's records into one file for each table; return its header, None if there are none."""
    header = None
    with ExitStack() as stack:
        writers: dict[Table, pq.ParquetWriter] = {}
        for content in read_pieces(journal, AT_ONCE):
            tables = arrow_tables(content) if len(content.steps) else {}
            header = content.header if tables else header
            for table in TABLES if tables else ():
                if table not in writers:
                    writers[table] = stack.enter_context(_writer(paths[table], table, tables[table.name]))
                writers[table].write_table(tables[table.name])
    return header


def _writer(path: Path, table: Table, content: pa.Table) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        content.schema,
        compression="zstd",
        use_dictionary=[table.key] if table.key else False,
        column_encoding={
            field.name: "BYTE_STREAM_SPLIT" for field in content.schema if field.type == pa.float64()
        },
        write_statistics=["step"],
    )


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while data := file.read(1 << 16):
            checksum = zlib.crc32(data, checksum)
    return checksum


def _place(hidden: Path, path: Path) -> None:
    """Move a segment to its place from beside it, where readers of the folder skipped it."""
    os.replace(hidden, path)


def arrow_tables(content: Content) -> dict[str, pa.Table]:
    """Return a journal's records by table name; rows where nothing was measured are left out."""
    header = content.header
    steps = content.steps[:, header.step_columns.index("step")].astype(np.int64)
    return {
        STEPS.name: _steps_table(header, steps, content.steps),
        LAYERS.name: _statistics_table(
            LAYERS, header, steps, header.layers, header.layer_columns, content.layers
        ),
        PARAMETERS.name: _statistics_table(
            PARAMETERS, header, steps, header.parameters, header.parameter_columns, content.parameters
        ),
    }


def read_segment(path: Path, checksum: int) -> pa.Table:
    """Read one segment; ValueError if its bytes are not those that were written."""
    data = path.read_bytes()
    # A damaged Parquet file must never reach the decoder, which is C++ and trusts its input.
    if zlib.crc32(data) != checksum:
        raise ValueError("it is damaged")
    return pq.ParquetFile(pa.BufferReader(data)).read()


def rounded(values: np.ndarray, bits: int = SIGNIFICANT) -> np.ndarray:
    """Round to so many significant bits in float64's range: with 21, an error of 5e-7."""
    left = 53 - bits
    whole = np.ascontiguousarray(values, dtype=np.float64).view(np.int64)
    result = ((whole + (1 << (left - 1))) & ~((1 << left) - 1)).view(np.float64)
    return np.where(np.isfinite(result), result, values)


def _steps_table(header: Header, steps: np.ndarray, values: np.ndarray) -> pa.Table:
    columns = [column for column in header.step_columns if column != "step"]
    indices = [header.step_columns.index(column) for column in columns]
    arrays = [np.ascontiguousarray(values[:, index]) for index in indices]
    constants = _constants(header, len(steps))
    return pa.Table.from_arrays([steps, *constants, *arrays], schema=arrow_schema(STEPS, columns))


def _statistics_table(
    table: Table,
    header: Header,
    steps: np.ndarray,
    names: tuple[str, ...],
    columns: tuple[str, ...],
    values: np.ndarray,
) -> pa.Table:
    """Spread (steps, names, columns) into rows, one a step and name."""
    rows = values.reshape(-1, len(columns))
    measured = ~np.isnan(rows).all(axis=1)
    codes = np.tile(np.arange(len(names), dtype=np.int32), len(steps))[measured]
    keys = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names, pa.string()))
    exact = {column.name for column in table.columns if column.merge == "sum"}
    by_column = np.ascontiguousarray(rows[measured].T)
    arrays = [
        array if column in exact else rounded(array, NEAR_ONE.get(column, SIGNIFICANT))
        for column, array in zip(columns, by_column, strict=True)
    ]
    repeated = np.repeat(steps, len(names))[measured]
    return pa.Table.from_arrays(
        [repeated, keys, *_constants(header, len(codes)), *arrays], schema=arrow_schema(table, list(columns))
    )


def _constants(header: Header, rows: int) -> list[np.ndarray]:
    return [np.full(rows, value, dtype=np.int32) for value in (header.rank, header.attempt)]


def write_atomically(path: Path, data: bytes | pa.Buffer) -> None:
    """Write a file under a hidden name and move it to its place, so that nobody sees a part of it."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        hidden.write_bytes(data)
        os.replace(hidden, path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
