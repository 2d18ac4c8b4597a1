"""Record a training: from probes and parameters to one StepRecord a recorded step, handed to a sink."""

from __future__ import annotations

import math
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.columns import LAYER_COLUMNS
from gradscope.observe.activations import RECTIFIERS, limits_of_module, name_of_module
from gradscope.observe.layers import describe_layer, unit_axis_of, usual_unit_axis, watched_modules
from gradscope.observe.parameters import describe_optimizers, describe_parameters, named_parameters
from gradscope.observe.probes import Probes, tensors_in
from gradscope.observe.schedule import schedule_from
from gradscope.observe.staging import OUTPUT, SIGNAL, Collector, Measured, Reading
from gradscope.observe.units import LiveUnits
from gradscope.observe.weights import ParameterProbe
from gradscope.records import Event, LayerInfo, RunInfo, Status, StepRecord
from gradscope.settings import Settings
from gradscope.summarise import merge_calls

FORMAT_VERSION = 1
COLUMN = {column.name: index for index, column in enumerate(LAYER_COLUMNS)}
ACTIVATION = [
    COLUMN[f"activation_{name}"]
    for name in ("mean", "std", "rms", "min", "max", "zero_fraction", "nonfinite")
]
SIGNAL_COLUMNS = [COLUMN[f"signal_{name}"] for name in ("rms", "absmax", "zero_fraction", "nonfinite")]


class Sink(Protocol):
    """Where a recorder puts what it records; `gradscope.store.RunWriter` is one."""

    def begin(self, info: RunInfo) -> None:
        """Begin a run."""

    def update(self, info: RunInfo) -> None:
        """Replace what is known of the run."""

    def append(self, record: StepRecord) -> None:
        """Add a recorded step."""

    def event(self, event: Event) -> None:
        """Add an event."""

    def close(self, status: Status, exception: str = "") -> None:
        """End the run."""


class Recorder:
    """Watches one model while it trains.

    A front door calls `start`, then for each step `begin_step`, `before_update` (once an optimizer, gradients
    ready) and `end_step`, at last `stop`. None of these raises: a failure of the recorder itself is said
    once, noted as an event, and ends recording but never the training.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        sink: Sink,
        settings: Settings | None = None,
        training: Mapping[str, Any] | None = None,
        first_step: int = 0,
        restarts: int = 0,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.step = first_step
        self.recording = False
        self.spent = 0.0
        self._model, self._optimizers, self._sink = model, tuple(optimizers), sink
        self._training, self._restarts, self._versions = dict(training or {}), restarts, dict(versions or {})
        self._scheduled = schedule_from(self.settings)
        self._alive = True

    # The life of a run

    def start(self) -> None:
        """Describe the model, attach the probes and begin the run in the sink."""
        with _Guard(self):
            self._modules = watched_modules(self._model, self.settings.layers)
            self._layers = self._describe_layers()
            self._parameters, _ = named_parameters(self._model)
            self._probes = Probes(self._modules, self)
            self._collector = Collector()
            self._readings = [self._reading(module) for module in self._modules.values()]
            self._weights = ParameterProbe(self._parameters, self.settings.update_sample)
            self._units = LiveUnits(self.settings.dead_window)
            self._order: list[int] = []
            self._calls = np.zeros(len(self._modules))
            self._shapes: dict[int, tuple[int, ...]] = {}
            self._recorded = 0
            self.info = self._run_info()
            self._sink.begin(self.info)

    def begin_step(self) -> bool:
        """Start observing if the coming step is to be recorded; return whether it is."""
        if not self._alive:
            return False
        if not self._scheduled(self.step):
            if self._probes.attached:
                self._probes.detach()
            return False
        with _Guard(self):
            self._started = perf_counter()
            self.spent = 0.0
            self._probes.attach()
            self.recording = True
            self.spent += perf_counter() - self._started
        return self.recording

    def before_update(self, optimizer: Optimizer, scale: float = 1.0) -> None:
        """Read one optimizer's weights and gradients: accumulated, before clipping; `scale` divides them."""
        if self.recording:
            started = perf_counter()
            with _Guard(self):
                self._weights.before_update(optimizer, scale)
            self.spent += perf_counter() - started

    def end_step(self, facts: Mapping[str, float]) -> None:
        """Finish the step: measure updates, summarise, and hand the record to the sink."""
        if self.recording:
            started = perf_counter()
            with _Guard(self):
                self.recording = False
                parameters = self._weights.after_update(self._optimizers)
                layers = self._layer_table(self._collector.take())
                first = not self._recorded
                self._recorded += 1
                if first:
                    self._after_first_step()
                now = perf_counter()
                step = {"step": float(self.step), **_norms(parameters), **facts}
                step["seconds"] = now - self._started
                step["overhead_seconds"] = self.spent + now - started
                self._sink.append(StepRecord(step, layers, parameters))
        self.step += 1

    def stop(self, status: Status, exception: str = "") -> None:
        """Take the probes off and end the run; harmless when repeated."""
        self.recording = False
        probes = getattr(self, "_probes", None)
        if probes is not None:
            probes.detach()
        if self._alive:
            with _Guard(self):
                self._alive = False
                self._sink.close(status, exception)

    def event(self, kind: str, message: str, **details: Any) -> None:
        """Note something rare."""
        if self._alive:
            with _Guard(self):
                self._sink.event(Event(kind, self.step, message, **details))

    def failed(self, error: Exception) -> None:
        """Say once that recording failed, note it, and observe no more."""
        if not self._alive:
            return
        self._alive = self.recording = False
        self._probes.detach()
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"gradscope stopped recording at step {self.step}, training goes on: {reason}", stacklevel=2
        )
        try:
            self._sink.event(Event("recorder-failure", self.step, reason))
            self._sink.close("running", "")
        except Exception:
            # The sink may be what failed.
            return

    # What the probes report

    def called(self, index: int, module: nn.Module, output: Any) -> None:
        """Note a forward call of layer `index`."""
        if self.recording:
            self._calls[index] += 1
            if index not in self._shapes:
                self._first_call(index, module, output)

    def _first_call(self, index: int, module: nn.Module, output: Any) -> None:
        self._order.append(index)
        tensor = next(tensors_in(output), None)
        shape = tuple(tensor.shape) if tensor is not None else ()
        self._shapes[index] = shape
        reading = self._readings[index]
        axis = self._unit_axis(module, shape)
        self._layers[index] = replace(
            self._layers[index], depth=len(self._order) - 1, output_shape=shape, unit_axis=axis
        )
        if name_of_module(module) in RECTIFIERS and axis is not None:
            self._readings[index] = reading._replace(unit_axis=axis)

    def _unit_axis(self, module: nn.Module, shape: tuple[int, ...]) -> int | None:
        """Return the axis that counts units: the module's own, else that of the layer which ran before."""
        own = unit_axis_of(module, shape)
        if own is not None or len(shape) < 2:
            return own
        if len(self._order) > 1:
            previous = self._layers[self._order[-2]]
            if previous.output_shape is not None and len(previous.output_shape) == len(shape):
                return previous.unit_axis
        return usual_unit_axis(shape)

    def output(self, index: int, tensor: Tensor) -> None:
        """Take a tensor that layer `index` returned."""
        if self.recording and (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
            self._collector.add(self._readings[index], index, tensor.detach())

    def signal(self, index: int, gradient: Tensor) -> None:
        """Take the gradient of the loss with respect to such a tensor."""
        if self.recording:
            self._collector.add(SIGNAL, index, gradient.detach())

    # Tables

    def _layer_table(self, measured: list[Measured]) -> NDArray[np.float64]:
        size = len(self._layers)
        table = np.full((size, len(LAYER_COLUMNS)), np.nan)
        if self._order:
            table[self._order, COLUMN["calls"]] = self._calls[self._order]
        self._calls[:] = 0
        outputs = [item for item in measured if not item.reading.signal]
        signals = [item for item in measured if item.reading.signal]
        if outputs:
            table[:, ACTIVATION], table[:, COLUMN["activation_count"]] = _merged(outputs, size)
        if signals:
            table[:, SIGNAL_COLUMNS], table[:, COLUMN["signal_count"]] = _merged(signals, size)
        for item in outputs:
            self._bounded_and_live(table, item)
        return table

    def _bounded_and_live(self, table: NDArray[np.float64], item: Measured) -> None:
        if item.saturated is not None:
            for owner, share in zip(item.owners, item.saturated.tolist(), strict=True):
                table[owner, COLUMN["activation_saturated_fraction"]] = share
        if item.live is not None:
            for owner, live in zip(item.owners, item.live.cpu().numpy(), strict=True):
                table[owner, COLUMN["activation_dead_unit_fraction"]] = self._units.update(owner, live)

    # Descriptions

    def _describe_layers(self) -> list[LayerInfo]:
        owned: dict[str, list[str]] = {}
        for parameter in describe_parameters(self._model, self._optimizers, self.settings.update_sample):
            owned.setdefault(parameter.layer, []).append(parameter.name)
        return [
            describe_layer(name, module, tuple(owned.get(name, ()))) for name, module in self._modules.items()
        ]

    def _reading(self, module: nn.Module) -> Reading:
        limits = limits_of_module(module)
        return OUTPUT._replace(limits=limits) if limits else OUTPUT

    def _run_info(self) -> RunInfo:
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        kind = type(self._model)
        return RunInfo(
            format_version=FORMAT_VERSION,
            model=f"{kind.__module__}.{kind.__qualname__}",
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            restarts=self._restarts,
            versions={"python": platform.python_version(), "torch": torch.__version__, **self._versions},
            settings=self.settings.as_dict(),
            training=self._training,
            optimizers=describe_optimizers(self._optimizers, names),
            layers=tuple(self._layers),
            parameters=describe_parameters(self._model, self._optimizers, self.settings.update_sample),
        )

    def _after_first_step(self) -> None:
        calls = self._shapes
        self.info = replace(
            self.info,
            layers=tuple(
                replace(layer, calls=1 if i in calls else 0) for i, layer in enumerate(self._layers)
            ),
        )
        self._sink.update(self.info)


class _Guard:
    """Turns an exception of gradscope's own into a note, so that training goes on."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, Exception):
            self._recorder.failed(error)
            return True
        return False


def _merged(measured: list[Measured], size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    table = torch.cat([item.table for item in measured], 1).numpy(force=True)
    owners = np.array([owner for item in measured for owner in item.owners], dtype=np.intp)
    counts = np.array([count for item in measured for count in item.entries], dtype=np.float64)
    merged, total = merge_calls(table, counts, owners, size)
    return merged.T, np.where(total > 0, total, np.nan)


def _norms(parameters: NDArray[np.float64]) -> dict[str, float]:
    from gradscope.observe.weights import COLUMN as OF

    norms = {}
    for name, column in (("grad_norm", "gradient_norm"), ("clipped_grad_norm", "clipped_gradient_norm")):
        values = parameters[:, OF[column]]
        if not np.isnan(values).all():
            norms[name] = math.sqrt(float(np.nansum(values**2)))
    if norms.get("grad_norm", 0) > 0 and "clipped_grad_norm" in norms:
        norms["clip_coefficient"] = norms["clipped_grad_norm"] / norms["grad_norm"]
    return norms
