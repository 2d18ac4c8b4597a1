"""Theory against the tables of the literature and against simulated random networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.diagnose import theory

GAINS = {  # root-mean-square gain at the fixed point: torch's default, Xavier, He
    "relu": (0.408, 0.707, 1.000),
    "tanh": (0.576, 1.000, 1.051),
    "sigmoid": (0.141, 0.236, 0.318),
    "gelu": (0.289, 0.500, 0.707),
}


@pytest.mark.parametrize("activation", GAINS)
def test_gains_agree_with_the_known_table(activation: str) -> None:
    gains = [theory.gain(activation, sigma) for sigma in (1 / 3, 1.0, 2.0)]
    assert gains == pytest.approx(GAINS[activation], abs=0.002)


def test_selu_gains_agree_with_the_known_table() -> None:
    assert theory.gain("selu", 1.0) == pytest.approx(1.033, abs=0.003)
    assert theory.gain("selu", 2.0) == pytest.approx(1.051, abs=0.001)
    # The table's 0.808 was measured with torch's biases, of variance 1 / (3 fan_in), at some width.
    assert theory.gain("selu", 1 / 3, 1 / (3 * 32)) < 0.808 < theory.gain("selu", 1 / 3)


@pytest.mark.parametrize(
    ("bias", "critical"), [(0.0, 1.00), (0.01, 1.42), (0.05, 1.76), (0.1, 1.99), (0.2, 2.29)]
)
def test_critical_variance_of_tanh(bias: float, critical: float) -> None:
    assert theory.critical_sigma_w2("tanh", bias) == pytest.approx(critical, abs=0.006)


def test_critical_variance_of_rectifiers() -> None:
    assert theory.critical_sigma_w2("relu") == pytest.approx(2.0)
    assert theory.critical_sigma_w2("leaky_relu") == pytest.approx(2 / (1 + 0.01**2))
    assert theory.critical_sigma_w2("identity") == pytest.approx(1.0)


def test_gain_is_one_at_the_critical_variance() -> None:
    for activation in ("relu", "tanh", "hardtanh", "elu"):
        critical = theory.critical_sigma_w2(activation, 0.05 if activation == "tanh" else 0.0)
        bias = 0.05 if activation == "tanh" else 0.0
        assert theory.gain(activation, critical, bias) == pytest.approx(1.0, abs=0.01)


def test_batch_norm_gains_agree_with_yang() -> None:
    assert theory.batch_norm_gain("relu") == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), abs=1e-5)
    assert theory.batch_norm_gain("tanh") == pytest.approx(1.09, abs=0.01)
    assert theory.batch_norm_gain("identity") == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("width", "depth", "deviation"), [(50, 20, 1.38), (100, 50, 1.58), (500, 50, 0.71)])
def test_fluctuation_agrees_with_hanin(width: int, depth: int, deviation: float) -> None:
    mean, predicted = theory.fluctuation([width] * (depth - 1))
    assert predicted == pytest.approx(deviation, rel=0.03)
    assert mean == pytest.approx(-2.5 * (depth - 1) / width)


def test_born_dead_probability() -> None:
    assert theory.born_dead([1]) == pytest.approx(0.5)
    assert theory.born_dead([5] * 16) == pytest.approx(1 - (1 - 2**-5) ** 16)
    assert theory.born_dead([64] * 50) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("activation", sorted(theory.ACTIVATIONS))
def test_derivative_is_that_of_the_function(activation: str) -> None:
    known = theory.ACTIVATIONS[activation]
    x = np.linspace(-4, 4, 97) + 0.0123
    numeric = (known.function(x + 1e-6) - known.function(x - 1e-6)) / 2e-6
    assert known.derivative(x) == pytest.approx(numeric, abs=1e-5)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "selu", "sigmoid"])
def test_one_layer_of_a_wide_random_network_does_as_predicted(activation: str) -> None:
    random, width, sigma = np.random.default_rng(0), 1500, 1.5
    preactivation = random.standard_normal(width)
    weight = random.standard_normal((width, width)) * math.sqrt(sigma / width)
    known = theory.ACTIVATIONS[activation]
    following = weight @ known.function(preactivation)
    gradient = (weight.T @ random.standard_normal(width)) * known.derivative(preactivation)
    assert np.mean(following**2) == pytest.approx(sigma * theory.mean_square(activation, 1.0), rel=0.12)
    assert np.mean(gradient**2) == pytest.approx(theory.chi(activation, sigma, 1.0), rel=0.12)


@given(st.floats(0.1, 4), st.floats(0.01, 10))
def test_chi_grows_in_proportion_to_the_variance(sigma: float, q: float) -> None:
    assert theory.chi("tanh", 2 * sigma, q) == pytest.approx(2 * theory.chi("tanh", sigma, q))


@given(st.sampled_from(sorted(theory.BOUNDED)), st.floats(0.05, 50))
def test_saturated_share_is_a_share_and_grows_with_the_scale(activation: str, q: float) -> None:
    share = theory.saturated_share(activation, q)
    assert 0 <= share <= theory.saturated_share(activation, 4 * q) + 1e-9 <= 1 + 1e-6


def test_unknown_activation_is_refused() -> None:
    assert not theory.known("softmax")
    assert not theory.known(None)
    with pytest.raises(ValueError, match="no theory"):
        theory.gain("softmax", 1.0)


def test_depth_scale() -> None:
    assert theory.depth_scale(math.exp(-0.5)) == pytest.approx(2.0)
    assert theory.depth_scale(1.0) == math.inf
