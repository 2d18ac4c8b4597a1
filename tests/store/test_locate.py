from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gradscope.errors import RunError
from gradscope.store import find_run, find_runs
from tests.store.recording import write


def start(path: Path, started: str) -> Path:
    write(path, [])
    document = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**document, "started": started}))
    return path


def test_a_run_is_itself_also_by_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "run", [])
    write(path / "nested", [])
    assert find_runs(path) == [path]
    assert find_run(path / "run.json") == path
    assert find_run(str(path)) == path


def test_the_newest_by_start_whatever_its_time_zone_or_its_files_say(tmp_path: Path) -> None:
    first = start(tmp_path / "z", "2026-05-01T12:00:00+02:00")
    newest = start(tmp_path / "deep" / "version_0" / "gradscope", "2026-05-01T11:00:00Z")
    os.utime(newest / "run.json", (0, 0))
    assert find_runs(tmp_path) == [newest, first]


def test_a_start_that_is_no_time_falls_back_on_the_file(tmp_path: Path) -> None:
    old, new = start(tmp_path / "a", "yesterday"), start(tmp_path / "b", "2020-01-01T00:00:00Z")
    os.utime(old / "run.json", (0, 0))
    assert find_runs(tmp_path) == [new, old]


def test_other_programs_and_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours", [])
    write(tmp_path / ".cache" / "run", [])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{}")
    assert find_runs(tmp_path) == [ours]


def test_a_damaged_run_is_found_where_there_is_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "run", [])
    (path / "run.json").write_text("{")
    assert find_runs(tmp_path) == [path]


def test_a_folder_with_a_loop_ends(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(RunError, match="holds no run"):
        find_run(tmp_path)
