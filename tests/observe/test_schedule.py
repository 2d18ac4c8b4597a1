"""Which steps are recorded."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gradscope.observe.schedule import schedule_from
from gradscope.settings import Settings


def test_every_n_steps() -> None:
    due = schedule_from(Settings(every_n_steps=7))
    assert [step for step in range(30) if due(step)] == [0, 7, 14, 21, 28]


def test_auto_is_dense_then_sixteen_a_doubling_then_every_fifty() -> None:
    due = schedule_from(Settings())
    recorded = [step for step in range(20_000) if due(step)]
    assert recorded[:32] == list(range(32))
    assert sum(32 <= step < 64 for step in recorded) == 16
    assert sum(256 <= step < 512 for step in recorded) == 16
    gaps = [after - before for before, after in pairwise(recorded)]
    assert max(gaps) == 50


@given(st.integers(0, 10**9), st.integers(1, 100), st.integers(1, 50), st.integers(1, 500))
def test_no_gap_is_longer_than_allowed(start: int, dense: int, per_doubling: int, longest: int) -> None:
    settings = Settings(dense_steps=dense, steps_per_doubling=per_doubling, longest_interval=longest)
    due = schedule_from(settings)
    assert any(due(step) for step in range(start, start + longest))
