"""The nouns: what was watched, what was recorded, what was found, what would help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Severity = Literal["critical", "warning", "note"]
Verdict = Literal["healthy", "ailing", "inconclusive"]
Status = Literal["running", "finished", "interrupted", "failed"]

# Of the run directory.
# 1: run.json, events.jsonl, live/ journals, Parquet segments of steps, layers and parameters.
FORMAT_VERSION = 1

SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "note")

RULE_NAMES: tuple[str, ...] = (
    "vanishing-gradient",
    "exploding-gradient",
    "vanishing-signal",
    "exploding-signal",
    "non-finite",
    "zero-gradient",
    "missing-gradient",
    "dead-units",
    "saturated-activation",
    "attention-collapse",
    "rank-collapse",
    "poor-initialization",
    "symmetric-weights",
    "unscaled-input",
    "output-mismatch",
    "learning-rate-too-high",
    "learning-rate-too-low",
    "not-optimized",
    "excessive-weight-decay",
    "over-clipping",
    "ineffective-clipping",
    "gradient-not-zeroed",
    "gradient-underflow",
    "epsilon-floor",
    "degenerate-normalization",
    "loss-divergence",
)

REMEDY_KINDS: tuple[str, ...] = (
    "activation",
    "initialization",
    "normalization",
    "clipping",
    "learning-rate",
    "warmup",
    "residual",
    "weight-decay",
    "input-scaling",
    "target-scaling",
    "precision",
    "optimizer",
    "loss",
    "width",
    "code",
)


@dataclass(frozen=True)
class LayerInfo:
    """A watched module, as it is and as it ran.

    name: qualified module name; kind: class name; role: one of "linear", "convolution", "recurrent",
    "attention", "embedding", "activation", "normalization", "dropout", "pooling", "shape", "other".
    depth: place in the execution order of the first recorded step, -1 if it did not run.
    activation: canonical name ("relu", "tanh", ...) of what an activation module computes; for another
    layer, of the functional activation that is applied to its output, where the autograd graph shows one;
    else None. inputs: names of the watched layers whose outputs reach this one; functions: autograd
    functions on the way (so "AddBackward0" with two inputs is a skip connection). options: the numbers of
    its constructor that matter. output_shape: of its first call, batch included. unit_axis: the axis of
    output_shape that counts units. not_observable: why nothing is known of it, "" otherwise.
    """

    name: str
    kind: str
    role: str
    depth: int = -1
    calls: int = 0
    parameters: tuple[str, ...] = ()
    activation: str | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    output_shape: tuple[int, ...] | None = None
    unit_axis: int | None = None
    inputs: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    not_observable: str = ""


@dataclass(frozen=True)
class ParameterInfo:
    """A parameter of the model.

    role: "weight" (two or more axes), "bias", "gain" (of a normalisation), "embedding", "other".
    sampled: how many of its entries the update statistics cover. group: "optimizer.group" (such as "0.1"),
    None if no optimizer has it. initial: statistics of its values when watching began: "mean", "std",
    "absmax", and "unit_spread" (how much its output units differ: 0 when all rows are equal).
    """

    name: str
    layer: str
    role: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    trained: bool = True
    aliases: tuple[str, ...] = ()
    group: str | None = None
    sampled: int = 0
    initial: Mapping[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Return the number of entries."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True)
class OptimizerInfo:
    """An optimizer: its class name and, per parameter group, its options ("lr", "momentum", "betas", "eps",
    "weight_decay", ...) and under "parameters" the names of its parameters."""

    kind: str
    groups: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Event:
    """Something rare that happened: "non-finite", "skipped-step", "never-fired", "not-observable",
    "recorder-failure", "unregistered", "restart", "stopped", ..."""

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

    def _table(self, statistics: pd.DataFrame, places: _Places, column: str) -> pd.DataFrame:
        key = (str(places.names.name), column)
        if key not in self._tables:
            self._tables[key] = _pivot(statistics, places, column)
        return self._tables[key]

    @cached_property
    def _layer_places(self) -> _Places:
        names = [layer.name for layer in self.layers]
        return _places(self.layer_statistics, "layer", names, self.steps)

    @cached_property
    def _parameter_places(self) -> _Places:
        names = [parameter.name for parameter in self.parameters]
        return _places(self.parameter_statistics, "parameter", names, self.steps)

    @cached_property
    def _layers_by_name(self) -> dict[str, LayerInfo]:
        return {layer.name: layer for layer in self.info.layers}

    @cached_property
    def _parameters_by_name(self) -> dict[str, ParameterInfo]:
        return {parameter.name: parameter for parameter in self.info.parameters}


@dataclass(frozen=True)
class _Places:
    """Where the rows of a tidy table go in its (steps, names) form: found once, used for every statistic."""

    steps: pd.Index
    names: pd.Index
    known: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def _places(statistics: pd.DataFrame, key: str, names: list[str], steps: pd.DataFrame) -> _Places:
    """Find the place of each row; rows for unknown steps or names have none."""
    import numpy as np
    import pandas as pd

    index = pd.Index(steps["step"].to_numpy(), name="step")
    rows = index.get_indexer(pd.Index(statistics["step"]))
    labels = pd.Categorical(statistics[key])
    # a code of -1, no label, finds the -1 at the end
    columns = np.append(pd.Index(names).get_indexer(labels.categories), -1)[labels.codes]
    known = (rows >= 0) & (columns >= 0)
    return _Places(index, pd.Index(names, name=key), known, rows[known], columns[known])


def _pivot(statistics: pd.DataFrame, places: _Places, column: str) -> pd.DataFrame:
    """Spread a tidy column into (steps, names), NaN where nothing was recorded."""
    import numpy as np
    import pandas as pd

    grid = np.full((len(places.steps), len(places.names)), np.nan)
    if column in statistics:
        values = statistics[column].to_numpy(dtype="float64")
        grid[places.rows, places.columns] = values[places.known]
    return pd.DataFrame(grid, index=places.steps, columns=places.names)


@dataclass(frozen=True)
class Remedy:
    """A suggested change.

    kind: one of REMEDY_KINDS; code: ready to paste, with this model's layer names; expected: the effect, as
    a number where theory gives one; action: the same change for a machine (see prescribe/surgery.py), empty
    if a person has to make it.
    """

    kind: str
    title: str
    why: str
    code: str
    expected: str
    action: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One ailment: the rule that found it, where, since when, and the numbers that show it.

    layers and parameters: where it starts, worst first; message: one sentence; cause: why it happens, one or
    two sentences with this run's figures; evidence: the figures by name; caused_by: the rule of the root
    cause, None if this is one; rank: 1 for the first to be treated.
    """

    rule: str
    severity: Severity
    message: str
    layers: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    first_step: int = 0
    last_step: int = 0
    cause: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    caused_by: str | None = None
    rank: int = 0
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True)
class NotChecked:
    """A rule that could not decide, and why."""

    rule: str
    reason: str


@dataclass(frozen=True)
class Evidence:
    """A figure that supports a verdict: what was looked at, its value, and the range that is normal."""

    name: str
    value: float
    normal: str
    statement: str


@dataclass(frozen=True)
class Report:
    """A run with its verdict, its findings (root causes first, with remedies) and what was not checked."""

    run: Run
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One short training of the patient, with a remedy or without, from one seed.

    losses: one a step; initial and final are in the loss's own unit, improvement the share of the patient's
    initial loss that was removed, in [-1, 1]; rules: what the run was found to suffer from, at warning or
    above; run: the recorded run's directory; failure: why nothing was measured, "" otherwise.
    """

    seed: int
    losses: tuple[float, ...] = ()
    initial: float = float("nan")
    final: float = float("nan")
    improvement: float = float("nan")
    seconds_per_step: float = float("nan")
    rules: tuple[str, ...] = ()
    evidence: Mapping[str, float] = field(default_factory=dict)
    run: str = ""
    failure: str = ""


@dataclass(frozen=True)
class Effect:
    """A remedy with what it did: the mean paired difference in improvement to the untreated patient, its 95 %
    interval over seeds, and the cost of a step relative to the patient's. outcome: "helps", "harms",
    "no clear effect" or "not tried"."""

    remedy: Remedy
    trials: tuple[Trial, ...]
    improvement: float
    gained: float
    low: float
    high: float
    cost: float
    outcome: str
    cured: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Treatment:
    """A patient, untreated and under each remedy, ranked by measured effect.

    verdict: "repaired" (some remedy helps), "not ill" (it trains well and nothing helps) or "not repaired".
    combination: the two best together, if there were two. complete: False if the time limit came first.
    """

    path: Path
    patient: tuple[Trial, ...]
    findings: tuple[Finding, ...]
    effects: tuple[Effect, ...]
    combination: Effect | None
    verdict: str
    steps: int
    seeds: int
    complete: bool

    @property
    def all_effects(self) -> tuple[Effect, ...]:
        """Return the effects, that of the combination last."""
        return (*self.effects, self.combination) if self.combination else self.effects

    @property
    def winner(self) -> Effect | None:
        """Return the best effect that helps, the combination included; None if nothing helps."""
        helping = [effect for effect in self.all_effects if effect.outcome == "helps"]
        return max(helping, key=lambda effect: effect.gained, default=None)
