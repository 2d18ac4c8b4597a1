"""Counts, times and odd losses (held out): Poisson, survival, quantiles, grades, missing values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair, digits, friedman, table
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, regress, rmsprop, sgd

Loss = Callable[[nn.Module, Batch], Tensor]


@cache
def _counts(mean: float = 6.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs (1000, 10), counts (1000, 1) of about a mean, and their expectation (1000, 1)."""
    inputs, level = friedman()
    rate = mean * (0.5 * level).exp()
    return inputs, torch.poisson(rate, torch.Generator().manual_seed(131)), rate


def _count(
    fit: dict[str, Any] | None = None,
    mean: float = 6.0,
    log_input: bool = True,
    end: nn.Module | None = None,
) -> Setup:
    """Predict the rates of counts (Poisson); score: how well the rates' logarithms are explained."""
    inputs, counts, rate = _counts(mean)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        answer = model(batch[0])
        if log_input:
            return (answer.exp() - batch[1] * answer).mean()
        return (answer - batch[1] * (answer + 1e-3).log()).mean()

    def score(model: nn.Module) -> float:
        answer = model(inputs)
        logs = answer if log_input else answer.clamp(min=1e-3).log()
        error = (logs - rate.log()).square().mean() / rate.log().var()
        return max(0.0, (1 - error).item()) if error.isfinite() else 0.0

    model = net.mlp((10, 32, 32, 1), output=end)
    setup = regress(model, (inputs, counts), **{"optimizer": adam(5e-3), "steps": 300, **(fit or {})})
    return replace(setup, loss=loss, score=score)


@cache
def _lives(unit: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs (1000, 10), times (1000,) until death or the study's end, and whether death was seen."""
    inputs, level = friedman()
    random = torch.Generator().manual_seed(132)
    death = (-1.5 * level[:, 0]).exp() * -torch.rand(1000, generator=random).clamp(min=1e-6).log()
    end = 3 * torch.rand(1000, generator=random)
    return unit * inputs, torch.minimum(death, end), (death <= end).float()


def _concordance(risk: Tensor, times: Tensor, seen: Tensor) -> float:
    """Return the share of comparable pairs of which the one at more risk dies first."""
    pairs = (times[:, None] < times[None]) & (seen[:, None] > 0)
    return (risk[:, None] > risk[None])[pairs].float().mean().item() if risk.isfinite().all() else 0.5


class _Hazard(nn.Module):
    """Return each life's share in Cox's partial likelihood (1972); by_hand: sums exponentials."""

    def __init__(self, by_hand: bool, unit: float):
        super().__init__()
        self.risk, self.by_hand, self.unit = net.mlp((10, 32, 32, 1)), by_hand, unit
        self.normalise = net.Apply(self._logarithm)

    def _logarithm(self, risks: Tensor) -> Tensor:
        return risks.exp().cumsum(0).log() if self.by_hand else risks.logcumsumexp(0)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.unit * self.risk(inputs)[:, 0]


def _survive(
    fit: dict[str, Any] | None = None, by_hand: bool = False, unit: float = 1.0, scale: float = 1.0
) -> Setup:
    """Rank lives by risk; unit: multiplies risks; scale: of what is known of the patients."""
    data = _lives(scale)

    def loss(model: Any, batch: Batch) -> Tensor:
        order = batch[1].argsort(descending=True)
        risk, seen = model(batch[0])[order], batch[2][order]
        return -((risk - model.normalise(risk)) * seen).sum() / seen.sum()

    model = _Hazard(by_hand, unit)
    options = {"optimizer": adam(3e-3), "steps": 200, "batch_size": 128, **(fit or {})}
    setup = regress(model, data[:2], **options)
    score = lambda model: _concordance(model(data[0]), data[1], data[2])  # noqa: E731
    return replace(setup, data=data, loss=loss, score=score, chance=0.5)


def _pinball(share: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss whose minimum is a quantile; `share` is meant to lie between 0 and 1."""

    def loss(answer: Tensor, wanted: Tensor) -> Tensor:
        error = wanted - answer
        return torch.maximum(share * error, (share - 1) * error).mean()

    return loss


def _plain(
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    fit: dict[str, Any] | None = None,
    change: Callable[[Tensor, Tensor], Pair] = lambda inputs, targets: (inputs, targets),
    wanted: bool = False,
    front: Callable[[], nn.Module] | None = None,
    end: nn.Module | None = None,
    initialise: net.Initialise = net.he,
) -> Setup:
    """Fit Friedman's function; change: what was done to the data; wanted: score against the clean targets."""
    inputs, targets = friedman()
    data = change(inputs.clone(), targets.clone())
    model = net.mlp((10, 32, 32, 1), initialise=initialise, output=end)
    if front:
        model.insert(0, front())
    truth = targets if wanted else None
    return regress(
        model, data, loss=loss, wanted=truth, **{"optimizer": adam(5e-3), "steps": 300, **(fit or {})}
    )


def _outliers(inputs: Tensor, targets: Tensor) -> Pair:
    """Replace a tenth of the targets by wild values."""
    targets[::10] = 12 * torch.randn(100, 1, generator=torch.Generator().manual_seed(133))
    return inputs, targets


def _missing(value: float) -> Callable[[Tensor, Tensor], Pair]:
    """Replace a fiftieth of the entries by what stands for a missing value."""

    def change(inputs: Tensor, targets: Tensor) -> Pair:
        lost = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(134)) < 0.02
        return inputs.masked_fill(lost, value), targets

    return change


def _sparse(inputs: Tensor, targets: Tensor) -> Pair:
    """Add sixty features of which one in a hundred is not zero."""
    rare = torch.rand(len(inputs), 60, generator=torch.Generator().manual_seed(135)) < 0.01
    return torch.cat([inputs, 3 * rare.float()], 1), targets


def _sparsely() -> Setup:
    data = _sparse(*friedman())
    return regress(net.mlp((70, 48, 1)), data, lambda p: torch.optim.Adagrad(p, 0.05), steps=400)


def _money(inputs: Tensor, targets: Tensor) -> Pair:
    return inputs, 2e5 + 5e4 * targets


def _in_money(answers: Tensor) -> Tensor:
    return 2e5 + 5e4 * answers


def _tiny(inputs: Tensor, targets: Tensor) -> Pair:
    return inputs, 1e-9 * targets


def _wrong_labels(share: float, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> Setup:
    """Classify digits of which a share carry a random label; score against the true ones."""
    inputs, classes = digits()
    random = torch.Generator().manual_seed(136)
    noise = torch.randint(0, 10, classes.shape, generator=random)
    shown = torch.where(torch.rand(classes.shape, generator=random) < share, noise, classes)
    setup = classify(net.mlp((64, 48, 10), dropout=0.2), (inputs, shown), adam(2e-3), loss, steps=250)

    def score(model: nn.Module) -> float:
        return (model(inputs).argmax(1) == classes).float().mean().item()

    return replace(setup, score=score, chance=0.102)


def _focal(answers: Tensor, wanted: Tensor) -> Tensor:
    """Weigh what is hard (Lin 2017)."""
    cost = F.cross_entropy(answers, wanted, reduction="none")
    return ((1 - (-cost).exp()).square() * cost).mean()


class _Ordered(nn.Module):
    """Three ordered thresholds and one score; answers with four probabilities (McCullagh 1980)."""

    def __init__(self, apart: float, floor: float):
        super().__init__()
        self.score, self.apart, self.floor = (
            net.mlp((10, 32, 1)),
            nn.Parameter(torch.tensor([-1.0, 0.0, 1.0]) * apart),
            floor,
        )

    def forward(self, inputs: Tensor) -> Tensor:
        below = F.pad((self.apart - self.score(inputs)).sigmoid(), (1, 0))
        return (F.pad(below, (0, 1), value=1.0).diff(dim=1) + self.floor).log()


def _grades(apart: float, floor: float) -> Setup:
    inputs, targets = friedman()
    grades = torch.bucketize(
        targets[:, 0].contiguous(), targets[:, 0].quantile(torch.tensor([0.25, 0.5, 0.75]))
    )
    return classify(_Ordered(apart, floor), (inputs, grades), adam(1e-2), F.nll_loss, steps=250)


def _cancer(rate: float, floor: float | None) -> Setup:
    """Tell tumours apart by a probability whose logarithm is taken by hand, with a floor or bare."""
    inputs, targets = table("breast_cancer")

    def loss(answer: Tensor, wanted: Tensor) -> Tensor:
        chance = answer[:, 0] if floor is None else answer[:, 0].clamp(floor, 1 - floor)
        truth = wanted.float()
        return -(truth * chance.log() + (1 - truth) * (1 - chance).log()).mean()

    model = net.mlp((30, 24, 1), output=nn.Sigmoid())
    return classify(model, (inputs, targets), sgd(rate), loss, threshold=0.5, steps=200)


REF, COUNTS, LIVES, MEDIAN = "events-plain", "events-counts", "events-survival", "events-median"
PROGRAMS = (
    Program("events-plain", _plain, target=0.85),
    Program("events-counts", _count, target=0.7),
    Program("events-counts-softplus", partial(_count, log_input=False, end=nn.Softplus()), COUNTS),
    Program("events-survival", _survive, target=0.75),
    Program("events-money-made-inside", partial(_plain, change=_money, end=net.Apply(_in_money)), REF),
    Program("events-median", partial(_plain, _pinball(0.5)), REF),
    Program(
        "events-outliers-huber", partial(_plain, F.smooth_l1_loss, change=_outliers, wanted=True), target=0.7
    ),
    Program("events-missing-as-zero", partial(_plain, change=_missing(0.0)), REF),
    Program("events-rare-features-adagrad", _sparsely, target=0.85),
    Program("events-half-the-labels-wrong", partial(_wrong_labels, 0.5), target=0.85),
    Program("events-focal", partial(_wrong_labels, 0.0, _focal), target=0.95),
    Program("events-grades", partial(_grades, 1.0, 1e-6), target=0.7),
    Program("events-tumours", partial(_cancer, 0.1, 1e-6), target=0.95),
    Program("events-plain-descent", partial(_plain, fit={"optimizer": sgd(0.05)}), target=0.8),
    Program("events-rmsprop", partial(_plain, F.l1_loss, {"optimizer": rmsprop(2e-3)}), REF),
    Program(
        "events-counts-sigmoid",
        partial(_count, end=nn.Sigmoid()),
        COUNTS,
        ("output-mismatch",),
        ("4", "5"),
    ),
    Program(
        "events-counts-in-thousands",
        partial(_count, {"optimizer": sgd(0.05)}, 5000.0),
        COUNTS,
        ("exploding-gradient", "non-finite", "output-mismatch", "learning-rate-too-high", "loss-divergence"),
    ),
    Program(
        "events-survival-by-hand",
        partial(_survive, by_hand=True, unit=300.0),
        LIVES,
        ("non-finite", "exploding-signal"),
        ("normalise", "risk.4"),
    ),
    Program(
        "events-quantile-in-percent",
        partial(_plain, _pinball(50.0)),
        MEDIAN,
        ("loss-divergence", "output-mismatch", "exploding-signal"),
    ),
    Program(
        "events-missing-as-nan", partial(_plain, change=_missing(math.nan)), REF, ("non-finite",), ("0",)
    ),
    Program(
        "events-missing-as-minus-99999",
        partial(_plain, fit={"optimizer": sgd(0.05)}, change=_missing(-99999.0)),
        "events-plain-descent",
        ("unscaled-input",),
        ("0", "1"),
    ),
    Program(
        "events-money", partial(_plain, change=_money), REF, ("output-mismatch", "learning-rate-too-low")
    ),
    Program("events-tiny-units", partial(_plain, change=_tiny), REF, ("output-mismatch",)),
    Program("events-grades-without-gaps", partial(_grades, 0.0, 0.0), "events-grades", ("non-finite",)),
    Program(
        "events-tumours-log-of-zero",
        partial(_cancer, 30.0, None),
        "events-tumours",
        ("non-finite", "learning-rate-too-high"),
    ),
    Program(
        "events-broken-second-moment",
        partial(_plain, fit={"optimizer": adam(0.3, betas=(0.9, 0.01))}),
        REF,
        ("learning-rate-too-high",),
    ),
    Program(
        "events-decay",
        partial(_plain, fit={"optimizer": adamw(5e-3, weight_decay=20.0)}),
        REF,
        ("excessive-weight-decay",),
    ),
)
