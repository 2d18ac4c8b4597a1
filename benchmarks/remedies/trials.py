"""Train a program of the verdict benchmark under a remedy; say how near its repaired twin it comes.

A trial is the program's own training, full length, on the same batches and from the same seed; only what the
remedy changes is changed. Nothing is recorded meanwhile. Lightning's programs run in a plain loop that clips
and accumulates as they do; the names of their layers are those that Lightning's module gives them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.verdicts import programs, recording
from benchmarks.verdicts.program import Adversaries, Batch, Outcome, Program, Setup, improvement
from benchmarks.verdicts.training import score, shuffled
from gradscope.errors import SurgeryRefused
from gradscope.prescribe import surgery
from gradscope.prescribe.training import Clipping, TrainingChange, training_change
from gradscope.treat import rate_search, training
from gradscope.treat.patient import optimizer_like
from gradscope.treat.rate_search import find_rate
from gradscope.treat.training import changed_optimizer

Action = Mapping[str, Any]
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class Trial:
    """Share of the twin's improvement that was reached; refused: why it could not be tried, else ""."""

    share: float = float("nan")
    refused: str = ""


def attempt(name: str, seed: int, action: Action) -> Trial:
    """Try a remedy on a program, or return what an earlier call of the same found."""
    recorded, twin = recording.find(name, seed), recording.find(programs.PROGRAMS[name].twin or "", seed)
    assert recorded.outcome is not None
    assert twin.outcome is not None
    note = recorded.path / "trials" / f"{_source_of_trials()}-{_digest(action)}.json"
    if note.exists():
        return Trial(**json.loads(note.read_text()))
    try:
        reached = train(programs.PROGRAMS[name], seed, action)
        trial = Trial(improvement(Outcome(reached, recorded.outcome.chance), twin.outcome.score))
    except SurgeryRefused as reason:
        trial = Trial(refused=str(reason))
    except Exception as error:  # as a treatment says it, too: what can't be trained was no remedy
        trial = Trial(refused=f"training failed: {type(error).__name__}: {error}")
    note.parent.mkdir(exist_ok=True)
    half = note.with_suffix(".half")  # so that an interruption leaves no half-written note
    half.write_text(json.dumps(vars(trial)))
    half.replace(note)
    return trial


def train(program: Program, seed: int, action: Action) -> float:
    """Train a program with a remedy; return its score."""
    torch.manual_seed(seed)
    setup = program.build()
    change = training_change(action)
    if isinstance(setup, Adversaries):
        return _train_adversaries(setup, seed, action, change)
    return _train(setup, seed, action, change)


@cache
def _source_of_trials() -> str:
    """Hash the source that decides what a trial does beside its program and its action."""
    own = (Path(module.__file__) for module in (training, rate_search))
    files = (*sorted(Path(surgery.__file__).parent.glob("*.py")), *own, Path(__file__))
    return hashlib.sha256("".join(map(recording.code_of, files)).encode()).hexdigest()[:8]


def _digest(action: Action) -> str:
    return hashlib.sha256(json.dumps(action, sort_keys=True, default=str).encode()).hexdigest()[:12]


class _Held(nn.Module):
    """Holds a model as Lightning's module of the verdict benchmark does: layers have their recorded names."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.model(*inputs, **options)


class _Pair(nn.Module):
    """Holds both networks of a generative adversarial program."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of each feature."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Scale:
        """Measure values, samples first; SurgeryRefused if they are classes or tokens."""
        if not values.is_floating_point():
            raise SurgeryRefused("classes and tokens have no scale")
        deviation = values.std(0)
        return cls(values.mean(0), torch.where(deviation > 0, deviation, torch.ones_like(deviation)))


class _Seen(nn.Module):
    """The model as loss and score see it: inputs standardised before it, outputs brought back behind it.

    What else they ask of the model, be it a part or a method, is the model's own.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Scale | None,
        outputs: Scale | None,
        cast: bool,
        means: Tensor | None = None,
    ):
        super().__init__()
        self.model, self.inputs, self.outputs, self.cast = model, inputs, outputs, cast
        self.means = means

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, values: Tensor, *others: Any, **options: Any) -> Any:
        if self.means is not None:
            values = training.filled(values, self.means)
        if self.inputs is not None:
            values = (values - self.inputs.mean) / self.inputs.deviation
        if self.cast and values.is_floating_point():
            values = values.to(next(self.model.parameters()).dtype)
        result = self.model(values, *others, **options)
        return result if self.outputs is None else result * self.outputs.deviation + self.outputs.mean


def _train(setup: Setup, seed: int, action: Action, change: TrainingChange) -> float:
    model = _Held(setup.model) if setup.by_lightning else setup.model
    treated = surgery.apply(action, model, _first_batch(model, setup))
    if change.precision:
        setup = _in_precision(setup, treated, change.precision)
    means = _means(setup.data[0]) if change.fill_missing else None
    inputs = Scale.of(_without_gaps(setup.data[0], means)) if change.scale_inputs else None
    targets = Scale.of(setup.data[1]) if change.scale_targets else None
    make_optimizer = optimizer_like(model, setup.optimizer)

    def fit(treated: nn.Module, change: TrainingChange, steps: int) -> list[float]:
        optimizer = changed_optimizer(make_optimizer(treated), change, treated)
        fitted = replace(setup, optimizer=optimizer, steps=steps)
        return _loop(fitted, seen_of(treated, None).train(), targets, change, seed)

    def seen_of(treated: nn.Module, outputs: Scale | None) -> _Seen:
        inner: Any = treated.model if setup.by_lightning else treated
        return _Seen(inner, inputs, outputs, bool(change.precision), means)

    if change.search:
        with torch.random.fork_rng():
            rate = find_rate(
                change.search,
                setup.steps,
                lambda rate, steps: fit(copy.deepcopy(treated), replace(change, rate=rate), steps),
            )
        change = replace(change, rate=rate)
    fit(treated, change, setup.steps)
    with training.guarding(change):
        return score(seen_of(treated, targets), setup.score)


def _means(values: Tensor) -> Tensor:
    if not values.is_floating_point():
        raise SurgeryRefused("no class or token is missing")
    return training.finite_means(values)


def _without_gaps(values: Tensor, means: Tensor | None) -> Tensor:
    return values if means is None else training.filled(values, means)


def _first_batch(model: nn.Module, setup: Setup) -> Tensor | None:
    """Return a batch on which surgery can check its work; None if the model isn't called like that."""
    inputs = setup.data[0][: setup.batch_size]
    return inputs if surgery.runs(model, inputs) else None


def _in_precision(setup: Setup, treated: nn.Module, precision: str) -> Setup:
    if precision not in PRECISIONS:
        raise SurgeryRefused(f"{precision} needs a GPU here")
    treated.float()
    return replace(setup, autocast=PRECISIONS[precision])


def _clipping(setup: Setup, change: TrainingChange) -> Clipping | None:
    if change.clipping is not None:
        return change.clipping
    return Clipping("norm", setup.clip) if setup.clip else None


def _loop(
    setup: Setup, model: nn.Module, targets: Scale | None, change: TrainingChange, seed: int
) -> list[float]:
    """Train as the verdict benchmark does, in its order of random numbers; return the losses."""
    optimizer, clipping = setup.optimizer, _clipping(setup, change)
    schedule = setup.schedule and torch.optim.lr_scheduler.LambdaLR(optimizer, setup.schedule)
    batches = shuffled(setup.data, setup.batch_size, seed)
    losses = []
    for _ in range(setup.steps):
        if setup.zero_gradients:
            optimizer.zero_grad()
        for _ in range(setup.accumulate):
            batch = next(batches)
            if targets is not None:
                batch = (batch[0], (batch[1] - targets.mean) / targets.deviation, *batch[2:])
            autocast = torch.autocast(
                "cpu", setup.autocast or torch.bfloat16, enabled=setup.autocast is not None
            )
            with autocast, training.guarding(change):
                loss = setup.loss(model, batch) / setup.accumulate
            loss.backward()
        losses.append(loss.item())
        if clipping is not None:
            surgery.clip_gradients(clipping, model.parameters())
        optimizer.step()
        if schedule:
            schedule.step()
    return losses


def _train_adversaries(setup: Adversaries, seed: int, action: Action, change: TrainingChange) -> float:
    if change.scale_inputs or change.scale_targets or change.precision or change.fill_missing:
        raise SurgeryRefused(
            "a generator's input is noise, its target a distribution; their scale is its own"
        )
    if change.search:
        raise SurgeryRefused("adversaries chase each other: no loss tells which rate is better")
    pair = _Pair(setup.generator, setup.discriminator)
    treated: Any = surgery.apply(action, pair)
    first, second = (
        changed_optimizer(optimizer_like(old, optimizer)(new), change, new)
        for old, new, optimizer in zip(pair.children(), treated.children(), setup.optimizers, strict=True)
    )
    judge, cheat = setup.losses

    def update(optimizer: torch.optim.Optimizer, part: nn.Module, loss: Tensor) -> None:
        if setup.zero_gradients:
            optimizer.zero_grad()
        loss.backward()
        if change.clipping is not None:
            surgery.clip_gradients(change.clipping, part.parameters())
        optimizer.step()

    with training.guarding(change):
        for (real,) in _first(setup.steps, shuffled((setup.data,), setup.batch_size, seed)):
            fake = treated.generator(torch.randn(len(real), setup.noise))
            update(
                second,
                treated.discriminator,
                judge(treated.discriminator(real), treated.discriminator(fake.detach())),
            )
            update(first, treated.generator, cheat(treated.discriminator(fake)))
        return score(treated.generator, setup.score)


def _first(count: int, batches: Iterable[Batch]) -> Iterable[Batch]:
    return (batch for _, batch in zip(range(count), batches, strict=False))
