"""A treatment as the command line holds it: find the patient, show the progress, write the page."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from gradscope.errors import GradscopeError
from gradscope.examine import examine
from gradscope.present.html import render_treatment
from gradscope.present.side_by_side import ranking_table
from gradscope.present.treatment import treatment_page
from gradscope.records import Treatment
from gradscope.store import read_run
from gradscope.treat.treatment import treat

Build = Callable[..., Any]


def patient_of_demo(name: str) -> tuple[str, Build, Any]:
    """Return name, build function and data of a catalogue program; GradscopeError if there is none."""
    from gradscope.demo import find_program

    program = find_program(name)
    return name, lambda seed: program.build(seed).model, lambda seed: program.build(seed).train


def patient_of_module(target: str) -> tuple[str, Build, Any]:
    """Return name, build function and data that MODULE:FUNCTION gives; GradscopeError says what is wrong."""
    module_name, _, function_name = target.partition(":")
    if not module_name or not function_name:
        raise GradscopeError(f"{target!r} is not MODULE:FUNCTION, such as training:patient")
    sys.path.insert(0, "")  # as `python -m` does, so that a module in the current folder is found
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise GradscopeError(f"{module_name} can't be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise GradscopeError(f"{module_name} has no function {function_name}")
    try:
        given = function()
    except Exception as error:
        raise GradscopeError(f"{target} failed: {type(error).__name__}: {error}") from error
    if not isinstance(given, tuple) or len(given) != 2 or not callable(given[0]):
        raise GradscopeError(f"{target} must return (build, data), with a build function; see --help")
    return function_name, *given


def treat_shown(
    build: Build, data: Any, path: Path, steps: int, seeds: int, time_limit: float, console: Console
) -> Treatment:
    """Treat with a progress bar, print the ranking, and write the page into the treatment's folder."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} steps"))
    shown: dict[str, Any] = {"console": console, "transient": True, "disable": not console.is_terminal}
    with Progress(*columns, TimeElapsedColumn(), **shown) as bar:
        task = bar.add_task("the patient", total=steps)

        def show(name: str, step: int, total: int) -> None:
            bar.update(task, description=name[:60], completed=step, total=total)

        try:
            treatment = treat(
                build, data, steps=steps, seeds=seeds, run_dir=path, time_limit=time_limit, progress=show
            )
        except KeyboardInterrupt:
            console.print(
                f"interrupted: what was tried is kept in {path}; the same command goes on from there",
                soft_wrap=True,
            )
            raise
    winner = treatment.winner
    before = examine(read_run(treatment.patient[0].run))
    after = examine(read_run(winner.trials[0].run)) if winner else None
    page = treatment_page(treatment, before, after)
    (path / "treatment.html").write_bytes(render_treatment(page).encode(errors="replace"))
    console.print(Text.assemble((page.headline, "bold"), ": ", page.lead))
    console.print(ranking_table(page, console.width))
    if winner:
        console.print("\n[bold]paste[/]")
        console.print(winner.remedy.code, markup=False, highlight=False, soft_wrap=True)
    console.print(f"\ntreatment: {path / 'treatment.html'}", soft_wrap=True, highlight=False)
    return treatment
