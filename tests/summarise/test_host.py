"""The compiled passes against plain float64 computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradscope.summarise import host
from gradscope.summarise.batch import LINE, RUN, RUNS, Batch
from gradscope.summarise.ledger import Ledger
from tests.summarise.test_statistics import DRAWS, check, oracle

SIZES = (1, 31, 32, 33, 2047, 2048, 2049, 70_000)


def test_this_machine_has_the_compiled_passes() -> None:
    assert host.is_compiled()


def moments(tensor: Tensor, limits: tuple[float, float] | None = None) -> np.ndarray:
    ledger = Ledger(1, host.MOMENTS_WANTED)
    ledger.read_as(0, limits)
    assert ledger.add(0, tensor)
    owners, entries, results = ledger.take()
    assert (owners.tolist(), entries.tolist()) == ([0], [tensor.numel()])
    assert not len(ledger.take()[0])
    return results[:, 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [kind for kind in DRAWS if kind != "half"])
def test_moments_are_those_of_float64(kind: str, size: int) -> None:
    torch.manual_seed(0)
    values = DRAWS[kind](size)
    check(torch.from_numpy(moments(values)[:7]), values)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_number_of_a_batch(dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(1)
    tensors = [
        torch.randn(size, dtype=dtype),
        torch.randn(size, dtype=dtype).relu(),
        torch.zeros(size).to(dtype),
    ]
    batch = Batch(3)
    batch.point(tensors)
    for highs in (None, [0.5, 0.0, 1.0]):
        found = batch.measure(host.NORM_WANTED, highs)
        for column, tensor in enumerate(tensors):
            exact = tensor.double()
            assert found[host.RMS, column] == pytest.approx(float(exact.square().mean().sqrt()), rel=1e-5)
            if highs:
                assert found[host.INSIDE, column] == float((exact < highs[column]).double().mean())
            else:
                assert math.isnan(found[host.INSIDE, column])
    found = batch.measure(host.MAGNITUDES_WANTED)
    assert found[host.ZEROS].tolist() == [float((tensor == 0).double().mean()) for tensor in tensors]
    assert found[host.LOW].tolist() == [float(tensor.min()) for tensor in tensors]
    assert np.isnan(found[host.MEAN]).all()


def test_the_share_between_limits() -> None:
    values = torch.linspace(-2, 2, 4001)
    assert moments(values, (-1.0, 1.0))[host.INSIDE] == float(((values > -1) & (values < 1)).double().mean())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 40, 2999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_non_finite_entries_are_counted_and_blank_the_rest(
    bad: float, place: int, dtype: torch.dtype
) -> None:
    values = torch.ones(3000, dtype=dtype)
    values[place] = bad
    found = moments(values)
    assert found[host.NONFINITE] == 1.0
    assert np.isnan(np.delete(found, host.NONFINITE)).all()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 6).t(),
        torch.randn(4, 6).half(),
        torch.ones(3, dtype=torch.int64),
        torch.empty(0),
        torch.randn(3, dtype=torch.complex64),
        torch.randn(3, dtype=torch.complex64).conj().imag,
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
    ],
    ids=["transposed", "half", "integers", "empty", "complex", "negated", "sparse", "meta"],
)
def test_what_cannot_be_read_where_it_lies_is_refused(tensor: Tensor) -> None:
    assert not Ledger(1, host.MOMENTS_WANTED).add(0, tensor)


def test_owners_that_were_read_come_in_order() -> None:
    ledger = Ledger(1000, host.MAGNITUDES_WANTED)
    for index in reversed(range(1, 1000, 2)):
        assert ledger.add(index, torch.full((3,), float(index)))
    owners, _, results = ledger.take()
    assert owners.tolist() == results[host.HIGH].tolist() == list(range(1, 1000, 2))


@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), min_size=1, max_size=6))
def test_merged_calls_equal_the_whole(calls: list[list[float]]) -> None:
    ledger = Ledger(3, host.MOMENTS_WANTED)
    ledger.read_as(1, (-1.0, 1.0))
    for call in calls:
        assert ledger.add(1, torch.tensor(call, dtype=torch.float64))
    owners, entries, results = ledger.take()
    whole = torch.tensor([value for call in calls for value in call], dtype=torch.float64)
    assert (owners.tolist(), entries.tolist()) == ([1], [len(whole)])
    assert results[: host.NONFINITE + 1, 0].tolist() == pytest.approx(
        list(oracle(whole).values()), rel=1e-9, abs=1e-6
    )
    assert results[host.INSIDE, 0] == pytest.approx(float(((whole > -1) & (whole < 1)).double().mean()))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_call_with_non_finite_entries_blanks_its_owner(place: int) -> None:
    calls = [torch.ones(4), torch.zeros(2), torch.ones(3)]
    calls[place][0] = math.nan
    ledger = Ledger(1, host.MOMENTS_WANTED)
    ledger.read_as(0, (-1.0, 1.0))
    assert all(ledger.add(0, call) for call in calls)
    results = ledger.take()[2][: host.RESULT, 0]
    assert results[host.NONFINITE] == 1.0
    assert np.isnan(np.delete(results, host.NONFINITE)).all()


def test_a_merged_cosine_is_of_the_calls_that_have_one() -> None:
    ledger = Ledger(1, host.MOMENTS_WANTED)
    ledger.read_as(0, between="samples")
    alike, apart = torch.ones(2, 3), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert all(ledger.add(0, call) for call in (torch.zeros(2, 3), alike, torch.zeros(1, 3), apart))
    assert ledger.take()[2][host.RESULT, 0] == pytest.approx((6 * 1.0 + 4 * 0.0) / 10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=4),
    st.data(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_live_units_are_those_above_zero_anywhere(
    shape: list[int], data: st.DataObject, dtype: torch.dtype
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    seed = data.draw(st.integers(0, 100))
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) - 1.0).relu().to(dtype)
    ledger = Ledger(6, host.MOMENTS_WANTED)
    ledger.read_as(5, unit_axis=axis)
    ledger.add(5, tensor)
    ledger.add(5, torch.zeros_like(tensor))
    others = [other for other in range(len(shape)) if other != axis]
    assert ledger.take_marks().active.tolist() == (tensor.amax(others) > 0).tolist()
    ledger.add(5, torch.zeros_like(tensor))
    assert not ledger.take_marks().active.any()


def rectified(owners: int) -> Ledger:
    """Return a ledger that marks the units along the second axis."""
    ledger = Ledger(owners, host.MOMENTS_WANTED)
    for owner in range(owners):
        ledger.read_as(owner, unit_axis=1)
    return ledger


def test_units_of_many_layers_and_of_layers_that_change_their_width() -> None:
    ledger = rectified(5)
    for width in (3, 5000, 7):
        for owner in range(5):
            ledger.add(owner, torch.eye(width)[: owner + 1])
        live = ledger.take_marks()
        assert live.layers.tolist() == list(range(5))
        assert [units.sum() for units in np.split(live.active, np.cumsum(live.sizes)[:-1])] == [
            min(owner + 1, width) for owner in range(5)
        ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_changes_of_whole_and_sampled_tensors(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    tensors = [torch.randn(1000).to(dtype), torch.randn(77, 13).to(dtype).t(), torch.randn(5000).to(dtype)]
    starts = [None, None, torch.tensor([0, 50, 1600])]
    batch = Batch(3)
    batch.point(tensors)
    batch.reserve(starts)
    batch.keep()
    changes = [torch.randn_like(tensor) for tensor in tensors]
    after = [
        (tensor + change).contiguous() if tensor.dim() == 1 else tensor + change
        for tensor, change in zip(tensors, changes, strict=True)
    ]
    batch.point(after)
    found = batch.change()
    exact = [(b.double() - a.double()) for a, b in zip(tensors, after, strict=True)]
    sampled = torch.cat([exact[2][start : start + LINE] for start in (0, 50, 1600)])
    for value, change in zip(found, (exact[0], exact[1], sampled), strict=True):
        assert value == pytest.approx(float(change.norm()), rel=1e-6)


def test_a_batch_follows_tensors_that_move() -> None:
    batch = Batch(1)
    for value in (1.0, 2.0, 3.0):
        tensor = torch.full((100,), value)
        batch.point([tensor], steady=True)
        assert batch.measure(host.NORM_WANTED)[host.RMS, 0] == value
        tensor.mul_(2)
        batch.point([tensor], steady=True)
        assert batch.measure(host.NORM_WANTED)[host.RMS, 0] == 2 * value


def test_large_tensors_of_a_sampled_batch_are_measured_on_evenly_spread_runs() -> None:
    size = 70_000
    starts = [run * (size // RUNS) for run in range(RUNS)]
    for dtype in (torch.float32, torch.float16):  # read where it lies, and copied
        tensors = [torch.arange(size).remainder(1000).to(dtype), torch.full((5,), 2.0).to(dtype)]
        batch = Batch(2, sampled=True)
        for _ in range(2):
            batch.point(tensors, steady=True)
            chosen = torch.cat([tensors[0][start : start + RUN] for start in starts]).double()
            rms = batch.measure(host.NORM_WANTED)[host.RMS]
            assert rms.tolist() == pytest.approx([float(chosen.square().mean().sqrt()), 2.0], rel=1e-6)
            assert batch.sizes().tolist() == [size, 5]
            tensors[0].mul_(0.5)


def test_what_dictionaries_hold_is_found_again_where_it_is_replaced() -> None:
    holders = [{"a": torch.full((3,), float(value))} for value in (1, 2, 3)]
    batch = Batch(3)
    for _ in range(2):
        assert batch.gather(holders, "a")
        assert batch.measure(host.NORM_WANTED)[host.RMS].tolist() == [1.0, 2.0, 3.0]
    holders[1]["a"] = torch.full((4,), 5.0)
    holders[2]["a"].mul_(2)
    assert batch.gather(holders, "a")
    assert batch.measure(host.NORM_WANTED)[host.RMS].tolist() == [1.0, 5.0, 6.0]
    assert batch.sizes().tolist() == [3, 4, 3]


@pytest.mark.parametrize("item", [None, 1.0, torch.eye(3).to_sparse(), torch.zeros(3).half()])
def test_dictionaries_that_hold_anything_else_are_refused(item: object) -> None:
    batch = Batch(2)
    assert not batch.gather([{"a": torch.zeros(3)}, {"a": item}], "a")
    assert not batch.gather([{"a": torch.zeros(3)}, {}], "a")
    assert not batch.gather([{"a": torch.zeros(3)}, None], "a")  # type: ignore[list-item]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_number_but_the_order_of_sums(threads: int) -> None:
    torch.manual_seed(3)
    tensors = [torch.randn(size) for size in (5, 300_000, 1, 700_001, 32_768, 65_536, 40)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        host.use_threads_of_torch()
        check(torch.from_numpy(moments(tensors[3])[:7]), tensors[3])
        batch = Batch(len(tensors))
        batch.point(tensors)
        for found, tensor in zip(batch.measure(host.MOMENTS_WANTED).T, tensors, strict=True):
            check(torch.from_numpy(found[:7]), tensor)
    finally:
        torch.set_num_threads(before)
        host.use_threads_of_torch()


@pytest.mark.parametrize("starts", [None, torch.tensor([0, 80])])
def test_tensors_whose_memory_was_given_back_are_not_read(starts: Tensor | None) -> None:
    tensor = torch.ones(1000)
    tensor.untyped_storage().resize_(0)
    assert not Ledger(1, host.MOMENTS_WANTED).add(0, tensor)
    batch = Batch(1)
    batch.point([tensor])
    batch.reserve([starts])
    batch.keep()
    assert np.isnan(batch.measure(host.MOMENTS_WANTED)[host.RMS]).all()
    assert np.isnan(batch.change()).all()


def test_copies_are_let_go_of_once_they_are_read() -> None:
    batch = Batch(1)
    batch.point([torch.ones(50).half()])
    assert batch.measure(host.NORM_WANTED)[host.RMS, 0] == 1.0
    assert np.isnan(batch.measure(host.NORM_WANTED)[host.RMS, 0])


def test_layers_that_change_their_width_in_every_step_take_no_more_room_for_it() -> None:
    ledger = rectified(1)
    for width in range(1, 200):
        ledger.add(0, torch.ones(2, width))
        assert len(ledger.take_marks().active) == width
    assert ledger._placed <= 2 * 200
