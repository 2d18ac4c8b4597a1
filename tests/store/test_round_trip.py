from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradscope.columns import LAYER_COLUMNS
from gradscope.errors import RunError
from gradscope.records import Event, LayerInfo, StepRecord
from gradscope.settings import Settings
from gradscope.store import RunWriter, read_run
from gradscope.store.segments import rounded
from tests.store.recording import LAYER_NAMES, PARAMETER_NAMES, begin, info, record, write

SUMS = [column.name for column in LAYER_COLUMNS if column.merge == "sum"]
PRECISION = {"rtol": 5e-7, "atol": 1e-313}  # below the smallest normal number the error is absolute
numbers = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


@settings(max_examples=40, deadline=None)
@given(values=arrays(np.float64, 31, elements=numbers), count=st.integers(1, 7), closed=st.booleans())
def test_what_was_appended_is_read(values: np.ndarray, count: int, closed: bool) -> None:
    layers = np.resize(values, (count, 2, len(LAYER_NAMES)))
    parameters = np.resize(values, (count, 3, len(PARAMETER_NAMES)))
    with TemporaryDirectory() as folder:
        writer = RunWriter(Path(folder) / "run", settings=Settings(segment_steps=3))
        writer.begin(info(2, 3))
        for step in range(count):
            writer.append(StepRecord({"step": 10 * step}, layers[step], parameters[step]))
        if closed:
            writer.close("finished")
        run = read_run(Path(folder) / "run")
    assert run.problems == ()
    assert run.steps["step"].tolist() == [10 * step for step in range(count)]
    for index, name in enumerate(LAYER_NAMES):
        np.testing.assert_allclose(run.layer_table(name), layers[:, :, index], **PRECISION)
    for index, name in enumerate(PARAMETER_NAMES):
        np.testing.assert_allclose(run.parameter_table(name), parameters[:, :, index], **PRECISION)
    for name in SUMS:
        np.testing.assert_array_equal(run.layer_table(name), layers[:, :, LAYER_NAMES.index(name)])


@settings(deadline=None)
@given(arrays(np.float64, 5, elements=numbers))
def test_rounding_keeps_six_digits_and_never_leaves_the_range(values: np.ndarray) -> None:
    result = rounded(values)
    np.testing.assert_allclose(result, values, **PRECISION)
    assert (np.isfinite(result) == np.isfinite(values)).all()
    single = np.float32(1.0) / np.arange(1, 6, dtype=np.float32)
    np.testing.assert_array_equal(rounded(single.astype(np.float64), 24), single)
    np.testing.assert_array_equal(rounded(result), result)


def test_the_cosine_keeps_its_distance_from_one(tmp_path: Path) -> None:
    write(tmp_path / "run", [0], value=1 - 1e-8)
    run = read_run(tmp_path / "run")
    assert 1 - run.layer_table("activation_cosine").iloc[0, 0] == pytest.approx(1e-8, rel=0.1)
    assert run.layer_table("activation_rms").iloc[0, 0] == 1.0


def test_tables_have_every_column_and_the_names_of_the_run(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "run"))
    assert list(run.layer_statistics.columns) == ["step", "layer", *LAYER_NAMES]
    assert list(run.parameter_statistics.columns) == ["step", "parameter", *PARAMETER_NAMES]
    assert run.steps["loss"].tolist() == list(range(10))
    assert run.layer_statistics["layer"].cat.categories.tolist() == ["net.0", "net.1", "net.2"]
    assert run.info.status == "finished"
    assert run.info.ended >= run.info.started > ""


def test_rows_with_nothing_measured_are_absent(tmp_path: Path) -> None:
    writer = begin(tmp_path / "run")
    step = record(0)
    step.layers[1] = np.nan
    writer.append(step)
    writer.close("finished")
    statistics = read_run(tmp_path / "run").layer_statistics
    assert statistics["layer"].tolist() == ["net.0", "net.2"]


def test_a_further_learning_rate_may_appear_at_any_step(tmp_path: Path) -> None:
    writer = begin(tmp_path / "run")
    writer.append(record(0))
    writer.append(replace(record(1), step={"step": 1, "lr_1": 0.25}))
    writer.append(record(2))
    rates = read_run(tmp_path / "run").steps["lr_1"].tolist()
    assert rates[1] == 0.25
    assert np.isnan([rates[0], rates[2]]).all()


def test_the_tables_may_grow_while_training(tmp_path: Path) -> None:
    writer = begin(tmp_path / "run")
    writer.append(record(0))
    grown = info(layers=5)
    writer.update(grown)
    writer.append(record(1, layers=5))
    run = read_run(tmp_path / "run")
    assert [layer.name for layer in run.info.layers] == [layer.name for layer in grown.layers]
    assert len(run.layer_statistics) == 3 + 5


def test_matrices_that_do_not_fit_the_tables_are_refused(tmp_path: Path) -> None:
    writer = begin(tmp_path / "run")
    with pytest.raises(ValueError, match="layers of a step have the shape"):
        writer.append(record(0, layers=4))
    with pytest.raises(ValueError, match="must say its step"):
        writer.append(replace(record(0), step={"loss": 1.0}))
    writer.append(record(0))
    assert len(read_run(tmp_path / "run").steps) == 1


def test_a_run_is_read_while_it_is_written(tmp_path: Path) -> None:
    writer = begin(tmp_path / "run", segment_steps=3)
    assert len(read_run(tmp_path / "run").steps) == 0
    for step in range(8):
        writer.append(record(step))
        run = read_run(tmp_path / "run")
        assert run.problems == ()
        assert run.info.status == "running"
        assert run.steps["step"].tolist() == list(range(step + 1))
        assert len(run.layer_statistics) == 3 * (step + 1)


def test_a_reader_never_sees_a_step_twice_or_a_gap_while_segments_are_sealed(tmp_path: Path) -> None:
    from threading import Thread

    path = tmp_path / "run"
    writer = begin(path, segment_steps=2)
    thread = Thread(target=lambda: [writer.append(record(step)) for step in range(300)])
    thread.start()
    seen = []
    while thread.is_alive():
        run = read_run(path)
        seen.append(len(run.steps))
        assert run.problems == ()
        assert run.steps["step"].tolist() == list(range(len(run.steps)))
        assert len(run.layer_statistics) == 3 * len(run.steps)
    thread.join()
    assert seen == sorted(seen)
    assert len(read_run(path).steps) == 300


def test_events_are_read_in_order_of_steps(tmp_path: Path) -> None:
    writer = begin(tmp_path / "run")
    late = Event("non-finite", 9, "first NaN", "net.1", None, {"values": (1.5, float("inf")), "count": 3})
    writer.event(late)
    writer.event(Event("skipped-step", 4, "scale was halved"))
    events = read_run(tmp_path / "run").events
    assert [event.step for event in events] == [4, 9]
    assert events[1].data == {"values": (1.5, "Infinity"), "count": 3}
    assert replace(events[1], data={}) == replace(late, data={})


def test_pandas_reads_the_tables_without_gradscope(tmp_path: Path) -> None:
    path = write(tmp_path / "lr=0.1" / "run")
    layers = pd.read_parquet(path / "layers")
    assert len(layers) == 30
    assert layers.columns[:4].tolist() == ["step", "layer", "rank", "attempt"]
    assert set(layers["layer"]) == {"net.0", "net.1", "net.2"}
    assert pd.read_parquet(path / "steps")["loss"].tolist() == list(range(10))
    assert len(pd.read_parquet(path / "parameters")) == 20
    assert list(read_run(path).steps.columns)[:2] == ["step", "epoch"]


def test_a_model_without_layers_or_parameters(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.begin(info(0, 0))
    writer.append(record(0, layers=0, parameters=0))
    writer.close("finished")
    run = read_run(tmp_path / "run")
    assert run.problems == ()
    assert len(run.steps) == 1
    assert len(run.layer_statistics) == 0


def test_names_of_any_kind(tmp_path: Path) -> None:
    names = ["", "[red]x[/red]", "schicht.ß", "a/b\n", "x" * 5000]
    writer = RunWriter(tmp_path / "run")
    writer.begin(replace(info(), layers=tuple(LayerInfo(name, "Linear", "linear") for name in names)))
    writer.append(record(0, layers=5))
    writer.close("finished")
    assert read_run(tmp_path / "run").layer_statistics["layer"].tolist() == names


def test_a_name_that_utf8_cannot_hold_loses_nothing_else(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.begin(replace(info(), layers=(LayerInfo("\ud800", "Linear", "linear"), *info().layers[:2])))
    writer.append(record(0))
    assert read_run(tmp_path / "run").problems == ()
    writer.close("finished")
    assert set(read_run(tmp_path / "run").layer_statistics["layer"]) == {"\\ud800", "net.0", "net.1"}


def test_a_directory_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunError, match=r"cannot write a run into .*: Not a directory; choose another run_dir"
    ):
        begin(tmp_path / "file" / "run")


def test_a_full_disk_leaves_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    writer = begin(tmp_path / "run")
    writer.append(record(0))
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda file, blocks: real(file, [bytes(blocks[0])[:3]]))
    with pytest.raises(OSError, match="No space left"):
        writer.append(record(1))
    monkeypatch.undo()
    writer.append(record(2))
    run = read_run(tmp_path / "run")
    assert run.problems == ()
    assert run.steps["step"].tolist() == [0, 2]


def test_a_failed_seal_loses_nothing_and_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = begin(tmp_path / "run", segment_steps=2)
    writer.append(record(0))

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("gradscope.store.writer.seal", refuse)
    with pytest.raises(OSError, match="disk full"):
        writer.append(record(1))
    monkeypatch.undo()
    writer.append(record(2))
    assert read_run(tmp_path / "run").steps["step"].tolist() == [0, 1, 2]
    writer.close("finished")
    assert not list((tmp_path / "run" / "live").iterdir())
    assert read_run(tmp_path / "run").steps["step"].tolist() == [0, 1, 2]


def test_appending_costs_microseconds_and_reading_a_long_run_a_moment(tmp_path: Path) -> None:
    """60 layers with 120 parameters over 2,000 recorded steps, in processor time: the machine may be busy."""
    writer = RunWriter(tmp_path / "run")
    writer.begin(info(60, 120))
    steps = [record(step, layers=60, parameters=120) for step in range(20)]
    times = []
    for step in range(2000):
        values = replace(steps[step % 20], step={"step": step, "loss": 1.0})
        started = time.thread_time()
        writer.append(values)
        times.append(time.thread_time() - started)
    writer.close("finished")
    assert np.median(times) < 300e-6
    started = time.process_time()
    run = read_run(tmp_path / "run")
    assert time.process_time() - started < 1.5
    assert len(run.parameter_statistics) == 240_000
