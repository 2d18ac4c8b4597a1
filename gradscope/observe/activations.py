"""Activations: their canonical names, how they show in the autograd graph, and where they saturate."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn

NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.RReLU: "rrelu",
    nn.ELU: "elu",
    nn.CELU: "celu",
    nn.SELU: "selu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Softplus: "softplus",
    nn.Softsign: "softsign",
    nn.Hardtanh: "hardtanh",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.Hardshrink: "hardshrink",
    nn.Softshrink: "softshrink",
    nn.Tanhshrink: "tanhshrink",
    nn.LogSigmoid: "logsigmoid",
    nn.Threshold: "threshold",
    nn.GLU: "glu",
    nn.Softmax: "softmax",
    nn.Softmax2d: "softmax",
    nn.Softmin: "softmin",
    nn.LogSoftmax: "log_softmax",
}

# Autograd functions of the functional forms. Softmax is left out: it belongs to losses and attention.
FUNCTIONS: dict[str, str] = {
    "ReluBackward0": "relu",
    "LeakyReluBackward0": "leaky_relu",
    "PreluKernelBackward0": "prelu",
    "RreluWithNoiseBackward0": "rrelu",
    "EluBackward0": "elu",
    "GeluBackward0": "gelu",
    "SiluBackward0": "silu",
    "MishBackward0": "mish",
    "TanhBackward0": "tanh",
    "SigmoidBackward0": "sigmoid",
    "SoftplusBackward0": "softplus",
    "HardtanhBackward0": "hardtanh",
    "HardsigmoidBackward0": "hardsigmoid",
    "HardswishBackward0": "hardswish",
    "LogSigmoidBackward0": "logsigmoid",
    "GluBackward0": "glu",
    "ThresholdBackward0": "threshold",
}

RECTIFIERS = ("relu", "relu6")
SELU_SCALE = 1.0507009873554805

# A derivative under 5 % of its maximum: tanh' = 1 − y², sigmoid' = y (1 − y), softsign' = (1 − |y|)².
_SHARE = 0.05
_TANH = math.sqrt(1 - _SHARE)
_SIGMOID = 0.5 + 0.5 * math.sqrt(1 - _SHARE)
_SOFTSIGN = 1 - math.sqrt(_SHARE)


class Limits(NamedTuple):
    """The open interval in which an activation is not saturated."""

    low: float
    high: float


OUTPUT_LIMITS: dict[str, Limits] = {
    "tanh": Limits(-_TANH, _TANH),
    "sigmoid": Limits(1 - _SIGMOID, _SIGMOID),
    "softsign": Limits(-_SOFTSIGN, _SOFTSIGN),
    "hardtanh": Limits(-1.0, 1.0),
    "hardsigmoid": Limits(0.0, 1.0),
}

INPUT_LIMITS: dict[str, Limits] = {
    "tanh": Limits(-math.atanh(_TANH), math.atanh(_TANH)),
    "sigmoid": Limits(math.log(1 / _SIGMOID - 1), -math.log(1 / _SIGMOID - 1)),
    "softsign": Limits(1 - 1 / math.sqrt(_SHARE), 1 / math.sqrt(_SHARE) - 1),
    "hardtanh": Limits(-1.0, 1.0),
    "hardsigmoid": Limits(-3.0, 3.0),
}


def name_of_module(module: nn.Module) -> str | None:
    """Return the canonical name of the activation that a module computes, None if it is no activation."""
    for kind in type(module).__mro__:
        if kind in NAMES:
            return NAMES[kind]
    return None


def name_of_function(function: Any) -> str | None:
    """Return the canonical name of the activation that an autograd node differentiates, if any."""
    name = FUNCTIONS.get(function.name())
    if name == "elu" and math.isclose(getattr(function, "_saved_scale", 1.0), SELU_SCALE, rel_tol=1e-6):
        return "selu"
    if name == "hardtanh" and getattr(function, "_saved_min_val", -1.0) == 0.0:
        return "relu6"
    return name


def limits_of_module(module: nn.Module) -> Limits | None:
    """Return between which outputs an activation module is not saturated; None if it isn't bounded."""
    if type(module) is nn.Hardtanh:
        return Limits(float(module.min_val), float(module.max_val))
    return OUTPUT_LIMITS.get(name_of_module(module) or "")


def is_half(dtype: torch.dtype) -> bool:
    """Return whether a dtype is narrower than float32."""
    return dtype.is_floating_point and dtype.itemsize < 4
