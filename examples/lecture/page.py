"""Shared by the lecture's experiments: claims (expected and measured), tables, one offline page."""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import torch
from rich.console import Console
from rich.table import Table as RichTable

from gradscope.present.html import packed_plotly

HERE = Path(__file__).parent
REPORTS = HERE.parent.parent / "reports"
COLORS = ["#3b82c4", "#e08a1e", "#2a9d72", "#c2528b", "#8b6fd1", "#7a8794", "#d1495b"]


@dataclass(frozen=True)
class Claim:
    """A sentence of the lecture, what it lets us expect, what was measured, and whether it holds."""

    statement: str
    expected: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Table:
    """Measured figures: a title, the names of the columns, and rows of text or numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Figure:
    """A plotly figure, a title and one or two sentences that say what to look at."""

    title: str
    caption: str
    chart: go.Figure
    wide: bool = True


@dataclass(frozen=True)
class Result:
    """What an experiment hands over; `code` holds the functions that the page prints."""

    title: str
    lead: str
    claims: Sequence[Claim]
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    code: Sequence[Callable[..., Any]] = ()
    sources: Sequence[str] = field(default_factory=tuple)


def at_most(statement: str, measured: float, limit: float) -> Claim:
    """Claim that a figure stays at or below a limit; NaN never does."""
    return Claim(statement, f"≤ {show(limit)}", show(measured), bool(measured <= limit))


def at_least(statement: str, measured: float, limit: float) -> Claim:
    """Claim that a figure reaches a limit; NaN never does."""
    return Claim(statement, f"≥ {show(limit)}", show(measured), bool(measured >= limit))


def near(statement: str, measured: float, expected: float, within: float) -> Claim:
    """Claim that a figure differs from the expected one by no more than `within`."""
    holds = abs(measured - expected) <= within
    return Claim(statement, f"{show(expected)} ± {show(within)}", show(measured), bool(holds))


def exactly(statement: str, measured: Any, expected: Any) -> Claim:
    """Claim that two values are the same, to the last digit."""
    return Claim(statement, show(expected), show(measured), bool(measured == expected))


def show(value: Any) -> str:
    """Return a value as text: numbers with three significant digits, sequences joined by " / "."""
    if isinstance(value, (list, tuple)):
        return " / ".join(show(item) for item in value)
    if isinstance(value, float) and value == value and abs(value) not in (0.0, float("inf")):
        return (
            f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2e}"
        )
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main(experiment: Callable[[bool, int], Result]) -> None:
    """Run an experiment from the command line: print it, write its page, exit with 1 if a claim fails."""
    script = Path(inspect.getfile(experiment))
    arguments = _arguments(script, sys.modules[experiment.__module__].__doc__)
    started = time.perf_counter()
    try:
        result = measure(experiment, arguments.quick, arguments.seed)
    except ImportError as error:
        sys.exit(f"{script.name}: {error}")
    seconds = time.perf_counter() - started
    print_result(result, Console(width=None if sys.stdout.isatty() else 110))
    options = f"{' --quick' * arguments.quick}{f' --seed {arguments.seed}' * bool(arguments.seed)}"
    arguments.output.write_text(render(result, f"examples/lecture/{script.name}{options}"), encoding="utf-8")
    print(f"{seconds:.1f} s, page: {arguments.output}")
    sys.exit(0 if all(claim.holds for claim in result.claims) else 1)


def measure(experiment: Callable[[bool, int], Result], quick: bool, seed: int) -> Result:
    """Run an experiment in one thread; only `seed` decides what it draws."""
    # Small matrices: a second thread costs more than it brings, and may round otherwise.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return experiment(quick, seed)


def seeds(seed: int, number: int) -> range:
    """Return the seeds of a run's repetitions: runs that start from different seeds share none."""
    return range(seed * number, (seed + 1) * number)


def _arguments(script: Path, description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=script.name, description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller version with claims of its own")
    parser.add_argument("--seed", type=int, default=0, help="draw everything anew: 0, 1, 2, … (default 0)")
    parser.add_argument("--output", type=Path, help=f"page to write (default reports/{script.stem}.html)")
    arguments = parser.parse_args()
    if not 0 <= arguments.seed < 1000:
        parser.error(f"--seed is {arguments.seed}; give a number from 0 to 999")
    if not arguments.output:
        arguments.output = REPORTS / f"{script.stem}{'_quick' if arguments.quick else ''}.html"
    if arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is a directory; name a file, such as page.html")
    try:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.touch()
    except OSError as error:
        parser.error(f"cannot write {arguments.output}: {error.strerror}; choose another --output")
    return arguments


def print_result(result: Result, console: Console) -> None:
    """Print the measured tables and then the claims."""
    for table in result.tables:
        console.print(_rich(table.title, table.columns, [[show(cell) for cell in row] for row in table.rows]))
    rows = [
        [
            claim.statement,
            claim.expected,
            claim.measured,
            "[green]yes[/]" if claim.holds else "[bold red]no[/]",
        ]
        for claim in result.claims
    ]
    console.print(_rich(result.title, ["claim", "expected", "measured", "holds"], rows))


def _rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RichTable:
    table = RichTable(*columns, title=title, title_justify="left", title_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def render(result: Result, command: str) -> str:
    """Return the page as one HTML file that loads nothing from elsewhere."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["show"] = show
    return environment.get_template("page.html").render(
        result=result,
        command=command,
        held=sum(claim.holds for claim in result.claims),
        charts=[_chart_json(figure.chart) for figure in result.figures],
        code=[inspect.getsource(function).rstrip() for function in result.code],
        plotly=packed_plotly(),
        versions=f"torch {torch.__version__}",
    )


def _chart_json(chart: go.Figure) -> str:
    """Return a figure as JSON that may stand inside a script element."""
    chart = go.Figure(chart).update_layout(template="none", colorway=COLORS)
    return str(chart.to_json()).replace("</", "<\\/")
