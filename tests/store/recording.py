"""Small runs, written by the real writer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gradscope.columns import LAYER_COLUMNS, PARAMETER_COLUMNS
from gradscope.records import LayerInfo, ParameterInfo, RunInfo, StepRecord
from gradscope.settings import Settings
from gradscope.store import FORMAT_VERSION, RunWriter

LAYER_NAMES = [column.name for column in LAYER_COLUMNS]
PARAMETER_NAMES = [column.name for column in PARAMETER_COLUMNS]


def info(layers: int = 3, parameters: int = 2, ranks: int = 1) -> RunInfo:
    return RunInfo(
        FORMAT_VERSION,
        "tests.Model",
        ranks=ranks,
        layers=tuple(LayerInfo(f"net.{index}", "Linear", "linear", index) for index in range(layers)),
        parameters=tuple(
            ParameterInfo(f"net.{index}.weight", f"net.{index}", "weight", (4, 4))
            for index in range(parameters)
        ),
    )


def record(step: int, value: float | None = None, layers: int = 3, parameters: int = 2) -> StepRecord:
    """Return a step whose statistics all are `value`, or its number if none is given."""
    number = float(step if value is None else value)
    return StepRecord(
        {"step": step, "loss": number, "lr": 0.5},
        np.full((layers, len(LAYER_NAMES)), number),
        np.full((parameters, len(PARAMETER_NAMES)), number),
    )


def begin(path: Path, rank: int = 0, ranks: int = 1, segment_steps: int = 256) -> RunWriter:
    writer = RunWriter(path, rank, Settings(segment_steps=segment_steps))
    writer.begin(info(ranks=ranks))
    return writer


def write(
    path: Path,
    steps: Iterable[int] = range(10),
    value: float | None = None,
    rank: int = 0,
    ranks: int = 1,
    segment_steps: int = 4,
    close: bool = True,
) -> Path:
    """Record some steps; without `close` the writer just stops, as a killed process does."""
    writer = begin(path, rank, ranks, segment_steps)
    for step in steps:
        writer.append(record(step, value))
    if close:
        writer.close("finished")
    return path
