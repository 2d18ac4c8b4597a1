"""How much a layer amplifies the gradient, by activation, initialisation and normalisation.

Gains of the root mean square, by mean-field theory of wide networks without skips: Poole et al. 2016 and
Schoenholz et al. 2017 at the signal's fixed point, sqrt(sigma_w² E[phi'²]); Yang et al. 2019 for batch
normalisation before the activation, sqrt(E[phi'²] / Var[phi]); for layer normalisation it is
sqrt(E[phi'²] / E[phi²]).
"""

from __future__ import annotations

from typing import NamedTuple


class Gains(NamedTuple):
    """Gains per layer: with torch's own, Xavier's and He's initialisation, with batch and layer norm."""

    default: float
    xavier: float
    he: float
    batch: float
    layer: float


GAINS: dict[str, Gains] = {
    "identity": Gains(0.577, 1.000, 1.414, 1.000, 1.000),
    "relu": Gains(0.408, 0.707, 1.000, 1.211, 1.000),
    "relu6": Gains(0.408, 0.707, 1.000, 1.211, 1.000),
    "leaky_relu": Gains(0.408, 0.707, 1.000, 1.206, 1.000),
    "prelu": Gains(0.421, 0.729, 1.031, 1.097, 1.000),
    "rrelu": Gains(0.419, 0.725, 1.026, 1.104, 1.000),
    "elu": Gains(0.577, 0.999, 1.006, 1.039, 1.018),
    "celu": Gains(0.577, 0.999, 1.006, 1.039, 1.018),
    "selu": Gains(0.836, 1.035, 1.051, 1.035, 1.035),
    "gelu": Gains(0.289, 0.500, 0.707, 1.148, 1.035),
    "silu": Gains(0.289, 0.500, 0.707, 1.101, 1.033),
    "hardswish": Gains(0.289, 0.500, 0.707, 1.086, 1.040),
    "mish": Gains(0.346, 0.600, 0.849, 1.102, 1.029),
    "softplus": Gains(0.295, 0.537, 0.971, 1.039, 0.564),
    "logsigmoid": Gains(0.295, 0.537, 0.971, 1.039, 0.564),
    "sigmoid": Gains(0.141, 0.236, 0.318, 1.017, 0.391),
    "hardsigmoid": Gains(0.096, 0.167, 0.236, 1.001, 0.316),
    "tanh": Gains(0.577, 0.999, 1.051, 1.085, 1.085),
    "hardtanh": Gains(0.577, 1.000, 1.156, 1.150, 1.150),
    "softsign": Gains(0.577, 0.999, 1.021, 1.115, 1.115),
}

# The initialisation for an activation where it isn't Xavier's (He et al. 2015, Klambauer et al. 2017).
SCHEMES: dict[str, str] = {
    "relu": "he",
    "relu6": "he",
    "leaky_relu": "he",
    "prelu": "he",
    "rrelu": "he",
    "gelu": "he",
    "silu": "he",
    "hardswish": "he",
    "mish": "he",
    "softplus": "he",
    "selu": "lecun",
}

EMBEDDING_SPREAD = 0.1  # small beside what is learned, far from zero; torch's own is 1

_SLOPES = {"relu": 0.0, "leaky_relu": 0.01, "prelu": 0.25, "identity": 1.0}  # below zero


def scheme_for(activation: str | None) -> str:
    """Return the initialisation that suits an activation: "he", "lecun" or "xavier"."""
    return SCHEMES.get(activation or "", "xavier")


def gain_with(scheme: str, activation: str | None) -> float | None:
    """Return the gain per layer under an initialisation or a normalisation; None if theory has no figure.

    scheme: "default", "xavier", "lecun", "orthogonal", "he", "batch", "layer" or "group".
    """
    gains = GAINS.get(activation or "")
    column = {"lecun": "xavier", "orthogonal": "xavier", "group": "layer"}.get(scheme, scheme)
    return None if gains is None else float(getattr(gains, column))


def gain_at(activation: str | None, weight_variance: float | None) -> float | None:
    """Return the gain per layer where it has a closed form in fan-in times weight variance, else None.

    Rectifiers: sqrt(sigma_w² (1 + slope²) / 2); bounded functions of slope 1 up to sigma_w² = 1: sigma_w.
    """
    if weight_variance is None or weight_variance <= 0:
        return None
    if activation in _SLOPES:
        return float((weight_variance * (1 + _SLOPES[activation] ** 2) / 2) ** 0.5)
    unit_slope = activation in ("tanh", "hardtanh", "softsign") and weight_variance <= 1
    return float(weight_variance**0.5) if unit_slope else None


def born_dead(depth: int, width: float) -> float:
    """Return the probability that some layer of a ReLU network starts all dead (Lu et al. 2019)."""
    return float(1 - (1 - 2.0 ** -max(width, 1)) ** max(depth, 0))
