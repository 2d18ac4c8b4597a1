"""The live journal: one checksummed binary record a step, so that a killed process loses nothing complete.

Layout: 8 bytes of magic, length and CRC-32 of the header, the header as JSON (what the journal is part of,
its columns and row names), then records of one fixed size: CRC-32, then float64 values of the step, the
layers and the parameters. A torn tail is ignored; a damaged record is left out and counted.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gradscope.records import StepRecord

MAGIC = b"GSJRNL1\n"
_PREFIX = struct.Struct("<8sII")
_CHECKSUM = struct.Struct("<I4x")
_NAN = float("nan")


@dataclass(frozen=True)
class Header:
    """What the records of a journal mean; rows of the matrices are named, columns too."""

    rank: int
    attempt: int
    number: int
    step_columns: tuple[str, ...]
    layer_columns: tuple[str, ...]
    parameter_columns: tuple[str, ...]
    layers: tuple[str, ...]
    parameters: tuple[str, ...]

    @property
    def layers_shape(self) -> tuple[int, int]:
        """Return (number of layers, number of their columns)."""
        return len(self.layers), len(self.layer_columns)

    @property
    def parameters_shape(self) -> tuple[int, int]:
        """Return (number of parameters, number of their columns)."""
        return len(self.parameters), len(self.parameter_columns)

    def record_type(self) -> np.dtype[np.void]:
        """Return the layout of one record, without its padding bytes."""
        return np.dtype(
            [
                ("checksum", "<u4"),
                ("padding", "V4"),
                ("step", "<f8", (len(self.step_columns),)),
                ("layers", "<f8", self.layers_shape),
                ("parameters", "<f8", self.parameters_shape),
            ]
        )


@dataclass(frozen=True)
class Content:
    """The intact records of a journal; `damaged` counts those left out."""

    header: Header
    steps: np.ndarray
    layers: np.ndarray
    parameters: np.ndarray
    damaged: int = 0


class JournalError(ValueError):
    """A file is no journal, or its header is damaged."""


class Journal:
    """An open journal file; `records` counts what was written to it."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self.records = 0
        self._columns = frozenset(header.step_columns)
        self._pack = struct.Struct(f"<{len(header.step_columns)}d").pack
        self._record_size = header.record_type().itemsize
        text = json.dumps(asdict(header)).encode()
        block = _PREFIX.pack(MAGIC, len(text), zlib.crc32(text)) + text
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._size = 0
        self._write([block], len(block))

    def holds(self, record: StepRecord) -> bool:
        """Say whether every column of this step has a place here."""
        return record.step.keys() <= self._columns

    def append(self, record: StepRecord) -> None:
        """Write one record in one system call; OSError if it didn't fit, and then nothing of it stays."""
        if "step" not in record.step:
            raise ValueError("a record must say its step")
        values = self._pack(*[record.step.get(column, _NAN) for column in self.header.step_columns])
        layers = _matrix(record.layers, self.header.layers_shape, "layers")
        parameters = _matrix(record.parameters, self.header.parameters_shape, "parameters")
        checksum = zlib.crc32(parameters, zlib.crc32(layers, zlib.crc32(values)))
        self._write([_CHECKSUM.pack(checksum), values, layers, parameters], self._record_size)
        self.records += 1

    def close(self) -> None:
        """Close the file; harmless if it is closed already."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, blocks: list[bytes | memoryview], size: int) -> None:
        written = os.writev(self._file, blocks)
        if written != size:
            os.ftruncate(self._file, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._size += size


def _matrix(values: np.ndarray, shape: tuple[int, int], name: str) -> memoryview:
    if values.shape != shape:
        raise ValueError(f"the {name} of a step have the shape {values.shape}, the run's tables say {shape}")
    return np.ascontiguousarray(values, dtype="<f8").reshape(-1).data.cast("B")


def read_journal(path: Path) -> Content | None:
    """Read a journal's intact records; None if it ends before its header does, JournalError if damaged."""
    return next(read_pieces(path), None)


def read_pieces(path: Path, most: int = -1) -> Iterator[Content]:
    """Read a journal piece by piece, each of at most so many bytes but at least one record.

    most: -1 is all at once. Yields nothing if the file ends before its header does; JournalError if that is
    damaged.
    """
    with path.open("rb") as file:
        header = _read_header(file)
        if header is None:
            return
        kind = header.record_type()
        size = max(1, most // kind.itemsize) * kind.itemsize if most >= 0 else -1
        data = file.read(size)
        while True:
            yield _intact(header, kind, data)
            data = file.read(size)
            if len(data) < kind.itemsize:
                return


def _intact(header: Header, kind: np.dtype[np.void], data: bytes) -> Content:
    records = np.frombuffer(data, kind, len(data) // kind.itemsize)
    offsets = range(0, len(records) * kind.itemsize, kind.itemsize)
    intact = np.array([_is_intact(data, offset, kind.itemsize) for offset in offsets], dtype=bool)
    good = records if intact.all() else records[intact]
    return Content(header, good["step"], good["layers"], good["parameters"], int((~intact).sum()))


def _is_intact(data: bytes, offset: int, size: int) -> bool:
    (checksum,) = _CHECKSUM.unpack_from(data, offset)
    return bool(zlib.crc32(memoryview(data)[offset + _CHECKSUM.size : offset + size]) == checksum)


def _read_header(file: BinaryIO) -> Header | None:
    """Read what a journal begins with; None if it ends before."""
    prefix = file.read(_PREFIX.size)
    if not prefix.startswith(MAGIC[: len(prefix)]):
        raise JournalError("it is not a journal")
    if len(prefix) < _PREFIX.size:
        return None
    _, length, checksum = _PREFIX.unpack(prefix)
    text = file.read(length)
    if len(text) < length:
        return None
    if zlib.crc32(text) != checksum:
        raise JournalError("its header is damaged")
    try:
        values: dict[str, Any] = json.loads(text)
        names: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return Header(**names)
    except (ValueError, TypeError, AttributeError):
        raise JournalError("its header is not of this format version") from None
