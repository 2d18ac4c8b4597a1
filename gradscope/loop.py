"""The front door for a plain training loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from gradscope.closing import closing_line, ended_by
from gradscope.errors import CriticalFinding, GradscopeError
from gradscope.loss_scale import scale_of, was_skipped
from gradscope.observe import Recorder
from gradscope.observe.parameters import updated_by
from gradscope.online import Conduct, OnCritical, Supervision
from gradscope.places import RUNS, agreed, checked_place, is_distributed, new_run
from gradscope.settings import Settings
from gradscope.store import writer_of


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    run_dir: str | Path | None = None,
    verbose: bool = True,
    scaler: Any = None,
    on_critical: OnCritical = "warn",
    preflight: bool = False,
    **settings: Any,
) -> Watch:
    """Watch a model in a plain training loop: a context manager, to be told of each step.

        with gradscope.watch(model, optimizer, run_dir="runs/first") as scope:
            for x, y in batches:
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                loss.backward()
                optimizer.step()
                scope.step(loss)

    optimizer: one, or several that together make a step. run_dir: by default a new folder in
    gradscope_runs; a run that is there already is never overwritten. scaler: the GradScaler that multiplies
    the loss, if there is one; what is recorded is divided by it again. settings: every_n_steps, layers and
    the other options of `gradscope.Settings`. preflight: judge the initialisation by the first step and print
    the result.

    on_critical: what to do, while the loop runs, about a finding that won't pass by itself. "warn" prints it
    once (nothing if not verbose); "ignore" doesn't look; "stop" ends the loop: `scope.step` raises
    CriticalFinding, which the `with` block takes in, and the program goes on after it; `scope.stopped_by` is
    the reason then, "" otherwise.

    In distributed training every rank watches, with the model as it is wrapped; they write one run, and stop
    together.

    Gradients are read as the optimizer is about to use them. To have them before clipping as well, call
    `scope.before_clipping()` after the backward pass. GradscopeError if an argument can't work.
    """
    if not isinstance(model, nn.Module):
        raise GradscopeError(f"watch needs a torch module first; got {type(model).__name__}")
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    if not isinstance(optimizers, (list, tuple)) or not all(
        isinstance(item, Optimizer) for item in optimizers
    ):
        raise GradscopeError(
            f"watch needs a torch optimizer, or a list of them; got {type(optimizer).__name__}"
        )
    if scaler is not None and not hasattr(scaler, "get_scale"):
        raise GradscopeError(f"scaler is {scaler!r}; give the GradScaler of the loop, or None")
    unknown = set(settings) - set(Settings.__dataclass_fields__)
    if unknown:
        raise GradscopeError(f"watch knows no option {sorted(unknown)[0]!r}; see gradscope.Settings for all")
    options = Settings.from_mapping(settings)
    conduct = Conduct(on_critical, preflight, verbose)
    return Watch(model, list(optimizers), checked_place(run_dir), options, scaler, conduct)


class Watch:
    """A plain training loop under observation; made by `watch`."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[Optimizer],
        run_dir: Path | None,
        settings: Settings,
        scaler: Any,
        conduct: Conduct,
    ) -> None:
        self._model, self._optimizers = model, optimizers
        self._run_dir, self._settings, self._scaler, self._conduct = run_dir, settings, scaler, conduct
        self._recorder: Recorder | None = None
        self._supervision: Supervision | None = None
        self.stopped_by = ""
        self._handles: list[Any] = []
        self._updates = 0
        self._steps = 0
        self.run_path: Path | None = None

    def __enter__(self) -> Watch:
        if self._recorder is not None:
            raise GradscopeError("this watch has begun already; call gradscope.watch for another")
        self.stopped_by, self._updates, self._steps = "", 0, 0
        self.run_path, self._rank = agreed(lambda: new_run(self._run_dir, Path(RUNS)))
        writer = writer_of(self.run_path, self._rank, self._settings)
        self._supervision = Supervision(
            writer, self.run_path, self._settings, self._conduct, is_first_rank=self._rank == 0
        )
        facts = _facts_of(self._model, self._scaler)
        self._recorder = Recorder(
            self._model, self._optimizers, self._supervision.sink, self._settings, facts
        )
        self._recorder.start()
        for item in self._optimizers:
            self._handles.append(item.register_step_pre_hook(self._before_update))
            self._handles.append(item.register_step_post_hook(self._after_update))
        self._begin_step()
        return self

    def _begin_step(self) -> None:
        self._read: set[int] = set()
        self._scale = scale_of(self._scaler)
        if self._recorder is not None:
            self._recorder.begin_step()

    def step(self, loss: Tensor | float | None = None) -> None:
        """End a step: call it once after the optimizer's step, with the loss that was minimised.

        GradscopeError if the loss isn't one number, or outside of the `with` block; CriticalFinding if the
        loop is to stop here, as on_critical="stop" asks.
        """
        recorder = self._recorder
        if recorder is None:
            raise GradscopeError("scope.step works only inside the `with gradscope.watch(...)` block")
        number = _one_number(loss)
        self._steps += 1
        if recorder.recording:
            if isinstance(loss, Tensor):
                recorder.minimised(loss)
            self._read_skipped(recorder)
            recorder.end_step(self._facts(number), 1.0 if self._scale is None else self._scale)
        else:
            recorder.end_step({})
        self._supervise(recorder)
        self._begin_step()

    def _facts(self, loss: Tensor | float | None) -> dict[str, float | Tensor]:
        facts: dict[str, float | Tensor] = {}
        if loss is not None:
            facts["loss"] = loss
        if self._scale is not None:
            facts |= {"amp_scale": self._scale, "skipped": was_skipped(self._scale, self._scaler)}
        return facts

    def _read_skipped(self, recorder: Recorder) -> None:
        """Read the gradients for which the scaler did not let the optimizer make its step, if still there."""
        for optimizer in self._optimizers if self._scaler is not None else ():
            if id(optimizer) not in self._read and any(
                item.grad is not None for item in updated_by(optimizer)
            ):
                recorder.before_update(optimizer)

    def _supervise(self, recorder: Recorder) -> None:
        """Judge what is recorded so far; CriticalFinding if any process found what is to be stopped for."""
        if self._supervision is None:
            return
        self._supervision.after_step(recorder, partial(_any_process, self._optimizers))
        self.stopped_by = self._supervision.stopped_by
        if self.stopped_by:
            raise CriticalFinding(f"training is stopped by {self.stopped_by}")

    def before_clipping(self) -> None:
        """Read the gradients now: call it after the backward pass and before clipping, if you clip.

        With a GradScaler: after `scaler.unscale_(optimizer)`, as clipping needs that too.
        """
        for optimizer in self._optimizers:
            self._read_gradients(optimizer)

    def _read_gradients(self, optimizer: Optimizer) -> None:
        if self._recorder is not None and self._recorder.recording:
            self._read.add(id(optimizer))
            scale = getattr(optimizer, "grad_scale", None)  # is there while a fused optimizer steps
            self._recorder.before_update(optimizer, 1.0 if scale is None else scale.detach().clone())

    def _before_update(
        self, optimizer: Optimizer, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Read the gradients; where the optimizer computes them itself by a closure, after its first call."""
        recorder = self._recorder
        if recorder is None or not recorder.recording or recorder.has_read(optimizer):
            return None
        closure = options.get("closure", arguments[1] if len(arguments) > 1 else None)
        if closure is None:
            self._read_gradients(optimizer)
            return None
        observed = _observed(closure, lambda: self._read_gradients(optimizer))
        if "closure" in options:
            return arguments, {**options, "closure": observed}
        return (arguments[0], observed, *arguments[2:]), options

    def _after_update(self, optimizer: Optimizer, arguments: Any, options: Any) -> None:
        self._updates += 1
        if self._recorder is not None:
            self._recorder.after_update(optimizer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        recorder, self._recorder = self._recorder, None
        self._supervision = None
        stopped = bool(self.stopped_by) and (error is None or isinstance(error, CriticalFinding))
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if recorder is None:
            return stopped
        if stopped:
            recorder.stop("interrupted", self.stopped_by)
        elif error is None:
            recorder.stop("finished")
        else:
            recorder.stop(*ended_by(error))
        if error is None and self._updates and not self._steps:
            warnings.warn(
                "gradscope recorded nothing: call scope.step(loss) after each optimizer.step()", stacklevel=2
            )
        elif self._conduct.verbose and self.run_path is not None and self._rank == 0:
            print(closing_line(self.run_path))
        return stopped


def _observed(closure: Callable[[], Any], observe: Callable[[], None]) -> Callable[[], Any]:
    """Return the closure followed, the first time, by a look at the gradients that it left."""
    calls = 0

    def call() -> Any:
        nonlocal calls
        result = closure()
        calls += 1
        if calls == 1:
            observe()
        return result

    return call


def _one_number(loss: Any) -> Tensor | float | None:
    """Return the loss without its graph; GradscopeError if it isn't one number."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
        return loss.detach().reshape(()).clone()
    if loss is None:
        return None
    if isinstance(loss, Real) and loss is not True and loss is not False:
        with suppress(OverflowError):
            return float(loss)
        return math.inf  # an integer beyond the largest float
    of = " of complex numbers" if isinstance(loss, Tensor) and loss.is_complex() else ""
    got = f"a tensor of shape {tuple(loss.shape)}{of}" if isinstance(loss, Tensor) else type(loss).__name__
    raise GradscopeError(f"scope.step takes the loss as one number; got {got}")


def _facts_of(model: nn.Module, scaler: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"precision": "16-mixed"} if scaler is not None else {}
    parameter = next(model.parameters(), None)
    if parameter is not None:
        facts["device"] = str(parameter.device)
    if is_distributed():
        facts |= {"world_size": distributed.get_world_size(), "strategy": type(model).__name__}
    return facts


def _any_process(optimizers: Sequence[Optimizer], found: bool) -> bool:
    """Return whether any process of the default group found something; all of them have to ask."""
    if not is_distributed():
        return found
    # On the device of what is trained: not every backend reduces on every device.
    device = updated_by(optimizers[0])[0].device
    flag = torch.tensor(float(found), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag.item())
