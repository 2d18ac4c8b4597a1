"""Denoising (held out): dilated convolutions on signals, noise of a known level, shades of digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import digits
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import MakeOptimizer, adam, adamw, regress, sgd, trained

Loss = Callable[[Tensor, Tensor], Tensor]
Activation = Callable[[], nn.Module]
SIGNALS, LENGTH, WIDTH, NOISE = 768, 32, 12, 0.6


@cache
def _tones(seed: int = 441) -> tuple[Tensor, Tensor, Tensor]:
    """Return clean signals (768, 1, 32) of two tones each, and two independent noisy copies."""
    random = torch.Generator().manual_seed(seed)
    rate = 0.1 + 0.5 * torch.rand(SIGNALS, 2, 1, generator=random)
    phase = 2 * math.pi * torch.rand(SIGNALS, 2, 1, generator=random)
    clean = (rate * torch.arange(LENGTH) + phase).sin().sum(1, keepdim=True)
    noise = NOISE * torch.randn(2, SIGNALS, 1, LENGTH, generator=random)
    return clean, clean + noise[0], clean + noise[1]


def _recorded(unit: float = 1.0, twice: bool = False) -> tuple[Tensor, Tensor]:
    """Return noisy signals and what is to be predicted, both in a unit; twice: another noisy copy of them."""
    clean, noisy, again = _tones()
    return unit * noisy, unit * (again if twice else clean)


@cache
def _diffused(unit: float = 1.0, from_nothing: bool = False) -> tuple[Tensor, Tensor]:
    """Return signals and their level of noise (768, 33), and the noise of deviation 1 that was mixed in.

    Levels are angles between signal and noise, as shares of a right angle from 0.05 to 0.95 times `unit`; a
    few of them are 0 if `from_nothing`.
    """
    random = torch.Generator().manual_seed(442)
    level = 0.05 + 0.9 * torch.rand(SIGNALS, 1, generator=random)
    if from_nothing:
        level[::16] = 0.0
    noise = torch.randn(SIGNALS, LENGTH, generator=random)
    angle = level * math.pi / 2
    mixed = angle.cos() * _tones()[0][:, 0] + angle.sin() * noise
    return torch.cat([mixed, unit * level], 1), noise


class _Dilated(nn.Sequential):
    """A convolution over three places a dilation apart, perhaps a norm, and an activation."""

    def __init__(
        self,
        dilation: int,
        activation: Activation = nn.ReLU,
        norm: Callable[[int], nn.Module] | None = None,
    ):
        middle = [norm(WIDTH)] if norm else []
        turn = nn.Conv1d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation)
        super().__init__(turn, *middle, activation())


class _Gated(nn.Module):
    """A level of WaveNet: tanh times sigmoid, then one convolution back (van den Oord 2016)."""

    def __init__(self, dilation: int):
        super().__init__()
        self.both = nn.Conv1d(WIDTH, 2 * WIDTH, 3, padding=dilation, dilation=dilation)
        self.back = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        value, gate = self.both(hidden).chunk(2, 1)
        return self.back(value.tanh() * gate.sigmoid())


def _level(
    place: int, kind: Callable[[int], nn.Module] = _Dilated, skip: bool = False, scale: float = 1.0
) -> nn.Module:
    """Return one level of a stack, of dilation 1, 2 or 4."""
    inner = kind(2 ** (place % 3))
    return net.Residual(inner, scale) if skip else inner


class _Denoiser(nn.Module):
    """Dilated levels between an entrance and an end of one channel.

    residual: the end tells the noise, which is taken from the input; unit: that inputs and outputs are
    measured in; still: the end starts at zero; muffled: bias of the levels; by_gain: the noise is taken off
    by a trained share, without a gradient to the levels.
    """

    def __init__(
        self,
        levels: list[nn.Module],
        residual: bool = True,
        initialise: net.Initialise | None = None,
        front: Callable[[], nn.Module] = nn.Identity,
        output: Callable[[], nn.Module] = nn.Identity,
        unit: float = 1.0,
        still: bool = False,
        muffled: float = 0.0,
        by_gain: bool = False,
    ):
        super().__init__()
        self.front, self.enter = front(), nn.Conv1d(1, WIDTH, 5, padding=2)
        self.levels, self.end = nn.Sequential(*levels), nn.Conv1d(WIDTH, 1, 3, padding=1)
        self.output, self.residual, self.unit = output(), residual, unit
        self.share = nn.Parameter(torch.tensor(0.1)) if by_gain else None
        net.initialised(self.levels, initialise)
        for module in self.levels.modules() if muffled else ():
            if isinstance(module, nn.Conv1d) and module.bias is not None:
                nn.init.constant_(module.bias, muffled)
        if still:
            nn.init.zeros_(self.end.weight)

    def forward(self, noisy: Tensor) -> Tensor:
        told = self.output(self.end(self.levels(self.enter(self.front(noisy / self.unit))))) * self.unit
        if self.share is not None:
            told = self.share * told.detach()
        return noisy - told if self.residual else told


def _each_value_normed() -> nn.Module:
    """Return a norm over the one channel at each time, where a norm over time was meant."""
    return nn.Sequential(nn.Unflatten(2, (LENGTH, 1)), nn.LayerNorm(1), nn.Flatten(2))


class _Twice(nn.Module):
    """A denoiser that is shown its own first estimate, through which no gradient goes (Chen 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(2, WIDTH, 5, padding=2)
        self.levels = nn.Sequential(*[_level(place) for place in range(3)])
        self.end = nn.Conv1d(WIDTH, 1, 3, padding=1)

    def _once(self, noisy: Tensor, estimate: Tensor) -> Tensor:
        return noisy - self.end(self.levels(self.enter(torch.cat([noisy, estimate], 1))))

    def forward(self, noisy: Tensor) -> Tensor:
        with torch.no_grad():
            first = self._once(noisy, torch.zeros_like(noisy))
        return self._once(noisy, first)


class _Told(nn.Module):
    """Tell the noise in a signal whose level is given, by layers that the level scales and shifts.

    by_log: the level is read as its logarithm, of `floor` more; waves: it is read through sines; by_signal:
    the noise is what is left of an estimate of the signal, divided by the sine of the level and `floor` more.
    """

    def __init__(
        self,
        by_log: bool = False,
        floor: float = 1e-3,
        waves: bool = True,
        by_signal: bool = False,
        activation: Activation = nn.Tanh,
    ):
        super().__init__()
        self.by_log, self.floor, self.waves = by_log, floor, waves
        self.read = net.Apply(self._read)
        self.embed = nn.Sequential(nn.Linear(8 if waves else 1, 32), activation(), nn.Linear(32, 128))
        self.enter, self.change = nn.Linear(LENGTH, 64), nn.Sequential(nn.SiLU(), nn.Linear(64, 64))
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(64, LENGTH))
        self.by_signal, self.undo = by_signal, net.Apply(self._undo)

    def _read(self, level: Tensor) -> Tensor:
        level = (level + self.floor).log() if self.by_log else level
        return torch.cat([(2**k * level).sin() for k in range(8)], 1) if self.waves else level

    def _undo(self, parts: Tensor) -> Tensor:
        mixed, told, level = parts[:, :LENGTH], parts[:, LENGTH:-1], parts[:, -1:]
        angle = level * math.pi / 2
        return (mixed - angle.cos() * told) / (angle.sin() + self.floor)

    def forward(self, inputs: Tensor) -> Tensor:
        mixed, level = inputs[:, :-1], inputs[:, -1:]
        scale, shift = self.embed(self.read(level)).chunk(2, 1)
        hidden = self.change(self.enter(mixed)) * (1 + scale) + shift
        told = self.last(hidden)
        return self.undo(torch.cat([mixed, told, level], 1)) if self.by_signal else told


def _absolute(guessed: Tensor, wanted: Tensor) -> Tensor:
    return F.l1_loss(guessed, wanted)


def _weighed(weight: float) -> Loss:
    """Return the squared error times a weight, as one of many losses is weighed."""
    return lambda guessed, wanted: weight * F.mse_loss(guessed, wanted)


def _decibels(floor: float) -> Loss:
    """Return minus the ratio of signal to error in decibels; floor: of the error's power."""

    def loss(guessed: Tensor, wanted: Tensor) -> Tensor:
        error = (guessed - wanted).square().mean((1, 2)) + floor
        return -10 * (wanted.square().mean((1, 2)) / error).log10().mean()

    return loss


def _restore(
    level: Callable[[int], nn.Module] = _level,
    count: int = 3,
    fit: dict[str, Any] | None = None,
    loss: Loss = F.mse_loss,
    data: Callable[[], tuple[Tensor, Tensor]] = _recorded,
    model: Callable[[], nn.Module] | None = None,
    only: str = "",
    **network: Any,
) -> Setup:
    """Free signals of noise; score: the share of the noise's power that is gone; chance: it is all there."""
    noisy, wanted = data()
    built = model() if model else _Denoiser([level(place) for place in range(count)], **network)
    options = {"optimizer": adam(5e-3), "steps": 200, "batch_size": 32, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")
    clean, original, _ = _tones()
    unit = (noisy.std() / original.std()).item()
    power = (original - clean).square().mean()

    def of_batch(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(batch[0]).float(), batch[1])

    def score(model: nn.Module) -> float:
        answer = model(noisy)
        left = (answer / unit - clean).square().mean() / power
        return max(0.0, (1 - left).item()) if answer.isfinite().all() else 0.0

    parameters = trained(built.get_submodule(only))
    return Setup(built, make(parameters), (noisy, wanted), of_batch, score, 0.0, **options)


def _tell(
    fit: dict[str, Any] | None = None,
    data: Callable[[], tuple[Tensor, Tensor]] = _diffused,
    **network: Any,
) -> Setup:
    """Tell the noise of signals at all levels."""
    options = {"optimizer": adam(3e-3), "steps": 500, **(fit or {})}
    return regress(_Told(**network), data(), **options)


def _draw(
    top: float = 1.0,
    only: str = "",
    initialise: net.Initialise = net.he,
) -> Setup:
    """Free digits of noise by a narrow network that answers with shades from 0 to `top`.

    only: the one layer that is optimized.
    """
    inputs, _ = digits()
    shades = (inputs - inputs.min()) / (inputs.max() - inputs.min())
    noisy = inputs + 0.7 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(443))
    model = net.mlp((64, 64, 24, 64, 64), initialise=initialise, output=nn.Sigmoid())
    parameters = model.get_submodule(only).parameters()
    return regress(model, (noisy, top * shades), adam(3e-3), parameters=parameters, steps=300)


REF, DESCENT, DIRECT, LEVELS = (
    "denoising-residual",
    "denoising-descent",
    "denoising-direct",
    "denoising-levels",
)
DEEP, GATED, SHADES = "denoising-twelve-normed", "denoising-gated", "denoising-shades"
PLAIN = {"optimizer": sgd(0.05, momentum=0.9), "steps": 300}
LEVEL = partial(_level, kind=partial(_Dilated, norm=nn.BatchNorm1d))
WAVENET = partial(_level, kind=_Gated, skip=True)
SIGMOIDS = partial(_level, kind=partial(_Dilated, activation=nn.Sigmoid))
TANHS = partial(_level, kind=partial(_Dilated, activation=nn.Tanh))
SKIPPED = partial(_level, skip=True)
SHARES = {
    "waves": False,
    "activation": nn.SiLU,
    "fit": {"optimizer": sgd(0.1, momentum=0.9), "steps": 800},
}
PROGRAMS = (
    Program("denoising-residual", _restore, target=0.7),
    Program("denoising-direct", partial(_restore, residual=False), REF),
    Program("denoising-descent", partial(_restore, fit=PLAIN), REF),
    Program("denoising-gated", partial(_restore, WAVENET), REF),
    Program("denoising-ten-gates-from-nothing", partial(_restore, WAVENET, 10, still=True), REF),
    Program("denoising-twelve-normed", partial(_restore, LEVEL, 12), REF),
    Program("denoising-sixteen-skips", partial(_restore, partial(SKIPPED, scale=0.25), 16), REF),
    Program("denoising-absolute", partial(_restore, loss=_absolute), REF),
    Program("denoising-decibels", partial(_restore, loss=_decibels(1e-6)), REF),
    Program(
        "denoising-noise-to-noise",
        partial(_restore, data=partial(_recorded, twice=True), fit={"steps": 300}),
        REF,
    ),
    Program("denoising-shown-its-estimate", partial(_restore, model=_Twice), REF),
    Program("denoising-in-hundredths", partial(_restore, data=partial(_recorded, 0.01), unit=0.01), REF),
    Program("denoising-half", partial(_restore, fit={"autocast": torch.float16}), REF),
    Program("denoising-always-clipped", partial(_restore, fit={"clip": 0.02}), REF),
    Program("denoising-levels", _tell, target=0.7),
    Program("denoising-levels-as-shares", partial(_tell, **SHARES), LEVELS),
    Program("denoising-each-signal-standardised", partial(_restore, front=partial(nn.GroupNorm, 1, 1)), REF),
    Program("denoising-levels-by-logarithm", partial(_tell, by_log=True, waves=False), LEVELS),
    Program("denoising-levels-by-signal", partial(_tell, by_signal=True, floor=0.1), LEVELS),
    Program("denoising-shades", _draw, target=0.6),
    Program(
        "denoising-logarithm-of-no-noise",
        partial(_tell, by_log=True, waves=False, floor=0.0, data=partial(_diffused, from_nothing=True)),
        "denoising-levels-by-logarithm",
        ("non-finite",),
        ("read",),
    ),
    Program(
        "denoising-divided-by-no-noise",
        partial(_tell, by_signal=True, floor=0.0, data=partial(_diffused, from_nothing=True)),
        "denoising-levels-by-signal",
        ("non-finite",),
        ("undo",),
    ),
    Program(
        "denoising-levels-counted-to-1000",
        partial(_tell, data=partial(_diffused, 1000.0), **SHARES),
        "denoising-levels-as-shares",
        ("unscaled-input",),
        ("embed*",),
    ),
    Program(
        "denoising-shades-to-255",
        partial(_draw, 255.0),
        SHADES,
        ("output-mismatch", "saturated-activation"),
        ("6", "7"),
    ),
    Program(
        "denoising-millivolts-through-tanh",
        partial(_restore, residual=False, output=nn.Tanh, data=partial(_recorded, 300.0)),
        DIRECT,
        ("output-mismatch", "unscaled-input", "saturated-activation"),
        ("output", "end", "enter"),
    ),
    Program(
        "denoising-in-millionths",
        partial(_restore, data=partial(_recorded, 1e-6)),
        "denoising-in-hundredths",
        ("unscaled-input", "output-mismatch"),
    ),
    Program(
        "denoising-norm-of-one-channel",
        partial(_restore, front=_each_value_normed),
        REF,
        ("degenerate-normalization",),
        ("front", "front.1"),
    ),
    Program(
        "denoising-twelve-sigmoids",
        partial(_restore, SIGMOIDS, 12, PLAIN),
        DEEP,
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
        ("levels*",),
    ),
    Program(
        "denoising-twelve-tanhs-barely-started",
        partial(_restore, TANHS, 12, PLAIN, initialise=net.normal(0.02)),
        DEEP,
        ("vanishing-signal", "vanishing-gradient", "poor-initialization"),
        ("levels*",),
    ),
    Program(
        "denoising-sixteen-skips-started-loud",
        partial(_restore, SKIPPED, 16, PLAIN, initialise=net.scaled(net.he, 2.0)),
        "denoising-sixteen-skips",
        ("exploding-signal", "exploding-gradient", "poor-initialization", "non-finite", "loss-divergence"),
        ("levels*",),
    ),
    Program(
        "denoising-clipped-in-vain",
        partial(_restore, SKIPPED, 16, PLAIN | {"clip": 1e8}, initialise=net.scaled(net.he, 1.5)),
        "denoising-sixteen-skips",
        (
            "ineffective-clipping",
            "exploding-signal",
            "exploding-gradient",
            "poor-initialization",
            "non-finite",
            "loss-divergence",
        ),
        ("levels*",),
    ),
    Program(
        "denoising-muffled",
        partial(_restore, muffled=-10.0),
        REF,
        ("dead-units", "zero-gradient", "poor-initialization"),
        ("levels*",),
    ),
    Program(
        "denoising-share-of-a-detached-guess",
        partial(_restore, by_gain=True),
        REF,
        ("missing-gradient",),
        ("enter", "levels*", "end"),
    ),
    Program(
        "denoising-shades-last-layer-alone",
        partial(_draw, only="6"),
        SHADES,
        ("not-optimized",),
        ("0", "2", "4"),
    ),
    Program(
        "denoising-half-underflow",
        partial(_restore, fit={"autocast": torch.float16}, loss=_weighed(1e-7)),
        "denoising-half",
        ("gradient-underflow", "zero-gradient"),
    ),
    Program(
        "denoising-error-times-1e-12",
        partial(_restore, loss=_weighed(1e-12)),
        REF,
        ("epsilon-floor", "learning-rate-too-low"),
    ),
    Program(
        "denoising-shades-one-start-for-all",
        partial(_draw, initialise=net.constant(0.05)),
        SHADES,
        ("symmetric-weights", "poor-initialization"),
        ("0", "2", "4"),
    ),
    Program(
        "denoising-rate-of-0.5",
        partial(_restore, fit={"optimizer": adam(0.5)}),
        REF,
        ("learning-rate-too-high",),
    ),
    Program(
        "denoising-descent-of-2",
        partial(_restore, fit=PLAIN | {"optimizer": sgd(2.0, momentum=0.9)}),
        DESCENT,
        ("learning-rate-too-high", "loss-divergence", "exploding-gradient", "non-finite"),
    ),
    Program(
        "denoising-rate-of-1e-6",
        partial(_tell, {"optimizer": adam(1e-6)}),
        LEVELS,
        ("learning-rate-too-low",),
    ),
    Program(
        "denoising-gradients-pile-up",
        partial(_restore, fit=PLAIN | {"zero_gradients": False}),
        DESCENT,
        ("gradient-not-zeroed",),
    ),
    Program(
        "denoising-decay",
        partial(_restore, fit={"optimizer": adamw(5e-3, weight_decay=30.0)}),
        REF,
        ("excessive-weight-decay",),
    ),
)
