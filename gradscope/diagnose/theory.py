"""Predict, from initialisation and activation alone, how much a gradient grows or shrinks a layer.

Mean-field theory of wide random networks (Poole et al. 2016, Schoenholz et al. 2017): pre-activations are
Gaussian with variance q, weights have variance sigma_w² / fan_in and biases sigma_b². A layer maps q to
sigma_w² E[phi(sqrt(q) z)²] + sigma_b², and the squared gradient to chi_1 = sigma_w² E[phi'(sqrt(q) z)²] times
itself. chi_1 = 1 is critical: gradients keep their size at any depth. It assumes no skips and no gating.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# The midpoint rule, unlike Gauss–Hermite, does not trip over the kinks of rectifiers, and for smooth
# functions under a Gaussian weight it converges just as fast.
_SPACING = 0.01
_NODES: Array = np.arange(-1200, 1200, dtype=np.float64) * _SPACING + _SPACING / 2
_WEIGHTS: Array = np.exp(-(_NODES**2) / 2) / math.sqrt(2 * math.pi) * _SPACING

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


@dataclass(frozen=True)
class Activation:
    """An activation function and its derivative, both elementwise."""

    function: Callable[[Array], Array]
    derivative: Callable[[Array], Array]


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(x / 2))


def _softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(0.0, x))


def _normal_cdf(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0))))


def _normal_density(x: Array) -> Array:
    return np.asarray(np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi))


def _expm1_below(x: Array) -> Array:
    return np.asarray(np.expm1(np.minimum(x, 0.0)))


def _mish_derivative(x: Array) -> Array:
    inner = np.tanh(_softplus(x))
    return np.asarray(inner + x * (1 - inner**2) * _sigmoid(x))


def _leaky(slope: float) -> Activation:
    return Activation(lambda x: np.where(x > 0, x, slope * x), lambda x: np.where(x > 0, 1.0, slope))


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda x: x, np.ones_like),
    "relu": _leaky(0.0),
    "leaky_relu": _leaky(0.01),
    "prelu": _leaky(0.25),
    "rrelu": _leaky(11 / 48),
    "relu6": Activation(lambda x: np.clip(x, 0, 6), lambda x: np.where((x > 0) & (x < 6), 1.0, 0.0)),
    "elu": Activation(
        lambda x: np.where(x > 0, x, _expm1_below(x)), lambda x: np.where(x > 0, 1.0, _expm1_below(x) + 1)
    ),
    "celu": Activation(
        lambda x: np.where(x > 0, x, _expm1_below(x)), lambda x: np.where(x > 0, 1.0, _expm1_below(x) + 1)
    ),
    "selu": Activation(
        lambda x: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * _expm1_below(x)),
        lambda x: _SELU_SCALE * np.where(x > 0, 1.0, _SELU_ALPHA * (_expm1_below(x) + 1)),
    ),
    "gelu": Activation(
        lambda x: x * _normal_cdf(x), lambda x: np.asarray(_normal_cdf(x) + x * _normal_density(x))
    ),
    "silu": Activation(
        lambda x: x * _sigmoid(x), lambda x: np.asarray(_sigmoid(x) * (1 + x * (1 - _sigmoid(x))))
    ),
    "mish": Activation(lambda x: x * np.tanh(_softplus(x)), _mish_derivative),
    "tanh": Activation(np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": Activation(_sigmoid, lambda x: _sigmoid(x) * (1 - _sigmoid(x))),
    "softplus": Activation(_softplus, _sigmoid),
    "softsign": Activation(lambda x: x / (1 + np.abs(x)), lambda x: 1 / (1 + np.abs(x)) ** 2),
    "hardtanh": Activation(lambda x: np.clip(x, -1, 1), lambda x: np.where(np.abs(x) < 1, 1.0, 0.0)),
    "hardsigmoid": Activation(
        lambda x: np.clip(x / 6 + 0.5, 0, 1), lambda x: np.where(np.abs(x) < 3, 1 / 6, 0.0)
    ),
    "hardswish": Activation(
        lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
        lambda x: np.where(np.abs(x) < 3, x / 3 + 0.5, np.where(x > 0, 1.0, 0.0)),
    ),
    "logsigmoid": Activation(lambda x: -_softplus(-x), lambda x: _sigmoid(-x)),
    "tanhshrink": Activation(lambda x: x - np.tanh(x), lambda x: np.tanh(x) ** 2),
    "softshrink": Activation(
        lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0), lambda x: np.where(np.abs(x) > 0.5, 1.0, 0.0)
    ),
    "hardshrink": Activation(
        lambda x: np.where(np.abs(x) > 0.5, x, 0.0), lambda x: np.where(np.abs(x) > 0.5, 1.0, 0.0)
    ),
}
BOUNDED = frozenset({"tanh", "sigmoid", "softsign", "hardtanh", "hardsigmoid"})
RECTIFIERS = frozenset({"relu", "leaky_relu", "prelu", "rrelu", "relu6"})
ALIASES = {"linear": "identity", "swish": "silu", "hard_tanh": "hardtanh", "hard_sigmoid": "hardsigmoid"}


def known(activation: str | None) -> bool:
    """Say whether theory covers an activation of this name."""
    return activation is not None and ALIASES.get(activation, activation) in ACTIVATIONS


def _expected(values: Array) -> float:
    return float(np.dot(values, _WEIGHTS))


@lru_cache(maxsize=4096)
def mean(activation: str, q: float) -> float:
    """Return E[phi(sqrt(q) z)] for standard normal z."""
    return _expected(_lookup(activation).function(math.sqrt(q) * _NODES))


@lru_cache(maxsize=4096)
def mean_square(activation: str, q: float) -> float:
    """Return E[phi(sqrt(q) z)²] for standard normal z."""
    return _expected(_lookup(activation).function(math.sqrt(q) * _NODES) ** 2)


@lru_cache(maxsize=4096)
def mean_square_slope(activation: str, q: float) -> float:
    """Return E[phi'(sqrt(q) z)²] for standard normal z."""
    return _expected(_lookup(activation).derivative(math.sqrt(q) * _NODES) ** 2)


def _lookup(activation: str) -> Activation:
    name = ALIASES.get(activation, activation)
    if name not in ACTIVATIONS:
        raise ValueError(f"no theory for the activation {activation!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


@lru_cache(maxsize=4096)
def fixed_point(activation: str, sigma_w2: float, sigma_b2: float = 0.0, steps: int = 1000) -> float:
    """Return q*, the variance of pre-activations deep in the network; infinity if it grows without bound."""
    phi = _lookup(activation)
    q = 1.0
    for _ in range(steps):
        square = _expected(phi.function(math.sqrt(q) * _NODES) ** 2)
        following = sigma_w2 * square + sigma_b2
        if following > 1e12:
            return math.inf
        if abs(following - q) <= 1e-10 * q or following < 1e-20:
            return following
        q = following
    return q


def variance_before(activation: str, square: float) -> float:
    """Return the variance of the pre-activations whose outputs have this mean square."""
    low, high = 1e-12, 1e6
    for _ in range(80):
        middle = math.sqrt(low * high)
        if _expected(_lookup(activation).function(math.sqrt(middle) * _NODES) ** 2) < square:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def chi(activation: str, sigma_w2: float, q: float) -> float:
    """Return the factor by which a layer multiplies the squared gradient, at pre-activation variance q."""
    return sigma_w2 * mean_square_slope(activation, min(q, 1e12))


def gain(activation: str, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """Return the predicted gain of the gradient's root mean square a layer, deep in the network."""
    q = fixed_point(activation, sigma_w2, sigma_b2)
    return math.sqrt(chi(activation, sigma_w2, q))


def depth_scale(chi_1: float) -> float:
    """Return over how many layers the squared gradient changes by a factor e; infinity at criticality."""
    return math.inf if chi_1 == 1.0 else abs(1.0 / math.log(chi_1)) if chi_1 > 0 else 0.0


def sigma_w2(weight_std: float, fan_in: int) -> float:
    """Return sigma_w² of a layer: its weights' variance times the number of inputs of a unit."""
    return fan_in * weight_std**2


@lru_cache(maxsize=256)
def critical_sigma_w2(activation: str, sigma_b2: float = 0.0) -> float:
    """Return the sigma_w² at which gradients neither vanish nor explode (chi_1 = 1); NaN if there is none.

    For each variance q there is one sigma_w² that makes q a fixed point; the q with chi_1 = 1 is sought.
    """
    lowest = sigma_b2 * (1 + 1e-9) if sigma_b2 > 0 else 1e-6
    grid = np.geomspace(max(lowest, 1e-6), 1e4, 400)
    if mean_square(activation, float(grid[0])) == 0.0:
        return math.nan
    excess = [_excess(activation, float(q), sigma_b2) for q in grid]
    if abs(excess[0]) < 1e-3:
        return _self_consistent(activation, float(grid[0]), sigma_b2)
    for index in range(1, len(grid)):
        if excess[index - 1] * excess[index] <= 0:
            q = _bisect(activation, float(grid[index - 1]), float(grid[index]), sigma_b2)
            return _self_consistent(activation, q, sigma_b2)
    return math.nan


def _self_consistent(activation: str, q: float, sigma_b2: float) -> float:
    return (q - sigma_b2) / mean_square(activation, q)


def _excess(activation: str, q: float, sigma_b2: float) -> float:
    return chi(activation, _self_consistent(activation, q, sigma_b2), q) - 1.0


def _bisect(activation: str, low: float, high: float, sigma_b2: float) -> float:
    rising = _excess(activation, low, sigma_b2) < 0
    for _ in range(60):
        middle = math.sqrt(low * high)
        if (_excess(activation, middle, sigma_b2) < 0) == rising:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def batch_norm_gain(activation: str) -> float:
    """Return the gradient's gain a layer of Linear, BatchNorm, activation without skips (Yang et al. 2019).

    sqrt(E[phi'²] / Var[phi]) at unit variance: sqrt(pi / (pi - 1)) = 1.211 for ReLU, 1 for none.
    """
    spread = mean_square(activation, 1.0) - mean(activation, 1.0) ** 2
    return math.sqrt(mean_square_slope(activation, 1.0) / spread)


def layer_norm_gain(activation: str) -> float:
    """Return the gradient's gain a layer of Linear, LayerNorm, activation without skips, at great width."""
    return math.sqrt(mean_square_slope(activation, 1.0) / mean_square(activation, 1.0))


def fluctuation(widths: list[int]) -> tuple[float, float]:
    """Return mean and deviation of log(|g_1|² / |g_L|²) over healthy He ReLU networks (Hanin 2018)."""
    beta = sum(1.0 / width for width in widths)
    return -2.5 * beta, math.sqrt(5.0 * beta)


def born_dead(widths: list[int]) -> float:
    """Return the probability that a ReLU network without biases is dead at birth (Lu et al. 2019)."""
    return 1.0 - math.prod(1.0 - 2.0**-width for width in widths)


def saturated_share(activation: str, q: float, floor: float = 0.05) -> float:
    """Return the expected share of units whose slope is under `floor` of the largest slope."""
    slopes = np.abs(_lookup(activation).derivative(math.sqrt(q) * _NODES))
    return _expected((slopes < floor * largest_slope(activation)).astype(np.float64))


def largest_slope(activation: str) -> float:
    """Return the largest derivative of an activation: 1 for tanh, 1/4 for a sigmoid."""
    return float(np.abs(_lookup(activation).derivative(_NODES)).max())
