"""Effects against scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradscope.treat.effect import WORST, final_loss, improvement, paired_interval

NUMBERS = st.floats(-1e3, 1e3, allow_nan=False)


@given(st.lists(NUMBERS, min_size=2, max_size=40))
def test_interval_equals_scipys(differences: list[float]) -> None:
    centre, low, high = paired_interval(differences)
    spread = np.std(differences, ddof=1) / math.sqrt(len(differences))
    reach = stats.t.ppf(0.975, len(differences) - 1) * spread
    assert centre == pytest.approx(np.mean(differences), abs=1e-9)
    assert high - centre == pytest.approx(reach, rel=0.02, abs=1e-9)
    assert centre - low == pytest.approx(reach, rel=0.02, abs=1e-9)


def test_one_difference_has_no_interval() -> None:
    assert paired_interval([0.3]) == (0.3, -math.inf, math.inf)


def test_no_difference_is_no_number() -> None:
    assert all(math.isnan(value) for value in paired_interval([]))


@given(NUMBERS, NUMBERS)
def test_improvement_is_bounded(initial: float, final: float) -> None:
    assert WORST <= improvement(initial, final) <= 1.0


@pytest.mark.parametrize(
    ("initial", "final", "expected"),
    [
        (2.0, 0.0, 1.0),
        (2.0, 1.0, 0.5),
        (2.0, 2.0, 0.0),
        (2.0, 9.0, -1.0),
        (2.0, math.nan, -1.0),
        (-1.0, -1.5, 0.5),
    ],
)
def test_improvement(initial: float, final: float, expected: float) -> None:
    assert improvement(initial, final) == pytest.approx(expected)


def test_final_loss_is_the_mean_of_the_last_tenth() -> None:
    assert final_loss([float(value) for value in range(100)]) == pytest.approx(94.5)
    assert math.isnan(final_loss([1.0] * 99 + [math.inf]))
    assert math.isnan(final_loss([]))
