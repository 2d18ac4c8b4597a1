"""The mean cosine between rows against a plain float64 computation, by both implementations, and its laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradscope.summarise import Between, mean_cosine
from gradscope.summarise.cosine import LINE, LINES, ROWS
from gradscope.summarise.host import MOMENTS_WANTED, RESULT, is_compiled
from gradscope.summarise.ledger import Ledger

Measure = Callable[[Tensor, Between], float]


def by_torch(tensor: Tensor, between: Between) -> float:
    return float(mean_cosine(tensor[None], between))


def in_place(tensor: Tensor, between: Between) -> float:
    ledger = Ledger(1, MOMENTS_WANTED)
    ledger.read_as(0, between=between)
    assert ledger.add(0, tensor)
    return float(ledger.take()[2][RESULT, 0])


@pytest.fixture(params=["torch", "compiled"])
def measure(request: pytest.FixtureRequest) -> Measure:
    if request.param == "compiled" and not is_compiled():
        pytest.skip("there is no compiler")
    return by_torch if request.param == "torch" else in_place


def plain(rows: Tensor) -> float:
    """Return the mean of all cosines of the rows that are read, pair by pair."""
    used = min(len(rows), ROWS)
    chosen = [rows[index * (len(rows) // used)].double() for index in range(used)]
    if rows.shape[1] > LINES * LINE:
        apart = rows.shape[1] // LINES
        chosen = [torch.cat([row[j * apart : j * apart + LINE] for j in range(LINES)]) for row in chosen]
    chosen = [row for row in chosen if row.any()]
    pairs = [
        float(a @ b / (a.norm() * b.norm()))
        for i, a in enumerate(chosen)
        for j, b in enumerate(chosen)
        if i != j
    ]
    return sum(pairs) / len(pairs) if pairs else math.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 3), (16, 64), (37, 5), (100, 3000), (7, 8, 9), (3, 40, 16), (4, 3, 6, 5)]
)
def test_it_is_the_mean_over_pairs_of_rows(
    measure: Measure, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.3).to(dtype)
    assert measure(tensor, "samples") == pytest.approx(plain(tensor.flatten(1)), abs=1e-12)
    if tensor.dim() > 2:
        tokens = tensor[0].flatten(0, -2)
        assert measure(tensor, "tokens") == pytest.approx(plain(tokens), abs=1e-12)


def test_rows_that_are_the_same_have_cosine_one(measure: Measure) -> None:
    assert measure(torch.randn(8).expand(5, 8).contiguous(), "samples") == pytest.approx(1.0, abs=1e-14)


def test_zero_rows_are_left_out(measure: Measure) -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert measure(rows, "samples") == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(4, 3), torch.ones(1, 3), torch.tensor([[1.0, math.nan], [1.0, 0.0]]), torch.ones(5)],
)
def test_without_two_finite_rows_it_is_missing(measure: Measure, tensor: Tensor) -> None:
    assert math.isnan(measure(tensor, "samples"))


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(2, ROWS),
    width=st.integers(1, 40),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 1000),
)
def test_scale_and_order_change_nothing(rows: int, width: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(rows, width, dtype=torch.float64, generator=generator)
    value = by_torch(tensor, "samples")
    assert -1 / (rows - 1) - 1e-9 <= value <= 1
    shuffled = scale * tensor[torch.randperm(rows, generator=generator)]
    assert by_torch(shuffled, "samples") == pytest.approx(value, abs=1e-9)
    if is_compiled():
        assert in_place(shuffled, "samples") == pytest.approx(value, abs=1e-9)
