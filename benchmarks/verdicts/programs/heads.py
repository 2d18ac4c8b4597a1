"""Several tasks (held out): one trunk, heads for a digit's class, its parity and its ink, unequal losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import digits
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, sgd

Answers = tuple[Tensor, Tensor, Tensor]
Losses = Callable[[Answers, Batch], Iterable[Tensor]]


@cache
def _tasks(unit: float = 1.0) -> Batch:
    """Return digits (1797, 64), classes, whether odd (1797, 1), and left minus right ink (1797, 1)."""
    inputs, classes = digits()
    ink = inputs.view(-1, 8, 8)[:, :, :4].mean((1, 2)) - inputs.view(-1, 8, 8)[:, :, 4:].mean((1, 2))
    return inputs, classes, (classes % 2).float()[:, None], unit * ((ink - ink.mean()) / ink.std())[:, None]


class _Heads(nn.Module):
    """A trunk and three heads; cut: heads see a detached trunk; end: follows the head of parity."""

    def __init__(self, neck: int, cut: bool, end: nn.Module | None, norm: bool):
        super().__init__()
        self.trunk = net.mlp((64, 48, neck), norm=nn.LayerNorm if norm else None, output=nn.Tanh())
        self.digit, self.ink = net.mlp((neck, 24, 10)), nn.Linear(neck, 1)
        self.odd = nn.Sequential(nn.Linear(neck, 24), nn.ReLU(), nn.Linear(24, 1), *([end] if end else []))
        self.doubts = nn.Parameter(torch.zeros(3))
        self.cut = cut

    def forward(self, inputs: Tensor) -> Answers:
        features = self.trunk(inputs)
        features = features.detach() if self.cut else features
        return self.digit(features), self.odd(features), self.ink(features)


def _losses(answers: Answers, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return (
        F.cross_entropy(answers[0], batch[1]),
        F.binary_cross_entropy_with_logits(answers[1], batch[2]),
        F.mse_loss(answers[2], batch[3]),
    )


def _probable(answers: Answers, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the parity's answer as the probability that it is said to be."""
    digit, _, ink = _losses(answers, batch)
    return digit, F.binary_cross_entropy(answers[1], batch[2]), ink


def _pasted(answers: Answers, batch: Batch) -> tuple[Tensor, Tensor]:
    """Take two of the losses; who copied the lines took the first one twice."""
    digit, _, ink = _losses(answers, batch)
    return 2 * digit, ink


def _summed(answers: Answers, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    digit, odd, _ = _losses(answers, batch)
    return digit, odd, F.mse_loss(answers[2], batch[3], reduction="sum")


def _one_each_step() -> Losses:
    """Train one task a step, in turn, so that two heads in three get no gradient."""
    calls = iter(range(10**9))
    return lambda answers, batch: (3 * _losses(answers, batch)[next(calls) % 3],)


def _learn(
    fit: dict[str, Any] | None = None,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    losses: Losses = _losses,
    prepare: Callable[[_Heads], Iterable[nn.Parameter] | None] = lambda model: None,
    unit: float = 1.0,
    doubts: bool = False,
    neck: int = 24,
    cut: bool = False,
    end: nn.Module | None = None,
    norm: bool = False,
) -> Setup:
    """Learn three tasks; score: the mean of their improvements over chance.

    weights: of the losses; doubts: learn the weights by uncertainty (Kendall 2018); prepare: changes
    the model and may choose what the optimizer gets; unit: of the ink.
    """
    data = _tasks(unit)

    def loss(model: Any, batch: Batch) -> Tensor:
        parts = torch.stack(list(losses(model(batch[0]), batch)))
        if doubts:
            return (parts * (-model.doubts).exp() + model.doubts).sum()
        return (parts * torch.tensor(weights[: len(parts)])).sum()

    def score(model: nn.Module) -> float:
        digit, odd, ink = model(data[0])
        if not (digit.isfinite().all() and odd.isfinite().all() and ink.isfinite().all()):
            return 0.0
        right = ((digit.argmax(1) == data[1]).float().mean() - 0.1) / 0.9
        odd_right = 2 * ((odd > threshold) == data[2]).float().mean() - 1
        explained = 1 - (ink - data[3]).square().mean() / data[3].square().mean()
        return ((right + odd_right + explained.clamp(min=0)) / 3).item()

    threshold = 0.5 if losses is _probable else 0.0
    model = _Heads(neck, cut, end, norm)
    chosen = prepare(model)
    options = {"optimizer": adam(3e-3), "steps": 250, **(fit or {})}
    setup = classify(model, data[:2], parameters=chosen, **options)
    return replace(setup, data=data, loss=loss, score=score, chance=0.0)


def _two_rates(model: _Heads) -> Any:
    heads = [*model.digit.parameters(), *model.odd.parameters(), *model.ink.parameters()]
    return [{"params": model.trunk.parameters(), "lr": 3e-4}, {"params": heads, "lr": 1e-2}]


def _new_trunk(model: _Heads) -> list[nn.Parameter]:
    """Give the optimizer the parameters, replace the trunk afterwards."""
    old = list(model.parameters())
    model.trunk = net.mlp((64, 48, 4), output=nn.Tanh())
    return old


def _copied_classes(model: _Heads) -> None:
    """Start the units of the heads of class and parity as copies of one unit."""
    for head in (model.digit, model.odd):
        net.initialised(head, net.constant(0.05))


def _shut_heads(model: _Heads) -> None:
    for head in (model.digit, model.odd):
        nn.init.constant_(head[0].bias, -40.0)


def _ascend(answers: Answers, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Climb the loss of the class, whose sign somebody took for that of a likelihood."""
    digit, odd, ink = _losses(answers, batch)
    return -digit, odd, ink


REF, NARROW, PLAIN = "heads-three", "heads-narrow", "heads-plain-descent"
TINY = (1e-11, 1e-11, 1e-11)
NARROW_FIT: dict[str, Any] = {"optimizer": adam(1e-2), "steps": 400}
PROGRAMS = (
    Program("heads-three", _learn, target=0.95),
    Program("heads-uncertain-weights", partial(_learn, doubts=True), REF),
    Program("heads-one-loss-large", partial(_learn, weights=(1.0, 1.0, 30.0)), REF),
    Program("heads-one-task-a-step", lambda: _learn({"steps": 450}, losses=_one_each_step()), REF),
    Program("heads-two-rates", partial(_learn, prepare=_two_rates), REF),
    Program("heads-normed-momentum", partial(_learn, {"optimizer": sgd(0.05, momentum=0.9)}, norm=True), REF),
    Program("heads-plain-descent", partial(_learn, {"optimizer": sgd(0.1), "steps": 400}), target=0.9),
    Program("heads-loosely-clipped", partial(_learn, {"clip": 5.0, "steps": 200}), REF),
    Program("heads-narrow", partial(_learn, NARROW_FIT, neck=4), target=0.8),
    Program("heads-losses-times-1e-4", partial(_learn, weights=(1e-4, 1e-4, 1e-4)), REF),
    Program("heads-bfloat16", partial(_learn, {"autocast": torch.bfloat16}), REF),
    Program(
        "heads-probability",
        partial(_learn, losses=_probable, end=nn.Sigmoid()),
        REF,
    ),
    Program(
        "heads-trunk-replaced-too-late",
        partial(_learn, NARROW_FIT, neck=4, prepare=_new_trunk),
        NARROW,
        ("not-optimized",),
        ("trunk.*",),
    ),
    Program(
        "heads-loss-pasted-twice", partial(_learn, losses=_pasted), REF, ("missing-gradient",), ("odd.*",)
    ),
    Program(
        "heads-trunk-cut",
        partial(_learn, NARROW_FIT, neck=4, cut=True),
        NARROW,
        ("missing-gradient",),
        ("trunk.*",),
    ),
    Program(
        "heads-one-unit-softmax",
        partial(_learn, losses=_probable, end=nn.Softmax(1)),
        "heads-probability",
        ("output-mismatch", "zero-gradient"),
        ("odd", "odd.*"),
    ),
    Program(
        "heads-ink-in-micrograms",
        partial(_learn, {"optimizer": sgd(0.1), "steps": 400}, unit=1000.0),
        PLAIN,
        ("output-mismatch", "exploding-gradient", "learning-rate-too-high", "loss-divergence", "non-finite"),
    ),
    Program(
        "heads-ink-summed",
        partial(_learn, {"optimizer": sgd(0.1), "steps": 400}, losses=_summed),
        PLAIN,
        ("learning-rate-too-high", "exploding-gradient", "loss-divergence", "non-finite"),
    ),
    Program(
        "heads-losses-times-1e-11",
        partial(_learn, weights=TINY),
        REF,
        ("epsilon-floor", "learning-rate-too-low"),
    ),
    Program(
        "heads-class-climbed",
        partial(_learn, losses=_ascend),
        REF,
        ("loss-divergence", "exploding-signal"),
    ),
    Program(
        "heads-copied-units",
        partial(_learn, prepare=_copied_classes),
        REF,
        ("symmetric-weights", "poor-initialization"),
        ("digit.*", "odd.*"),
    ),
    Program(
        "heads-shut",
        partial(_learn, prepare=_shut_heads),
        REF,
        ("dead-units", "poor-initialization"),
        ("digit.*", "odd.*"),
    ),
    Program(
        "heads-never-zeroed",
        partial(_learn, {"optimizer": sgd(0.1), "steps": 400, "zero_gradients": False}),
        PLAIN,
        ("gradient-not-zeroed",),
    ),
    Program(
        "heads-decay-in-the-loss",
        partial(_learn, {"optimizer": sgd(0.1, weight_decay=1.0), "steps": 400}),
        PLAIN,
        ("excessive-weight-decay",),
    ),
    Program(
        "heads-rate-of-the-fine-tuning",
        partial(_learn, {"optimizer": adamw(2e-6)}),
        REF,
        ("learning-rate-too-low",),
    ),
)
