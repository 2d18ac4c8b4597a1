"""The front door for Lightning: what both of its packages share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.observe import Recorder
from gradscope.settings import Settings
from gradscope.store import RunWriter, read_run


class Observation:
    """The hooks of a Lightning callback, written once for both packages; mixed in before their Callback.

    run_dir: where the run is written; by default a new folder beside the trainer's checkpoints.
    every_n_steps: record every n-th optimizer step, or "auto": dense at first, then sparser.
    layers: shell-style name patterns of the modules to watch; all leaves by default.
    update_sample: parameters with more entries have their update measured on a sample of so many.
    """

    def __init__(
        self,
        run_dir: str | None = None,
        every_n_steps: int | Literal["auto"] = "auto",
        layers: list[str] | None = None,
        update_sample: int = 4096,
        verbose: bool = True,
    ) -> None:
        self._settings = Settings(
            every_n_steps=every_n_steps, layers=tuple(layers or ()), update_sample=update_sample
        )
        self._asked, self._verbose = run_dir, verbose
        self._recorder: Recorder | None = None
        self._restored: dict[str, Any] = {}
        self.run_path: Path | None = None

    # Where and when the run begins and ends

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the run: the model, its optimizers and the place for the run are known by now."""
        optimizers = [getattr(item, "optimizer", item) for item in trainer.optimizers]
        self.run_path = self._place(trainer)
        self._recorder = Recorder(
            _module_of(pl_module),
            optimizers,
            RunWriter(self.run_path, rank=trainer.global_rank, settings=self._settings),
            self._settings,
            training=_training(trainer),
            first_step=int(self._restored.get("step", 0)),
        )
        self._recorder.start()
        self._micro_batches, self._losses = 0, []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the run as finished, or as interrupted where the trainer was asked to stop."""
        interrupted = getattr(trainer, "interrupted", False)
        self._stop(trainer, "interrupted" if interrupted else "finished", "")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the run with what ended the training."""
        asked = (
            isinstance(exception, (KeyboardInterrupt, SystemExit)) or "SIGTERM" in type(exception).__name__
        )
        self._stop(trainer, "interrupted" if asked else "failed", f"{type(exception).__name__}: {exception}")

    def _stop(self, trainer: Any, status: Any, exception: str) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        recorder.stop(status, exception)
        if self._verbose and trainer.global_rank == 0 and self.run_path is not None:
            print(closing_line(self.run_path))

    # A step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start observing with the step's first micro-batch."""
        if self._recorder is not None and self._micro_batches == 0:
            self._recorder.begin_step()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Keep the loss that is minimised."""
        if self._recorder is not None and self._recorder.recording:
            self._recorder.minimised(loss)
            self._losses.append(loss.detach().clone())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read weights and gradients: accumulated, unscaled, before clipping."""
        if self._recorder is not None:
            self._recorder.before_update(getattr(optimizer, "optimizer", optimizer))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the step if an optimizer has made one."""
        if self._recorder is None:
            return
        self._micro_batches += 1
        if trainer.fit_loop.epoch_loop._should_accumulate() and pl_module.automatic_optimization:
            return
        facts: dict[str, float] = {}
        if self._recorder.recording:
            facts = {
                "epoch": trainer.current_epoch,
                "batch_idx": batch_idx,
                "micro_batches": self._micro_batches,
            }
            if self._losses:
                scale = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
                facts["loss"] = scale * sum(float(loss) for loss in self._losses) / len(self._losses)
        self._recorder.end_step(facts)
        self._micro_batches, self._losses = 0, []

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs: the step count and the run's path."""
        if self._recorder is None:
            return dict(self._restored)
        return {
            "step": self._recorder.step,
            "run_path": str(self.run_path),
            "restarts": self._recorder.info.restarts,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where the training that is resumed was."""
        self._restored = dict(state_dict)

    def _place(self, trainer: Any) -> Path:
        restored = self._restored.get("run_path")
        if restored:
            return Path(restored)
        return new_run(Path(self._asked) if self._asked else _beside_checkpoints(trainer))


def new_run(folder: Path) -> Path:
    """Return a folder for a new run within `folder`, named for the time; never one that exists."""
    name = datetime.now().strftime("run-%Y%m%d-%H%M%S")
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}"
    return path


def _beside_checkpoints(trainer: Any) -> Path:
    """Return the folder for runs by ModelCheckpoint's rule: the logger's, else default_root_dir."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir) / "gradscope"
    logger = trainer.loggers[0]
    save_dir = logger.save_dir if logger.save_dir is not None else trainer.default_root_dir
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(os.path.join(save_dir, str(logger.name), version, "gradscope"))


def _module_of(pl_module: Any) -> nn.Module:
    module: nn.Module = pl_module
    return module


def _training(trainer: Any) -> Mapping[str, Any]:
    facts = {
        "precision": trainer.precision,
        "world_size": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "clip_value": trainer.gradient_clip_val,
        "clip_algorithm": str(trainer.gradient_clip_algorithm or ""),
        "max_steps": trainer.max_steps,
        "max_epochs": trainer.max_epochs,
    }
    return {name: value for name, value in facts.items() if value is not None}


def closing_line(path: Path) -> str:
    """Return one line: the verdict, the top finding, and how to see the report."""
    command = f"gradscope report {path}"
    try:
        from gradscope.examine import examine

        report = examine(read_run(path))
    except Exception:
        return f"gradscope: recorded; see it with: {command}"
    top = f", {report.findings[0].rule}: {report.findings[0].message}" if report.findings else ""
    return f"gradscope: {report.verdict}{top} See it with: {command}"
