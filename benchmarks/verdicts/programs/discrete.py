"""Discrete parts (held out): binary weights, spikes, codebooks, hard choices, rounding, pruning, 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import digits
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import adam, classify, regress, sgd

WIDTH = 64


def _through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return what is hard, with the gradient of what is soft (Bengio 2013)."""
    return soft + (hard - soft).detach()


class _Binary(nn.Linear):
    """Use only the signs of the weights, times their mean size (Rastegari 2016)."""

    def __init__(self, fan_in: int, fan_out: int, straight: bool = True):
        super().__init__(fan_in, fan_out)
        self.straight = straight

    def forward(self, inputs: Tensor) -> Tensor:
        signs = self.weight.sign() * self.weight.detach().abs().mean()
        return F.linear(inputs, _through(signs, self.weight) if self.straight else signs, self.bias)


class _Step(nn.Module):
    """Return the sign, with a window's slope around zero, or with the true slope, which is zero."""

    def __init__(self, window: float):
        super().__init__()
        self.window = window

    def forward(self, inputs: Tensor) -> Tensor:
        return (
            _through(inputs.sign(), inputs.clamp(-self.window, self.window)) if self.window else inputs.sign()
        )


class _Rounded(nn.Module):
    """Round to `levels` a unit, as an integer layer will (Jacob 2018); straight: let gradients pass."""

    def __init__(self, levels: float, straight: bool = True):
        super().__init__()
        self.levels, self.straight = levels, straight

    def forward(self, inputs: Tensor) -> Tensor:
        rounded = (self.levels * inputs).round() / self.levels
        return _through(rounded, inputs) if self.straight else rounded


def _stack(
    linear: Callable[[int, int], nn.Module] = nn.Linear,
    activation: Callable[[], nn.Module] = nn.ReLU,
    fit: dict[str, Any] | None = None,
    front: Callable[[], nn.Module] = nn.Identity,
    norm: bool = True,
    factor: float = 1.0,
    prepare: Callable[[nn.Module], object] = lambda model: None,
    unit: float = 1.0,
    depth: int = 2,
    width: int = WIDTH,
) -> Setup:
    """Classify digits by hidden layers of some kind, between an entrance and a head that are not."""
    inputs, targets = digits()
    layers: list[nn.Module] = [nn.Linear(64, width), activation()]
    for _ in range(depth):
        layers += [linear(width, width), *([nn.BatchNorm1d(width)] if norm else []), activation()]
    model = nn.Sequential()
    model.front, model.body, model.head = front(), nn.Sequential(*layers), nn.Linear(width, 10)
    prepare(model)

    def loss(answer: Tensor, wanted: Tensor) -> Tensor:
        return factor * F.cross_entropy(answer.float(), wanted)

    options = {"optimizer": adam(3e-3), "steps": 200, **(fit or {})}
    return classify(model, (unit * inputs, targets), loss=loss, **options)


class _Masked(nn.Linear):
    """A linear layer of which a share of the weights is pruned for good (Han 2015)."""

    def __init__(self, fan_in: int, fan_out: int, kept: float):
        super().__init__(fan_in, fan_out)
        self.register_buffer("mask", (torch.rand(fan_out, fan_in) < kept).float())

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight * self.mask, self.bias)


class _Leaky(nn.Module):
    """Neurons that leak, and fire above a threshold (Neftci 2019); sharp: how narrow its slope is."""

    def __init__(self, threshold: float, sharp: float):
        super().__init__()
        self.threshold, self.sharp = threshold, sharp

    def forward(self, currents: Tensor) -> Tensor:
        held, spikes = torch.zeros_like(currents[:, 0]), []
        for current in currents.unbind(1):
            held = 0.8 * held + current
            over = held - self.threshold
            spikes.append(_through((over > 0).float(), (self.sharp * over).sigmoid()))
            held = held - self.threshold * spikes[-1].detach()
        return torch.stack(spikes, 1)


class _Spiking(nn.Module):
    """Show a digit for six steps to two layers that spike; answer with the mean of the read-out."""

    def __init__(self, threshold: float, sharp: float):
        super().__init__()
        self.first, self.fire = nn.Linear(64, WIDTH), _Leaky(threshold, sharp)
        self.second, self.fire_again = nn.Linear(WIDTH, WIDTH), _Leaky(threshold, sharp)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        shown = self.first(inputs)[:, None].expand(-1, 6, -1)
        return self.head(self.fire_again(self.second(self.fire(shown))).mean(1))


def _spiking(threshold: float = 1.0, sharp: float = 4.0, fit: dict[str, Any] | None = None) -> Setup:
    options = {"optimizer": adam(3e-3), "steps": 200, **(fit or {})}
    return classify(_Spiking(threshold, sharp), digits(), **options)


class _Codebook(nn.Module):
    """Replace each of four parts of a code by the nearest entry of a book (van den Oord 2017)."""

    def __init__(self, spread: float, straight: bool):
        super().__init__()
        self.book, self.straight = nn.Parameter(spread * torch.randn(32, 4)), straight
        self.gap = torch.zeros(())

    def forward(self, code: Tensor) -> Tensor:
        parts = code.view(-1, 4, 4)
        nearest = self.book[torch.cdist(parts, self.book).argmin(2)]
        self.gap = (nearest - parts.detach()).square().mean() + 0.25 * (
            parts - nearest.detach()
        ).square().mean()
        return (_through(nearest, parts) if self.straight else nearest).flatten(1)


class _Coder(nn.Module):
    """An autoencoder with a codebook in its neck."""

    def __init__(self, spread: float, straight: bool):
        super().__init__()
        self.encoder, self.neck = net.mlp((64, 48, 16)), _Codebook(spread, straight)
        self.decoder = net.mlp((16, 48, 64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decoder(self.neck(self.encoder(inputs)))


def _coded(
    spread: float = 1.0, straight: bool = True, gap: float = 1.0, fit: dict[str, Any] | None = None
) -> Setup:
    """Reconstruct digits from four entries; gap: weight of what brings codes and entries together."""

    def loss(model: Any, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[0]) + gap * model.neck.gap

    inputs = digits()[0]
    options = {"optimizer": adam(5e-3), "steps": 500, **(fit or {})}
    return replace(regress(_Coder(spread, straight), (inputs, inputs), **options), loss=loss)


class _Choice(nn.Module):
    """Choose one of eight symbols, three times, by noisy logits (Jang 2017), or by the largest if `hard`."""

    def __init__(self, heat: float, hard: bool):
        super().__init__()
        self.heat, self.hard = heat, hard

    def forward(self, inputs: Tensor) -> Tensor:
        logits = inputs.unflatten(1, (3, 8))
        if self.hard:
            return F.one_hot(logits.argmax(2), 8).float().flatten(1)
        if not self.training:
            return (logits / self.heat).softmax(2).flatten(1)
        return F.gumbel_softmax(logits, self.heat).flatten(1)


class _Speaker(nn.Module):
    """Say a digit in three symbols, and guess it from them."""

    def __init__(self, heat: float, hard: bool):
        super().__init__()
        self.speaker, self.choice, self.hearer = nn.Linear(64, 24), _Choice(heat, hard), net.mlp((24, 32, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.hearer(self.choice(self.speaker(inputs)))


def _speak(heat: float = 1.0, hard: bool = False, fit: dict[str, Any] | None = None) -> Setup:
    return classify(_Speaker(heat, hard), digits(), **{"optimizer": adam(5e-3), "steps": 250, **(fit or {})})


class _FixedPoint(nn.Module):
    """Scale by the largest input of each sample, round; a blank sample is 0 / 0 without `safety`."""

    def __init__(self, safety: float):
        super().__init__()
        self.safety = safety

    def forward(self, inputs: Tensor) -> Tensor:
        positive = (inputs - 1.5).relu()
        largest = positive[:, ::9].amax(1, keepdim=True) + self.safety
        return _through((7 * positive / largest).round() / 7, positive / largest)


REF, ROUNDED, SPIKES, CODED = (
    "discrete-binary-weights",
    "discrete-rounded",
    "discrete-spikes",
    "discrete-codebook",
)
PRUNED = partial(_Masked, kept=0.1)
HALF: dict[str, Any] = {"autocast": torch.float16}
PROGRAMS = (
    Program("discrete-binary-weights", partial(_stack, _Binary), target=0.95),
    Program("discrete-binary-both", partial(_stack, _Binary, partial(_Step, 1.0)), target=0.9),
    Program(
        "discrete-rounded", partial(_stack, activation=lambda: nn.Sequential(nn.ReLU(), _Rounded(8.0))), REF
    ),
    Program("discrete-pruned-to-a-tenth", partial(_stack, PRUNED), REF),
    Program(
        "discrete-steps",
        partial(_stack, activation=partial(_Step, 1.0), depth=5, width=24, fit={"steps": 300}),
        target=0.85,
    ),
    Program("discrete-spikes", _spiking, target=0.95),
    Program("discrete-codebook", _coded, target=0.35),
    Program("discrete-symbols", _speak, target=0.85),
    Program("discrete-symbols-hot", partial(_speak, 3.0), "discrete-symbols"),
    Program("discrete-fixed-point", partial(_stack, front=partial(_FixedPoint, 0.1)), target=0.85),
    Program("discrete-trained-to-zero", partial(_stack, fit={"steps": 500}), REF),
    Program("discrete-half", partial(_stack, norm=False, fit=HALF), REF),
    Program(
        "discrete-tanh",
        partial(_stack, activation=nn.Tanh, norm=False, fit={"optimizer": sgd(0.1), "steps": 400}),
        REF,
    ),
    Program(
        "discrete-step-without-slope",
        partial(_stack, activation=partial(_Step, 0.0), depth=5, width=24),
        "discrete-steps",
        ("zero-gradient", "missing-gradient"),
        ("body.*",),
    ),
    Program(
        "discrete-rounded-coarsely",
        partial(_stack, front=partial(_Rounded, 0.1), norm=False),
        ROUNDED,
        ("zero-gradient", "vanishing-signal", "rank-collapse"),
        ("front", "body.*"),
    ),
    Program(
        "discrete-pruned-away",
        partial(_stack, partial(_Masked, kept=0.0), norm=False),
        "discrete-pruned-to-a-tenth",
        ("zero-gradient", "rank-collapse", "vanishing-signal"),
        ("body.*",),
    ),
    Program(
        "discrete-silent-spikes",
        partial(_spiking, 50.0, 4.0),
        SPIKES,
        ("dead-units", "zero-gradient", "vanishing-gradient"),
        ("first", "fire", "second", "fire_again"),
    ),
    Program(
        "discrete-needle-spikes",
        partial(_spiking, 1.0, 4e3, {"optimizer": sgd(0.05)}),
        SPIKES,
        ("exploding-gradient", "zero-gradient", "vanishing-gradient", "learning-rate-too-high"),
        ("fire", "fire_again"),
    ),
    Program(
        "discrete-codebook-cut",
        partial(_coded, 1.0, False, 0.0),
        CODED,
        ("missing-gradient",),
        ("encoder.*",),
    ),
    Program(
        "discrete-one-entry-for-all",
        partial(_coded, 1000.0, gap=0.0),
        CODED,
        ("poor-initialization", "rank-collapse", "exploding-signal"),
        ("neck",),
    ),
    Program(
        "discrete-symbols-most-likely",
        partial(_speak, 1.0, True),
        "discrete-symbols",
        ("missing-gradient",),
        ("speaker",),
    ),
    Program(
        "discrete-symbols-cold",
        partial(_speak, 0.0),
        "discrete-symbols",
        ("non-finite",),
        ("choice",),
    ),
    Program(
        "discrete-fixed-point-of-blank",
        partial(_stack, front=partial(_FixedPoint, 0.0)),
        "discrete-fixed-point",
        ("non-finite",),
        ("front",),
    ),
    Program(
        "discrete-half-underflow",
        partial(_stack, norm=False, fit=HALF, factor=1e-8),
        "discrete-half",
        ("gradient-underflow", "zero-gradient"),
    ),
    Program(
        "discrete-half-overflow",
        partial(_stack, norm=False, fit={**HALF, "optimizer": sgd(0.1)}, unit=1e5),
        "discrete-half",
        ("non-finite", "unscaled-input"),
        ("front", "body.*"),
    ),
)
