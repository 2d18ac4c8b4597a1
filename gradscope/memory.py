"""Keep what is recorded in memory as well, so that it can be judged while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from gradscope.columns import LAYER_COLUMNS, PARAMETER_COLUMNS, Column
from gradscope.observe.recorder import Sink
from gradscope.records import Event, Run, RunInfo, Status, StepRecord


class Memory:
    """A sink that remembers this rank's part of a run and hands everything on to the next sink, if any.

    Its size is bounded: of more than `most` steps the first `first` stay, and every second of the others.
    """

    def __init__(self, onward: Sink | None = None, first: int = 32, most: int = 256) -> None:
        self.info: RunInfo | None = None
        self.events: list[Event] = []
        self.appended = 0
        self._onward, self._first, self._most = onward, first, most
        self._records: list[StepRecord] = []

    def begin(self, info: RunInfo) -> None:
        """Begin a run."""
        self.info = info
        if self._onward:
            self._onward.begin(info)

    def update(self, info: RunInfo) -> None:
        """Replace what is known of the run; steps recorded of other rows no longer fit."""
        if self.info is None or _rows(self.info) != _rows(info):
            self._records = []
        self.info = info
        if self._onward:
            self._onward.update(info)

    def append(self, record: StepRecord) -> None:
        """Add a recorded step."""
        self.appended += 1
        self._records.append(record)
        if len(self._records) > self._most:
            later = self._records[self._first :]
            self._records = self._records[: self._first] + later[1 - len(later) % 2 :: 2]  # the newest stays
        if self._onward:
            self._onward.append(record)

    def event(self, event: Event) -> None:
        """Add an event; of very many, only the first ones are remembered."""
        if len(self.events) < self._most:
            self.events.append(event)
        if self._onward:
            self._onward.event(event)

    def close(self, status: Status, exception: str = "") -> None:
        """End the run."""
        if self.info is not None:
            self.info = replace(self.info, status=status, exception=exception)
        if self._onward:
            self._onward.close(status, exception)

    @property
    def newest(self) -> StepRecord | None:
        """Return the step recorded last."""
        return self._records[-1] if self._records else None

    def run(self, path: Path) -> Run | None:
        """Return what is remembered as a run; None before its first recorded step."""
        if self.info is None or not self._records:
            return None
        layers = [layer.name for layer in self.info.layers]
        parameters = [parameter.name for parameter in self.info.parameters]
        steps = np.array([int(record.step["step"]) for record in self._records], dtype=np.int64)
        return Run(
            path,
            self.info,
            pd.DataFrame([dict(record.step) for record in self._records]).assign(step=steps),
            _tidy(steps, [record.layers for record in self._records], "layer", layers, LAYER_COLUMNS),
            _tidy(
                steps,
                [record.parameters for record in self._records],
                "parameter",
                parameters,
                PARAMETER_COLUMNS,
            ),
            tuple(self.events),
        )


def _rows(info: RunInfo) -> tuple[list[str], list[str]]:
    return [layer.name for layer in info.layers], [parameter.name for parameter in info.parameters]


def _tidy(
    steps: np.ndarray,
    matrices: Sequence[np.ndarray],
    key: str,
    names: list[str],
    columns: tuple[Column, ...],
) -> pd.DataFrame:
    """Return matrices (names, columns), one a step, as a tidy table without its empty rows."""
    values = np.stack(matrices).reshape(len(steps) * len(names), len(columns))
    kept = ~np.isnan(values).all(axis=1)
    codes = np.tile(np.arange(len(names)), len(steps))[kept]
    about = {
        "step": np.repeat(steps, len(names))[kept],
        key: pd.Categorical.from_codes(codes, pd.Index(names, dtype=object)),
    }
    statistics = {column.name: values[kept, place] for place, column in enumerate(columns)}
    return pd.DataFrame({**about, **statistics}, copy=False)
