"""Record a training: from probes and parameters to one StepRecord a recorded step, handed to a sink."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradscope.observe.dataflow import Dataflow
from gradscope.observe.flow import Flow, LayerStep
from gradscope.observe.layers import describe_layer, watched_modules
from gradscope.observe.packing import Parcel
from gradscope.observe.parameters import describe_optimizers, describe_parameters, named_parameters
from gradscope.observe.pieces import ParameterStep, norms_of_step
from gradscope.observe.probes import Probes
from gradscope.observe.schedule import schedule_from
from gradscope.observe.weights import ParameterProbe
from gradscope.records import FORMAT_VERSION, Event, RunInfo, Status, StepRecord
from gradscope.settings import Settings


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


class Recorder:
    """Watches one model while it trains.

    A front door calls `start`, then for each optimizer step `begin_step`, `before_update` (for each
    optimizer, when its gradients are ready) and `end_step`; at last `stop`. None of these raises: a failure
    of the recorder itself is said once and noted as an event, then it observes no more and training goes on.
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
        self.recording = False
        self.alive = False
        self.spent = 0.0
        self._model, self._optimizers, self._sink = model, tuple(optimizers), sink
        self._training, self._versions = dict(training or {}), dict(versions or {})
        self._scheduled = schedule_from(self.settings)
        self._probes: Probes | None = None
        self._pending: _Pending | None = None
        self._recorded = 0
        self._never_fired: set[int] = set()

    # The life of a run

    def start(self) -> None:
        """Describe the model and begin the run in the sink."""
        self.alive = True
        with _guard(self):
            self._modules = watched_modules(self._model, self.settings.layers)
            if self.settings.layers and not self._modules:
                warnings.warn(
                    f"gradscope watches no module: none has a name like {', '.join(self.settings.layers)}",
                    stacklevel=2,
                )
            self._parameters, _ = named_parameters(self._model)
            self._lazy = any(is_lazy(parameter) for parameter in self._parameters.values())
            self.info = self._describe()
            self._flow = Flow(self._modules, self.info.layers, self.settings.dead_window)
            self._weights = ParameterProbe(self._parameters, self.settings.update_sample)
            self._probes = Probes(self._model, self._modules, self)
            self._sink.begin(self.info)

    def begin_step(self) -> bool:
        """Start observing if the coming step is to be recorded; return whether it is."""
        probes = self._probes
        if not self.alive or probes is None:
            return False
        if not self._scheduled(self.step):
            probes.detach()
            return False
        with _guard(self):
            self._started = perf_counter()
            self._rates: dict[str, float | Tensor] = {}
            self._flow.forget(probes)
            self._weights.forget()
            probes.attach()
            if not self._recorded and self._flow.dataflow is None:
                self._flow.dataflow = Dataflow()
                self._flow.dataflow.attach(probes.watchable())
            self.recording = True
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
                if self._lazy:
                    self._lazy, self.info = False, self._describe_again()
                self._weights.before_update(optimizer, scale)
            self.spent += perf_counter() - started

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

    def end_step(self, facts: Mapping[str, float | Tensor]) -> None:
        """Finish the step: measure updates, and hand the record to the sink when its values are here."""
        if self.recording:
            self.recording = False
            started = perf_counter()
            with _guard(self):
                self._take(facts, started)
                if self._probes is not None and self._probes.delicate:
                    self._probes.detach()
        self.step += 1

    def _take(self, facts: Mapping[str, float | Tensor], started: float) -> None:
        self._weights.after_update(self._optimizers)
        parameters = self._weights.take()
        if self._probes is not None:
            self._flow.gather(self._probes)
        layers = self._flow.take()
        if self._flow.news:
            self._learn()
        self._recorded += 1
        parcel = Parcel([*layers.tensors(), *(piece.values for piece in parameters.pieces)])
        self._deliver()
        now = perf_counter()
        timing = {"seconds": now - self._started, "overhead_seconds": self.spent + now - started}
        self._pending = _Pending(
            {"step": self.step, **self._rates, **facts, **timing}, layers, parameters, parcel
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
        parameters = pending.parameters.table(arrays[split:])
        facts = {name: float(value) for name, value in pending.facts.items()}
        self._sink.append(StepRecord({**norms_of_step(parameters), **facts}, layers, parameters))

    def flush(self) -> None:
        """Hand a step whose values are still on their way to the sink now, waiting for the device."""
        if self.alive:
            with _guard(self):
                self._deliver()

    def stop(self, status: Status, exception: str = "") -> None:
        """Take the probes off and end the run; harmless when repeated."""
        self.recording = False
        self._detach()
        if self.alive:
            with _guard(self):
                self._deliver()
                self.info = replace(self.info, training={**self.info.training, "steps": self.step})
                self._sink.update(self.info)
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
        self.alive = self.recording = False
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
        if flow is not None and flow.dataflow is not None:
            flow.dataflow.release()
            flow.dataflow = None

    # What the probes report; they are attached between recorded steps too

    def called(self, index: int, module: nn.Module, output: Any) -> None:
        """Note a forward call of layer `index`, not a recomputation."""
        if self.recording:
            self._flow.called(index, module, output)

    def output(self, index: int, tensor: Tensor) -> None:
        """Take a tensor that layer `index` returned."""
        if self.recording:
            self._flow.output(index, tensor)

    def signal(self, index: int, gradient: Tensor) -> None:
        """Take the gradient of the loss with respect to such a tensor."""
        if self.recording:
            self._flow.signal(index, gradient)

    # What is known of the run

    def _describe(self) -> RunInfo:
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        parameters = describe_parameters(self._model, self._optimizers, self.settings.update_sample)
        owned: dict[str, list[str]] = {}
        for parameter in parameters:
            owned.setdefault(parameter.layer, []).append(parameter.name)
        kind = type(self._model)
        return RunInfo(
            format_version=FORMAT_VERSION,
            model=f"{kind.__module__}.{kind.__qualname__}",
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions={"python": platform.python_version(), "torch": torch.__version__, **self._versions},
            settings=self.settings.as_dict(),
            training=self._training,
            optimizers=describe_optimizers(self._optimizers, names),
            layers=tuple(
                describe_layer(name, module, tuple(owned.get(name, ())))
                for name, module in self._modules.items()
            ),
            parameters=parameters,
        )

    def _describe_again(self) -> RunInfo:
        """Describe the parameters that lazy modules have made by now, before their first update."""
        parameters = describe_parameters(self._model, self._optimizers, self.settings.update_sample)
        return replace(self.info, parameters=parameters)

    def _learn(self) -> None:
        """Complete the run's description with what a recorded step showed for the first time."""
        self._flow.news = False
        dataflow, self._flow.dataflow = self._flow.dataflow, None
        if dataflow is not None:
            try:
                self._flow.learn(dataflow)
                self.info = replace(self.info, loss=self._flow.named(dataflow.loss))
            except Exception as error:
                self.event("not-observable", f"the model's graph could not be read: {error}")
            finally:
                dataflow.release()
            self._say_what_never_fired()
        self.info = replace(self.info, layers=tuple(self._flow.layers))
        self._sink.update(self.info)

    def _say_what_never_fired(self) -> None:
        for index, layer in enumerate(self._flow.layers):
            if layer.depth < 0:
                reason = "did not run in the first recorded step"
                self._flow.layers[index] = replace(layer, not_observable=reason)
                self.event("never-fired", f"{layer.name} ({layer.kind}) {reason}", layer=layer.name)


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
