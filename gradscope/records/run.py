"""What is recorded: a run as a whole, its steps and its rare events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradscope.records.grid import Places, places, spread
from gradscope.records.model import LayerInfo, OptimizerInfo, ParameterInfo

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Status = Literal["running", "finished", "interrupted", "failed"]

# Of the run directory.
# 1: run.json, events.jsonl, live/ journals, Parquet segments of steps, layers and parameters.
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Event:
    """Something rare that happened: "never-fired", "not-observable", "unregistered", "recorder-failure",
    "critical", "stopped" or "restart"; runs of other versions may hold further kinds."""

    kind: str
    step: int
    message: str
    layer: str | None = None
    parameter: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run besides its tables; the content of run.json.

    training: facts of the set-up, present where known: "precision", "device", "world_size", "strategy",
    "accumulate_grad_batches", "clip_value", "clip_algorithm", "batch_size", "max_steps", "max_epochs",
    "automatic_optimization", "schedulers"; "steps", all optimizer steps done, once the run has ended.
    loss: facts of the loss's autograd graph: "functions" (names, the loss first), "inputs" (layers that feed
    it), "shapes" (of what the loss function compared, where it kept them).
    """

    format_version: int
    model: str
    status: Status = "running"
    started: str = ""
    ended: str = ""
    exception: str = ""
    restarts: int = 0
    ranks: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)
    optimizers: tuple[OptimizerInfo, ...] = ()
    layers: tuple[LayerInfo, ...] = ()
    parameters: tuple[ParameterInfo, ...] = ()


@dataclass(frozen=True)
class StepRecord:
    """Everything recorded in one step, as the recorder hands it to a sink.

    step: the values of STEP_COLUMNS (and lr_1, ...) that are known.
    layers: float64 (number of layers, len(LAYER_COLUMNS)); parameters: float64 (number of parameters,
    len(PARAMETER_COLUMNS)); rows in the order of RunInfo's tables, NaN where nothing was measured.
    """

    step: Mapping[str, float]
    layers: np.ndarray
    parameters: np.ndarray


@dataclass(frozen=True)
class Run:
    """Everything recorded in one run.

    steps: one row a recorded step, sorted; layer_statistics and parameter_statistics: tidy, with the columns
    "step", "layer" or "parameter", and those of LAYER_COLUMNS or PARAMETER_COLUMNS; ranks already merged.
    problems: what the reader had to leave out, one line each.
    """

    path: Path
    info: RunInfo
    steps: pd.DataFrame
    layer_statistics: pd.DataFrame
    parameter_statistics: pd.DataFrame
    events: tuple[Event, ...] = ()
    problems: tuple[str, ...] = ()
    _tables: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def layers(self) -> tuple[LayerInfo, ...]:
        """Return the layers that ran, in execution order."""
        return tuple(
            sorted((layer for layer in self.info.layers if layer.depth >= 0), key=lambda layer: layer.depth)
        )

    @property
    def parameters(self) -> tuple[ParameterInfo, ...]:
        """Return all parameters, in the model's order."""
        return self.info.parameters

    @cached_property
    def conclusions(self) -> dict[object, Any]:
        """Return what has been concluded from this very run, for its readers to keep and to find again."""
        return {}

    def layer(self, name: str) -> LayerInfo:
        """Return the layer of this name; KeyError if there is none."""
        return self._layers_by_name[name]

    def parameter(self, name: str) -> ParameterInfo:
        """Return the parameter of this name; KeyError if there is none."""
        return self._parameters_by_name[name]

    def layer_table(self, column: str) -> pd.DataFrame:
        """Return one statistic: recorded steps down, layers in execution order across, NaN if absent."""
        return self._table(self.layer_statistics, self._layer_places, column)

    def parameter_table(self, column: str) -> pd.DataFrame:
        """Return one statistic: recorded steps down, parameters in model order across, NaN if absent."""
        return self._table(self.parameter_statistics, self._parameter_places, column)

    def _table(self, statistics: pd.DataFrame, places: Places, column: str) -> pd.DataFrame:
        key = (str(places.names.name), column)
        if key not in self._tables:
            self._tables[key] = spread(statistics, places, column)
        return self._tables[key]

    @cached_property
    def _layer_places(self) -> Places:
        names = [layer.name for layer in self.layers]
        return places(self.layer_statistics, "layer", names, self.steps)

    @cached_property
    def _parameter_places(self) -> Places:
        names = [parameter.name for parameter in self.parameters]
        return places(self.parameter_statistics, "parameter", names, self.steps)

    @cached_property
    def _layers_by_name(self) -> dict[str, LayerInfo]:
        return {layer.name: layer for layer in self.info.layers}

    @cached_property
    def _parameters_by_name(self) -> dict[str, ParameterInfo]:
        return {parameter.name: parameter for parameter in self.info.parameters}
