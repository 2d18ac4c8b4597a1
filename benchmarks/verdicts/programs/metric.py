"""Learned distances (held out): prototypes, triplets, contrasts, proxies and margins on hidden parities."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import adam, sgd, trained

Loss = Callable[["_Embedder", Tensor, Tensor], Tensor]
CLASSES, WIDTH = 4, 8


@cache
def _parities(unit: float = 1.0) -> Pair:
    """Return inputs (960, 10), times `unit`, and four classes: the signs of two products of two entries each.

    The mean of a class tells nothing of it, so distances between inputs don't either.
    """
    random = torch.Generator().manual_seed(301)
    signs = 2.0 * torch.randint(0, 2, (960, 4), generator=random) - 1
    classes = (signs[:, 0] * signs[:, 1] > 0).long() + 2 * (signs[:, 2] * signs[:, 3] > 0).long()
    shown = signs + 0.35 * torch.randn(960, 4, generator=random)
    return unit * torch.cat([shown, torch.randn(960, 6, generator=random)], 1), classes


class _Embedder(nn.Module):
    """A body that embeds, a distance between embeddings, and one proxy a class if the loss wants them.

    safety: what is added under the distance's root, whose slope at zero is infinite.
    """

    def __init__(self, body: nn.Module, safety: float = 1e-6, proxies: bool = False):
        super().__init__()
        self.body, self.safety = body, safety
        self.distance = net.Apply(self._distance)
        self.proxies = nn.Parameter(torch.randn(CLASSES, WIDTH)) if proxies else torch.empty(0)

    def _distance(self, codes: Tensor) -> Tensor:
        squares = (codes[:, None] - codes[None]).square().sum(2)
        return (squares + self.safety).sqrt()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)


def _prototypes(model: _Embedder, codes: Tensor, classes: Tensor) -> Tensor:
    """Tell half of the batch by its distance to the class means of the other half (Snell 2017)."""
    half = len(codes) // 2
    shown = F.one_hot(classes[:half], CLASSES).to(codes.dtype)
    means = shown.T @ codes[:half] / shown.sum(0).clamp(min=1)[:, None]
    return F.cross_entropy(-(codes[half:, None] - means[None]).square().sum(2), classes[half:])


def _triplets(margin: float) -> Loss:
    """Return the loss that wants the same class nearer than others by a margin, over all triplets."""

    def loss(model: _Embedder, codes: Tensor, classes: Tensor) -> Tensor:
        apart = model.distance(codes)
        same = classes[:, None] == classes[None]
        violated = (apart[:, :, None] - apart[:, None, :] + margin).relu()
        return violated[same[:, :, None] & ~same[:, None, :]].mean()

    return loss


def _pairs(margin: float, push: float = 1.0) -> Loss:
    """Return the contrastive loss (Hadsell 2006); push: weight of the pairs that are to part."""

    def loss(model: _Embedder, codes: Tensor, classes: Tensor) -> Tensor:
        apart = model.distance(codes)
        same = classes[:, None] == classes[None]
        return apart[same].square().mean() + push * (margin - apart[~same]).relu().square().mean()

    return loss


def _contrast(temperature: float) -> Loss:
    """Return the supervised contrast of cosines (Khosla 2020)."""

    def loss(model: _Embedder, codes: Tensor, classes: Tensor) -> Tensor:
        unit = F.normalize(codes, dim=1)
        itself = torch.eye(len(codes), dtype=torch.bool)
        alike = (unit @ unit.T / temperature).masked_fill(itself, -1e9).log_softmax(1)
        same = (classes[:, None] == classes[None]) & ~itself
        return -(alike * same).sum() / same.sum()

    return loss


def _cosines(scale: float, margin: float = 0.0) -> Loss:
    """Return the cross-entropy of scaled cosines to the proxies (Wang 2018), less a margin."""

    def loss(model: _Embedder, codes: Tensor, classes: Tensor) -> Tensor:
        cosines = F.normalize(codes, dim=1) @ F.normalize(model.proxies, dim=1).T
        return F.cross_entropy(scale * (cosines - margin * F.one_hot(classes, CLASSES)), classes)

    return loss


class _Unit(nn.Module):
    """Divide each row by its length as one does by hand, without a floor."""

    def forward(self, codes: Tensor) -> Tensor:
        return codes / codes.norm(dim=1, keepdim=True)


def _accuracy(model: nn.Module, inputs: Tensor, classes: Tensor) -> float:
    """Return the share of embeddings whose nearest class mean is their own."""
    codes = model(inputs)
    if not codes.isfinite().all():
        return 1 / CLASSES
    shown = F.one_hot(classes, CLASSES).to(codes.dtype)
    means = shown.T @ codes / shown.sum(0)[:, None]
    return (torch.cdist(codes, means).argmin(1) == classes).float().mean().item()


def _learn(
    loss: Loss = _prototypes,
    fit: dict[str, Any] | None = None,
    unit: float = 1.0,
    sizes: tuple[int, ...] = (10, 48, 48, WIDTH),
    optimize: Callable[[_Embedder], list[nn.Parameter]] = trained,
    double: bool = False,
    safety: float = 1e-6,
    proxies: bool = False,
    **network: Any,
) -> Setup:
    """Learn a distance; optimize: what the optimizer is given; network: of the body."""
    inputs, classes = _parities(unit)
    embedder = _Embedder(net.mlp(sizes, **network), safety, proxies)
    if double:
        inputs, embedder = inputs.double(), embedder.double()
    options = {"optimizer": adam(3e-3), "steps": 250, **(fit or {})}
    optimizer = options.pop("optimizer")(optimize(embedder))

    def of_batch(model: Any, batch: Batch) -> Tensor:
        return loss(model, model(batch[0]), batch[1])

    score = partial(_accuracy, inputs=inputs, classes=classes)
    return Setup(embedder, optimizer, (inputs, classes), of_batch, score, 1 / CLASSES, **options)


def _proxies_only(model: _Embedder) -> list[nn.Parameter]:
    return [model.proxies]


REF, COSINES, TRIPLETS, DESCENT = "metric-prototypes", "metric-cosines", "metric-triplets", "metric-descent"
PLAIN = {"optimizer": sgd(0.1)}
PROGRAMS = (
    Program("metric-prototypes", _learn, target=0.93),
    Program("metric-triplets", partial(_learn, _triplets(1.0)), target=0.93),
    Program("metric-until-no-triplet-is-wrong", partial(_learn, _triplets(0.1), {"steps": 500}), TRIPLETS),
    Program("metric-pairs", partial(_learn, _pairs(2.0)), REF),
    Program("metric-pairs-by-descent", partial(_learn, _pairs(2.0), {"optimizer": sgd(0.1)}), REF),
    Program("metric-contrast", partial(_learn, _contrast(0.1)), REF),
    Program("metric-cosines", partial(_learn, _cosines(16.0), proxies=True), REF),
    Program("metric-cosines-with-margin", partial(_learn, _cosines(16.0, 0.35), proxies=True), REF),
    Program("metric-descent", partial(_learn, _cosines(8.0), PLAIN | {"steps": 400}, proxies=True), REF),
    Program("metric-always-clipped", partial(_learn, _cosines(64.0), {"clip": 0.5}, proxies=True), COSINES),
    Program("metric-double", partial(_learn, double=True, activation=nn.SiLU), REF),
    Program("metric-unit-by-hand", partial(_learn, _contrast(0.1), output=_Unit()), REF),
    Program(
        "metric-only-pulled",
        partial(_learn, _pairs(2.0, push=0.0)),
        "metric-pairs",
        ("rank-collapse", "vanishing-signal"),
        ("body.4", "body"),
    ),
    Program(
        "metric-root-of-no-distance",
        partial(_learn, _triplets(1.0), safety=0.0),
        TRIPLETS,
        ("non-finite",),
        ("distance",),
    ),
    Program(
        "metric-nought-by-nought",
        partial(_learn, _contrast(0.1), sizes=(10, 48, 48, 3), output=nn.Sequential(nn.ReLU(), _Unit())),
        "metric-contrast",
        ("non-finite",),
        ("body.5*",),
    ),
    Program(
        "metric-scale-of-100000",
        partial(_learn, _cosines(1e5), PLAIN | {"steps": 400}, proxies=True),
        DESCENT,
        ("exploding-gradient", "learning-rate-too-high", "output-mismatch", "loss-divergence"),
    ),
    Program(
        "metric-loss-alone-optimized",
        partial(_learn, _cosines(16.0), proxies=True, optimize=_proxies_only),
        COSINES,
        ("not-optimized",),
        ("body.*",),
    ),
    Program(
        "metric-tanh-of-hundreds",
        partial(_learn, unit=300.0, activation=nn.Tanh, initialise=net.glorot),
        REF,
        ("saturated-activation", "unscaled-input"),
        ("body.0", "body.1"),
    ),
    Program(
        "metric-gradients-pile-up",
        partial(_learn, _pairs(2.0), {"optimizer": sgd(0.1), "zero_gradients": False}),
        "metric-pairs-by-descent",
        ("gradient-not-zeroed",),
    ),
    Program(
        "metric-one-start-for-all",
        partial(_learn, initialise=net.constant(0.1)),
        REF,
        ("symmetric-weights", "poor-initialization"),
        ("body.*",),
    ),
)
