"""Tables (tuning): breast cancer, wine, iris, two moons; small networks, wide ones, plain regressions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import moons, table
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, regress, rmsprop, sgd

BCE = F.binary_cross_entropy_with_logits


def _cancer(
    fit: dict[str, Any] | None = None,
    sizes: tuple[int, ...] = (30, 24, 24, 1),
    scaled: bool = True,
    **network: Any,
) -> Setup:
    inputs, targets = table("breast_cancer", scaled)
    options = {"optimizer": adam(3e-3), "loss": BCE, "batch_size": 32, **(fit or {})}
    return classify(net.mlp(sizes, **network), (inputs, targets[:, None].float()), **options)


def _wine(
    fit: dict[str, Any] | None = None,
    sizes: tuple[int, ...] = (13, 24, 24, 3),
    scaled: bool = True,
    **network: Any,
) -> Setup:
    options = {"optimizer": adam(3e-3), "batch_size": 32, "steps": 200, **(fit or {})}
    return classify(net.mlp(sizes, **network), table("wine", scaled), **options)


def _moons(
    fit: dict[str, Any] | None = None, sizes: tuple[int, ...] = (2, 24, 24, 2), **network: Any
) -> Setup:
    return classify(net.mlp(sizes, **network), moons(), **{"optimizer": adam(1e-2), **(fit or {})})


def _twice_sigmoid(outputs: Tensor, targets: Tensor) -> Tensor:
    return BCE(outputs.sigmoid(), targets)


def _hinge() -> Setup:
    """Train with a hinge loss, whose gradient is exactly 0 for every sample beyond the margin."""
    inputs, targets = table("breast_cancer")

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        return (1 - outputs * (2 * wanted - 1)).clamp(min=0).mean()

    data = inputs, targets[:, None].float()
    return classify(net.mlp((30, 24, 1)), data, adam(3e-3), loss, steps=200, batch_size=32)


def _ratio(floor: float) -> Setup:
    """Replace a column by its ratio to itself, as a careless standardisation does; many entries are 0."""
    inputs, targets = moons()
    data = torch.cat([inputs, (inputs[:, 1:] - 0.3).clamp(min=0)], 1)
    ratio = net.Apply(lambda x: torch.cat([x[:, :2], x[:, 2:] / (x[:, 2:] + floor)], 1))
    return classify(nn.Sequential(ratio, *net.mlp((3, 24, 24, 2))), (data, targets), adam(1e-2), steps=200)


def _embedded_dead() -> Setup:
    model = net.mlp((30, 24, 24, 1))
    nn.init.constant_(model[0].bias, -200.0)
    inputs, targets = table("breast_cancer")
    return classify(model, (inputs, targets[:, None].float()), adam(3e-3), BCE, batch_size=32)


def _forgotten() -> Setup:
    """Give the optimizer the parameters of a first draft of the model."""
    draft, model = net.mlp((13, 24, 24, 3)), net.mlp((13, 24, 24, 3))
    return classify(model, table("wine"), adam(3e-3), parameters=draft.parameters(), batch_size=32, steps=200)


def _mixed_rates() -> Setup:
    """Train the head ten times faster than the body."""
    model = net.mlp((13, 24, 24, 3))
    groups: Any = [{"params": model[:4].parameters()}, {"params": model[4:].parameters(), "lr": 1e-2}]
    return classify(model, table("wine"), adam(1e-3), parameters=groups, batch_size=32, steps=300)


def _diabetes_lines(fit: dict[str, Any]) -> Setup:
    return regress(
        nn.Sequential(nn.Linear(10, 1)), table("diabetes"), **{"batch_size": 32, "steps": 300, **fit}
    )


CANCER, WINE, MOONS, LINES = "tabular-cancer", "tabular-wine", "tabular-moons", "tabular-diabetes-linear"
HIGH, LOW = ("learning-rate-too-high",), ("learning-rate-too-low",)
VANISHED = ("vanishing-gradient", "vanishing-signal", "poor-initialization")
PROGRAMS = (
    Program(CANCER, _cancer, target=0.97),
    Program("tabular-cancer-logistic", partial(_cancer, {"optimizer": adam(1e-2)}, (30, 1)), CANCER),
    Program("tabular-cancer-tanh", partial(_cancer, activation=nn.Tanh, initialise=net.glorot), CANCER),
    Program(
        "tabular-cancer-sigmoid-2",
        partial(_cancer, {"optimizer": adam(1e-2)}, activation=nn.Sigmoid, initialise=net.glorot),
        CANCER,
    ),
    Program("tabular-cancer-dropout", partial(_cancer, dropout=0.3), CANCER),
    Program(
        "tabular-cancer-batchnorm-input",
        partial(_cancer, {"optimizer": adam(1e-2), "steps": 400}, scaled=False, norm=nn.BatchNorm1d),
        CANCER,
    ),
    Program("tabular-cancer-rmsprop", partial(_cancer, {"optimizer": rmsprop(1e-3)}), CANCER),
    Program("tabular-hinge", _hinge, CANCER),
    Program(WINE, _wine, target=0.98),
    Program("tabular-wine-wide", partial(_wine, {"steps": 150}, (13, 256, 256, 3)), WINE),
    Program("tabular-wine-to-zero", partial(_wine, {"optimizer": adam(1e-2), "steps": 600}), WINE),
    Program("tabular-wine-mixed-rates", _mixed_rates, WINE),
    Program(
        "tabular-wine-smoothed", partial(_wine, {"loss": partial(F.cross_entropy, label_smoothing=0.1)}), WINE
    ),
    Program("tabular-wine-amsgrad", partial(_wine, {"optimizer": adam(3e-3, amsgrad=True)}), WINE),
    Program(MOONS, _moons, target=0.95),
    Program("tabular-moons-full-batch", partial(_moons, {"batch_size": 1000}), MOONS),
    Program(
        "tabular-moons-batch-4",
        partial(_moons, {"batch_size": 4, "steps": 400, "optimizer": adam(3e-3)}),
        MOONS,
    ),
    Program(
        "tabular-moons-nesterov", partial(_moons, {"optimizer": sgd(0.1, momentum=0.9, nesterov=True)}), MOONS
    ),
    Program("tabular-moons-cosine", partial(_moons, {"schedule": lambda step: 1 - step / 250}), MOONS),
    Program(
        "tabular-moons-relu-default-8",
        partial(_moons, {"steps": 400}, (2, *[32] * 6, 2), initialise=None),
        MOONS,
    ),
    Program("tabular-ratio-safely", partial(_ratio, 1e-2), MOONS),
    Program(LINES, partial(_diabetes_lines, {"optimizer": adam(2e-2)}), target=0.48),
    Program(
        "tabular-cancer-raw",
        partial(_cancer, {"optimizer": sgd(0.05)}, scaled=False, activation=nn.Tanh, initialise=net.glorot),
        CANCER,
        ("unscaled-input",),
        ("0", "1"),
    ),
    Program(
        "tabular-wine-raw",
        partial(_wine, {"optimizer": sgd(0.05)}, scaled=False),
        WINE,
        ("unscaled-input",),
        ("0", "1"),
    ),
    Program(
        "tabular-cancer-twice-sigmoid",
        partial(_cancer, {"loss": _twice_sigmoid, "optimizer": sgd(0.003)}),
        CANCER,
        ("output-mismatch", *LOW),
        ("4",),
    ),
    Program(
        "tabular-cancer-lr-3",
        partial(_cancer, {"optimizer": adam(3.0)}, (30, 24, 24, 24, 24, 1)),
        CANCER,
        HIGH,
    ),
    Program("tabular-cancer-lr-1e-6", partial(_cancer, {"optimizer": adam(1e-6)}), CANCER, LOW),
    Program("tabular-wine-sgd-1e-5", partial(_wine, {"optimizer": sgd(1e-5)}), WINE, LOW),
    Program("tabular-moons-sgd-30", partial(_moons, {"optimizer": sgd(30.0)}), MOONS, HIGH),
    Program("tabular-diabetes-linear-1e-5", partial(_diabetes_lines, {"optimizer": adam(1e-5)}), LINES, LOW),
    Program(
        "tabular-diabetes-linear-sgd-3",
        partial(_diabetes_lines, {"optimizer": sgd(3.0)}),
        LINES,
        (*HIGH, "loss-divergence"),
    ),
    Program(
        "tabular-wine-sigmoid-10",
        partial(_wine, sizes=(13, *[24] * 10, 3), activation=nn.Sigmoid),
        WINE,
        VANISHED,
    ),
    Program(
        "tabular-moons-tiny-init",
        partial(_moons, sizes=(2, *[24] * 8, 2), initialise=net.normal(0.01)),
        MOONS,
        VANISHED,
    ),
    Program(
        "tabular-cancer-born-dead", _embedded_dead, CANCER, ("dead-units", "poor-initialization"), ("0", "1")
    ),
    Program("tabular-wine-forgotten", _forgotten, WINE, ("not-optimized",)),
    Program(
        "tabular-wine-decay",
        partial(_wine, {"optimizer": adamw(1e-2, weight_decay=60.0)}),
        WINE,
        ("excessive-weight-decay",),
    ),
    Program(
        "tabular-moons-clipped-away",
        partial(_moons, {"optimizer": sgd(0.1), "clip": 1e-4}),
        MOONS,
        ("over-clipping",),
    ),
    Program("tabular-ratio-of-zero", partial(_ratio, 0.0), "tabular-ratio-safely", ("non-finite",), ("0",)),
    Program(
        "tabular-wine-zero",
        partial(_wine, initialise=net.constant(0.0)),
        WINE,
        ("symmetric-weights", "zero-gradient", "poor-initialization"),
    ),
    Program(
        "tabular-wine-layernorm-of-one",
        partial(_wine, sizes=(13, 24, 1, 24, 3), norm=lambda width: nn.LayerNorm(width)),
        WINE,
        ("degenerate-normalization",),
        ("4",),
    ),
)
