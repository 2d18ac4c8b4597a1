"""A sink that keeps everything in memory, and a loop that drives a recorder by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.columns import LAYER_COLUMNS, PARAMETER_COLUMNS
from gradscope.observe import Recorder
from gradscope.records import Event, RunInfo, Status, StepRecord
from gradscope.settings import Settings

LAYER = {column.name: index for index, column in enumerate(LAYER_COLUMNS)}
PARAMETER = {column.name: index for index, column in enumerate(PARAMETER_COLUMNS)}


class MemorySink:
    def __init__(self) -> None:
        self.infos: list[RunInfo] = []
        self.records: list[StepRecord] = []
        self.events: list[Event] = []
        self.status: Status = "running"
        self.exception = ""

    def begin(self, info: RunInfo) -> None:
        self.infos.append(info)

    def update(self, info: RunInfo) -> None:
        self.infos.append(info)

    def append(self, record: StepRecord) -> None:
        self.records.append(record)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def close(self, status: Status, exception: str = "") -> None:
        self.status, self.exception = status, exception

    @property
    def info(self) -> RunInfo:
        return self.infos[-1]

    def layer(self, name: str, column: str, step: int = -1) -> float:
        row = [layer.name for layer in self.info.layers].index(name)
        return float(self.records[step].layers[row, LAYER[column]])

    def parameter(self, name: str, column: str, step: int = -1) -> float:
        row = [parameter.name for parameter in self.info.parameters].index(name)
        return float(self.records[step].parameters[row, PARAMETER[column]])


def record(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    steps: int = 1,
    optimizer: torch.optim.Optimizer | None = None,
    clip: Callable[[], Any] | None = None,
    **settings: Any,
) -> MemorySink:
    """Train and record every step; the sink has everything."""
    sink = MemorySink()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    recorder = Recorder(model, [optimizer], sink, Settings(every_n_steps=1, **settings))
    recorder.start()
    for _ in range(steps):
        recorder.begin_step()
        optimizer.zero_grad()
        value = loss(model)
        recorder.minimised(value)
        value.backward()
        recorder.before_update(optimizer)
        if clip is not None:
            clip()
        optimizer.step()
        recorder.end_step({"loss": value.detach()})
    recorder.stop("finished")
    return sink
