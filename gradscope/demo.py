"""Train the catalogue's programs under observation; write a report of each, and an index page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from gradscope.errors import GradscopeError
from gradscope.examine import examine
from gradscope.models import PROGRAMS, Program, Training
from gradscope.models.lecture import EXPERIMENTS
from gradscope.present import gallery, html, wording
from gradscope.pytorch_lightning import GradScope
from gradscope.quiet import quiet_lightning
from gradscope.records import Finding, Report
from gradscope.store import read_run

OnStep = Callable[[int, int], None]  # called with the steps done and the steps in all


def _ignore(done: int, total: int) -> None:
    """Show nothing of a step."""


@dataclass(frozen=True)
class Outcome:
    """A program, the report on its run, its accuracy on the test images, and the seconds it took."""

    program: Program
    report: Report
    accuracy: float
    seconds: float

    @property
    def found(self) -> Finding | None:
        """Return the finding ranked first, None if there is none at warning or above."""
        return next((finding for finding in self.report.findings if finding.severity != "note"), None)

    @property
    def as_expected(self) -> bool:
        """Return whether the verdict and the first finding are those that the catalogue names."""
        expected = "ailing" if self.program.finding else "healthy"
        found = self.found.rule if self.found else None
        return (self.report.verdict, found) == (expected, self.program.finding)


def run_demos(names: Sequence[str], output: Path, console: Console, seed: int = 0) -> list[Outcome]:
    """Train programs (all if no name is given), write their pages into a folder, show the verdicts.

    GradscopeError: a name that is not in the catalogue.
    """
    programs = [find_program(name) for name in names] or list(PROGRAMS.values())
    output.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with one_thread(), _progress(console) as progress:
        for program in programs:
            outcome = _run_shown(program, output, seed, progress)
            (output / f"{program.name}.html").write_text(html.render(outcome.report), encoding="utf-8")
            outcomes.append(outcome)
    (output / "index.html").write_text(index_page(outcomes), encoding="utf-8")
    console.print(verdict_table(outcomes))
    console.print(f"reports: {output / 'index.html'}", soft_wrap=True)
    return outcomes


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: for matrices as small as the programs' a second one only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def find_program(name: str) -> Program:
    """Return a program of the catalogue; GradscopeError if there is none of this name."""
    if name in PROGRAMS:
        return PROGRAMS[name]
    script = next((item.script for item in EXPERIMENTS if item.name == name), None)
    if script:
        raise GradscopeError(f"{name} is a script of the lecture: run `python {script}` in the source tree")
    close = get_close_matches(name, PROGRAMS, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    raise GradscopeError(f"there is no demo {name!r}{hint}; `gradscope demo --list` lists all")


def run_program(program: Program, run_dir: Path, seed: int = 0, on_step: OnStep = _ignore) -> Outcome:
    """Train a program, and examine what was recorded."""
    started = perf_counter()
    path, accuracy = train(program.build(seed), run_dir, on_step)
    named = run_dir.with_name(path.name)  # a page that is handed on need not tell where the folder lies
    return Outcome(program, examine(read_run(named)), accuracy, perf_counter() - started)


def train(training: Training, run_dir: Path, on_step: OnStep = _ignore) -> tuple[Path, float]:
    """Fit and test under observation; return the recorded run's path and the accuracy on the test images."""
    scope = GradScope(run_dir=str(run_dir), verbose=False)
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=training.steps,
            callbacks=[scope, _EachStep(on_step)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(training.model, training.train)
        scores = trainer.test(training.model, training.test, verbose=False)
    assert scope.run_path is not None, "training has begun"
    return scope.run_path, scores[0]["test_accuracy"]


class _EachStep(pl.Callback):
    """Call a function after every step."""

    def __init__(self, on_step: OnStep):
        self._on_step = on_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._on_step(trainer.global_step, int(trainer.max_steps))


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", justify="right"),
        BarColumn(),
        TextColumn("{task.completed} steps  [dim]{task.fields[remark]}"),
        TimeElapsedColumn(table_column=Column(min_width=7)),
        console=console,
    )


def _run_shown(program: Program, output: Path, seed: int, progress: Progress) -> Outcome:
    task = progress.add_task(program.name, total=None, remark="")

    def show(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    outcome = run_program(program, output / "runs" / program.name, seed, show)
    progress.update(task, remark=_remark(outcome))
    return outcome


def _remark(outcome: Outcome) -> str:
    return outcome.found.rule if outcome.found else outcome.report.verdict


def verdict_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the verdicts as a table for the terminal."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("program", "verdict", "first finding", "step", "right"):
        name = heading in ("program", "first finding")  # these give way where the terminal is narrow
        table.add_column(heading, no_wrap=not name, overflow="fold")
    table.add_column("accuracy", justify="right", no_wrap=True)
    for outcome in outcomes:
        found, colour = outcome.found, "red" if outcome.report.verdict == "ailing" else "green"
        table.add_row(
            outcome.program.name,
            f"[{colour}]{outcome.report.verdict}",
            found.rule if found else "–",
            f"{found.first_step}" if found else "",
            "[green]✓" if outcome.as_expected else f"[bold red]✗ {outcome.program.finding or 'healthy'}",
            wording.percent(outcome.accuracy),
        )
    return table


def index_page(outcomes: Sequence[Outcome]) -> str:
    """Return the index page of the reports, which lie beside it."""
    right = sum(outcome.as_expected for outcome in outcomes)
    rooms: dict[str, list[gallery.Exhibit]] = {"Ailing programs": [], "Healthy programs": []}
    for outcome in outcomes:
        rooms["Ailing programs" if outcome.program.finding else "Healthy programs"].append(_exhibit(outcome))
    lead = (
        "Each program was trained for real, on scikit-learn's handwritten digits, under observation. "
        f"gradscope's verdict and first finding were the expected ones for {right} of {len(outcomes)}."
    )
    return gallery.render("Demo programs", lead, rooms)


def _exhibit(outcome: Outcome) -> gallery.Exhibit:
    program = outcome.program
    return gallery.Exhibit(
        program.name,
        program.summary,
        f"{program.name}.html",
        program.finding,
        outcome.as_expected,
        outcome.accuracy,
        outcome.report,
    )
