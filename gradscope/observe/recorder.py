"""Record a training: from probes and parameters to one StepRecord a recorded step, handed to a sink."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.columns import LAYER_COLUMNS, PARAMETER_COLUMNS
from gradscope.observe.budget import Budget
from gradscope.observe.dataflow import Dataflow
from gradscope.observe.description import Description
from gradscope.observe.flow import Flow, LayerStep
from gradscope.observe.layers import is_scripted, watched_modules
from gradscope.observe.packing import Parcel
from gradscope.observe.parameters import mean_of_shard, updated_by
from gradscope.observe.pieces import ParameterStep, Piece, norms_of_step
from gradscope.observe.probes import Probes
from gradscope.observe.schedule import schedule_from
from gradscope.observe.unregistered import holder, unregistered
from gradscope.observe.weights import ParameterProbe
from gradscope.observe.wrappers import averaged_over, compiled_modules, hides_parameters
from gradscope.records import Event, RunInfo, Status, StepRecord
from gradscope.settings import Settings
from gradscope.summarise.host import use_threads_of_torch

SIGNAL_SIZES = [
    place for place, column in enumerate(LAYER_COLUMNS) if column.name in ("signal_rms", "signal_absmax")
]
GRADIENT_MISSING, UPDATE_NORM = (
    [column.name for column in PARAMETER_COLUMNS].index(name) for name in ("gradient_missing", "update_norm")
)


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


@dataclass(frozen=True)
class _Pending:
    """A step whose values are still on their way from the device."""

    facts: Mapping[str, float | Tensor]
    layers: LayerStep
    parameters: ParameterStep
    parcel: Parcel
    loss_scale: float | Tensor


class Recorder:
    """Watches one model while it trains.

    A front door calls `start`, then for each optimizer step `begin_step`, `before_update` (for each
    optimizer, when its gradients are ready) and `end_step`; at last `stop`. None of these raises: a failure
    of the recorder itself is said once and noted as an event, then it observes no more and training goes on.

    In distributed training every rank has a recorder and a sink of its own; recorders never communicate.
    model: with its wrappers (DDP, FSDP, torch.compile), which tell how gradients are averaged; names are
    those without wrappers.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        sink: Sink,
        settings: Settings | None = None,
        training: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        first_step: int = 0,
    ) -> None:
        self.settings = settings or Settings()
        self.step = first_step
        self.alive = False
        self.spent = 0.0
        self._model, self._optimizers, self._sink = model, tuple(optimizers), sink
        self._training, self._versions = dict(training or {}), dict(versions or {})
        self._scheduled = schedule_from(self.settings)
        self._budget = Budget(self.settings.overhead_budget)
        self._ended = 0.0
        self._probes: Probes | None = None
        self._pending: _Pending | None = None
        self._recorded = 0
        self._hidden = False

    @property
    def recording(self) -> bool:
        """Return whether the current step is being recorded."""
        return self.alive and self._flow.recording

    # The life of a run

    def start(self) -> None:
        """Describe the model and begin the run in the sink."""
        self.alive = True
        with _guard(self):
            modules = watched_modules(self._model, self.settings.layers)
            if self.settings.layers and not modules:
                warnings.warn(
                    f"gradscope watches no module: none has a name like {', '.join(self.settings.layers)}",
                    stacklevel=2,
                )
            self._averaged = averaged_over(self._model)
            known = Description(
                self._model, modules, self._optimizers, self.settings, self._training, self._versions
            )
            self._description, self._shards = known, known.sharded()
            self._flow = Flow(self._model, modules, known.info.layers, self.settings.dead_window, self.failed)
            self._weights = ParameterProbe(known.parameters, self.settings.update_sample)
            self._known = {id(parameter) for parameter in known.parameters.values()}
            for optimizer in self._optimizers:
                self._known.update(map(id, updated_by(optimizer)))
            self._probes = Probes(self._model, modules, self._flow)
            self._sink.begin(known.info)
            self._ended = perf_counter()
            if any(map(is_scripted, self._model.modules())):
                self.event("not-observable", "modules that torch.jit compiled take no hooks: none is watched")
            if hides_parameters(self._model):
                self.event("not-observable", "FSDP hides the parameters; wrap with use_orig_params=True")

    def begin_step(self) -> bool:
        """Start observing if the coming step is to be recorded; return whether it is."""
        probes = self._probes
        if not self.alive or probes is None:
            return False
        if not (self._scheduled(self.step) and self._budget.affords()):
            if self._flow.compiled:  # a graph that is compiled without the probes would be used for ever
                probes.attach()
            else:
                probes.detach()
            return False
        with _guard(self):
            self._started = perf_counter()
            self._rates: dict[str, float | Tensor] = {}
            self._means: list[Piece] = []
            self._flow.forget()
            self._weights.forget()
            probes.attach()
            if not self._recorded and self._flow.dataflow is None:
                self._flow.dataflow = Dataflow()
                compiled = compiled_modules(self._model)
                self._flow.dataflow.attach(
                    (index, module) for index, module in probes.watchable() if id(module) not in compiled
                )
            use_threads_of_torch()
            self._flow.recording = True
            self.spent = perf_counter() - self._started
        return self.recording

    def minimised(self, loss: Tensor) -> None:
        """Look, in the first recorded step, at the graph of the loss that is minimised."""
        if self.recording and self._flow.dataflow is not None:
            try:
                self._flow.dataflow.minimised(loss)
            except Exception as error:
                self.event("not-observable", f"the loss's graph could not be read: {error}")

    def before_update(self, optimizer: Optimizer, scale: float | Tensor = 1.0) -> None:
        """Read one optimizer's weights and gradients: accumulated, before clipping; `scale` divides them."""
        if self.recording:
            started = perf_counter()
            with _guard(self):
                self._rates.update(_rates(self._optimizers))
                self._say_what_is_new(optimizer)
                self._description.materialise()
                self._weights.before_update(optimizer, scale)
                if not self._recorded and optimizer is self._optimizers[-1]:
                    self._say_what_is_unregistered()
                if self._shards and not self._means:
                    self._means = [
                        Piece(("weight_mean",), [row], mean_of_shard(item).view(1, 1))
                        for row, item in self._shards
                    ]
            self.spent += perf_counter() - started

    def _say_what_is_new(self, optimizer: Optimizer) -> None:
        """Say that parameters were added to a model that is being watched: nothing is known of them."""
        parameters = updated_by(optimizer)
        if self._known.issuperset(map(id, parameters)):
            return
        new = sum(id(parameter) not in self._known for parameter in parameters)
        self._known.update(map(id, parameters))
        self.event(
            "not-observable", f"the model changed: {new} parameters are new, and not recorded; watch it anew"
        )

    def has_read(self, optimizer: Optimizer) -> bool:
        """Return whether `before_update` was called for an optimizer that hasn't made its update yet."""
        return self.recording and self._weights.has_read(optimizer)

    def after_update(self, optimizer: Optimizer) -> None:
        """Read one optimizer's updates now rather than at the step's end, before gradients are cleared."""
        if self.recording:
            started = perf_counter()
            with _guard(self):
                self._weights.after_update([optimizer])
            self.spent += perf_counter() - started

    def end_step(self, facts: Mapping[str, float | Tensor], loss_scale: float | Tensor = 1.0) -> None:
        """Finish the step: measure updates, and hand the record to the sink when its values are here.

        loss_scale: by what the loss was multiplied before its backward pass; signals are divided by it.
        """
        started, own = perf_counter(), None
        if self.recording:
            self._flow.recording = False
            with _guard(self):
                self._take(facts, loss_scale, started)
                if self._probes is not None and self._probes.delicate:
                    self._probes.detach()
                own = self.spent + self._flow.spent + perf_counter() - started
        now = perf_counter()
        self._budget.note(now - self._ended, own)
        self._ended = now
        self.step += 1

    def _take(self, facts: Mapping[str, float | Tensor], loss_scale: float | Tensor, started: float) -> None:
        self._weights.after_update(self._optimizers)
        parameters = self._weights.take()
        parameters.pieces += self._means
        layers = self._flow.take()
        if self._flow.news:
            self._sink.update(self._description.learn(self._flow, self.event))
        self._recorded += 1
        parcel = Parcel([*layers.tensors(), *(piece.values for piece in parameters.pieces)])
        self._deliver()
        now = perf_counter()
        timing = {
            "seconds": now - self._started,
            "overhead_seconds": self.spent + self._flow.spent + now - started,
        }
        self._pending = _Pending(
            {"step": self.step, **self._rates, **facts, **timing}, layers, parameters, parcel, loss_scale
        )
        if parcel.here:
            self._deliver()

    def _deliver(self) -> None:
        """Hand the pending step to the sink; on an accelerator that is one recorded step later."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        arrays = pending.parcel.open()
        split = len(pending.layers.tensors())
        layers = self._flow.table(pending.layers, arrays[:split])
        layers[:, SIGNAL_SIZES] /= float(pending.loss_scale) * self._averaged
        parameters = pending.parameters.table(arrays[split:])
        self._say_what_is_hidden(parameters)
        facts = {name: float(value) for name, value in pending.facts.items()}
        self._sink.append(StepRecord({**norms_of_step(parameters), **facts}, layers, parameters))

    def flush(self) -> None:
        """Hand a step whose values are still on their way to the sink now, waiting for the device."""
        if self.alive:
            with _guard(self):
                self._deliver()

    def _say_what_is_hidden(self, parameters: NDArray[np.float64]) -> None:
        """Tell gradients that something (DeepSpeed) hides from those that are missing: the weights change."""
        missing = parameters[:, GRADIENT_MISSING]
        if not (missing == 0).any() and (missing == 1).any() and (parameters[:, UPDATE_NORM] > 0).any():
            missing[:] = np.nan
            if not self._hidden:
                self.event(
                    "not-observable", "weights change though no gradient shows: the strategy hides them"
                )
            self._hidden = True

    def _say_what_is_unregistered(self) -> None:
        """Tell of tensors with a gradient that neither the model's nor an optimizer's list has."""
        left = unregistered(self._model, self._optimizers)
        if left:
            names, size = list(left), sum(tensor.numel() for tensor in left.values())
            message = f"{names[0]} has a gradient, but is no registered parameter and in no optimizer"
            holders = tuple(dict.fromkeys(holder(self._model, name) for name in names))
            data = {"parameters": names, "entries": size, "holders": holders}
            self.event("unregistered", message, data=data)

    def stop(self, status: Status, exception: str = "") -> None:
        """Take the probes off and end the run; harmless when repeated."""
        self._detach()
        if self.alive:
            with _guard(self):
                self._deliver()
                ended = {"steps": self.step, "overhead_share": self._budget.share_spent()}
                self._sink.update(self._description.add(ended))
                self._sink.close(status, exception)
            self.alive = False

    def event(self, kind: str, message: str, **details: Any) -> None:
        """Note something rare."""
        if self.alive:
            with _guard(self):
                self._sink.event(Event(kind, self.step, message, **details))

    def failed(self, error: Exception) -> None:
        """Say once that recording failed, note it, and observe no more."""
        if not self.alive:
            return
        self.alive = False
        self._detach()
        reason = f"{type(error).__name__}: {error}"
        try:
            warnings.warn(
                f"gradscope stopped recording at step {self.step}; training goes on ({reason})", stacklevel=3
            )
        finally:
            self._note_failure(reason)

    def _note_failure(self, reason: str) -> None:
        try:
            self._sink.event(Event("recorder-failure", self.step, reason))
            self._sink.close("failed", f"gradscope stopped recording: {reason}")
        except Exception:
            # The sink may be what failed; that has been said.
            return

    def _detach(self) -> None:
        if self._probes is not None:
            self._probes.detach()
        flow = getattr(self, "_flow", None)
        if flow is not None:
            flow.recording = False
            if flow.dataflow is not None:
                flow.dataflow.release()
                flow.dataflow = None


class _guard:
    """Turn an exception of gradscope's own into a note, so that training goes on."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, Exception):
            self._recorder.failed(error)
            return True
        return False


def _rates(optimizers: Sequence[Optimizer]) -> dict[str, float | Tensor]:
    """Return the learning rate of every parameter group, all optimizers' groups counted through."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {
        f"lr_{index}" if index else "lr": _rate(group["lr"])
        for index, group in enumerate(groups)
        if "lr" in group
    }


def _rate(value: Any) -> float | Tensor:
    return value.detach().clone() if isinstance(value, Tensor) else float(value)
