"""Forecasts of series (held out): recurrent, convolved and stacked networks, quantiles, counts, levels."""

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
from benchmarks.verdicts.tasks import MakeOptimizer, adam, adamw, regress, sgd, trained

Build = Callable[[], nn.Module]
Loss = Callable[[Tensor, Tensor], Tensor]
WINDOW, HORIZON, WIDTH = 24, 4, 24
QUANTILES = torch.tensor([0.1, 0.5, 0.9])


def _seasons(count: int, random: torch.Generator) -> Tensor:
    """Return smooth series (count, WINDOW + HORIZON) of unit scale: two seasons and a trend each."""
    time = torch.arange(WINDOW + HORIZON)[None].float()
    period = 8 + 6 * torch.rand(count, 1, generator=random)
    phase = 2 * torch.pi * torch.rand(count, 2, generator=random)
    trend = 0.03 * torch.randn(count, 1, generator=random)
    slow = (2 * torch.pi * time / period + phase[:, :1]).sin()
    fast = 0.5 * (4 * torch.pi * time / period + phase[:, 1:]).sin()
    return slow + fast + trend * (time - WINDOW / 2)


@cache
def _series(noise: float = 0.1, level: float = 0.0, unit: float = 1.0, spikes: float = 0.0) -> Pair:
    """Return windows (1024, 24) and what came next (1024, 4), as level + unit * series.

    spikes: share of values that a broken meter multiplies by 20.
    """
    random = torch.Generator().manual_seed(401)
    series = _seasons(1024, random)
    series = series + noise * torch.randn(series.shape, generator=random)
    series = torch.where(torch.rand(series.shape, generator=random) < spikes, 20 * series, series)
    series = level + unit * series
    return series[:, :WINDOW], series[:, WINDOW:]


@cache
def _levels(closed: float = 0.0) -> Pair:
    """Return windows of sales (1024, 24), from tens to ten thousands a shop, and what came next (1024, 4).

    Targets are in units of the shop's size, about its mean; closed: share of shops whose windows are flat.
    """
    random = torch.Generator().manual_seed(402)
    series = _seasons(1024, random)
    flat = torch.rand(1024, 1, generator=random) < closed
    series = torch.where(flat, torch.zeros_like(series), series)
    size = 10 ** (1 + 3 * torch.rand(1024, 1, generator=random))
    shown = size * (3 + series[:, :WINDOW])
    return shown, series[:, WINDOW:]


@cache
def _demand() -> tuple[Tensor, Tensor, Tensor]:
    """Return counts of a rarely sold part (1024, 24), the next ones (1024, 4), and their true rates."""
    random = torch.Generator().manual_seed(403)
    rate = (2.0 * _seasons(1024, random) - 0.5).exp()
    counts = torch.poisson(rate, generator=random)
    return counts[:, :WINDOW], counts[:, WINDOW:], rate[:, WINDOW:]


@cache
def _announced() -> Pair:
    """Return noisy windows (1024, 24) whose first value, alone, sets what comes next."""
    random = torch.Generator().manual_seed(404)
    inputs = 0.1 * torch.randn(1024, WINDOW, generator=random)
    inputs[:, 0] = 2 * torch.rand(1024, generator=random) - 1
    return inputs, inputs[:, :1] * torch.tensor([1.7, 1.2, -1.2, -1.7])


class _Sequence(nn.Module):
    """Read a window with a recurrent layer and project its last state; before: acts on the window."""

    def __init__(
        self,
        kind: Callable[..., nn.RNNBase] = nn.GRU,
        before: nn.Module | None = None,
        output: nn.Module | None = None,
        outputs: int = HORIZON,
        **options: Any,
    ):
        super().__init__()
        self.before = before or nn.Identity()
        self.cell = kind(1, WIDTH, batch_first=True, **options)
        self.head, self.output = nn.Linear(WIDTH, outputs), output or nn.Identity()

    def forward(self, window: Tensor) -> Tensor:
        states = self.cell(self.before(window[..., None]))[0]
        return self.output(self.head(states[:, -1]))


def _recurrence(gain: float, nonlinearity: str = "tanh") -> nn.Module:
    """Return a plain network whose recurrent weights are orthogonal times `gain`."""
    model = _Sequence(nn.RNN, nonlinearity=nonlinearity)
    net.scaled(net.orthogonal, gain)(model.cell.weight_hh_l0)
    return model


def _all_zero() -> nn.Module:
    """Return a GRU and a head whose every weight is zero."""
    model = _Sequence()
    for weight in model.parameters():
        nn.init.zeros_(weight)
    return model


class _Unrolled(nn.Module):
    """An encoder hands its last state to a decoder, which feeds on its own forecasts.

    cut: the decoder gets a detached state.
    """

    def __init__(self, cut: bool = False):
        super().__init__()
        self.encoder = nn.LSTM(1, WIDTH, batch_first=True)
        self.decoder, self.head, self.cut = nn.LSTMCell(1, WIDTH), nn.Linear(WIDTH, 1), cut

    def forward(self, window: Tensor) -> Tensor:
        state = [part[0] for part in self.encoder(window[..., None])[1]]
        if self.cut:
            state = [part.detach() for part in state]
        value, answers = window[:, -1:], []
        for _ in range(HORIZON):
            state = self.decoder(value, state)
            value = self.head(state[0])
            answers.append(value)
        return torch.cat(answers, 1)


class _Causal(nn.Module):
    """A dilated convolution that sees the past alone."""

    def __init__(self, fan_in: int, dilation: int):
        super().__init__()
        self.filter = nn.Conv1d(fan_in, WIDTH, 2, dilation=dilation)
        self.dilation = dilation

    def forward(self, hidden: Tensor) -> Tensor:
        return self.filter(F.pad(hidden, (self.dilation, 0)))


class _TCN(nn.Module):
    """Causal convolutions with skips (Bai 2018), and one head for each step of the horizon.

    shift: bias of the convolutions at first.
    """

    def __init__(
        self,
        depth: int = 4,
        skip: bool = True,
        activation: Build = nn.ReLU,
        shift: float = 0.0,
    ):
        super().__init__()
        self.stem = _Causal(1, 1)
        levels: list[nn.Module] = []
        for level in range(depth):
            branch = nn.Sequential(_Causal(WIDTH, 2 ** (level % 4)), activation())
            levels.append(net.Residual(branch) if skip else branch)
        self.levels = nn.Sequential(*levels)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(HORIZON))
        if shift:
            for module in self.levels.modules():
                if isinstance(module, nn.Conv1d):
                    nn.init.constant_(module.bias, shift)

    def forward(self, window: Tensor) -> Tensor:
        hidden = self.levels(self.stem(window[:, None]))[..., -1]
        return torch.cat([head(hidden) for head in self.heads], 1)


class _Block(nn.Module):
    """Four linear layers, what they explain of the window, and what they add to the forecast."""

    def __init__(self, activation: Build):
        super().__init__()
        self.body = net.mlp((WINDOW, 48, 48, 48), activation, output=activation())
        self.backcast, self.forecast = nn.Linear(48, WINDOW), nn.Linear(48, HORIZON)

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(window)
        return window - self.backcast(hidden), self.forecast(hidden)


class _Stack(nn.Module):
    """Blocks that each forecast from what earlier ones left unexplained (Oreshkin 2020).

    The last block's backcast is used by nobody, as published.
    """

    def __init__(self, blocks: int = 3, activation: Build = nn.ReLU):
        super().__init__()
        self.blocks = nn.ModuleList(_Block(activation) for _ in range(blocks))

    def forward(self, window: Tensor) -> Tensor:
        total = window.new_zeros(())
        for block in self.blocks:
            window, part = block(window)
            total = total + part
        return total


class _Perceptron(nn.Module):
    """A norm or a transform of the window, then a perceptron."""

    def __init__(self, before: nn.Module | None = None, output: nn.Module | None = None, **options: Any):
        super().__init__()
        self.before = before or nn.Identity()
        self.body = net.mlp((WINDOW, 48, 48, HORIZON), **options)
        self.output = output or nn.Identity()

    def forward(self, window: Tensor) -> Tensor:
        return self.output(self.body(self.before(window)))


class _Standardise(nn.Module):
    """Bring each window to mean 0 and deviation 1 (Kim 2022); floor: added to the deviation."""

    def __init__(self, floor: float = 1e-5):
        super().__init__()
        self.floor = floor

    def forward(self, window: Tensor) -> Tensor:
        centred = window - window.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True).sqrt() + self.floor)


def _forecast(
    build: Build = _Sequence,
    fit: dict[str, Any] | None = None,
    data: Callable[[], tuple[Tensor, ...]] = _series,
    optimize: Callable[[Any], list[nn.Parameter]] = trained,
    loss: Loss = F.mse_loss,
) -> Setup:
    """Forecast a window's next values; optimize: what the optimizer is given."""
    inputs, targets = data()[:2]
    model = build()
    options = {"optimizer": adam(5e-3), "steps": 250, "batch_size": 48, **(fit or {})}
    return regress(model, (inputs, targets), loss=loss, parameters=optimize(model), **options)


def _pinball(answers: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of quantiles (N, 4, 3) of the targets (N, 4) (Koenker 1978)."""
    missed = targets[..., None] - answers
    return torch.maximum(QUANTILES * missed, (QUANTILES - 1) * missed).mean()


def _quantiles(fit: dict[str, Any] | None = None, spikes: float = 0.0) -> Setup:
    """Forecast three quantiles; score: share of the best constant quantiles' loss that is saved."""
    inputs, targets = _series(spikes=spikes)
    model = nn.Sequential(_Sequence(outputs=3 * HORIZON), nn.Unflatten(1, (HORIZON, 3)))
    options = {"optimizer": adam(1e-2), "steps": 250, "batch_size": 48, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")
    usual = _pinball(targets.quantile(QUANTILES, dim=0).T[None], targets)

    def score(model: nn.Module) -> float:
        lost = _pinball(model(inputs), targets)
        return max(0.0, (1 - lost / usual).item()) if lost.isfinite() else 0.0

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return _pinball(model(batch[0]), batch[1])

    return Setup(model, make(trained(model)), (inputs, targets), loss, score, 0.0, **options)


class _Gaussian(nn.Module):
    """Forecast means and the logarithms of variances; spread: turns what the network says into the latter."""

    def __init__(self, spread: nn.Module):
        super().__init__()
        self.body, self.spread = _Sequence(outputs=2 * HORIZON), spread

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.body(window).chunk(2, 1)
        return mean, self.spread(raw)


def _likelihood(spread: Build = nn.Identity) -> Setup:
    """Forecast with error bars, by the Gaussian likelihood; score: R² of the means."""
    inputs, targets = _series(0.3)
    model = _Gaussian(spread())
    variance = (targets - targets.mean(0)).square().mean()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        mean, spread = model(batch[0])
        return 0.5 * (spread + (batch[1] - mean).square() / spread.exp()).mean()

    def score(model: nn.Module) -> float:
        error = (model(inputs)[0] - targets).square().mean()
        return max(0.0, (1 - error / variance).item()) if error.isfinite() else 0.0

    return Setup(model, adam(1e-2)(trained(model)), (inputs, targets), loss, score, 0.0, batch_size=48)


def _counts(before: Build = nn.Identity, fit: dict[str, Any] | None = None) -> Setup:
    """Forecast rare sales by Poisson's likelihood; score: R² of the logarithm of the rate."""
    inputs, targets, rate = _demand()
    options = {"optimizer": adam(5e-3), "steps": 250, "batch_size": 48, **(fit or {})}
    return regress(
        _Perceptron(before()), (inputs, targets), loss=F.poisson_nll_loss, wanted=rate.log(), **options
    )


def _first_step_only(answers: Tensor, targets: Tensor) -> Tensor:
    """Compare the first of the horizon's steps, as a loss does that was written for one step ahead."""
    return F.mse_loss(answers[:, 0], targets[:, 0])


def _a_billionth(answers: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(answers, targets) / 1e9


def _only_heads(model: Any) -> list[nn.Parameter]:
    return list(model.heads.parameters())


def _log_of_sales() -> nn.Module:
    return net.Apply(torch.log)


def _log_after_one() -> nn.Module:
    return net.Apply(torch.log1p)


def _warmed(step: int) -> float:
    return min(1.0, (step + 1) / 60) * (1.0 if step < 150 else 0.2)


REF, TCN, STACK, FAR = "forecasts-gru", "forecasts-tcn", "forecasts-stack", "forecasts-announced"
SALES, COUNTS, DESCENT = "forecasts-of-any-size", "forecasts-counts", "forecasts-descent"
PLAIN = {"optimizer": sgd(0.05, momentum=0.9), "steps": 350}
MEMORY = {"optimizer": adam(2e-3), "steps": 300}
PROGRAMS = (
    Program("forecasts-gru", _forecast, target=0.85),
    Program("forecasts-tcn", partial(_forecast, _TCN, {"optimizer": adam(1e-2)}), target=0.75),
    Program("forecasts-stack", partial(_forecast, _Stack, {"optimizer": adam(2e-3)}), target=0.85),
    Program("forecasts-descent", partial(_forecast, _TCN, PLAIN), target=0.8),
    Program("forecasts-unrolled", partial(_forecast, _Unrolled), REF),
    Program(
        "forecasts-announced", partial(_forecast, partial(_recurrence, 1.0), MEMORY, _announced), target=0.9
    ),
    Program("forecasts-mostly-noise", partial(_forecast, _Sequence, data=partial(_series, 0.8)), target=0.26),
    Program("forecasts-quantiles", _quantiles, target=0.6),
    Program("forecasts-quantiles-of-a-broken-meter", partial(_quantiles, spikes=0.01), target=0.4),
    Program("forecasts-error-bars", _likelihood, target=0.68),
    Program("forecasts-counts", partial(_counts, _log_after_one), target=0.5),
    Program(
        "forecasts-of-any-size",
        partial(_forecast, partial(_Perceptron, _Standardise()), data=_levels),
        target=0.85,
    ),
    Program(
        "forecasts-within-bounds",
        partial(_forecast, partial(_Sequence, output=nn.Tanh()), {"steps": 400}, partial(_series, unit=0.35)),
        REF,
    ),
    Program(
        "forecasts-convolved-12-with-skips",
        partial(_forecast, partial(_TCN, 12), {"optimizer": adam(3e-3)}),
        TCN,
    ),
    Program(
        "forecasts-stack-of-sigmoids",
        partial(_forecast, partial(_Stack, 3, nn.Sigmoid), {"steps": 400}),
        STACK,
    ),
    Program("forecasts-clipped-always", partial(_forecast, _Sequence, {"clip": 0.02}), REF),
    Program(
        "forecasts-warmed-up-to-0.03",
        partial(_forecast, _Sequence, {"optimizer": adam(0.03), "schedule": _warmed}),
        REF,
    ),
    Program(
        "forecasts-line",
        partial(_forecast, partial(nn.Linear, WINDOW, HORIZON), {"optimizer": adam(2e-2)}),
        target=0.7,
    ),
    Program(
        "forecasts-lstm", partial(_forecast, partial(_Sequence, nn.LSTM), {"optimizer": adam(1e-2)}), REF
    ),
    Program(
        "forecasts-shops-closed-with-floor",
        partial(_forecast, partial(_Perceptron, _Standardise()), data=partial(_levels, 0.05)),
        SALES,
    ),
    Program(
        "forecasts-batches-of-eight", partial(_forecast, _Sequence, {"batch_size": 8, "steps": 500}), REF
    ),
    Program(
        "forecasts-thousands",
        partial(_forecast, _Sequence, data=partial(_series, level=5000.0, unit=800.0)),
        REF,
        ("unscaled-input", "output-mismatch", "saturated-activation"),
        ("cell", "head"),
    ),
    Program(
        "forecasts-hundreds-through-sigmoid",
        partial(
            _forecast,
            partial(_Perceptron, _Standardise(), nn.Sigmoid()),
            data=partial(_series, unit=300.0),
        ),
        SALES,
        ("output-mismatch", "saturated-activation"),
        ("output", "body.4"),
    ),
    Program(
        "forecasts-rate-of-1",
        partial(_forecast, _Sequence, {"optimizer": adam(1.0)}),
        REF,
        ("learning-rate-too-high",),
    ),
    Program(
        "forecasts-rate-of-1e-6",
        partial(_forecast, _TCN, {"optimizer": sgd(1e-6)}),
        DESCENT,
        ("learning-rate-too-low",),
    ),
    Program(
        "forecasts-recurrence-of-0.1",
        partial(_forecast, partial(_recurrence, 0.1), MEMORY, _announced),
        FAR,
        ("vanishing-gradient", "poor-initialization", "vanishing-signal"),
        ("cell",),
    ),
    Program(
        "forecasts-rectified-recurrence-of-2",
        partial(_forecast, partial(_recurrence, 2.0, "relu"), MEMORY | {"optimizer": sgd(0.01)}, _announced),
        FAR,
        ("exploding-gradient", "exploding-signal", "non-finite", "poor-initialization"),
        ("cell",),
    ),
    Program(
        "forecasts-clipped-at-a-billion",
        partial(
            _forecast,
            partial(_recurrence, 2.0, "relu"),
            MEMORY | {"optimizer": sgd(0.01), "clip": 1e9},
            _announced,
        ),
        FAR,
        ("ineffective-clipping", "exploding-gradient", "exploding-signal", "non-finite"),
    ),
    Program(
        "forecasts-logarithm-of-no-sale",
        partial(_counts, _log_of_sales),
        COUNTS,
        ("non-finite",),
        ("before",),
    ),
    Program(
        "forecasts-shops-closed",
        partial(_forecast, partial(_Perceptron, _Standardise(0.0)), data=partial(_levels, 0.05)),
        "forecasts-shops-closed-with-floor",
        ("non-finite",),
        ("before",),
    ),
    Program(
        "forecasts-variance-below-nought",
        partial(_likelihood, _log_of_sales),
        "forecasts-error-bars",
        ("non-finite",),
        ("spread",),
    ),
    Program(
        "forecasts-sales-as-they-are",
        partial(_forecast, _Perceptron, PLAIN, _levels),
        SALES,
        ("unscaled-input",),
        ("body.0",),
    ),
    Program(
        "forecasts-first-step-alone",
        partial(_forecast, _TCN, loss=_first_step_only),
        TCN,
        ("missing-gradient", "zero-gradient"),
        ("heads.1", "heads.2", "heads.3"),
    ),
    Program(
        "forecasts-state-detached",
        partial(_forecast, partial(_Unrolled, True)),
        "forecasts-unrolled",
        ("missing-gradient",),
        ("encoder",),
    ),
    Program(
        "forecasts-heads-alone-optimized",
        partial(_forecast, _TCN, optimize=_only_heads),
        TCN,
        ("not-optimized",),
        ("stem*", "levels*"),
    ),
    Program(
        "forecasts-convolved-20-plainly",
        partial(_forecast, partial(_TCN, 20, False)),
        TCN,
        ("vanishing-signal", "vanishing-gradient", "poor-initialization"),
        ("levels*",),
    ),
    Program(
        "forecasts-biases-of-minus-10",
        partial(_forecast, partial(_TCN, 4, False, shift=-10.0)),
        TCN,
        ("dead-units", "zero-gradient", "poor-initialization"),
        ("levels*",),
    ),
    Program(
        "forecasts-all-zero",
        partial(_forecast, _all_zero),
        REF,
        ("symmetric-weights", "zero-gradient", "poor-initialization"),
        ("cell", "head"),
    ),
    Program(
        "forecasts-norm-of-one-feature",
        partial(_forecast, partial(_Sequence, before=nn.LayerNorm(1))),
        REF,
        ("degenerate-normalization",),
        ("before",),
    ),
    Program(
        "forecasts-loss-per-customer",
        partial(_forecast, _Sequence, loss=_a_billionth),
        REF,
        ("epsilon-floor",),
    ),
    Program(
        "forecasts-gradients-pile-up",
        partial(_forecast, _TCN, PLAIN | {"zero_gradients": False}),
        DESCENT,
        ("gradient-not-zeroed",),
    ),
    Program(
        "forecasts-decay-of-50",
        partial(_forecast, _Sequence, {"optimizer": adamw(5e-3, weight_decay=50.0)}),
        REF,
        ("excessive-weight-decay",),
    ),
)
