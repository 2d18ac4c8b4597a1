"""Regression (tuning): diabetes, Friedman's function, a curve; faults of scale, output and loss."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import friedman, table, waves
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, regress, rmsprop, sgd

SIZES = (10, 32, 32, 1)


def _friedman(fit: dict[str, Any] | None = None, sizes: tuple[int, ...] = SIZES, **network: Any) -> Setup:
    return regress(net.mlp(sizes, **network), friedman(), **{"optimizer": adam(3e-3), **(fit or {})})


def _diabetes(fit: dict[str, Any] | None = None, sizes: tuple[int, ...] = SIZES, **network: Any) -> Setup:
    return regress(net.mlp(sizes, **network), table("diabetes"), **{"optimizer": adam(1e-2), **(fit or {})})


def _waves(fit: dict[str, Any] | None = None, **network: Any) -> Setup:
    return regress(
        net.mlp((1, 48, 48, 1), **network), waves(), **{"optimizer": adam(1e-2), "steps": 400, **(fit or {})}
    )


def _target(scale: float, shift: float, fit: dict[str, Any]) -> Setup:
    """Regress on scale * target + shift with a network that starts near 0."""
    inputs, targets = friedman()
    return regress(net.mlp(SIZES), (inputs, scale * targets + shift), **fit)


def _flipped(outputs: Tensor, targets: Tensor) -> Tensor:
    return -F.mse_loss(outputs, targets)


def _broadcast(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.flatten()).square().mean()


def _summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return 50 * F.mse_loss(outputs, targets, reduction="sum")


def _raw_diabetes(scale: float, shift: float) -> Setup:
    inputs, targets = table("diabetes")
    return regress(net.mlp(SIZES, nn.Tanh, None), (scale * inputs + shift, targets), sgd(0.05, momentum=0.9))


def _linear() -> Setup:
    return regress(nn.Sequential(nn.Linear(10, 1)), friedman(), adam(1e-2), steps=300)


REF, DIABETES, WAVES = "regression-friedman", "regression-diabetes", "regression-waves"
HIGH, LOW = ("learning-rate-too-high", "loss-divergence"), ("learning-rate-too-low",)
OUTPUT = ("output-mismatch",)
PROGRAMS = (
    Program(REF, _friedman, target=0.9),
    Program("regression-friedman-tanh", partial(_friedman, activation=nn.Tanh, initialise=net.glorot), REF),
    Program("regression-friedman-torch-default", partial(_friedman, initialise=None), REF),
    Program("regression-friedman-huber", partial(_friedman, {"loss": F.huber_loss}), REF),
    Program("regression-friedman-rmsprop", partial(_friedman, {"optimizer": rmsprop(3e-3)}), REF),
    Program("regression-friedman-sgd", partial(_friedman, {"optimizer": sgd(0.05, momentum=0.9)}), REF),
    Program("regression-friedman-layernorm", partial(_friedman, norm=nn.LayerNorm), REF),
    Program("regression-linear", _linear, target=0.7),
    Program(DIABETES, _diabetes, target=0.55),
    Program(
        "regression-diabetes-decay",
        partial(_diabetes, {"optimizer": adamw(1e-2, weight_decay=0.05)}),
        DIABETES,
    ),
    Program("regression-diabetes-clipped", partial(_diabetes, {"clip": 1.0}), DIABETES),
    Program("regression-diabetes-tanh-sgd", partial(_raw_diabetes, 1.0, 0.0), target=0.5),
    Program(WAVES, _waves, target=0.95),
    Program("regression-waves-silu", partial(_waves, activation=nn.SiLU), WAVES),
    Program("regression-target-standard", partial(_target, 1.0, 0.0, {"optimizer": adam(3e-3)}), REF),
    Program("regression-sgd-lr-3", partial(_friedman, {"optimizer": sgd(3.0)}), REF, HIGH),
    Program("regression-adam-lr-3", partial(_friedman, {"optimizer": adam(3.0)}), REF, HIGH),
    Program("regression-sgd-lr-1e-5", partial(_friedman, {"optimizer": sgd(1e-5)}), REF, LOW),
    Program("regression-diabetes-lr-1e-6", partial(_diabetes, {"optimizer": adam(1e-6)}), DIABETES, LOW),
    Program("regression-sigmoid-output", partial(_friedman, output=nn.Sigmoid()), REF, OUTPUT, ("4", "5")),
    Program(
        "regression-relu-output",
        partial(_friedman, output=nn.ReLU()),
        REF,
        (*OUTPUT, "dead-units"),
        ("4", "5"),
    ),
    Program("regression-broadcast", partial(_friedman, {"loss": _broadcast}), REF, OUTPUT, ("4",)),
    Program(
        "regression-flipped-loss",
        partial(_friedman, {"loss": _flipped}),
        REF,
        ("loss-divergence", "output-mismatch"),
    ),
    Program(
        "regression-summed-loss",
        partial(_friedman, {"loss": _summed, "optimizer": sgd(0.05)}),
        REF,
        (*HIGH, "exploding-gradient"),
    ),
    Program(
        "regression-target-far",
        partial(_target, 30.0, 3000.0, {"optimizer": adam(1e-3)}),
        "regression-target-standard",
        ("output-mismatch", "unscaled-input", "learning-rate-too-low"),
    ),
    Program(
        "regression-raw-input",
        partial(_raw_diabetes, 300.0, 3000.0),
        "regression-diabetes-tanh-sgd",
        ("unscaled-input",),
        ("0", "1"),
    ),
    Program(
        "regression-waves-never-zeroed",
        partial(_waves, {"zero_gradients": False, "optimizer": sgd(0.05)}),
        WAVES,
        ("gradient-not-zeroed",),
    ),
    Program(
        "regression-diabetes-decay-20",
        partial(_diabetes, {"optimizer": adamw(1e-2, weight_decay=50.0)}),
        "regression-diabetes-decay",
        ("excessive-weight-decay",),
    ),
    Program(
        "regression-all-equal",
        partial(_friedman, initialise=net.constant(0.1)),
        REF,
        ("symmetric-weights", "poor-initialization"),
    ),
    Program(
        "regression-sigmoid-8",
        partial(_friedman, sizes=(10, *[32] * 8, 1), activation=nn.Sigmoid, initialise=None),
        REF,
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
    ),
)
