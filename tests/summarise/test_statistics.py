"""Statistics of rows and of whole tensors against plain float64 computations, and the laws they obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscope.summarise import (
    MOMENTS,
    count_between,
    dense_entries,
    live_units,
    magnitudes_of_rows,
    merge_calls,
    moments_of_padded,
    moments_of_rows,
    norms_of_rows,
)

DRAWS = {
    "normal": lambda n: torch.randn(n),
    "rectified": lambda n: torch.randn(n).relu(),
    "mean far above std": lambda n: 1000 + 0.01 * torch.randn(n),
    "constant": lambda n: torch.full((n,), 0.1),
    "tiny": lambda n: 1e-30 * torch.randn(n),
    "huge": lambda n: 1e25 * torch.randn(n),
    "zeros": lambda n: torch.zeros(n),
    "half": lambda n: torch.randn(n).half(),
    "bfloat16": lambda n: torch.randn(n).bfloat16(),
    "float64": lambda n: torch.randn(n, dtype=torch.float64),
}


def oracle(values: torch.Tensor) -> dict[str, float]:
    x = values.double().numpy()
    return {
        "mean": x.mean(),
        "std": x.std(),
        "rms": np.sqrt((x**2).mean()),
        "min": x.min(),
        "max": x.max(),
        "zero_fraction": (x == 0).mean(),
        "nonfinite": 0.0,
    }


def check(found: torch.Tensor, values: torch.Tensor) -> None:
    expected = oracle(values)
    scale = expected["rms"]
    for name, value in zip(MOMENTS, found.tolist(), strict=True):
        tolerance = 1e-6 * scale if name in ("mean", "std") else 0.0
        assert value == pytest.approx(expected[name], rel=2e-5, abs=tolerance), name


@pytest.mark.parametrize("kind", DRAWS)
def test_moments_of_rows_are_those_of_float64(kind: str) -> None:
    torch.manual_seed(0)
    rows = [DRAWS[kind](999) for _ in range(3)]
    matrix = torch.stack(rows)
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    for found, row in zip(moments_of_rows(matrix).T, rows, strict=True):
        check(found, row)


@pytest.mark.parametrize("kind", DRAWS)
def test_magnitudes_and_norms_are_those_of_float64(kind: str) -> None:
    torch.manual_seed(2)
    values = DRAWS[kind](5000)
    exact = values.double()
    wide = values if values.dtype == torch.float64 else values.float()
    rms, absmax = float(exact.square().mean().sqrt()), float(exact.abs().max())
    found = magnitudes_of_rows(wide[None])[:, 0]
    assert found[:2].tolist() == pytest.approx([rms, absmax], rel=1e-5)
    assert float(found[2]) == float((exact == 0).double().mean())
    assert float(norms_of_rows(wide[None])) == pytest.approx(float(exact.norm()), rel=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_entries_are_counted_and_blank_the_rest(bad: float) -> None:
    values = torch.ones(2, 100)
    values[1, 7] = values[1, 8] = bad
    found = moments_of_rows(values)
    assert found[-1].tolist() == [0.0, 2.0]
    assert found[:-1, 0].isfinite().all()
    assert found[:-1, 1].isnan().all()
    assert magnitudes_of_rows(values)[-1].tolist() == [0.0, 2.0]


def test_padding_counts_for_nothing() -> None:
    torch.manual_seed(4)
    rows = [torch.randn(7), torch.ones(10), 5 + 1e-3 * torch.randn(3), torch.tensor([0.0, 2.0])]
    matrix = torch.zeros(len(rows), 16)
    for index, row in enumerate(rows):
        matrix[index, : len(row)] = row
    found = moments_of_padded(matrix, torch.tensor([len(row) for row in rows], dtype=torch.float64))
    for values, row in zip(found.T.tolist(), rows, strict=True):
        expected = oracle(row)
        absmax = float(row.abs().max())
        assert values == pytest.approx(
            [expected["std"], expected["rms"], absmax, expected["zero_fraction"], 0.0], rel=1e-4, abs=1e-7
        )


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.floats(0.001, 1000))
def test_rms_scales_and_shares_stay_shares(values: list[float], factor: float) -> None:
    row = torch.tensor([values], dtype=torch.float64)
    found, scaled = moments_of_rows(row), moments_of_rows(row * factor)
    assert float(scaled[2]) == pytest.approx(abs(factor) * float(found[2]), rel=1e-9, abs=1e-300)
    assert 0.0 <= float(found[5]) <= 1.0


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=20), min_size=1, max_size=6))
def test_merged_calls_equal_the_whole(calls: list[list[float]]) -> None:
    tables = [moments_of_rows(torch.tensor([call], dtype=torch.float64)) for call in calls]
    counts = np.array([len(call) for call in calls], float)
    owners = np.ones(len(calls), np.intp)
    merged, total = merge_calls(MOMENTS, torch.cat(tables, 1).numpy(), counts, owners, 3)
    whole = torch.tensor([value for call in calls for value in call], dtype=torch.float64)
    assert total.tolist() == [0.0, len(whole), 0.0]
    assert np.isnan(merged[:, [0, 2]]).all()
    expected = list(oracle(whole).values())
    assert merged[:, 1].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_shares_between_limits_and_live_units() -> None:
    assert count_between(torch.tensor([[-2.0, 0.0, 0.5, 1.0]]), -1.0, 1.0).tolist() == [0.5]
    stack = torch.zeros(2, 4, 3, 5)  # two outputs of four samples, three channels, five places
    stack[0, 2, 1, 4] = 1.0
    stack[1, 0, 0, 0] = -1.0
    assert live_units(stack, 1).tolist() == [[False, True, False], [False, False, False]]


def test_entries_of_dense_views_are_not_copied() -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for view in (image, image.transpose(0, 2), torch.randn(6, 4).t()):
        assert dense_entries(view).data_ptr() == view.data_ptr()
        assert torch.equal(dense_entries(view).sort().values, view.flatten().sort().values)
    gaps = torch.randn(6, 4)[:, ::2]
    assert torch.equal(dense_entries(gaps), gaps.flatten())
