"""Self-supervision (held out): embeddings that two views of one thing agree on, without a label."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import MakeOptimizer, adam, adamw, sgd, trained

Loss = Callable[["_Pair", Tensor, Tensor], Tensor]
SHARED, WIDTH = 4, 6


@cache
def _views(unit: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return two views (1024, 20) of shared causes (1024, 4), and these; unit: multiplies the views.

    Each view mixes the causes with as many private ones of twice their size, by a matrix of its own.
    """
    random = torch.Generator().manual_seed(331)
    causes = torch.randn(1024, SHARED, generator=random)
    views = []
    for _ in range(2):
        private = 2 * torch.randn(1024, 8, generator=random)
        mixed = torch.cat([causes, private], 1) @ torch.randn(12, 20, generator=random) / 12**0.5
        views.append(unit * (mixed + 0.05 * torch.randn(1024, 20, generator=random)))
    return views[0], views[1], causes


class _Pair(nn.Module):
    """One encoder a view; a projector and a predictor if the loss wants them. Answers with embeddings."""

    def __init__(
        self,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm1d,
        activation: Callable[[], nn.Module] = nn.ReLU,
        initialise: net.Initialise | None = net.he,
        levels: int = 1,
        output: Callable[[], nn.Module] = nn.Identity,
        project: bool = False,
        predict: bool = False,
    ):
        super().__init__()
        sizes = (20, *[48] * levels, WIDTH)
        make = partial(net.mlp, sizes, activation, initialise, norm)
        self.left, self.right = make(output=output()), make(output=output())
        self.projector = net.mlp((WIDTH, 32, 16)) if project else nn.Identity()
        self.predictor = net.mlp((WIDTH, 32, WIDTH), norm=nn.BatchNorm1d) if predict else nn.Identity()

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(left), self.right(right)


def _contrast(temperature: float, detach: bool = False) -> Loss:
    """Return the contrast of a view with the other views of the batch (Chen 2020); detach: the left ones."""

    def loss(model: _Pair, left: Tensor, right: Tensor) -> Tensor:
        left, right = model.projector(left), model.projector(right)
        if detach:
            left = left.detach()
        alike = F.normalize(left, dim=1) @ F.normalize(right, dim=1).T / temperature
        wanted = torch.arange(len(left))
        return (F.cross_entropy(alike, wanted) + F.cross_entropy(alike.T, wanted)) / 2

    return loss


def _regularised(spread: float = 1.0, decorrelate: float = 1.0, floor: float = 1e-4) -> Loss:
    """Return agreement, deviations of at least one, no correlation (Bardes 2022); floor: under the root."""

    def loss(model: _Pair, left: Tensor, right: Tensor) -> Tensor:
        total = F.mse_loss(left, right)
        for codes in (left, right):
            centred = codes - codes.mean(0)
            covariance = centred.T @ centred / (len(codes) - 1)
            deviation = (covariance.diagonal() + floor).sqrt()
            total = total + spread * (1 - deviation).relu().mean()
            total = total + decorrelate * (covariance - covariance.diag().diag()).square().sum() / WIDTH
        return total

    return loss


def _correlate(floor: float = 1e-5) -> Loss:
    """Return how far the correlations between two views are from the identity (Zbontar 2021)."""

    def loss(model: _Pair, left: Tensor, right: Tensor) -> Tensor:
        units = [(codes - codes.mean(0)) / (codes.std(0) + floor) for codes in (left, right)]
        return (units[0].T @ units[1] / len(left) - torch.eye(WIDTH)).square().sum()

    return loss


def _predict(stop: bool) -> Loss:
    """Return how badly each view predicts the other (Chen 2021); stop: no gradient by what is predicted."""

    def loss(model: _Pair, left: Tensor, right: Tensor) -> Tensor:
        wanted = [codes.detach() if stop else codes for codes in (left, right)]
        pairs = zip((left, right), reversed(wanted), strict=True)
        return -sum(F.cosine_similarity(model.predictor(codes), goal).mean() for codes, goal in pairs) / 2

    return loss


def _agree(model: _Pair, left: Tensor, right: Tensor) -> Tensor:
    """Return the distance between two views, which a constant answer makes zero."""
    return F.mse_loss(left, right)


def _read(codes: Tensor, causes: Tensor) -> float:
    """Return how much of the causes' variance a ridge regression on standardised embeddings explains."""
    if not codes.isfinite().all():
        return 0.0
    known = codes.double() - codes.double().mean(0)
    known = known / (known.std(0) + 1e-6)
    wanted = causes.double()
    ridge = known.T @ known + 10 * torch.eye(known.shape[1], dtype=torch.float64)
    error = (known @ torch.linalg.solve(ridge, known.T @ wanted) - wanted).square().mean()
    return max(0.0, (1 - error / wanted.var()).item())


def _learn(
    loss: Loss = _contrast(0.2),  # noqa: B008
    fit: dict[str, Any] | None = None,
    unit: float = 1.0,
    only: Callable[[_Pair], list[nn.Parameter]] = trained,
    **network: Any,
) -> Setup:
    """Learn from pairs of views; score: what the left embedding tells of the shared causes."""
    left, right, causes = _views(unit)
    model = _Pair(**network)
    options = {"optimizer": adam(5e-3), "steps": 250, "batch_size": 128, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")

    def of_batch(model: Any, batch: Batch) -> Tensor:
        return loss(model, *model(*batch))

    def score(model: Any) -> float:
        return _read(model(left, right)[0], causes)

    return Setup(model, make(only(model)), (left, right), of_batch, score, 0.0, **options)


def _heads_only(model: _Pair) -> list[nn.Parameter]:
    return [*model.projector.parameters(), *model.predictor.parameters()]


class _Lone(nn.Module):
    """Normalise each entry of an embedding for itself, as a LayerNorm over the wrong axis does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(1)

    def forward(self, codes: Tensor) -> Tensor:
        return self.norm(codes[..., None])[..., 0]


REF, SPREAD, BARE, DESCENT = "views-contrast", "views-regularised", "views-bare", "views-descent"
LONG = {"steps": 500}
PLAIN = {"optimizer": sgd(0.3), "steps": 400}
PROGRAMS = (
    Program("views-contrast", _learn, target=0.8),
    Program("views-projected", partial(_learn, _contrast(0.2), LONG, project=True), REF),
    Program("views-regularised", partial(_learn, _regularised()), target=0.8),
    Program("views-correlated", partial(_learn, _correlate()), target=0.8),
    Program(
        "views-predicted", partial(_learn, _predict(stop=True), {"steps": 400}, predict=True), target=0.7
    ),
    Program("views-bare", partial(_learn, norm=None), REF),
    Program("views-descent", partial(_learn, _contrast(0.2), PLAIN), REF),
    Program("views-clipped-each-step", partial(_learn, _regularised(), {"clip": 0.3}), SPREAD),
    Program("views-some-decay", partial(_learn, fit={"optimizer": adamw(5e-3, weight_decay=0.1)}), REF),
    Program(
        "views-agreement-alone",
        partial(_learn, _agree),
        SPREAD,
        ("rank-collapse", "vanishing-signal"),
        ("left.3", "right.3", "left", "right"),
    ),
    Program(
        "views-predicted-without-stop",
        partial(_learn, _predict(stop=False), {"steps": 400}, predict=True),
        "views-predicted",
        ("rank-collapse",),
        ("left*", "right*", "predictor*"),
    ),
    Program(
        "views-root-of-no-variance",
        partial(_learn, _regularised(floor=0.0), norm=None, initialise=net.constant(0.0)),
        SPREAD,
        ("non-finite", "symmetric-weights", "poor-initialization"),
    ),
    Program(
        "views-correlated-without-floor",
        partial(
            _learn, _correlate(0.0), norm=None, output=lambda: net.Apply(lambda codes: (codes - 6).relu())
        ),
        "views-correlated",
        ("non-finite", "dead-units"),
        ("left.3", "right.3"),
    ),
    Program(
        "views-hot",
        partial(_learn, _contrast(1e4), {"optimizer": sgd(0.3), "steps": 400}),
        DESCENT,
        ("learning-rate-too-low", "output-mismatch"),
    ),
    Program(
        "views-heads-alone-optimized",
        partial(_learn, _contrast(0.2), LONG, project=True, only=_heads_only),
        "views-projected",
        ("not-optimized",),
        ("left.*", "right.*"),
    ),
    Program(
        "views-each-entry-normalised",
        partial(_learn, output=_Lone),
        REF,
        ("degenerate-normalization", "zero-gradient"),
        ("left.4*", "right.4*"),
    ),
    Program(
        "views-sigmoids-eight-deep",
        partial(_learn, norm=None, activation=nn.Sigmoid, initialise=net.glorot, levels=8),
        BARE,
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
    ),
    Program(
        "views-tanh-of-thousands",
        partial(_learn, norm=None, activation=nn.Tanh, unit=1000.0),
        BARE,
        ("saturated-activation", "unscaled-input"),
        ("left.0", "left.1", "right.0", "right.1"),
    ),
    Program(
        "views-left-detached",
        partial(_learn, _contrast(0.2, detach=True)),
        REF,
        ("missing-gradient",),
        ("left.*",),
    ),
    Program(
        "views-timid",
        partial(_learn, fit={"optimizer": adam(1e-6)}),
        REF,
        ("learning-rate-too-low",),
    ),
)
