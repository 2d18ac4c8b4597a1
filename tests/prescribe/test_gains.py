"""The table of gains against the quadrature that the rules use."""

from __future__ import annotations

import math

import pytest

from gradscope.diagnose import theory
from gradscope.prescribe.gains import GAINS, born_dead, gain_at, gain_with, scheme_for


@pytest.mark.parametrize("activation", GAINS)
def test_table_agrees_with_theory(activation: str) -> None:
    expected = (
        *(theory.gain(activation, variance) for variance in (1 / 3, 1.0, 2.0)),
        theory.batch_norm_gain(activation),
        theory.layer_norm_gain(activation),
    )
    assert GAINS[activation] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("activation", ["relu", "tanh", "selu", "elu", "leaky_relu", "softsign"])
def test_the_scheme_of_an_activation_keeps_the_gradient_through_ten_layers(activation: str) -> None:
    gain = gain_with(scheme_for(activation), activation)
    assert gain is not None
    assert 0.6 < gain**10 < 1.7


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu", "tanh", "identity"])
def test_closed_forms_agree_with_theory(activation: str) -> None:
    for variance in (0.1, 1 / 3, 0.9):
        assert gain_at(activation, variance) == pytest.approx(theory.gain(activation, variance), rel=0.02)
    assert gain_at(activation, None) is None
    assert gain_at("gelu", 1.0) is None


def test_born_dead() -> None:
    assert born_dead(11, 5) == pytest.approx(theory.born_dead([5] * 11))
    assert born_dead(0, 5) == 0
    assert born_dead(30, math.inf) == 0
