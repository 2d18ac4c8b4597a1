"""Train one treated copy for a short, fixed budget, under observation."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from gradscope.errors import SurgeryRefused
from gradscope.loop import watch
from gradscope.prescribe import surgery
from gradscope.prescribe.training import TrainingChange
from gradscope.quiet import quiet_lightning
from gradscope.treat.patient import Patient
from gradscope.treat.rate_search import find_rate

OnStep = Callable[[], None]


@dataclass
class Course:
    """What a training showed: the loss and the end of every step, and where it is recorded."""

    run: Path
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def seconds_per_step(self) -> float:
        """Return the median seconds from one step's end to the next, 0 if there were fewer than two."""
        gaps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return median(gaps) if gaps else 0.0

    def note(self, loss: Tensor | float) -> None:
        """Note the end of a step."""
        self.losses.append(float(loss))
        self.times.append(perf_counter())


def train(
    patient: Patient | pl.LightningModule,
    batches: Sequence[Any],
    change: TrainingChange,
    run: Path,
    seed: int,
    on_step: OnStep = lambda: None,
) -> Course:
    """Train a step on each batch, and record into `run`; SurgeryRefused if `change` can't be made."""
    batches = _filled(batches) if change.fill_missing else batches
    batches = _scaled_inputs(batches) if change.scale_inputs else batches
    if change.search:
        change = _with_found_rate(patient, batches, change, seed)
    torch.manual_seed(seed)
    if isinstance(patient, Patient):
        return _train_plain(patient, batches, change, run, on_step)
    return _train_lightning(patient, batches, change, run, on_step)


def _with_found_rate(
    patient: Patient | pl.LightningModule, batches: Sequence[Any], change: TrainingChange, seed: int
) -> TrainingChange:
    """Return the change with the rate that its search finds, each rate tried on a copy of the patient."""
    searched = replace(change, search=(), scale_inputs=False, fill_missing=False)  # both are done already

    def attempt(rate: float, steps: int) -> list[float]:
        with TemporaryDirectory() as folder:
            again = copy.deepcopy(patient)
            return train(
                again, batches[:steps], replace(searched, rate=rate), Path(folder) / "run", seed
            ).losses

    return replace(searched, rate=find_rate(change.search, len(batches), attempt))


def _train_plain(
    patient: Patient, batches: Sequence[Any], change: TrainingChange, run: Path, on_step: OnStep
) -> Course:
    model, loss_of = patient.model, patient.loss
    precision = _precision(change.precision, model)
    if change.scale_targets:
        loss_of = _loss_of_scaled_targets(loss_of, batches)
    optimizer = changed_optimizer(patient.optimizer(model), change, model)
    course = Course(run)
    model.train()
    with watch(model, optimizer, run_dir=run, verbose=False) as scope:
        for batch in batches:
            inputs, targets = _pair(batch)
            optimizer.zero_grad()
            with precision, guarding(change):
                loss = loss_of(model(_as_wide(inputs, model) if change.precision else inputs), targets)
            loss.backward()
            if change.clipping:
                surgery.clip_gradients(change.clipping, model.parameters())
            optimizer.step()
            scope.step(loss)
            course.note(loss.detach())
            on_step()
    return course


def guarding(change: TrainingChange) -> AbstractContextManager[object]:
    """Return what surrounds forward pass and loss where operations are to be guarded."""
    if not (change.keep_finite or change.pass_steps):
        return nullcontext()
    return surgery.Guarded(finite=change.keep_finite, slopes=change.pass_steps)


def _precision(name: str | None, model: nn.Module) -> AbstractContextManager[object]:
    """Return what surrounds the forward pass at a precision as Lightning names it; widen the model for it."""
    if name is None:
        return nullcontext()
    if name not in ("32-true", "bf16-mixed"):
        raise SurgeryRefused(f"precision {name} needs a loss scaler; put it into your own loop")
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    model.float()
    return nullcontext() if name == "32-true" else torch.autocast(device, torch.bfloat16)


def _as_wide(inputs: Any, model: nn.Module) -> Any:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return inputs
    return inputs.to(next(model.parameters()).dtype)


def _train_lightning(
    module: Any, batches: Sequence[Any], change: TrainingChange, run: Path, on_step: OnStep
) -> Course:
    if change.scale_targets:
        raise SurgeryRefused("only you know where this module uses its targets: standardise them there")
    if change.clipping and not module.automatic_optimization:
        raise SurgeryRefused("under manual optimisation, clipping belongs into training_step")
    package: Any = pl
    if not isinstance(module, pl.LightningModule):
        import lightning.pytorch as package
    course = Course(run)
    _override_training(module, change)
    with quiet_lightning():
        trainer = package.Trainer(
            accelerator="cpu",
            max_steps=len(batches) if module.automatic_optimization else -1,
            max_epochs=1,
            precision=change.precision or "32-true",
            callbacks=[_scope(package, run), _ticker(package, course, on_step)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
        # A bare list would be taken for several loaders.
        loader: DataLoader[Any] = DataLoader(list(batches), batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
        _fit(trainer, module, loader)
    return course


def _fit(trainer: Any, module: Any, loader: DataLoader[Any]) -> None:
    """Train; Ctrl-C ends it as it does everywhere else, where Lightning would end the whole process."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, train_dataloaders=loader)
    except SystemExit as ended:
        if not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler or signal.default_int_handler)  # which Lightning ignores now
        raise KeyboardInterrupt from None


def _scope(package: Any, run: Path) -> Any:
    if package is pl:
        from gradscope.pytorch_lightning import GradScope
    else:
        from gradscope.lightning import GradScope  # type: ignore[assignment]
    return GradScope(run_dir=str(run), verbose=False)


def _ticker(package: Any, course: Course, on_step: OnStep) -> Any:
    class Ticker(package.Callback):  # type: ignore[misc]
        """Notes the loss of each batch."""

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            course.note(loss.detach() if isinstance(loss, Tensor) else float("nan"))
            on_step()

    return Ticker()


def _override_training(module: Any, change: TrainingChange) -> None:
    """Put the change between a module (our own copy) and what it configures."""
    configure = module.configure_optimizers

    def configure_optimizers() -> Any:
        return _changed_configuration(configure(), change, module)

    module.configure_optimizers = configure_optimizers
    training_step = module.training_step

    def guarded_step(*args: Any, **kwargs: Any) -> Any:
        with guarding(change):
            return training_step(*args, **kwargs)

    if change.keep_finite or change.pass_steps:
        module.training_step = guarded_step
    clipping = change.clipping
    if clipping:

        def configure_gradient_clipping(*_: Any, **__: Any) -> None:
            surgery.clip_gradients(clipping, module.parameters())

        module.configure_gradient_clipping = configure_gradient_clipping


def _changed_configuration(configured: Any, change: TrainingChange, model: nn.Module) -> Any:
    """Change the optimizers in what configure_optimizers returned, whichever of its forms that has."""
    if isinstance(configured, Optimizer):
        return changed_optimizer(configured, change, model)
    if isinstance(configured, dict):
        optimizer = changed_optimizer(configured["optimizer"], change, model)
        return {**configured, "optimizer": _unless_scheduled(configured["optimizer"], optimizer)}
    if isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], list):
        optimizers, schedulers = configured
        made = [changed_optimizer(item, change, model) for item in optimizers]
        if schedulers:
            made = [_unless_scheduled(old, new) for old, new in zip(optimizers, made, strict=True)]
        return made, schedulers
    if isinstance(configured, (list, tuple)):
        return [_changed_configuration(item, change, model) for item in configured]
    return configured


def _unless_scheduled(old: Optimizer, new: Optimizer) -> Optimizer:
    if new is not old:
        raise SurgeryRefused("a scheduler holds on to the optimizer; exchange both in your own code")
    return new


def changed_optimizer(optimizer: Optimizer, change: TrainingChange, model: nn.Module) -> Optimizer:
    """Return the optimizer with the change made; the given one if nothing of it changes."""
    if change.of_optimizer:
        optimizer = surgery.change_optimizer(change, optimizer, model)
    if change.warmup_steps:
        schedule = surgery.warm_up(optimizer, change.warmup_steps)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise SurgeryRefused("a plain model's batches must be (inputs, targets); use a LightningModule otherwise")


def _scaled_inputs(batches: Sequence[Any]) -> list[Any]:
    """Standardise each batch's first tensor by the mean and deviation of each feature over all batches."""
    first = [batch[0] for batch in batches if isinstance(batch, (tuple, list))]
    if len(first) != len(batches) or not all(isinstance(x, Tensor) and x.is_floating_point() for x in first):
        raise SurgeryRefused(
            "inputs can be standardised only where a batch begins with a floating-point tensor"
        )
    mean, deviation = _moments(torch.cat(first))
    return [type(batch)([(batch[0] - mean) / deviation, *batch[1:]]) for batch in batches]


def _filled(batches: Sequence[Any]) -> list[Any]:
    """Put the mean of each feature, over all batches, for inputs that are not finite."""
    first = [batch[0] for batch in batches if isinstance(batch, (tuple, list))]
    if len(first) != len(batches) or not all(isinstance(x, Tensor) and x.is_floating_point() for x in first):
        raise SurgeryRefused("inputs can be filled only where a batch begins with a floating-point tensor")
    means = finite_means(torch.cat(first))
    return [type(batch)([filled(batch[0], means), *batch[1:]]) for batch in batches]


def finite_means(values: Tensor) -> Tensor:
    """Return the mean of each feature over the samples, samples first, in which it is finite; else 0."""
    return values.where(values.isfinite(), torch.nan).nanmean(dim=0).nan_to_num(0.0)


def filled(values: Tensor, means: Tensor) -> Tensor:
    """Return the values with the means for those that are not finite."""
    return torch.where(values.isfinite(), values, means)


def _loss_of_scaled_targets(loss: Callable[[Any, Any], Tensor], batches: Sequence[Any]) -> Any:
    targets = torch.cat([_pair(batch)[1] for batch in batches])
    if not targets.is_floating_point():
        raise SurgeryRefused("targets are classes, which have no scale")
    mean, deviation = _moments(targets)
    return lambda output, target: loss(output, (target - mean) / deviation)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    deviation = values.std(dim=0)
    return values.mean(dim=0), torch.where(deviation > 0, deviation, torch.ones_like(deviation))
