"""A long run stays small; benchmarks/size.py has the figures."""

from __future__ import annotations

from benchmarks.size import LONG, megabytes, recorded_of


def test_a_million_steps_of_sixty_layers_take_less_than_150_megabytes() -> None:
    assert recorded_of(LONG) < LONG / 49
    assert megabytes(30, steps=256) < 150
