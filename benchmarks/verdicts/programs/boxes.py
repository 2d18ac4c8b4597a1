"""Detection (held out): where a bright box is in a small picture, by numbers, overlap, heat and anchors."""

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

Loss = Callable[[Tensor, Tensor], Tensor]
SIDE, CELLS = 16, 8


@cache
def _pictures(unit: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return noisy pictures (768, 1, 16, 16), times `unit`, and the box in each: centre and size (768, 4).

    Numbers of a box are shares of the picture's side.
    """
    random = torch.Generator().manual_seed(341)
    size = 0.25 + 0.35 * torch.rand(768, 2, generator=random)
    centre = size / 2 + (1 - size) * torch.rand(768, 2, generator=random)
    place = (torch.arange(SIDE) + 0.5) / SIDE
    inside = ((place[None, None] - centre[:, :, None]).abs() <= size[:, :, None] / 2).float()
    light = inside[:, 1, :, None] * inside[:, 0, None, :]
    noisy = 1.5 * light - 0.25 + 0.3 * torch.randn(768, SIDE, SIDE, generator=random)
    return unit * noisy[:, None], torch.cat([centre, size], 1)


def _overlap(guessed: Tensor, wanted: Tensor, around: bool = False) -> Tensor:
    """Return the intersection over union of boxes (N, 4), or Rezatofighi's (2019) if `around`."""
    low = [box[:, :2] - box[:, 2:] / 2 for box in (guessed, wanted)]
    high = [box[:, :2] + box[:, 2:] / 2 for box in (guessed, wanted)]
    shared = (torch.minimum(*high) - torch.maximum(*low)).relu().prod(1)
    union = guessed[:, 2:].relu().prod(1) + wanted[:, 2:].prod(1) - shared
    share = shared / (union + 1e-6)
    hull = (torch.maximum(*high) - torch.minimum(*low)).prod(1)
    return share - (hull - union) / (hull + 1e-6) if around else share


def _by_overlap(around: bool, log: bool = False) -> Loss:
    """Return one minus the overlap (Rezatofighi 2019 if `around`), or minus its logarithm (Yu 2016)."""

    def loss(guessed: Tensor, wanted: Tensor) -> Tensor:
        share = _overlap(guessed, wanted, around)
        return -share.log().mean() if log else (1 - share).mean()

    return loss


def _rooted(floor: float | None) -> Loss:
    """Compare the roots of sizes, so that small boxes matter (Redmon 2016); floor: of what is rooted."""

    def loss(guessed: Tensor, wanted: Tensor) -> Tensor:
        size = guessed[:, 2:] if floor is None else guessed[:, 2:].clamp(min=floor)
        return F.mse_loss(guessed[:, :2], wanted[:, :2]) + F.mse_loss(size.sqrt(), wanted[:, 2:].sqrt())

    return loss


def _in_pixels(guessed: Tensor, wanted: Tensor) -> Tensor:
    """Compare with the box in a camera's pixels."""
    return F.mse_loss(guessed, 640 * wanted)


class _Finder(nn.Module):
    """Convolutions with strides, and a head that answers with a box through `output`."""

    def __init__(
        self,
        output: nn.Module | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        norm: Callable[[int], nn.Module] = lambda width: nn.Identity(),
        initialise: net.Initialise | None = net.he,
        extra: int = 0,
        shift: float = 0.0,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in ((1, 12), (12, 24)):
            layers += [nn.Conv2d(fan_in, fan_out, 3, 2, 1), norm(fan_out), activation()]
        for _ in range(extra):
            layers += [nn.Conv2d(24, 24, 3, 1, 1), norm(24), activation()]
        self.body, self.neck = nn.Sequential(*layers), nn.Sequential(nn.Linear(384, 48), activation())
        self.head, self.output = nn.Linear(48, 4), output or nn.Identity()
        net.initialised(self, initialise)
        net.scaled(net.lecun, 0.3)(self.head.weight)
        nn.init.constant_(self.head.bias, shift)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.output(self.head(self.neck(self.body(pictures).flatten(1))))


class _SizesBelowOne(nn.Module):
    """Answer with centres as they are and sizes as exponentials (Ren 2015), times `scale` inside."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, raw: Tensor) -> Tensor:
        return torch.cat([raw[:, :2], (self.scale * raw[:, 2:] - 1).exp()], 1)


class _Heat(nn.Module):
    """A heat map of 8 x 8 cells, the expected place under its softmax, and a box about it.

    sharpness: multiplies the heat; axis: that the softmax is over; hard: takes the hottest cell alone.
    """

    def __init__(self, sharpness: float = 1.0, axis: int = 2, hard: bool = False):
        super().__init__()
        layers = [nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 5, 1, 2), nn.ReLU()]
        self.body, self.heat = nn.Sequential(*layers), nn.Conv2d(12, 1, 3, 1, 1)
        self.weigh, self.size = nn.Softmax(axis), nn.Linear(12, 2)
        self.sharpness, self.hard = sharpness, hard
        net.initialised(self, net.he)

    def forward(self, pictures: Tensor) -> Tensor:
        hidden = self.body(pictures)
        weight = self.weigh(self.sharpness * self.heat(hidden).flatten(2))
        if self.hard:
            weight = F.one_hot(weight.argmax(2), CELLS * CELLS).to(weight.dtype)
        axis = (torch.arange(CELLS) + 0.5) / CELLS
        rows, columns = torch.meshgrid(axis, axis, indexing="ij")
        places = torch.stack([columns.flatten(), rows.flatten()], 1)
        return torch.cat([(weight @ places)[:, 0], self.size(hidden.mean((2, 3)))], 1)


def _find(
    loss: Loss = F.l1_loss,
    fit: dict[str, Any] | None = None,
    unit: float = 1.0,
    model: Callable[..., nn.Module] = _Finder,
    **network: Any,
) -> Setup:
    """Find the boxes; score: their mean overlap, chance: that of the mean box."""
    pictures, wanted = _pictures(unit)
    built = model(**network)
    options = {"optimizer": adam(2e-3), "steps": 250, "batch_size": 48, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")
    chance = _overlap(wanted.mean(0, keepdim=True).expand_as(wanted), wanted).mean().item()

    def of_batch(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(batch[0]), batch[1])

    def score(model: nn.Module) -> float:
        guessed = model(pictures)
        return _overlap(guessed, wanted).mean().item() if guessed.isfinite().all() else chance

    return Setup(built, make(trained(built)), (pictures, wanted), of_batch, score, chance, **options)


@cache
def _cells() -> tuple[Tensor, Tensor]:
    """Return pictures and the one cell of 64 that the box's centre lies in, as (768, 64)."""
    pictures, boxes = _pictures()
    column, row = (boxes[:, :2] * CELLS).long().clamp(max=CELLS - 1).unbind(1)
    return pictures, F.one_hot(row * CELLS + column, CELLS * CELLS).float()


def _focal(answers: Tensor, wanted: Tensor) -> Tensor:
    """Weigh what is hard (Lin 2017), summed over cells."""
    cost = F.binary_cross_entropy_with_logits(answers, wanted, reduction="none")
    return ((1 - (-cost).exp()).square() * cost).sum(1).mean()


class _Anchors(nn.Module):
    """Say of each cell whether a box is centred there; prior: the share that is said at first."""

    def __init__(self, prior: float = 0.01, frozen: bool = False):
        super().__init__()
        layers = [nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 5, 1, 2), nn.ReLU()]
        self.body, self.head = (
            nn.Sequential(*layers, nn.Conv2d(16, 16, 5, 1, 2), nn.ReLU()),
            nn.Conv2d(16, 1, 1),
        )
        net.initialised(self, net.he)
        nn.init.normal_(self.head.weight, 0, 0.01)
        nn.init.constant_(self.head.bias, -torch.tensor(1 / prior - 1).log().item())
        if frozen:
            self.body.requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.body(pictures)).flatten(1)


def _say(loss: Loss, fit: dict[str, Any] | None = None, **network: Any) -> Setup:
    """Find the cell of the centre; score: the share of pictures whose hottest cell it is."""
    pictures, wanted = _cells()
    model = _Anchors(**network)
    options = {"optimizer": adam(3e-3), "steps": 250, "batch_size": 48, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")

    def of_batch(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(batch[0]), batch[1])

    def score(model: nn.Module) -> float:
        answer = model(pictures)
        right = (answer.argmax(1) == wanted.argmax(1)).float().mean().item()
        return right if answer.isfinite().all() else 0.0

    chance = wanted.mean(0).max().item()
    return Setup(model, make(trained(model)), (pictures, wanted), of_batch, score, chance, **options)


def _softly(answers: Tensor, wanted: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(answers, wanted)


REF, HEAT, ANCHORS, DESCENT = "boxes-regressed", "boxes-heat", "boxes-anchors", "boxes-descent"
PLAIN = {"optimizer": sgd(0.1, momentum=0.9), "steps": 350}
EXPONENTIAL = "boxes-exponential-sizes"
PROGRAMS = (
    Program("boxes-regressed", _find, target=0.6),
    Program("boxes-by-generalised-overlap", partial(_find, _by_overlap(True), shift=0.5), REF),
    Program("boxes-batchnorm-deep", partial(_find, norm=nn.BatchNorm2d, extra=4), REF),
    Program("boxes-descent", partial(_find, F.mse_loss, PLAIN), target=0.65),
    Program("boxes-rooted-sizes", partial(_find, _rooted(1e-2), shift=0.4), REF),
    Program("boxes-exponential-sizes", partial(_find, output=_SizesBelowOne()), REF),
    Program("boxes-heat", partial(_find, model=_Heat), target=0.4),
    Program("boxes-anchors", partial(_say, _focal), target=0.6),
    Program("boxes-anchors-nearly-all-empty", partial(_say, _softly, {"steps": 400}, prior=0.001), ANCHORS),
    Program(
        "boxes-warmed-up", partial(_find, fit={"schedule": lambda step: min(1.0, (step + 1) / 100)}), REF
    ),
    Program(
        "boxes-anchors-adamw", partial(_say, _focal, {"optimizer": adamw(3e-3, weight_decay=0.3)}), ANCHORS
    ),
    Program(
        "boxes-never-overlapping",
        partial(_find, _by_overlap(False), shift=-1.0),
        "boxes-by-generalised-overlap",
        ("zero-gradient", "poor-initialization"),
    ),
    Program(
        "boxes-logarithm-of-no-overlap",
        partial(_find, _by_overlap(False, log=True), shift=-0.1),
        "boxes-by-generalised-overlap",
        ("non-finite",),
    ),
    Program(
        "boxes-root-of-negative-size",
        partial(_find, _rooted(None)),
        "boxes-rooted-sizes",
        ("non-finite",),
    ),
    Program(
        "boxes-camera-pixels-through-sigmoid",
        partial(_find, _in_pixels, output=nn.Sigmoid()),
        REF,
        ("output-mismatch", "saturated-activation"),
        ("output", "head"),
    ),
    Program(
        "boxes-exponential-of-much",
        partial(_find, F.mse_loss, PLAIN, output=_SizesBelowOne(50.0)),
        EXPONENTIAL,
        ("exploding-gradient", "exploding-signal", "non-finite", "loss-divergence"),
        ("output", "head"),
    ),
    Program(
        "boxes-bytes",
        partial(_find, F.mse_loss, PLAIN, unit=255.0),
        DESCENT,
        ("unscaled-input",),
        ("body.0", "body.2", "body"),
    ),
    Program(
        "boxes-heat-over-the-only-channel",
        partial(_find, model=_Heat, axis=1),
        HEAT,
        ("zero-gradient",),
        ("weigh", "heat"),
    ),
    Program(
        "boxes-hottest-cell",
        partial(_find, model=_Heat, hard=True),
        HEAT,
        ("missing-gradient",),
        ("heat", "weigh"),
    ),
    Program(
        "boxes-anchors-body-frozen",
        partial(_say, _focal, frozen=True),
        ANCHORS,
        ("not-optimized", "missing-gradient"),
        ("body.*",),
    ),
    Program(
        "boxes-ten-tanh-barely-started",
        partial(_find, activation=nn.Tanh, extra=8, initialise=net.normal(0.01)),
        REF,
        ("vanishing-signal", "vanishing-gradient", "poor-initialization"),
        ("body.*", "neck.*"),
    ),
)
