"""Densities (tuning): normalising flows, mixtures, autoregression, contrast; many losses are negative."""

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
from benchmarks.verdicts.data import Pair, digits, moons
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import adam, regress, sgd

Loss = Callable[[nn.Module, Batch], Tensor]


def _estimate(
    model: nn.Module, data: Pair, loss: Loss, constant: float, fit: dict[str, Any] | None = None
) -> Setup:
    """Minimise a loss, score minus the loss on the data; constant: the loss of the best constant answer."""

    def score(model: nn.Module) -> float:
        value = -loss(model, data).item()
        return value if math.isfinite(value) else -constant

    options = {"optimizer": adam(5e-3), "steps": 250, "batch_size": 128, **(fit or {})}
    return replace(regress(model, data, **options), loss=loss, score=score, chance=-constant)


def _gaussian_cost(points: Tensor) -> float:
    """Return the nats a point that the Gaussian fitted to points (count, features) takes."""
    features = points.shape[1]
    log_volume = torch.logdet(torch.cov(points.T).reshape(features, features)).item()
    return 0.5 * (features * (math.log(2 * math.pi) + 1) + log_volume)


@cache
def _crescents() -> Tensor:
    """Return the half moons, (1000, 2), of deviation 0.5."""
    points, _ = moons()
    return 0.5 * (points - points.mean(0)) / points.std(0)


class _Coupling(nn.Module):
    """Scale and shift one coordinate by what the other says (Dinh 2017); bounded scales unless `wild`."""

    def __init__(self, first: int, wild: bool, cut: bool, initialise: net.Initialise):
        super().__init__()
        self.scale, self.shift = (net.mlp((1, 32, 32, 1), nn.SiLU, initialise) for _ in range(2))
        self.first, self.wild, self.cut = first, wild, cut

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = points[:, self.first, None], points[:, 1 - self.first, None]
        rate = self.scale(kept)
        rate = rate.detach() if self.cut else rate
        rate = rate if self.wild else 2 * torch.tanh(rate)
        changed = changed * rate.exp() + self.shift(kept)
        pair = (kept, changed) if self.first == 0 else (changed, kept)
        return torch.cat(pair, 1), rate[:, 0]


class _Flow(nn.Module):
    """Return the log likelihood of points through four couplings, which start at the identity if `closed`.

    listed: the couplings stand in a plain list, where no optimizer finds them, behind a trained affine step.
    """

    def __init__(
        self,
        wild: bool = False,
        cut: bool = False,
        closed: bool = False,
        listed: bool = False,
        initialise: net.Initialise = net.lecun,
    ):
        super().__init__()
        couplings = [_Coupling(i % 2, wild, cut, initialise) for i in range(4)]
        self.couplings = couplings if listed else nn.ModuleList(couplings)
        self.rates, self.shifts = (nn.Parameter(torch.zeros(2), requires_grad=listed) for _ in range(2))
        for coupling in couplings if closed else []:
            for part in (coupling.scale, coupling.shift):
                nn.init.zeros_(part[-1].weight)

    def forward(self, points: Tensor) -> Tensor:
        points = points * self.rates.exp() + self.shifts
        volume = self.rates.sum()
        for coupling in self.couplings:
            points, change = coupling(points)
            volume = volume + change
        return volume - 0.5 * points.square().sum(1) - math.log(2 * math.pi)


def _flow(fit: dict[str, Any] | None = None, **network: Any) -> Setup:
    points = _crescents()
    return _estimate(
        _Flow(**network),
        (points, points),
        lambda model, batch: -model(batch[0]).mean(),
        _gaussian_cost(points),
        {"optimizer": adam(1e-2), "steps": 400, **(fit or {})},
    )


@cache
def _inverse(spread: float = 1.0) -> Pair:
    """Return standardised places (1000, 1) and one of the heights (1000, 1) that lead there (Bishop 1994)."""
    random = torch.Generator().manual_seed(41)
    heights = torch.rand(1000, 1, generator=random)
    places = heights + 0.3 * (2 * math.pi * heights).sin() + 0.05 * torch.randn(1000, 1, generator=random)
    return (places - places.mean()) / places.std(), spread * (heights - heights.mean()) / heights.std()


class _LogSum(nn.Module):
    """Add up likelihoods given and returned as logarithms; `by_hand` leaves the logarithms in between."""

    def __init__(self, by_hand: bool):
        super().__init__()
        self.by_hand = by_hand

    def forward(self, parts: Tensor) -> Tensor:
        return parts.exp().sum(1).log() if self.by_hand else parts.logsumexp(1)


class _Mixture(nn.Module):
    """Return the log likelihood of a target under a mixture of five Gaussians that depends on the input."""

    def __init__(self, by_hand: bool = False, equal: bool = False):
        super().__init__()
        self.body = net.mlp((1, 32, 32), nn.Tanh, net.glorot, output=nn.Tanh())
        self.head, self.likelihood = nn.Linear(32, 15), _LogSum(by_hand)
        if equal:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        shares, centres, widths = self.head(self.body(inputs)).chunk(3, 1)
        distance = (targets - 2 * centres) / widths.exp()
        parts = shares.log_softmax(1) - widths - 0.5 * distance.square()
        return self.likelihood(parts) - 0.5 * math.log(2 * math.pi)


def _mixture(fit: dict[str, Any] | None = None, spread: float = 1.0, **network: Any) -> Setup:
    data = _inverse(spread)
    options = {"optimizer": adam(1e-2), "steps": 400, **(fit or {})}
    return _estimate(
        _Mixture(**network),
        data,
        lambda model, batch: -model(*batch).mean(),
        _gaussian_cost(data[1]),
        options,
    )


@cache
def _fan() -> Pair:
    """Return inputs (1000, 1) and targets (1000, 1) whose small noise grows along the input."""
    random = torch.Generator().manual_seed(42)
    inputs = 2 * torch.rand(1000, 1, generator=random) - 1
    noise = (0.02 + 0.08 * (inputs + 1)) * torch.randn(1000, 1, generator=random)
    return inputs, (3 * inputs).sin() + noise


def _spread() -> Setup:
    """Predict a mean and a logarithm of the variance; the loss ends far below zero."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        mean, log_variance = model(batch[0]).chunk(2, 1)
        squared = (batch[1] - mean).square()
        return 0.5 * (math.log(2 * math.pi) + log_variance + squared / log_variance.exp()).mean()

    return _estimate(net.mlp((1, 32, 32, 2), nn.Tanh, net.glorot), _fan(), loss, _gaussian_cost(_fan()[1]))


class _Masked(nn.Linear):
    """A linear layer of which only the connections from earlier pixels count (Germain 2015)."""

    def __init__(self, before: Tensor, after: Tensor, strict: bool):
        super().__init__(len(before), len(after))
        allowed = after[:, None] > before if strict else after[:, None] >= before
        self.register_buffer("allowed", allowed.float())

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight * self.allowed, self.bias)


def _pixels(fit: dict[str, Any] | None = None, gain: float = 1.0) -> Setup:
    """Predict each black or white pixel of a digit from those before it; score: minus nats a pixel."""
    bits = (digits()[0] > 0).float()
    pixels, hidden = torch.arange(64), torch.arange(96) % 63
    layers = [_Masked(pixels, hidden, False), nn.Tanh(), _Masked(hidden, hidden, False), nn.Tanh()]
    model = nn.Sequential(*layers, _Masked(hidden, pixels, True))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(gain)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    share = bits.mean(0).clamp(1e-6, 1 - 1e-6)
    constant = F.binary_cross_entropy(share.expand_as(bits), bits).item()
    return _estimate(model, (bits, bits), loss, constant, {"optimizer": adam(1e-2), **(fit or {})})


def _energy() -> Setup:
    """Tell points from Gaussian noise of their spread (Gutmann 2010); most of the loss can't be removed."""
    points = _crescents()
    model = net.mlp((2, 48, 48, 1), nn.ReLU, net.he)
    fixed = 0.5 * torch.randn(points.shape, generator=torch.Generator().manual_seed(43))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        noise = 0.5 * torch.randn_like(batch[0]) if model.training else fixed
        return F.softplus(-model(batch[0])).mean() + F.softplus(model(noise)).mean()

    return _estimate(model, (points, points), loss, 2 * math.log(2), {"steps": 500})


REF, MIXTURE, PIXELS = "density-couplings", "density-mixture", "density-pixels"
PROGRAMS = (
    Program("density-couplings", _flow, target=-1.0),
    Program("density-couplings-from-identity", partial(_flow, closed=True), target=-1.0),
    Program("density-mixture", _mixture, target=-0.5),
    Program(
        "density-mixture-clipped",
        partial(_mixture, {"optimizer": adam(1e-2), "clip": 0.2, "steps": 500}),
        MIXTURE,
    ),
    Program("density-spread", _spread, target=0.9),
    Program("density-pixels", _pixels, target=-0.3),
    Program("density-pixels-autocast", partial(_pixels, {"autocast": torch.bfloat16}), PIXELS),
    Program("density-energy", _energy, target=-1.1),
    Program(
        "density-couplings-in-a-list",
        partial(_flow, listed=True),
        REF,
        ("not-optimized",),
    ),
    Program(
        "density-couplings-wild",
        partial(_flow, wild=True, initialise=net.normal(2.0)),
        REF,
        ("exploding-signal", "exploding-gradient", "non-finite", "poor-initialization"),
        ("couplings.*",),
    ),
    Program(
        "density-couplings-scale-detached",
        partial(_flow, cut=True),
        REF,
        ("missing-gradient",),
        ("couplings.*.scale.*",),
    ),
    Program(
        "density-couplings-lr-1", partial(_flow, {"optimizer": adam(1.0)}), REF, ("learning-rate-too-high",)
    ),
    Program(
        "density-mixture-by-hand",
        partial(_mixture, spread=100.0, by_hand=True),
        MIXTURE,
        ("non-finite", "unscaled-input"),
        ("likelihood",),
    ),
    Program(
        "density-mixture-equal",
        partial(_mixture, equal=True),
        MIXTURE,
        ("symmetric-weights", "poor-initialization"),
        ("head",),
    ),
    Program(
        "density-pixels-saturated",
        partial(_pixels, {"optimizer": sgd(0.05)}, 60.0),
        PIXELS,
        ("saturated-activation", "exploding-gradient", "poor-initialization"),
        ("0", "1", "2", "3"),
    ),
)
