from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

from gradscope import __version__, cli
from gradscope.records import RULE_NAMES, Run
from gradscope.store import RunWriter
from tests.runs import empty_run, mlp_run
from tests.store.recording import record, write

ROOT = Path(__file__).parent.parent
Command = Callable[..., int]


def save(run: Run, path: Path) -> Path:
    """Write a run made in memory as training would."""
    from gradscope.columns import LAYER_COLUMNS, PARAMETER_COLUMNS
    from gradscope.records import StepRecord

    writer = RunWriter(path)
    writer.begin(run.info)
    layers = run.layer_statistics.groupby("step")
    parameters = run.parameter_statistics.groupby("step")
    for row in run.steps.to_dict("records"):
        step = int(row["step"])
        writer.append(
            StepRecord(
                {str(name): float(value) for name, value in row.items()},
                layers.get_group(step)[[column.name for column in LAYER_COLUMNS]].to_numpy(float),
                parameters.get_group(step)[[column.name for column in PARAMETER_COLUMNS]].to_numpy(float),
            )
        )
    writer.close("finished")
    return path


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(mlp_run(depth=6, steps=60), tmp_path_factory.mktemp("runs") / "healthy")


@pytest.fixture(scope="module")
def ailing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run whose weights got no gradient at all."""
    values = {"gradient_missing": 1.0, "gradient_norm": float("nan"), "gradient_rms": float("nan")}
    run = mlp_run(depth=6, steps=60, loss=lambda step: 2.3, parameter_values=dict(values))
    return save(run, tmp_path_factory.mktemp("runs") / "ailing")


def run_main(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["gradscope", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def gradscope(monkeypatch: pytest.MonkeyPatch) -> Command:
    return lambda *arguments: run_main(*arguments, monkeypatch=monkeypatch)


def shell(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gradscope", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("check", "--help")])
def test_help_loads_nothing_heavy_and_is_quick(arguments: tuple[str, ...]) -> None:
    code = f"import sys; sys.argv = ['gradscope', *{arguments}]\nfrom gradscope import cli\ncli.main()"
    command = [sys.executable, "-X", "importtime", "-c", code]
    before = os.times().children_user
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    seconds = os.times().children_user - before
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {
        "pandas",
        "numpy",
        "torch",
        "plotly",
        "rich",
        "pyarrow",
        "pytorch_lightning",
        "jinja2",
    }
    assert "click" in loaded
    assert seconds < 0.6  # of processor time, which a busy machine stretches less than the time on the wall


def test_version(gradscope: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradscope("--version") == 0
    assert __version__ in capsys.readouterr().out


def test_check_says_what_it_found(
    gradscope: Command, ailing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradscope("check", ailing) == 1
    assert "missing-gradient" in capsys.readouterr().out


def test_check_of_a_healthy_run(
    gradscope: Command, healthy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradscope("check", healthy) == 0
    assert "healthy" in capsys.readouterr().out


def test_json_is_one_strict_object_and_nothing_else(
    gradscope: Command, ailing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradscope("check", ailing.parent, "--format", "json") == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out, parse_constant=pytest.fail)
    assert list(document) == ["schema", "run", "verdict", "findings", "not_checked"]
    assert document["findings"][0]["rule"] == "missing-gradient"
    assert "the only run" in captured.err


@pytest.mark.parametrize(
    ("severity", "fail_on", "status"),
    [
        ("critical", "critical", 1),
        ("warning", "critical", 0),
        ("warning", "warning", 1),
        ("note", "warning", 0),
        ("note", "note", 1),
        (None, "note", 0),
    ],
)
def test_exit_status_goes_by_the_least_severity(
    gradscope: Command, healthy: Path, monkeypatch: pytest.MonkeyPatch, severity, fail_on: str, status: int
) -> None:
    from gradscope.records import Finding, Report

    findings = (Finding("dead-units", severity, "x", rank=1),) if severity else ()
    monkeypatch.setattr(
        import_module("gradscope.examine"), "examine", lambda run: Report(run, "ailing", findings)
    )
    assert gradscope("check", healthy, "--fail-on", fail_on) == status


def test_too_little_to_judge_is_not_clean(
    gradscope: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(mlp_run(depth=3, steps=2), tmp_path / "short")
    assert gradscope("check", path) == 2
    error = capsys.readouterr().err
    assert "inconclusive: too little was recorded" in error
    assert len(error.splitlines()) == 1
    assert gradscope("check", path, "--format", "json") == 2
    assert json.loads(capsys.readouterr().out)["verdict"] == "inconclusive"
    assert gradscope("check", path, "--allow-inconclusive") == 0
    assert gradscope("report", path) == 0


def test_a_healthy_run_of_which_a_part_is_lost_is_not_clean(
    gradscope: Command, healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(shutil.copytree(healthy, tmp_path / "damaged"))
    (damaged / "events.jsonl").write_text("{broken\n")
    assert gradscope("check", damaged) == 2
    assert "a part of the run was not read (events.jsonl" in capsys.readouterr().err
    assert gradscope("check", damaged, "--allow-inconclusive") == 0


def test_a_run_without_a_step_cannot_be_checked_but_can_be_reported(
    gradscope: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(empty_run(), tmp_path / "empty")
    assert gradscope("check", path) == 2
    assert "no recorded step" in capsys.readouterr().err
    assert gradscope("report", path) == 0


@pytest.mark.parametrize("command", ["check", "report", "export"])
def test_an_empty_name_is_not_taken_for_here(
    gradscope: Command, command: str, healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(healthy)
    assert gradscope(command, "") == 2


def test_rules_are_explained_where_python_drops_docstrings() -> None:
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "gradscope", "rules", "dead-units"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "What it finds" in done.stdout


def test_compare_puts_runs_side_by_side(
    gradscope: Command, ailing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save(mlp_run(depth=3, steps=30), tmp_path / "other")
    page = tmp_path / "pages" / "both.html"
    assert gradscope("compare", ailing, other, "-o", page) == 0
    assert "missing-gradient" in capsys.readouterr().out
    assert "<title>ailing against other</title>" in page.read_text(encoding="utf-8")
    assert gradscope("compare", ailing) == 2
    assert gradscope("compare", ailing, tmp_path / "nothing") == 2


def test_rules_prints_the_page_of_the_documentation(
    gradscope: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradscope("rules", "--markdown") == 0
    assert capsys.readouterr().out == Path("docs/rules.md").read_text(encoding="utf-8")


def test_treat_says_what_it_needs(gradscope: Command, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ((), "either MODULE:FUNCTION or --demo"),
        (("nonsense",), "is not MODULE:FUNCTION"),
        (("no_such_module:f",), "can't be imported"),
        (("math:no_such",), "has no function"),
        (("math:cos",), "math:cos failed"),
        (("--demo", "no-such"), "there is no demo"),
        (("--demo", "vanishing-sigmoid", "--time-limit", "nan"), "above 0 seconds"),
        (("--demo", "vanishing-sigmoid", "--time-limit", "-3"), "above 0 seconds"),
        (("--demo", "vanishing-sigmoid", "--time-limit", "0"), "above 0 seconds"),
        (("--demo", "relu-he", "--steps", "5"), "x>=10"),
        (("--demo", "relu-he", "--seeds", "0"), "x>=1"),
    ):
        assert gradscope("treat", *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_report_writes_the_page_beside_the_run(
    gradscope: Command, ailing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradscope("report", ailing) == 0
    page = ailing.with_name("ailing.html")
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")
    assert "missing-gradient" in (out := capsys.readouterr().out)
    assert str(page) in out


def test_report_writes_where_it_is_told(
    gradscope: Command, ailing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gradscope("report", ailing, "-o", tmp_path / "new" / "page.html") == 0
    assert (tmp_path / "new" / "page.html").exists()
    assert gradscope("report", ailing, "-o", tmp_path) == 0
    assert (tmp_path / "ailing.html").exists()
    shutil.copytree(ailing, tmp_path / "x" / "run")
    monkeypatch.chdir(tmp_path / "x" / "run")
    assert gradscope("report", ".") == 0
    assert (tmp_path / "x" / "run.html").exists()


@pytest.mark.parametrize("command", ["report", "export"])
def test_what_cannot_be_written_is_one_line_that_says_what_to_do(
    gradscope: Command, ailing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "file").write_text("")
    assert gradscope(command, ailing, "-o", tmp_path / "file" / "inside") == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert str(tmp_path / "file" / "inside") in error[0]
    assert "a file is where a folder must be" in error[0]
    assert "--output" in error[0]


def test_the_newest_run_of_a_folder_is_taken_and_said(
    gradscope: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, started in (("b", "2026-01-02"), ("c", "2026-03-01"), ("a", "2026-02-01")):
        write(tmp_path / name / "deep")
        document = json.loads((tmp_path / name / "deep" / "run.json").read_text())
        document["started"] = f"{started}T00:00:00+00:00"
        (tmp_path / name / "deep" / "run.json").write_text(json.dumps(document))
    gradscope("export", tmp_path, "-o", tmp_path / "tables")
    assert f"{tmp_path / 'c' / 'deep'} (the newest of 3 runs" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "check", "export"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no"),
        ("", "holds no run"),
        ("{", "damaged"),
        ('{"format_version": 99}', "upgrade gradscope"),
        ('{"other": 1}', "another program"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    gradscope: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    content: str | None,
    said: str,
) -> None:
    path = tmp_path / "run"
    if content is not None:
        path.mkdir()
    if content:
        (path / "run.json").write_text(content)
    assert gradscope(command, path) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert said in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("check",),
        ("check", "x", "--format", "xml"),
        ("check", "a", "b"),
        ("rules", "vanish"),
        (),
    ],
)
def test_wrong_usage_is_status_2_without_a_traceback(
    gradscope: Command, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert gradscope(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert not arguments or len(error.splitlines()) == 1


def test_an_error_of_gradscope_itself_is_one_line(
    gradscope: Command, healthy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise KeyError("a bug\nof two lines")

    monkeypatch.setattr(import_module("gradscope.examine"), "examine", fail)
    assert gradscope("check", healthy) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "GRADSCOPE_DEBUG=1" in error


def test_rules_lists_and_explains_every_rule(gradscope: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradscope("rules") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RULE_NAMES)
    for name in RULE_NAMES:
        assert gradscope("rules", name) == 0
        text = capsys.readouterr().out
        assert text.startswith(name)
        assert "What it finds" in text
    assert gradscope("rules", "dead-unit") == 2
    assert "did you mean dead-units?" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_export(gradscope: Command, ailing: Path, tmp_path: Path, form: str) -> None:
    assert gradscope("export", ailing, "-o", tmp_path, "--format", form) == 0
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}[form]
    assert len(read(tmp_path / f"steps.{form}")) == 60
    layers = read(tmp_path / f"layers.{form}")
    assert len(layers) == 60 * 11
    assert {"step", "layer", "activation_rms"} <= set(layers.columns)
    assert len(read(tmp_path / f"parameters.{form}")) == 60 * 12


def test_demo_lists_its_programs(gradscope: Command, capsys: pytest.CaptureFixture[str]) -> None:
    from gradscope.models import PROGRAMS

    assert gradscope("demo", "--list") == 0
    programs = capsys.readouterr().out.split("\n\n")[0]  # the lecture's experiments follow
    assert [line.split()[0] for line in programs.splitlines()] == list(PROGRAMS)


@pytest.mark.parametrize("arguments", [("rules",), ("demo", "--list")])
def test_lists_are_wrapped_in_a_terminal_and_a_line_each_in_a_pipe(
    gradscope: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    gradscope(*arguments)
    piped = capsys.readouterr().out
    monkeypatch.setattr(cli, "_console", lambda: Console(width=60, force_terminal=True))
    gradscope(*arguments)
    wrapped = capsys.readouterr().out
    assert max(map(len, piped.splitlines())) > 60
    assert all(len(line) <= 60 or len(line.split()) == 1 for line in wrapped.splitlines())
    assert "".join(wrapped.split()) == "".join(piped.split())


@pytest.mark.parametrize("command", ["check", "compare", "demo", "export", "report", "rules", "treat"])
@pytest.mark.parametrize("width", [60, 80])
def test_help_fits_and_no_summary_is_cut(command: str, width: int) -> None:
    runner = CliRunner()
    summary = runner.invoke(cli.gradscope, ["--help"], terminal_width=width).output
    assert "..." not in summary.replace("[ARGS]...", "")
    text = runner.invoke(cli.gradscope, [command, "--help"], terminal_width=width).output
    assert max(map(len, text.splitlines())) <= width
    for option in cli.gradscope.commands[command].params:
        assert isinstance(option, click.Argument) or option.help


def test_demo_of_no_program(gradscope: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gradscope("demo", "nonsense", "-o", tmp_path) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_pipe_that_closes_early_is_quiet(ailing: Path) -> None:
    command = f"{sys.executable} -m gradscope check {ailing} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert "ailing" in done.stdout


def test_a_terminal_that_cannot_show_it_all(ailing: Path) -> None:
    done = shell("check", ailing, PYTHONIOENCODING="ascii", COLUMNS="30", NO_COLOR="1")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "missing-gradient" in done.stdout
    assert "\x1b" not in done.stdout


def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal\nsys.argv = ['gradscope', 'check', sys.argv[1]]\n"
        "import gradscope.store\ngradscope.store.find_runs = lambda _: os.kill(os.getpid(), signal.SIGINT)\n"
        "from gradscope import cli\ncli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.strip() == ""


def test_a_running_run_can_be_checked(
    gradscope: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", range(3), close=False)
    assert record(0).step["step"] == 0
    assert gradscope("check", tmp_path / "run") in (1, 2)
    assert "still running" in capsys.readouterr().out
