"""Names, figures and loops in the code that remedies offer."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.prescribe.paste import figure, name_list, rounded, some, through

PART = st.one_of(
    st.integers(0, 40).map(str),
    st.text(min_size=1, max_size=6).filter(lambda text: "." not in text),
    st.sampled_from(["01", "it's", '"q"', "{brace}", "back\\slash", "zwei wörter", "new\nline", "²"]),
)
NAMES = st.lists(st.lists(PART, min_size=1, max_size=4).map(".".join), max_size=40)


@given(NAMES)
def test_a_name_list_evaluates_to_its_names(names: list[str]) -> None:
    assert sorted(eval(name_list(names))) == sorted(set(names))


def test_many_numbered_names_become_one_loop() -> None:
    assert name_list([f"net.{index}" for index in range(0, 60, 2)]) == "[f'net.{i}' for i in range(0, 60, 2)]"
    names = [f"blocks.{block}.fc{layer}" for block in range(200) for layer in (1, 2)]
    assert len(name_list(names)) < 150
    assert sorted(eval(name_list(names))) == sorted(names)


@given(st.floats(1e-30, 1e30))
def test_rounding_stays_within_a_third(value: float) -> None:
    assert abs(math.log(rounded(value) / value)) < math.log(1.5)
    assert float(figure(rounded(value))) == pytest.approx(rounded(value))


def test_figures() -> None:
    assert [figure(value) for value in (0.408, 1.2e-12, 100.0, 1e8, math.nan)] == [
        "0.408",
        "1.2e-12",
        "100",
        "1e8",
        "nan",
    ]
    assert [through(gain, 30) for gain in (0.408, 1.0, 1.211, 0.0)] == ["1e-12", "1", "312", "1e-inf"]
    assert some(["a", "b", "c", "d"]) == "a, b, c and 1 more"
