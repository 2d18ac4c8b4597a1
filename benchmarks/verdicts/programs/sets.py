"""Sets (held out): clouds of points pooled by means, maxima, attention and capsules."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, classify, regress, rmsprop, sgd

POINTS, WIDTH = 16, 24


@cache
def _clouds(unit: float = 1.0, east: float = 0.0) -> Pair:
    """Return clouds (800, 16, 2) and their shapes: ring, line, cross, blob, two blobs.

    unit: length of a metre; east: metres that are added to the first coordinate.
    """
    random = torch.Generator().manual_seed(111)
    classes, count = torch.arange(800) % 5, (800, POINTS)
    angle, along = (torch.rand(count, generator=random) * 2 - 1 for _ in range(2))
    side = (torch.arange(POINTS) % 2).expand(count)
    zero = torch.zeros(count)
    ring = torch.stack([(math.pi * angle).cos(), (math.pi * angle).sin()], 2)
    line = torch.stack([1.7 * along, zero], 2)
    cross = torch.stack([1.7 * along * side, 1.7 * along * (1 - side)], 2)
    blob = 0.7 * torch.randn(*count, 2, generator=random)
    pair = torch.stack([2.0 * side - 1, zero], 2) + 0.2 * torch.randn(*count, 2, generator=random)
    clouds = torch.stack([ring, line, cross, blob, pair])[classes, torch.arange(800)]
    turn = math.pi * torch.rand(800, generator=random)
    matrix = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).view(-1, 2, 2)
    clouds = clouds @ matrix + 0.08 * torch.randn(*count, 2, generator=random)
    return (unit * (clouds + torch.tensor([east, 0.0]))), classes


@cache
def _samples() -> Pair:
    """Return samples (800, 16, 1) of Gaussians and the logarithm of their deviation (800, 1)."""
    random = torch.Generator().manual_seed(112)
    size = 2 * torch.rand(800, 1, generator=random) - 1
    drawn = torch.randn(800, POINTS, 1, generator=random)
    drawn = (drawn - drawn.mean(1, keepdim=True)) / drawn.std(1, keepdim=True)
    return drawn * (1.2 * size).exp()[:, None], size / size.std()


class _Set(nn.Module):
    """Encode each point, pool, and answer (Zaheer 2017)."""

    def __init__(self, point: nn.Module, pool: nn.Module, answer: nn.Module):
        super().__init__()
        self.point, self.pool, self.answer = point, pool, answer

    def forward(self, clouds: Tensor) -> Tensor:
        return self.answer(self.pool(self.point(clouds)))


class _Sum(nn.Module):
    """Add points up, times a factor."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = factor

    def forward(self, points: Tensor) -> Tensor:
        return self.factor * points.sum(1)


def _mean() -> nn.Module:
    return net.Apply(lambda points: points.mean(1))


def _maximum() -> nn.Module:
    return net.Apply(lambda points: points.amax(1))


class _Cut(nn.Module):
    """Pool under no_grad, as one does where features are only wanted for a look."""

    def forward(self, points: Tensor) -> Tensor:
        with torch.no_grad():
            return points.mean(1)


def _point(width: int = WIDTH, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    return net.mlp((2, WIDTH, width), activation, output=activation())


def _pooled(
    pool: Callable[[], nn.Module] = _mean,
    fit: dict[str, Any] | None = None,
    prepare: Callable[[_Set], object] = lambda model: None,
    data: Pair | None = None,
    point: Callable[[], nn.Sequential] | None = None,
    width: int = WIDTH,
    front: Callable[[], nn.Module] | None = None,
) -> Setup:
    """Classify clouds; prepare: changes the model; front: comes before the points are encoded."""
    encoder = point() if point else _point(width)
    if front:
        encoder.insert(0, front())
    model = _Set(encoder, pool(), net.mlp((width, WIDTH, 5)))
    prepare(model)
    options = {"optimizer": adam(5e-3), "steps": 500, **(fit or {})}
    return classify(model, data or _clouds(), **options)


def _all_alike(model: Any) -> None:
    """Start every layer at one constant, so that its units are copies of each other."""
    net.initialised(model, net.constant(0.1))


class _Attending(nn.Module):
    """Let learned seeds attend to the points (Lee 2019); sharp: multiplies the projections.

    empty: marks points as padding where they are, and not where they are not.
    """

    def __init__(self, sharp: float = 1.0, empty: bool = False, seeds: int = 1):
        super().__init__()
        self.seeds = nn.Parameter(torch.randn(seeds, WIDTH))
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.empty = empty
        with torch.no_grad():
            self.attend.in_proj_weight[: 2 * WIDTH].mul_(sharp)

    def forward(self, points: Tensor) -> Tensor:
        there = torch.ones(points.shape[:2], dtype=torch.bool)
        padding = there if self.empty else ~there
        seeds = self.seeds.expand(len(points), -1, -1)
        found, _ = self.attend(seeds, points, points, key_padding_mask=padding)
        return found.sum(1)


class _Induced(nn.Module):
    """Blocks of self-attention over the points, with a skip and LayerNorm, or bare; then the mean."""

    def __init__(self, blocks: int, bare: bool):
        super().__init__()

        def block() -> nn.Module:
            if bare:
                return net.Attention(WIDTH)
            return net.Residual(nn.Sequential(nn.LayerNorm(WIDTH), net.Attention(WIDTH)))

        self.blocks = nn.Sequential(*(block() for _ in range(blocks)))

    def forward(self, points: Tensor) -> Tensor:
        return self.blocks(points).mean(1)


class _Squash(nn.Module):
    """Shorten vectors to less than one; `safety` under the root, which is steep at zero."""

    def __init__(self, safety: float):
        super().__init__()
        self.safety = safety

    def forward(self, vectors: Tensor) -> Tensor:
        length = (vectors.square().sum(-1, keepdim=True) + self.safety).sqrt()
        return vectors * length / (1 + length.square())


class _Capsules(nn.Module):
    """Five capsules that agree with the points by routing (Sabour 2017); answers with five lengths."""

    def __init__(self, safety: float):
        super().__init__()
        self.vote = nn.Parameter(0.3 * torch.randn(5, WIDTH, 6))
        self.squash = _Squash(safety)

    def forward(self, points: Tensor) -> Tensor:
        votes = self.squash(torch.einsum("bpf,cfd->bcpd", points, self.vote))
        trust = torch.zeros(votes.shape[:3])
        for _ in range(2):
            chosen = (trust.softmax(1)[..., None] * votes).mean(2)
            trust = trust + (votes.detach() * self.squash(chosen.detach())[:, :, None]).sum(3)
        return 40 * (trust.softmax(1)[..., None] * votes).mean(2).square().sum(2)


class _Turn(nn.Module):
    """Multiply the points by a matrix that is found from them and starts at the identity (Qi 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.find = net.mlp((2, 16, 4))
        nn.init.zeros_(self.find[-1].weight)

    def forward(self, points: Tensor) -> Tensor:
        matrix = self.find(points).mean(1).view(-1, 2, 2) + torch.eye(2)
        return points @ matrix


def _deviation(
    front: Callable[[], nn.Module] | None = None,
    end: Callable[[], nn.Module] | None = None,
    fit: dict[str, Any] | None = None,
) -> Setup:
    """Predict the deviation of samples."""
    point = nn.Sequential(*([front()] if front else []), *net.mlp((1, WIDTH, WIDTH), output=nn.ReLU()))
    model = _Set(point, _mean(), net.mlp((WIDTH, WIDTH, 1), output=end() if end else None))
    return regress(model, _samples(), **{"optimizer": adam(5e-3), "steps": 250, **(fit or {})})


def _capsules(safety: float) -> Setup:
    """Classify by capsules behind points whose features are all zero for one point in a few."""
    model = _Set(_point(), _Capsules(safety), nn.Identity())
    inputs, targets = _clouds()
    padded = torch.cat([inputs, torch.zeros(len(inputs), 4, 2)], 1)
    return classify(model, (padded, targets), adam(1e-2), steps=250)


REF, SEEDS, INDUCED, SPREAD = "sets-mean", "sets-seeds", "sets-self-attention", "sets-deviation"
FULL: dict[str, Any] = {"optimizer": sgd(0.2, momentum=0.9), "batch_size": 800}
PROGRAMS = (
    Program("sets-mean", _pooled, target=0.9),
    Program("sets-maximum", partial(_pooled, _maximum), REF),
    Program("sets-sum", partial(_pooled, _Sum, {"optimizer": adam(3e-3), "steps": 1000}), REF),
    Program("sets-seeds", partial(_pooled, _Attending), target=0.85),
    Program("sets-self-attention", partial(_pooled, partial(_Induced, 2, False), {"steps": 250}), target=0.9),
    Program("sets-turned-first", partial(_pooled, front=_Turn), REF),
    Program("sets-half-units-closed", partial(_pooled, width=96, fit={"optimizer": rmsprop(3e-3)}), REF),
    Program(
        "sets-full-batch-momentum",
        partial(_pooled, fit=FULL),
        REF,
    ),
    Program("sets-deviation", _deviation, target=0.9),
    Program("sets-capsules", partial(_capsules, 1e-6), target=0.7),
    Program(
        "sets-mean-narrow",
        partial(
            _pooled, point=partial(_point, 4, nn.Tanh), width=4, fit={"optimizer": adam(1e-2), "steps": 800}
        ),
        target=0.7,
    ),
    Program(
        "sets-sharp-seeds",
        partial(_pooled, partial(_Attending, 100.0)),
        SEEDS,
        ("attention-collapse", "poor-initialization"),
        ("pool.attend", "pool"),
    ),
    Program(
        "sets-padding-inverted",
        partial(_pooled, partial(_Attending, 1.0, True)),
        SEEDS,
        ("non-finite",),
        ("pool.attend", "pool"),
    ),
    Program(
        "sets-squash-of-nothing",
        partial(_capsules, 0.0),
        "sets-capsules",
        ("non-finite",),
        ("pool.squash", "pool"),
    ),
    Program(
        "sets-self-attention-bare-6",
        partial(_pooled, partial(_Induced, 6, True), {"steps": 250}),
        INDUCED,
        ("rank-collapse", "vanishing-signal", "vanishing-gradient", "attention-collapse"),
        ("pool.*",),
    ),
    Program(
        "sets-pooled-under-no-grad",
        partial(
            _pooled, _Cut, {"optimizer": adam(1e-2), "steps": 800}, point=partial(_point, 4, nn.Tanh), width=4
        ),
        "sets-mean-narrow",
        ("missing-gradient",),
        ("point.*",),
    ),
    Program(
        "sets-all-alike",
        partial(_pooled, prepare=_all_alike),
        REF,
        ("symmetric-weights", "poor-initialization"),
    ),
    Program(
        "sets-metres-from-the-meridian",
        partial(_pooled, data=_clouds(1.0, 5e5)),
        REF,
        ("unscaled-input",),
        ("point.0", "point.1"),
    ),
    Program(
        "sets-sum-loud",
        partial(_pooled, partial(_Sum, 30.0), FULL),
        "sets-full-batch-momentum",
        ("exploding-signal", "exploding-gradient", "learning-rate-too-high", "loss-divergence"),
    ),
    Program(
        "sets-deviation-norm-of-one",
        partial(_deviation, lambda: nn.LayerNorm(1)),
        SPREAD,
        ("degenerate-normalization",),
        ("point.0",),
    ),
    Program(
        "sets-epsilon-10",
        partial(_pooled, fit={"optimizer": adam(5e-3, eps=10.0)}),
        REF,
        ("epsilon-floor", "learning-rate-too-low"),
    ),
)
