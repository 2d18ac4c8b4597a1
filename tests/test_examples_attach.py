"""Each way to attach gradscope works as the examples show it, and finds nothing in their sound models."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path

import pytest

from gradscope.examine import examine
from gradscope.store import find_run, read_run

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = sorted(set(EXAMPLES.glob("attach_*.py")) - {EXAMPLES / "attach_preflight.py"})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_records_its_run_and_nothing_is_found(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(file))["main"](str(tmp_path), quick=True)
    printed = capsys.readouterr().out
    assert "gradscope: healthy" in printed
    assert "gradscope report" in printed
    run = read_run(find_run(tmp_path))
    assert run.info.status == "finished"
    assert len(run.steps) >= 20
    report = examine(run)
    assert [finding.rule for finding in report.findings if finding.severity != "note"] == []


def test_preflight_needs_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "attach_preflight.py"))["main"]()
    printed = capsys.readouterr().out
    assert "as torch initialises it: vanishing-gradient" in printed
    assert "He-initialised: nothing found" in printed


def test_every_way_to_attach_is_shown() -> None:
    assert {file.stem for file in FILES} >= {
        "attach_lightning",
        "attach_loop",
        "attach_transformer",
        "attach_manual_optimization",
    }
