"""The front door for Lightning: what both of its packages share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.closing import closing_line, ended_by
from gradscope.loss_scale import scale_of, unscales_itself, was_skipped
from gradscope.observe import Recorder
from gradscope.observe.wrappers import unwrapped
from gradscope.online import Conduct, OnCritical, Supervision
from gradscope.places import RUNS, checked_place, new_run
from gradscope.records import Status
from gradscope.settings import Settings
from gradscope.store import address_of, is_taken, place_of, writer_of


class Observation:
    """The hooks of a Lightning callback, written once for both packages; mixed in before their Callback.

    Gradients are read before Lightning clips them; under manual optimisation as each optimizer is about to
    use them, so after what a training step clips itself.

    run_dir: where the run is written; by default a new folder beside the trainer's checkpoints.
    every_n_steps: record every n-th optimizer step, or "auto": dense at first, then sparser.
    layers: shell-style name patterns of the modules to watch; all leaves by default.
    overhead_budget: share of the training's time, such as 0.02, that recording may take; recorded steps are
    spaced so that it holds.
    update_sample: parameters with more entries have their update measured on a sample of so many.
    dead_window: recorded steps without any activity after which a unit counts as dead.
    verbose: print one line at the end: the verdict, the top finding, and the command that shows the report.
    on_critical: what to do, while training goes on, about a finding that won't pass by itself: "warn" prints
    it once (nothing if not verbose), "stop" also ends the training as EarlyStopping does, on all ranks
    together, "ignore" doesn't look. preflight: judge the initialisation by the first step, print the result.
    """

    def __init__(
        self,
        run_dir: str | None = None,
        every_n_steps: int | Literal["auto"] = "auto",
        layers: list[str] | None = None,
        overhead_budget: float | None = None,
        update_sample: int = 4096,
        dead_window: int = 10,
        verbose: bool = True,
        on_critical: OnCritical = "warn",
        preflight: bool = False,
    ) -> None:
        super().__init__()
        self._settings = Settings(
            every_n_steps=every_n_steps,
            layers=layers if isinstance(layers, str) else tuple(layers or ()),
            overhead_budget=overhead_budget,
            update_sample=update_sample,
            dead_window=dead_window,
        )
        self._conduct = Conduct(on_critical, preflight, verbose)
        self._run_dir = checked_place(run_dir)
        self._recorder: Recorder | None = None
        self._supervision: Supervision | None = None
        self._restored: dict[str, Any] = {}
        self._state: dict[str, Any] = {}
        self._handles: list[Any] = []
        self._losses: list[Tensor] = []
        self._micro_batches, self._updated = 0, False
        self._scale: Tensor | None = None
        self.run_path: Path | None = None

    # Where and when the run begins and ends

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the run: the model, its optimizers and the place for the run are known by now."""
        optimizers = [getattr(item, "optimizer", item) for item in trainer.optimizers]
        place = str(self._place(trainer)) if trainer.is_global_zero else ""
        self.run_path = place_of(trainer.strategy.broadcast(place))
        writer = writer_of(self.run_path, trainer.global_rank, self._settings)
        self._supervision = Supervision(
            writer, self.run_path, self._settings, self._conduct, trainer.is_global_zero
        )
        self._recorder = Recorder(
            _model_of(trainer, pl_module),
            optimizers,
            self._supervision.sink,
            self._settings,
            training=_facts_of(trainer, pl_module),
            versions=_versions(trainer),
            first_step=int(self._restored.get("step", 0 if len(optimizers) > 1 else trainer.global_step)),
        )
        self._restored = {}
        self._begin_step()
        self._recorder.start()
        # Optimizers that are stepped behind Lightning's back are seen too.
        self._handles = [item.register_step_post_hook(self._after_update) for item in optimizers]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the run."""
        stopped_by = self._supervision.stopped_by if self._supervision else ""
        self._stop(trainer, "interrupted" if stopped_by else "finished", stopped_by)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the run with what ended the training."""
        self._stop(trainer, *ended_by(exception))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the run where nothing else did."""
        self._stop(trainer, "interrupted", "")

    def _stop(self, trainer: Any, status: Status, exception: str) -> None:
        self.state_dict()  # remembered for checkpoints that are written from now on
        recorder, self._recorder = self._recorder, None
        self._supervision = None
        if recorder is None:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        recorder.stop(status, exception)
        if self._conduct.verbose and trainer.is_global_zero and self.run_path is not None:
            print(closing_line(self.run_path))

    # A step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start observing with the step's first micro-batch."""
        if self._recorder is not None and self._micro_batches == 0:
            self._recorder.begin_step()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Keep the loss that is minimised: divided for accumulation, multiplied by the loss scale."""
        recorder = self._recorder
        if recorder is not None and recorder.recording:
            recorder.minimised(loss)
            factor = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            value = loss.detach().double() * factor
            scale = scale_of(_scaler_of(trainer))
            self._losses.append(value if scale is None else value / scale)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read weights and gradients: accumulated, unscaled, before clipping."""
        self._updated = True
        recorder = self._recorder
        if recorder is None or not recorder.recording:
            return
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self._scale = scale_of(_scaler_of(trainer))
        scaled = self._scale is not None and unscales_itself(optimizer)
        recorder.before_update(optimizer, self._scale if scaled and self._scale is not None else 1.0)

    def _after_update(self, optimizer: Optimizer, arguments: Any, options: Any) -> None:
        """Read updates and clipped gradients now: another optimizer's backward pass may add to them."""
        self._updated = True
        if self._recorder is not None:
            self._recorder.after_update(optimizer)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the step if an optimizer has made one."""
        recorder = self._recorder
        if recorder is None:
            return
        self._micro_batches += 1
        if self._updated:
            facts = self._facts(trainer, batch_idx) if recorder.recording else {}
            recorder.end_step(facts, 1.0 if self._scale is None else self._scale)
            self._begin_step()
            if self._supervision is not None:
                self._supervision.after_step(recorder, partial(_any_rank, trainer))
                if self._supervision.stopped_by:
                    trainer.should_stop = True

    def _begin_step(self) -> None:
        self._micro_batches, self._losses, self._updated, self._scale = 0, [], False, None

    def _facts(self, trainer: Any, batch_idx: int) -> dict[str, float | Tensor]:
        facts: dict[str, float | Tensor] = {
            "epoch": trainer.current_epoch,
            "batch_idx": batch_idx,
            "micro_batches": self._micro_batches,
        }
        if self._losses:
            facts["loss"] = torch.stack(self._losses).mean()
        if self._scale is not None:
            facts["amp_scale"] = self._scale
            facts["skipped"] = was_skipped(self._scale, _scaler_of(trainer))
        return facts

    # Resuming, and copies

    @property
    def state_key(self) -> str:
        """Name this callback's state in checkpoints: several with different settings may go together."""
        place, settings = str(self._run_dir) if self._run_dir else None, self._settings
        return f"GradScope{{{place!r}, {settings.every_n_steps!r}, {list(settings.layers)!r}}}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what observes, open files, and what Lightning lends: a copy observes nothing as yet."""
        own = {name: value for name, value in self.__dict__.items() if name not in ("log", "log_dict")}
        return {
            **own,
            "_recorder": None,
            "_supervision": None,
            "_handles": [],
            "_losses": [],
            "_state": self.state_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs: the steps done and the run's path."""
        if self._recorder is not None:
            self._state = {"step": self._recorder.step, "run_path": str(self.run_path)}
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where the training that is resumed was."""
        self._restored = dict(state_dict)

    def _place(self, trainer: Any) -> Path:
        """Return the run's directory: that of the training which is resumed, else a new one."""
        restored = self._restored.get("run_path")
        if restored and _is_there(place_of(restored)):
            return place_of(restored)
        return new_run(self._run_dir, beside_checkpoints(trainer))


def _is_there(run: Path) -> bool:
    """Return whether there is a run that can be gone on with."""
    address = address_of(run)
    return (run / "run.json").exists() if address is None else is_taken(address)


def beside_checkpoints(trainer: Any) -> Path:
    """Return the folder for new runs by ModelCheckpoint's rule: the logger's, else default_root_dir."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir) / RUNS
    logger = trainer.loggers[0]
    save_dir = logger.save_dir if logger.save_dir is not None else trainer.default_root_dir
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(save_dir) / str(logger.name) / version / RUNS


def _any_rank(trainer: Any, found: bool) -> bool:
    if trainer.world_size > 1:
        return bool(trainer.strategy.reduce_boolean_decision(found, all=False))
    return found


def _model_of(trainer: Any, pl_module: Any) -> nn.Module:
    """Return the module as the strategy wraps it, which tells how its gradients are averaged."""
    wrapped: nn.Module = trainer.strategy.model
    return wrapped if unwrapped(wrapped) is unwrapped(pl_module) else pl_module


def _scaler_of(trainer: Any) -> Any:
    """Return what scales the loss in 16-bit mixed precision; None without it."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _facts_of(trainer: Any, pl_module: Any) -> Mapping[str, Any]:
    """Return the facts of the set-up that RunInfo.training names, those that are known."""
    facts: dict[str, Any] = {
        "precision": str(trainer.precision),
        "device": str(pl_module.device),
        "world_size": trainer.world_size,
        "strategy": type(trainer.strategy).__name__,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "clip_value": trainer.gradient_clip_val,
        "clip_algorithm": _clip_algorithm(trainer),
        "max_steps": trainer.max_steps,
        "max_epochs": trainer.max_epochs,
        "automatic_optimization": pl_module.automatic_optimization,
        "schedulers": [type(item.scheduler).__name__ for item in trainer.lr_scheduler_configs],
    }
    with suppress(Exception):  # a loader may have no batch size, or there may be none
        facts["batch_size"] = trainer.train_dataloader.batch_size
    return {name: value for name, value in facts.items() if value is not None and value != -1}


def _clip_algorithm(trainer: Any) -> str | None:
    if not trainer.gradient_clip_val:
        return None
    return str(getattr(trainer.gradient_clip_algorithm, "value", None) or "norm")


def _versions(trainer: Any) -> dict[str, str]:
    package = type(trainer).__module__.split(".")[0]
    with suppress(Exception):
        return {package: __import__(package).__version__}
    return {}
