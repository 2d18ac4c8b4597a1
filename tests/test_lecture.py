"""Every lecture experiment runs with --quick, and its claims hold; each is listed and documented."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gradscope.cli import gradscope
from gradscope.models.lecture import EXPERIMENTS, Experiment

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "examples" / "lecture"
NOT_EXPERIMENTS = {"page", "charts", "gain_per_layer", "margins"}
NAMES = [experiment.name for experiment in EXPERIMENTS]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_quick_run_holds_its_claims_and_writes_an_offline_page(
    experiment: Experiment, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    command = [sys.executable, str(ROOT / experiment.script), "--quick", "--output", str(page)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    text = page.read_text(encoding="utf-8")
    held, claims = map(int, re.search(r"(\d+) of (\d+) claims hold", text).groups())
    assert held == claims >= 2
    assert len(text) < 3_000_000
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(""", text)
    assert len(re.findall(r'id="plotly"', text)) == 1
    assert str(page) in run.stdout


def test_every_script_is_listed_with_one_line() -> None:
    scripts = {path.stem for path in SCRIPTS.glob("*.py")} - NOT_EXPERIMENTS
    assert scripts == {name.replace("-", "_") for name in NAMES}
    assert all((ROOT / experiment.script).is_file() for experiment in EXPERIMENTS)
    assert all("\n" not in experiment.shows and len(experiment.shows) < 90 for experiment in EXPERIMENTS)


def test_demo_lists_every_experiment_in_a_line_of_its_own() -> None:
    lines = CliRunner().invoke(gradscope, ["demo", "--list"]).output.splitlines()
    for experiment in EXPERIMENTS:
        assert [line for line in lines if line.startswith(experiment.name + " ") and experiment.shows in line]


def test_the_lecture_page_names_every_script() -> None:
    documentation = (ROOT / "docs" / "lecture.md").read_text(encoding="utf-8")
    assert all(experiment.script in documentation for experiment in EXPERIMENTS)


def test_a_claim_that_fails_shows_in_the_exit_status(tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(
        "from page import Result, at_most, main\n"
        "def experiment(quick, seed):\n"
        "    claims = [at_most('2 is at most 1', 2.0, 1.0), at_most('NaN is at most 1', float('nan'), 1)]\n"
        "    return Result('Failing', 'Two is less than one.', claims)\n"
        "main(experiment)\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(script), "--output", str(tmp_path / "page.html")]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}
    )
    assert run.returncode == 1, run.stderr
    assert "0 of 2 claims hold" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--seed", "-1"], "give a number from 0 to 999"),
        (["--output", "."], "is a directory; name a file"),
        (["--output", f"{__file__}/page.html"], "choose another --output"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(SCRIPTS / "no_flattening.py"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2
    assert said in run.stderr.splitlines()[-1]
    assert run.stdout == ""


def test_the_same_seed_measures_the_same_and_another_does_not(tmp_path: Path) -> None:
    pages = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        page = tmp_path / f"{name}.html"
        command = [sys.executable, str(SCRIPTS / "no_flattening.py"), "--quick", "--output", str(page)]
        subprocess.run([*command, "--seed", str(seed)], check=True, capture_output=True, cwd=tmp_path)
        pages.append(page.read_text(encoding="utf-8").replace(f"--seed {seed}", ""))
    assert pages[0] == pages[1] != pages[2]


def test_margins_prints_a_row_for_each_claim_and_a_column_for_each_seed() -> None:
    command = [sys.executable, str(SCRIPTS / "margins.py"), "--quick", "--seeds", "2", "no-flattening"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "| no-flattening | expected | seed 0 | seed 1 |"
    assert len(lines) > 5
    assert {line.count("|") for line in lines if line} == {5}
