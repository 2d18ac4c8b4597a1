from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from gradscope.present.terminal import show
from gradscope.records import Evidence, Finding, NotChecked, Remedy, Report
from tests.runs import empty_run, mlp_run

CODE = "net[1] = torch.nn.ReLU()  # " + "a comment that must not be broken " * 4
REMEDY = Remedy("activation", "Replace sigmoid by ReLU", "It has slope 1", CODE, "gain 0.2 → 1.0")
ROOT = Finding(
    "vanishing-gradient",
    "critical",
    "The gradient fades.",
    ("net.0", "net.2"),
    (),
    3,
    99,
    "Slopes are small.",
    {},
    None,
    1,
    (REMEDY, replace(REMEDY, title="Insert BatchNorm")),
)
FOLLOWS = Finding("learning-rate-too-low", "warning", "It crawls.", caused_by=ROOT.rule, rank=2)


def shown(report: Report, width: int = 80, **options: object) -> str:
    console = Console(file=StringIO(), width=width, **options)
    show(report, console)
    return console.file.getvalue()


def ailing(*findings: Finding) -> Report:
    return Report(
        mlp_run(), "ailing", findings or (ROOT, FOLLOWS), (NotChecked("dead-units", "no rectifier"),)
    )


def test_everything_that_matters_is_there() -> None:
    text = shown(ailing())
    for part in (
        "ailing",
        "tests.Model",
        "1 critical, 1 warning",
        "1. vanishing-gradient  critical  in net.0 and 1 more layer, since step 3",
        "The gradient fades.",
        "cause   Slopes are small.",
        "remedy  Replace sigmoid by ReLU",
        "expect  gain 0.2 → 1.0",
        "or      Insert BatchNorm",
        "not checked: dead-units (no rectifier)",
    ):
        assert part in text


def test_a_consequence_is_indented_under_its_cause() -> None:
    lines = shown(ailing()).splitlines()
    place = next(number for number, line in enumerate(lines) if "learning-rate-too-low" in line)
    assert lines[place].startswith("   ↳ ")
    assert lines[place + 1] == "     It crawls."
    assert not any(line.startswith("2. ") for line in lines)


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_lines_fit_but_code_is_never_broken(width: int) -> None:
    lines = shown(ailing(), width).splitlines()
    assert [line.strip() for line in lines].count(CODE.strip()) == 1
    assert max(len(line) for line in lines if CODE.strip() not in line) <= max(width, 31)
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize("name", ["[red]net[/red]", "[/]", "net[0]", ":smile:", "\x1b[31mnet", "x" * 5000])
def test_names_are_shown_as_they_are(name: str) -> None:
    text = shown(ailing(replace(ROOT, layers=(name,), message=f"in {name[:40]}")))
    assert "\x1b" not in text
    assert (name[:16] if "\x1b" not in name else "\\u001b[31mnet") in text


def test_a_healthy_run_shows_its_evidence() -> None:
    evidence = Evidence("gradient_gain", 1.02, "0.5 to 2", "The gradient keeps its size")
    text = shown(Report(mlp_run(), "healthy", evidence=(evidence,)))
    assert text.startswith("✓ healthy")
    assert "• The gradient keeps its size (1.02; normal: 0.5 to 2)" in text


def test_a_run_without_steps_and_the_reader_s_problems() -> None:
    run = replace(empty_run(), problems=("layers/x was left out: it is damaged",))
    text = shown(Report(run, "inconclusive"))
    assert text.startswith("? inconclusive")
    assert "reading  layers/x was left out: it is damaged" in text


def test_how_a_failed_run_ended() -> None:
    run = mlp_run()
    run = replace(
        run, info=replace(run.info, status="failed", exception="ValueError: [bold]loss[/bold] is NaN")
    )
    assert "ended by ValueError: [bold]loss[/bold] is NaN" in shown(Report(run, "ailing", (ROOT,)))


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" in shown(ailing(), force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in shown(ailing(), force_terminal=True)
