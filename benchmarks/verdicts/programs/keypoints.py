"""Keypoints (held out): where two marks are in small pictures, by heat maps, soft maxima and coordinates."""

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
Activation = Callable[[], nn.Module]
PICTURES, SIDE, POINTS = 512, 12, 2


@cache
def _marks(unit: float = 1.0, level: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return noisy pictures (512, 1, 12, 12), times `unit` and raised by `level`, and two points (512, 2, 2).

    A bright mark lies at the first point, a dark one at the second; points are (column, row), each as a share
    of the side.
    """
    random = torch.Generator().manual_seed(431)
    points = 0.15 + 0.7 * torch.rand(PICTURES, POINTS, 2, generator=random)
    light = _heat_of(points, 0.1)
    noise = 0.2 * torch.randn(PICTURES, SIDE, SIDE, generator=random)
    pictures = 2 * light[:, 0] - 2 * light[:, 1] + noise
    return unit * pictures[:, None] + level, points


def _grid() -> Tensor:
    """Return the centres of cells as shares of the side, (12,)."""
    return (torch.arange(SIDE) + 0.5) / SIDE


def _heat_of(points: Tensor, width: float = 0.08) -> Tensor:
    """Return maps (N, 2, 12, 12) that are 1 at the points and fall off as Gaussians of a width."""
    apart = (_grid() - points[..., None]).square() / (2 * width**2)
    return (-apart[:, :, 1, :, None] - apart[:, :, 0, None, :]).exp()


class _Body(nn.Module):
    """Plain convolutions that keep the size: (N, 1, 12, 12) to (N, width, 12, 12)."""

    def __init__(
        self,
        depth: int = 3,
        width: int = 12,
        activation: Activation = nn.ReLU,
        norm: Callable[[int], nn.Module] | None = None,
        initialise: net.Initialise | None = net.he,
        size: int = 5,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in in (1, *[width] * (depth - 1)):
            layers += [nn.Conv2d(fan_in, width, size, padding=size // 2)]
            layers += [norm(width)] if norm else []
            layers += [activation()]
        self.layers, self.width = nn.Sequential(*layers), width
        net.initialised(self, initialise)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)


class _Hourglass(nn.Module):
    """Go down to 6, 3 and 1 pixels and up again (Newell 2016).

    skip: what is left on the way down is added on the way up; floor_norm: a norm at the one pixel;
    cut: the way down gets no gradient.
    """

    def __init__(
        self,
        skip: bool = True,
        activation: Activation = nn.ReLU,
        floor_norm: Callable[[], nn.Module] = nn.Identity,
        initialise: net.Initialise = net.he,
        cut: bool = False,
    ):
        super().__init__()
        self.width = 12
        self.enter = nn.Conv2d(1, 12, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 12, 3, 2 if i < 2 else 3, 1), activation()) for i in range(3)
        )
        self.up = nn.ModuleList(nn.Sequential(nn.Conv2d(12, 12, 3, 1, 1), activation()) for _ in range(3))
        self.floor_norm, self.skip, self.cut = floor_norm(), skip, cut
        net.initialised(self, initialise)

    def forward(self, pictures: Tensor) -> Tensor:
        hidden = self.enter(pictures)
        kept = []
        for level in self.down:
            kept.append(hidden)
            hidden = level(hidden)
        hidden = self.floor_norm(hidden)
        hidden = hidden.detach() if self.cut else hidden
        for level, left in zip(self.up, reversed(kept), strict=True):
            hidden = level(F.interpolate(hidden, size=left.shape[-2:], mode="nearest"))
            hidden = hidden + left if self.skip else hidden
        return hidden


class _Maps(nn.Module):
    """A body and one heat map a point, through `output`; level: the bias of the maps."""

    def __init__(
        self,
        body: nn.Module,
        output: Callable[[], nn.Module] = nn.Identity,
        level: float = 0.0,
        zeros: bool = False,
    ):
        super().__init__()
        self.body, self.heat = body, nn.Conv2d(int(body.width), POINTS, 1)
        self.output = output()
        nn.init.constant_(self.heat.bias, level)
        if zeros:
            nn.init.zeros_(self.heat.weight)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.output(self.heat(self.body(pictures)))


class _Expected(nn.Module):
    """The expected place under a map's weights, (N, 2, 12, 12) to (N, 2, 2).

    The weights are a softmax over the cells of `sharpness` times the map, or over `axis`, or the map's
    positive part divided by its sum and `floor` if `by_sum`, or the hottest cell alone if `hard`.
    """

    def __init__(
        self,
        sharpness: float = 1.0,
        axis: int = 2,
        by_sum: bool = False,
        hard: bool = False,
        floor: float = 1e-6,
    ):
        super().__init__()
        self.weigh = nn.Softmax(axis)
        self.sharpness, self.by_sum, self.hard, self.floor = sharpness, by_sum, hard, floor

    def forward(self, maps: Tensor) -> Tensor:
        flat = maps.flatten(2)
        if self.by_sum:
            positive = flat.relu()
            weights = positive / (positive.sum(2, keepdim=True) + self.floor)
        else:
            weights = self.weigh(self.sharpness * flat)
        if self.hard:
            weights = F.one_hot(weights.argmax(2), SIDE * SIDE).to(weights.dtype)
        weights = weights.view(maps.shape)
        return torch.stack([(weights.sum(2) * _grid()).sum(2), (weights.sum(3) * _grid()).sum(2)], 2)


class _Located(nn.Module):
    """Maps, and the place each of them expects, moved by a trained constant."""

    def __init__(self, maps: nn.Module, **reading: Any):
        super().__init__()
        self.maps, self.read = maps, _Expected(**reading)
        self.move = nn.Parameter(torch.zeros(POINTS, 2))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.read(self.maps(pictures)) + self.move


class _Coordinates(nn.Module):
    """Convolutions with strides, then layers that answer with the four numbers through `output`.

    level: what all answers start from, and start as if `still`; frozen: the convolutions; spare: adds a
    head for a second task that no loss asks for.
    """

    def __init__(
        self,
        output: Callable[[], nn.Module] = nn.Identity,
        activation: Activation = nn.ReLU,
        initialise: net.Initialise | None = net.he,
        level: float = 0.0,
        still: bool = False,
        frozen: bool = False,
        spare: bool = False,
    ):
        super().__init__()
        convolutions = [nn.Conv2d(1, 12, 3, 2, 1), activation(), nn.Conv2d(12, 16, 3, 2, 1), activation()]
        self.body = nn.Sequential(*convolutions, nn.Flatten())
        net.initialised(self.body, initialise)
        self.neck = net.mlp((144, 48, 2 * POINTS), activation, initialise)
        self.output, self.spare = output(), nn.Linear(144, 3) if spare else None
        nn.init.constant_(self.neck[-1].bias, level)
        if still:
            nn.init.zeros_(self.neck[-1].weight)
        self.body.requires_grad_(not frozen)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.output(self.neck(self.body(pictures))).view(-1, POINTS, 2)


def _hottest(maps: Tensor) -> Tensor:
    """Return the place about the hottest cell of each map, (N, 2, 2)."""
    place = maps.flatten(2).argmax(2)
    return (torch.stack([place % SIDE, place // SIDE], 2) + 0.5) / SIDE


def _as_maps(loss: Loss) -> Loss:
    """Return a loss of maps that compares with the points' Gaussians."""
    return lambda maps, points: loss(maps, _heat_of(points))


def _adaptive(maps: Tensor, wanted: Tensor) -> Tensor:
    """Return squared errors, ten times as heavy where there is heat."""
    return ((1 + 10 * wanted) * (maps - wanted).square()).mean()


def _divergence(floor: float) -> Loss:
    """Return the divergence of the maps' softmax from the points' distribution; floor: of logarithms."""

    def loss(maps: Tensor, wanted: Tensor) -> Tensor:
        told = wanted.flatten(2).pow(8)  # much narrower than the maps that other losses want
        told = told / told.sum(2, keepdim=True)
        share = maps.flatten(2).softmax(2)
        return (told * ((told + floor) / (share + floor)).log()).sum(2).mean()

    return loss


def _distance(floor: float) -> Loss:
    """Return the mean distance to points labelled on a grid; floor: what is added under the root."""

    def loss(guessed: Tensor, points: Tensor) -> Tensor:
        labelled = (6 * points).round() / 6
        return ((guessed - labelled).square().sum(2) + floor).sqrt().mean()

    return loss


def _in_pixels(guessed: Tensor, points: Tensor) -> Tensor:
    """Compare with the points in a camera's pixels."""
    return F.mse_loss(guessed, 480 * points)


def _find(
    model: Callable[[], nn.Module],
    loss: Loss = F.mse_loss,
    fit: dict[str, Any] | None = None,
    data: Callable[[], tuple[Tensor, Tensor]] = _marks,
    only: str = "",
    read: Callable[[Tensor], Tensor] | None = None,
) -> Setup:
    """Find the points; score: the explained share of their variance; read: turns an answer into points."""
    pictures, points = data()
    built = model()
    options = {"optimizer": adam(5e-3), "steps": 200, "batch_size": 32, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")
    spread = (points - points.mean(0)).square().mean()

    def of_batch(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(batch[0]).float(), batch[1])

    def score(model: nn.Module) -> float:
        answer = model(pictures)
        guessed = read(answer) if read else answer
        error = (guessed - points).square().mean()
        return max(0.0, (1 - error / spread).item()) if answer.isfinite().all() else 0.0

    parameters = trained(built.get_submodule(only))
    return Setup(built, make(parameters), (pictures, points), of_batch, score, 0.0, **options)


def _map(
    loss: Loss = _adaptive,
    fit: dict[str, Any] | None = None,
    body: Callable[[], nn.Module] = _Body,
    data: Callable[[], tuple[Tensor, Tensor]] = _marks,
    only: str = "",
    **network: Any,
) -> Setup:
    """Learn the maps themselves, and read their hottest cells."""
    return _find(lambda: _Maps(body(), **network), _as_maps(loss), fit, data, only, _hottest)


def _expect(
    fit: dict[str, Any] | None = None,
    body: Callable[[], nn.Module] = _Body,
    loss: Loss = F.mse_loss,
    maps: dict[str, Any] | None = None,
    **reading: Any,
) -> Setup:
    """Learn the expected places under the maps."""
    return _find(lambda: _Located(_Maps(body(), **(maps or {})), **reading), loss, fit)


def _tell(
    fit: dict[str, Any] | None = None,
    loss: Loss = F.mse_loss,
    data: Callable[[], tuple[Tensor, Tensor]] = _marks,
    only: str = "",
    **network: Any,
) -> Setup:
    """Learn the coordinates as numbers."""
    return _find(lambda: _Coordinates(**network), loss, fit, data, only)


REF, EXPECTED, MAPS, GLASS = (
    "keypoints-numbers",
    "keypoints-expected",
    "keypoints-maps",
    "keypoints-hourglass",
)
DESCENT, LOGISTIC, DIVERGENCE = "keypoints-descent", "keypoints-maps-logistic", "keypoints-divergence"
BY_SUM = "keypoints-centre-of-mass"
SLOWER = {"optimizer": adam(3e-3), "steps": 350}
PLAIN = {"optimizer": sgd(0.1, momentum=0.9), "steps": 300}
SIGMOIDS = partial(_Body, 5, 8, nn.Sigmoid, nn.BatchNorm2d, net.glorot, 3)
DEEP = partial(_Body, 12, 8, nn.ReLU, None, net.he, 3)
PROGRAMS = (
    Program("keypoints-numbers", _tell, target=0.85),
    Program("keypoints-descent", partial(_tell, PLAIN), REF),
    Program("keypoints-numbers-through-sigmoid", partial(_tell, output=nn.Sigmoid), REF),
    Program("keypoints-head-for-later", partial(_tell, spare=True), REF),
    Program("keypoints-convolutions-frozen", partial(_tell, {"steps": 400}, frozen=True), REF),
    Program("keypoints-expected", _expect, target=0.9),
    Program("keypoints-expected-from-even-maps", partial(_expect, maps={"zeros": True}), EXPECTED),
    Program("keypoints-centre-of-mass", partial(_expect, by_sum=True, maps={"level": 0.5}), EXPECTED),
    Program("keypoints-maps", _map, target=0.9),
    Program(
        "keypoints-maps-logistic",
        partial(_map, F.binary_cross_entropy_with_logits, level=-3.5),
        MAPS,
    ),
    Program("keypoints-divergence", partial(_map, _divergence(1e-6)), MAPS),
    Program("keypoints-hourglass", partial(_map, body=_Hourglass), MAPS),
    Program("keypoints-hourglass-expected", partial(_expect, body=_Hourglass), EXPECTED),
    Program("keypoints-sigmoids-with-norms", partial(_expect, body=SIGMOIDS), EXPECTED),
    Program("keypoints-deep-maps", partial(_expect, {"optimizer": adam(2e-3)}, DEEP), EXPECTED),
    Program(
        "keypoints-distance", partial(_tell, {"batch_size": 64}, _distance(1e-6), level=0.5, still=True), REF
    ),
    Program(
        "keypoints-batches-of-4",
        partial(_tell, {"batch_size": 4, "steps": 1000, "optimizer": adam(2e-3)}),
        REF,
    ),
    Program(
        "keypoints-hourglass-without-skips", partial(_expect, SLOWER, partial(_Hourglass, False)), EXPECTED
    ),
    Program(
        "keypoints-numbers-in-pixels-through-sigmoid",
        partial(_tell, loss=_in_pixels, output=nn.Sigmoid),
        REF,
        ("output-mismatch", "saturated-activation"),
        ("output", "neck*"),
    ),
    Program(
        "keypoints-numbers-below-zero-cut",
        partial(_tell, output=nn.ReLU, level=-3.0),
        REF,
        ("dead-units", "zero-gradient", "poor-initialization"),
        ("output", "neck.2"),
    ),
    Program(
        "keypoints-bytes",
        partial(_tell, PLAIN, data=partial(_marks, 60.0, 128.0)),
        DESCENT,
        ("unscaled-input",),
        ("body.0", "body"),
    ),
    Program(
        "keypoints-hottest-cell",
        partial(_expect, hard=True),
        EXPECTED,
        ("missing-gradient",),
        ("maps*",),
    ),
    Program(
        "keypoints-softmax-over-points",
        partial(_expect, axis=1),
        EXPECTED,
        ("output-mismatch", "exploding-signal"),
        ("read*",),
    ),
    Program(
        "keypoints-expected-too-sharp",
        partial(_expect, sharpness=3000.0),
        EXPECTED,
        ("attention-collapse", "saturated-activation", "zero-gradient", "vanishing-gradient"),
        ("read*",),
    ),
    Program(
        "keypoints-mass-of-no-heat",
        partial(_expect, by_sum=True, floor=0.0, maps={"level": -12.0}),
        BY_SUM,
        ("non-finite",),
        ("read",),
    ),
    Program(
        "keypoints-divergence-of-nothing",
        partial(_map, _divergence(0.0)),
        DIVERGENCE,
        ("non-finite",),
    ),
    Program(
        "keypoints-root-of-no-distance",
        partial(_tell, {"batch_size": 64}, _distance(0.0), level=0.5, still=True),
        "keypoints-distance",
        ("non-finite",),
    ),
    Program(
        "keypoints-hourglass-normed-at-one-pixel",
        partial(_expect, SLOWER, partial(_Hourglass, False, floor_norm=partial(nn.GroupNorm, 12, 12))),
        "keypoints-hourglass-without-skips",
        ("degenerate-normalization", "zero-gradient"),
        ("maps.body.floor_norm",),
    ),
    Program(
        "keypoints-twelve-barely-started",
        partial(
            _expect,
            {"optimizer": adam(2e-3)},
            partial(_Body, 12, 8, nn.ReLU, None, net.normal(0.01), 3),
        ),
        "keypoints-deep-maps",
        ("vanishing-signal", "vanishing-gradient", "poor-initialization"),
        ("maps.body*",),
    ),
    Program(
        "keypoints-hourglass-of-sigmoids",
        partial(
            _map,
            F.binary_cross_entropy_with_logits,
            {"optimizer": sgd(0.5, momentum=0.9)},
            body=partial(_Hourglass, False, nn.Sigmoid, initialise=net.glorot),
        ),
        LOGISTIC,
        ("vanishing-gradient", "vanishing-signal", "poor-initialization", "rank-collapse"),
        ("body*",),
    ),
    Program(
        "keypoints-last-layer-alone-optimized",
        partial(_tell, only="neck.2"),
        REF,
        ("not-optimized",),
        ("body*", "neck.0"),
    ),
    Program(
        "keypoints-hourglass-cut-at-the-floor",
        partial(_expect, SLOWER, partial(_Hourglass, False, cut=True)),
        "keypoints-hourglass-without-skips",
        ("missing-gradient",),
        ("maps.body.down*", "maps.body.enter"),
    ),
    Program(
        "keypoints-rate-of-1",
        partial(_expect, {"optimizer": adam(1.0)}),
        EXPECTED,
        ("learning-rate-too-high",),
    ),
    Program(
        "keypoints-rate-of-1e-6",
        partial(_map, fit={"optimizer": adam(1e-6)}),
        MAPS,
        ("learning-rate-too-low",),
    ),
    Program(
        "keypoints-gradients-pile-up",
        partial(_tell, PLAIN | {"zero_gradients": False}),
        DESCENT,
        ("gradient-not-zeroed",),
    ),
    Program(
        "keypoints-zeros",
        partial(_tell, initialise=net.constant(0.0)),
        REF,
        ("symmetric-weights", "zero-gradient", "poor-initialization"),
        ("body*", "neck*"),
    ),
    Program(
        "keypoints-clipped-to-nothing",
        partial(_tell, PLAIN | {"clip": 1e-4}),
        DESCENT,
        ("over-clipping",),
    ),
    Program(
        "keypoints-decay",
        partial(_tell, {"optimizer": adamw(5e-3, weight_decay=50.0)}),
        REF,
        ("excessive-weight-decay",),
    ),
)
