"""Time series (tuning): causal convolutions, state spaces and mixers on digits' rows and forecasts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair, digits
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, regress, sgd

WIDTH = 24


@cache
def _pen_strokes() -> Pair:
    """Return the digits as series (1797, 8, 8): eight steps of a row each."""
    inputs, targets = digits()
    return inputs.view(-1, 8, 8), targets


@cache
def _series(noise: float = 0.0, level: float = 0.0, unit: float = 1.0) -> Pair:
    """Return windows (1450, 24, 1) of a chaotic series (Mackey 1977) of deviation 1, its value 3 steps on.

    noise: deviation of what is added; then the series is multiplied by `unit` and raised by `level`.
    """
    values = [1.2] * 18
    for _ in range(4700):
        values.append(0.9 * values[-1] + 0.2 * values[-18] / (1 + values[-18] ** 10))
    series = torch.tensor(values[1700::2])
    series = (series - series.mean()) / series.std()
    series = series + noise * torch.randn(series.shape, generator=torch.Generator().manual_seed(71))
    windows = (level + unit * series).unfold(0, 27, 1)[:1450]
    return windows[:, :24, None].contiguous(), windows[:, 26:].contiguous()


class _Causal(nn.Module):
    """A dilated convolution that sees the past only, (batch, channels, time)."""

    def __init__(self, fan_in: int, width: int, dilation: int, normed: bool):
        super().__init__()
        self.past = 2 * dilation
        convolution = nn.Conv1d(fan_in, width, 3, dilation=dilation)
        self.convolution = weight_norm(convolution) if normed else convolution

    def forward(self, inputs: Tensor) -> Tensor:
        return self.convolution(F.pad(inputs, (self.past, 0)))


class _TCN(nn.Module):
    """Causal convolutions with growing dilation (Bai 2018) on (batch, time, features), read last."""

    def __init__(
        self,
        features: int,
        outputs: int,
        levels: int = 3,
        normed: bool = False,
        skip: bool = True,
        activation: Callable[[], nn.Module] = nn.ReLU,
        front: nn.Module | None = None,
        end: nn.Module | None = None,
        initialise: net.Initialise | None = None,
    ):
        super().__init__()
        self.front, self.enter = front or nn.Identity(), nn.Conv1d(features, WIDTH, 1)
        levels_ = (
            nn.Sequential(_Causal(WIDTH, WIDTH, 2 ** (i % 3), normed), activation(), nn.Dropout(0.05))
            for i in range(levels)
        )
        self.levels, self.skip = nn.ModuleList(levels_), skip
        self.head, self.end = nn.Linear(WIDTH, outputs), end or nn.Identity()
        net.initialised(self, initialise)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.enter(self.front(inputs).mT)
        for level in self.levels:
            hidden = hidden + level(hidden) if self.skip else level(hidden)
        return self.end(self.head(hidden[:, :, -1]))


def _strokes(fit: dict[str, Any] | None = None, **network: Any) -> Setup:
    options = {"optimizer": adam(5e-3), "steps": 150, **(fit or {})}
    return classify(_TCN(8, 10, **network), _pen_strokes(), **options)


def _forecast(data: Pair, fit: dict[str, Any] | None = None, **network: Any) -> Setup:
    return regress(_TCN(1, 1, **network), data, **{"optimizer": adam(5e-3), "steps": 200, **(fit or {})})


def _returns(scale: float) -> Setup:
    """Forecast small changes, whose squared errors are of the order of `scale` squared."""
    inputs, targets = _series()
    model = _TCN(1, 1)
    with torch.no_grad():
        model.head.weight.mul_(scale)
        model.head.bias.mul_(scale)
    return regress(model, (inputs, scale * targets), adam(5e-3), steps=200)


class _Gated(nn.Module):
    """A level of WaveNet: tanh times sigmoid, then back into the stream (van den Oord 2016)."""

    def __init__(self, dilation: int):
        super().__init__()
        self.both, self.back = _Causal(WIDTH, 2 * WIDTH, dilation, False), nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        value, gate = self.both(inputs).chunk(2, 1)
        return inputs + self.back(value.tanh() * gate.sigmoid())


def _gated() -> Setup:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.levels = nn.Conv1d(8, WIDTH, 1), nn.Sequential(*(_Gated(2**i) for i in range(3)))
            self.head = nn.Linear(WIDTH, 10)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.levels(self.enter(inputs.mT)).mean(2))

    return classify(Network(), _pen_strokes(), adam(5e-3), steps=150)


class _StateSpace(nn.Module):
    """Let each channel's state decay at a rate of its own while it takes in the input (Gu 2022)."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.rates = nn.Parameter(torch.linspace(low, high, WIDTH))

    def forward(self, inputs: Tensor) -> Tensor:
        driven, state, states = self.enter(inputs), torch.zeros_like(inputs[:, 0]), []
        for step in range(inputs.shape[1]):
            state = self.rates * state + driven[:, step]
            states.append(state)
        return self.leave(F.gelu(torch.stack(states, 1)))


def _state_space(
    low: float = 0.3, high: float = 0.98, norm: bool = True, fit: dict[str, Any] | None = None
) -> Setup:
    """Forecast with two state-space layers, each behind a LayerNorm or bare, and read the last state."""

    def layer() -> nn.Module:
        return net.Residual(
            nn.Sequential(nn.LayerNorm(WIDTH) if norm else nn.Identity(), _StateSpace(low, high))
        )

    last = net.Apply(lambda states: states[:, -1])
    model = nn.Sequential(nn.Linear(1, WIDTH), layer(), layer(), last, nn.Linear(WIDTH, 1))
    return regress(model, _series(), **{"optimizer": adam(5e-3), "steps": 100, **(fit or {})})


class _Across(nn.Module):
    """Apply a module along time instead of features."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.mT).mT


class _SpatialGate(nn.Module):
    """Multiply half of the channels by a projection over time, which starts at one (gMLP, Liu 2021)."""

    def __init__(self, length: int):
        super().__init__()
        self.norm, self.time = nn.LayerNorm(WIDTH), nn.Linear(length, length)
        nn.init.zeros_(self.time.weight)
        nn.init.ones_(self.time.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        kept, gate = inputs.chunk(2, -1)
        return kept * self.time(self.norm(gate).mT).mT


def _mixer_block() -> nn.Sequential:
    over_time = nn.Sequential(nn.LayerNorm(WIDTH), _Across(net.mlp((8, 16, 8), nn.GELU, None)))
    over_features = nn.Sequential(nn.LayerNorm(WIDTH), *net.mlp((WIDTH, 48, WIDTH), nn.GELU, None))
    return nn.Sequential(net.Residual(over_time), net.Residual(over_features))


def _gate_block() -> nn.Module:
    layers = [
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, 2 * WIDTH),
        nn.GELU(),
        _SpatialGate(8),
        nn.Linear(WIDTH, WIDTH),
    ]
    return net.Residual(nn.Sequential(*layers))


def _mixer(block: Callable[[], nn.Module], blocks: int = 2, fit: dict[str, Any] | None = None) -> Setup:
    mean = net.Apply(lambda hidden: hidden.mean(1))
    model = nn.Sequential(nn.Linear(8, WIDTH), *(block() for _ in range(blocks)), mean, nn.Linear(WIDTH, 10))
    return classify(model, _pen_strokes(), **{"optimizer": adam(5e-3), "steps": 150, **(fit or {})})


def _averaging_block() -> nn.Module:
    """Replace each step by the mean of all of them, after which all steps are alike."""
    average = net.Apply(lambda hidden: hidden.mean(1, keepdim=True).expand_as(hidden))
    return nn.Sequential(average, nn.Linear(WIDTH, WIDTH), nn.GELU())


REF, FORECAST, SPACE = "temporal-strokes", "temporal-forecast", "temporal-state-space"
PROGRAMS = (
    Program("temporal-strokes", _strokes, target=0.97),
    Program("temporal-weight-norm", partial(_strokes, normed=True), REF),
    Program("temporal-wavenet", _gated, REF),
    Program("temporal-mixer", partial(_mixer, _mixer_block), REF),
    Program("temporal-gates-from-one", partial(_mixer, _gate_block), REF),
    Program(
        "temporal-accumulated", partial(_strokes, {"accumulate": 4, "batch_size": 16, "steps": 100}), REF
    ),
    Program("temporal-forecast", partial(_forecast, _series()), target=0.9),
    Program("temporal-forecast-noise", partial(_forecast, _series(0.7)), target=0.45),
    Program(
        "temporal-forecast-autocast", partial(_forecast, _series(), {"autocast": torch.bfloat16}), FORECAST
    ),
    Program("temporal-state-space", _state_space, target=0.85),
    Program(
        "temporal-layernorm-of-one",
        partial(_forecast, _series(), front=nn.LayerNorm(1)),
        FORECAST,
        ("degenerate-normalization",),
        ("front",),
    ),
    Program(
        "temporal-prices",
        partial(_forecast, _series(0.0, 3e4, 2e3)),
        FORECAST,
        ("unscaled-input", "output-mismatch", "learning-rate-too-low"),
    ),
    Program(
        "temporal-tiny-returns", partial(_returns, 1e-9), FORECAST, ("epsilon-floor", "learning-rate-too-low")
    ),
    Program(
        "temporal-unstable-states",
        partial(_state_space, 1.2, 2.0, False, {"optimizer": sgd(0.01)}),
        SPACE,
        ("exploding-signal", "exploding-gradient", "poor-initialization"),
    ),
    Program(
        "temporal-sigmoid-levels-12",
        partial(_strokes, levels=12, skip=False, activation=nn.Sigmoid),
        REF,
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
    ),
    Program(
        "temporal-saturated-levels",
        partial(
            _strokes, {"optimizer": sgd(0.02)}, activation=nn.Tanh, skip=False, initialise=net.normal(8.0)
        ),
        REF,
        ("saturated-activation", "exploding-gradient", "poor-initialization"),
        ("levels.*",),
    ),
    Program(
        "temporal-mixer-decay",
        partial(_mixer, _mixer_block, fit={"optimizer": adamw(5e-3, weight_decay=50.0)}),
        "temporal-mixer",
        ("excessive-weight-decay",),
    ),
    Program(
        "temporal-over-clipped",
        partial(_strokes, {"optimizer": sgd(0.1), "clip": 1e-3}),
        REF,
        ("over-clipping",),
    ),
    Program(
        "temporal-averaged-too-early",
        partial(_mixer, _averaging_block, 4),
        "temporal-mixer",
        ("rank-collapse",),
    ),
)
