"""The rate that ends lowest is found, whatever blows up beside it."""

from __future__ import annotations

import math

from gradscope.treat.rate_search import find_rate


def test_the_rate_that_ends_lowest_is_found_within_a_share_of_the_steps() -> None:
    asked: list[int] = []

    def attempt(rate: float, steps: int) -> list[float]:
        asked.append(steps)
        end = math.nan if rate >= 1 else abs(math.log10(rate) + 2)
        return [5.0] * (steps - 1) + [end] * 3

    assert find_rate((1e-3, 1e-2, 1e-1, 1.0), 400, attempt) == 1e-2
    assert asked == [60] * 4
    assert find_rate((1.0, 10.0), 400, attempt) == 1.0  # none stays finite: the least harm


def test_a_short_training_is_searched_within_its_own_steps() -> None:
    assert find_rate((1e-3,), 10, lambda rate, steps: [0.0] * steps) == 1e-3
