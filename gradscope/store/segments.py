"""Sealed segments: what a journal held, as one immutable Parquet file for each table."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradscope.store.journal import Content, Header, read_journal
from gradscope.store.schema import LAYERS, PARAMETERS, STEPS, TABLES, SegmentName, Table, arrow_schema


def seal(run: Path, journal: Path) -> None:
    """Turn a journal into segments, then delete it; a crash on the way leaves the journal in force."""
    content = read_journal(journal)
    if content is not None and len(content.steps):
        tables = arrow_tables(content)
        name = SegmentName(content.header.rank, content.header.attempt, content.header.number)
        for table in TABLES:
            _write_segment(run / table.name, name, table, tables[table.name])
    journal.unlink()


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


def rounded(values: np.ndarray) -> np.ndarray:
    """Round to 24 significant bits, as float32 has, in float64's range: an error of 6e-8, half the size."""
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.int64)
    result = ((bits + (1 << 28)) & ~((1 << 29) - 1)).view(np.float64)
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
        array if column in exact else rounded(array) for column, array in zip(columns, by_column, strict=True)
    ]
    repeated = np.repeat(steps, len(names))[measured]
    return pa.Table.from_arrays(
        [repeated, keys, *_constants(header, len(codes)), *arrays], schema=arrow_schema(table, list(columns))
    )


def _constants(header: Header, rows: int) -> list[np.ndarray]:
    return [np.full(rows, value, dtype=np.int32) for value in (header.rank, header.attempt)]


def _write_segment(folder: Path, name: SegmentName, table: Table, content: pa.Table) -> None:
    """Write a segment beside its place, under a name that readers of the folder skip, and move it there."""
    floats = [field.name for field in content.schema if field.type == pa.float64()]
    sink = pa.BufferOutputStream()
    pq.write_table(
        content,
        sink,
        compression="zstd",
        use_dictionary=[table.key] if table.key else False,
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
        write_statistics=["step"],
    )
    data = sink.getvalue()
    write_atomically(folder / name.parquet(zlib.crc32(data)), data)


def write_atomically(path: Path, data: bytes | pa.Buffer) -> None:
    """Write a file under a hidden name and move it to its place, so that nobody sees a part of it."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        hidden.write_bytes(data)
        os.replace(hidden, path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
