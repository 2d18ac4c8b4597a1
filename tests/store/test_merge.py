"""Merged equals whole: what the ranks recorded of their shares gives what one process would have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradscope.columns import LAYER_COLUMNS
from gradscope.records import Event
from gradscope.store import read_run
from gradscope.store.merge import merge_groups
from tests.store.recording import LAYER_NAMES, begin, info, record, write

COLUMNS = {column.name: column for column in LAYER_COLUMNS}
shares = st.lists(
    arrays(np.float64, st.integers(1, 20), elements=st.floats(-1e6, 1e6)), min_size=1, max_size=5
)


def measure(entries: np.ndarray) -> dict[str, float]:
    """Return the statistics of some entries by definition, as a summary would state them."""
    finite = bool(np.isfinite(entries).all())
    values = {
        "mean": entries.mean(),
        "std": entries.std(),
        "rms": np.sqrt((entries**2).mean()),
        "min": entries.min(),
        "max": entries.max(),
        "zero_fraction": (entries == 0).mean(),
    }
    return {
        "activation_count": float(entries.size),
        "activation_nonfinite": float((~np.isfinite(entries)).sum()),
        **{f"activation_{name}": float(value) if finite else np.nan for name, value in values.items()},
    }


def merge(rows: list[dict[str, float]], starts: tuple[int, ...] = (0,)) -> dict[str, np.ndarray]:
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return merge_groups(COLUMNS, values, np.array(starts))


@settings(deadline=None)
@given(shares)
def test_merged_equals_whole(parts: list[np.ndarray]) -> None:
    merged = merge([measure(part) for part in parts])
    whole = measure(np.concatenate(parts))
    for name, value in whole.items():
        np.testing.assert_allclose(merged[name][0], value, rtol=1e-9, atol=1e-6, err_msg=name)


@settings(deadline=None)
@given(shares, st.integers(0, 4))
def test_a_share_with_non_finite_entries_hides_the_statistics_as_it_does_in_the_whole(
    parts: list[np.ndarray], place: int
) -> None:
    parts[place % len(parts)][0] = np.nan
    with np.errstate(invalid="ignore"):
        merged, whole = merge([measure(part) for part in parts]), measure(np.concatenate(parts))
    for name, value in whole.items():
        np.testing.assert_array_equal(merged[name][0], value, err_msg=name)


@settings(deadline=None)
@given(shares, st.randoms())
def test_the_order_of_ranks_does_not_matter(parts: list[np.ndarray], random: object) -> None:
    rows = [measure(part) for part in parts]
    backwards = merge(rows[::-1])
    for name, value in merge(rows).items():
        np.testing.assert_allclose(value, backwards[name], rtol=1e-9, atol=1e-6)


@settings(deadline=None)
@given(shares)
def test_merging_is_associative(parts: list[np.ndarray]) -> None:
    assume(len(parts) > 2)
    rows = [measure(part) for part in parts]
    halves = merge(rows, (0, 1))
    pairs = [{name: float(value[index]) for name, value in halves.items()} for index in (0, 1)]
    for name, value in merge(rows).items():
        np.testing.assert_allclose(merge(pairs)[name], value, rtol=1e-9, atol=1e-6)


def test_a_missing_value_does_not_contribute() -> None:
    row = measure(np.array([1.0, 2.0, 3.0]))
    missing = dict.fromkeys(row, np.nan)
    merged = merge([missing, row, missing])
    for name, value in row.items():
        np.testing.assert_allclose(merged[name][0], value)
    assert all(np.isnan(value[0]) for value in merge([missing, missing]).values())


def test_weights_that_are_not_known_count_alike() -> None:
    rows = [{"activation_mean": 1.0}, {"activation_mean": 4.0}]
    assert merge(rows)["activation_mean"][0] == 2.5


@pytest.mark.parametrize("size", [1e300, 1e-300, np.inf])
def test_no_square_leaves_the_range(size: float) -> None:
    row = dict.fromkeys(["activation_count", "activation_mean", "activation_rms", "activation_std"], size)
    merged = merge([row | {"activation_count": 2.0}] * 2)
    assert merged["activation_mean"][0] == size
    assert merged["activation_rms"][0] == pytest.approx(size)
    assert np.isinf(size) or merged["activation_std"][0] == pytest.approx(size)


def test_two_ranks_of_different_shares_on_disk(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    parts = [random.normal(1, 2, size) for size in (10, 30)]
    for rank, part in enumerate(parts):
        writer = begin(tmp_path / "run", rank, ranks=2)
        statistics = measure(part)
        for step in range(3):
            full = record(step, 0.0)
            full.layers[:] = [statistics.get(name, np.nan) for name in LAYER_NAMES]
            writer.append(replace(full, step={"step": step, "loss": float(rank), "seconds": 1.0 + rank}))
        writer.close("finished")
    run = read_run(tmp_path / "run")
    assert run.problems == ()
    assert run.steps["loss"].tolist() == [0.5] * 3
    assert run.steps["seconds"].tolist() == [2.0] * 3
    for name, value in measure(np.concatenate(parts)).items():
        np.testing.assert_allclose(run.layer_table(name), value, rtol=1e-6)


def test_a_missing_rank_is_said(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "run", ranks=3))
    assert run.problems == ("nothing was recorded by ranks 1, 2 of 3; the figures cover the others",)
    assert len(run.steps) == 10


def test_a_rank_that_stopped_early_is_said(tmp_path: Path) -> None:
    write(tmp_path / "run", range(10), 1.0, ranks=2)
    write(tmp_path / "run", range(4), 3.0, rank=1, ranks=2, close=False)
    run = read_run(tmp_path / "run")
    assert run.problems == ("rank 1 recorded nothing after step 3; later figures cover the others",)
    assert run.steps["loss"].tolist() == [2.0] * 4 + [1.0] * 6


def test_only_the_first_rank_says_how_the_run_is(tmp_path: Path) -> None:
    write(tmp_path / "run", ranks=2)
    other = begin(tmp_path / "run", rank=1, ranks=2)
    other.update(replace(info(ranks=7), model="other"))
    other.close("failed", "boom")
    assert read_run(tmp_path / "run").info.model == "tests.Model"
    assert read_run(tmp_path / "run").info.status == "finished"


def test_events_of_another_rank_say_so(tmp_path: Path) -> None:
    write(tmp_path / "run", ranks=2)
    begin(tmp_path / "run", rank=1, ranks=2).event(Event("non-finite", 3, "NaN"))
    assert [event.data for event in read_run(tmp_path / "run").events] == [{"rank": 1}]


def test_ranks_that_a_smaller_restart_no_longer_has_end_with_it(tmp_path: Path) -> None:
    write(tmp_path / "run", range(10), 1.0, ranks=2)
    write(tmp_path / "run", range(10), 3.0, rank=1, ranks=2)
    write(tmp_path / "run", range(6, 12), 5.0, ranks=1)
    assert read_run(tmp_path / "run").steps["loss"].tolist() == [2.0] * 6 + [5.0] * 6
