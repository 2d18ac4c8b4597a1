from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from gradscope.errors import RunError
from gradscope.records import Event
from gradscope.store import read_run
from tests.store.recording import begin, info, write


@pytest.mark.parametrize("closed", [True, False])
def test_the_later_attempt_wins_where_steps_overlap(tmp_path: Path, closed: bool) -> None:
    path = write(tmp_path / "run", range(10), 1.0, close=closed)
    write(path, range(6, 14), 2.0, close=closed)
    run = read_run(path)
    assert run.problems == ()
    assert run.info.restarts == 1
    assert run.steps["step"].tolist() == list(range(14))
    assert run.steps["loss"].tolist() == [1.0] * 6 + [2.0] * 8
    assert run.layer_table("activation_rms")["net.0"].tolist() == [1.0] * 6 + [2.0] * 8


def test_steps_that_a_restart_has_not_reached_again_are_gone(tmp_path: Path) -> None:
    path = write(tmp_path / "run", range(10), 1.0)
    write(path, [4, 5], 2.0, close=False)
    assert read_run(path).steps["loss"].tolist() == [1.0] * 4 + [2.0] * 2


def test_a_restart_that_recorded_nothing_takes_nothing_away(tmp_path: Path) -> None:
    path = write(tmp_path / "run", range(10))
    write(path, [])
    run = read_run(path)
    assert run.info.restarts == 1
    assert len(run.steps) == 10


def test_three_attempts(tmp_path: Path) -> None:
    path = write(tmp_path / "run", range(10), 1.0)
    write(path, range(8, 20), 2.0, close=False)
    write(path, range(5, 7), 3.0)
    run = read_run(path)
    assert run.info.restarts == 2
    assert run.steps["loss"].tolist() == [1.0] * 5 + [3.0] * 2


@pytest.mark.parametrize("recorded", [0, 10])
def test_a_restart_is_an_event_and_events_it_undid_are_gone(tmp_path: Path, recorded: int) -> None:
    write(tmp_path / "run", range(recorded), close=False)
    writer = begin(tmp_path / "run")
    writer.event(Event("skipped-step", 2, "kept"))
    writer.event(Event("non-finite", 9, "undone"))
    writer.close("failed", "ValueError: NaN")
    write(tmp_path / "run", range(5, 12))
    events = read_run(tmp_path / "run").events
    assert [(event.kind, event.step) for event in events] == [("skipped-step", 2), ("restart", 5)]


def test_the_first_start_is_kept_and_the_status_is_open_again(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    started = read_run(path).info.started
    begin(path)
    run = read_run(path)
    assert run.info.started == started
    assert run.info.status == "running"


def test_journals_of_a_killed_attempt_are_sealed_by_the_next(tmp_path: Path) -> None:
    path = write(tmp_path / "run", range(3), close=False)
    assert not list((path / "layers").iterdir())
    begin(path)
    assert len(pd.read_parquet(path / "layers")) == 9
    assert not list((path / "live").iterdir())


def test_a_newer_run_is_not_written_over(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    text = (path / "run.json").read_text().replace('"format_version": 1', '"format_version": 99')
    (path / "run.json").write_text(text)
    with pytest.raises(RunError, match="newer gradscope"):
        begin(path)
    assert (path / "run.json").read_text() == text


def test_a_damaged_run_json_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "run", range(10), 1.0)
    (path / "run.json").write_text("{")
    write(path, range(8, 10), 2.0)
    run = read_run(path)
    assert run.info.restarts == 1
    assert run.info.layers == info().layers
    assert run.steps["loss"].tolist() == [1.0] * 8 + [2.0] * 2
