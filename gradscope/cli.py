"""The `gradscope` command. Everything heavy is imported inside the commands: `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gradscope import __version__
from gradscope.errors import GradscopeError, RunError
from gradscope.records import SEVERITIES

if TYPE_CHECKING:
    from rich.console import Console

    from gradscope.diagnose import Rule
    from gradscope.records import Report, Run, Severity

CLEAN, FOUND, FAILED = 0, 1, 2
INTERRUPTED = 130  # as a shell reports Ctrl-C


class _RunPath(click.Path):
    """A path of a run; an empty one, as of a variable that a script forgot to set, is not "here"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or fail if it is empty."""
        if not str(value).strip():
            self.fail("it is empty; give the directory of a run", param, ctx)
        return super().convert(value, param, ctx)


_run_path = _RunPath(path_type=Path)
_run_argument = click.argument("run", type=_run_path)


def main() -> NoReturn:
    """Run the command and exit; an error is one line, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "→" is no reason to fail
    sys.exit(_status())


def _status() -> int:
    try:
        status = gradscope.main(prog_name="gradscope", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else CLEAN
    except click.exceptions.NoArgsIsHelpError as help_text:
        click.echo(help_text.format_message(), err=True)
    except click.ClickException as error:
        _complain(f"{error.format_message()}{_hint(error)}")
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the pipe has seen enough; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLEAN
    except GradscopeError as error:
        _complain(str(error))
    except OSError as error:
        _complain(f"{error.filename or 'output'}: {error.strerror or error}")
    except ModuleNotFoundError as error:
        _complain(f"the package {error.name} is missing; pip install 'lightning-gradscope[demo]' brings it")
    except Exception as error:
        if os.environ.get("GRADSCOPE_DEBUG"):
            raise
        _complain(
            f"gradscope failed ({type(error).__name__}: {error}); please report it, "
            "GRADSCOPE_DEBUG=1 shows where"
        )
    return FAILED


def _hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f" (see {context.command_path} --help)" if context else ""


def _complain(message: str) -> None:
    click.echo(f"gradscope: {' '.join(message.split())}", err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gradscope")
def gradscope() -> None:
    """Find out why a deep network doesn't train.

    RUN is a directory that training wrote, or any folder that holds some: the newest is taken then.
    """


@gradscope.command()
@_run_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The page; RUN.html if not given.")
@click.option("--open", "show_page", is_flag=True, help="Open the page in a browser.")
def report(run: Path, output: Path | None, show_page: bool) -> int:
    """Write the report of RUN as one HTML file.

    The verdict and the findings are shown here, too. Exit status: 0, or 2 if RUN cannot be read.
    """
    examined = _examine(run)
    from gradscope.present.html import render

    page = _page_path(examined.run, output)
    _write(page, render(examined))
    _show(examined)
    click.echo(f"\nreport: {page}")
    if show_page:
        click.launch(page.resolve().as_uri())
    return CLEAN


@gradscope.command()
@_run_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: for machines, one object.",
)
@click.option(
    "--fail-on",
    type=click.Choice(SEVERITIES),
    default="warning",
    show_default=True,
    help="The least severity that makes the exit status 1.",
)
@click.option(
    "--allow-inconclusive",
    is_flag=True,
    help="Exit status 0, not 2, where a run cannot be called clean but nothing was found.",
)
def check(run: Path, form: str, fail_on: Severity, allow_inconclusive: bool) -> int:
    r"""Judge RUN, for scripts and CI.

    \b
    Exit status:
      0  nothing was found at or above --fail-on
      1  something was found
      2  nothing was found, but the run is inconclusive or a
         part of it is damaged; 0 with --allow-inconclusive
      2  RUN cannot be read, or holds no recorded step
    """
    examined = _examine(run)
    if form == "json":
        import json

        from gradscope.present.json import to_json

        click.echo(json.dumps(to_json(examined), indent=2, allow_nan=False))
    else:
        _show(examined)
    failing = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    if any(finding.severity in failing for finding in examined.findings):
        return FOUND
    if not len(examined.run.steps):
        raise RunError(f"{examined.run.path} holds no recorded step, so there is nothing to check")
    doubt = _doubt(examined)
    if doubt and not allow_inconclusive:
        raise RunError(f"nothing was found, but {doubt}; --allow-inconclusive lets it pass")
    return CLEAN


def _doubt(report: Report) -> str:
    """Return why a run in which nothing was found still can't be called clean, "" if it can."""
    if report.verdict == "inconclusive":
        return "the run is inconclusive: too little was recorded, it failed, or its loss doesn't fall"
    if report.run.problems:
        return f"a part of the run was not read ({report.run.problems[0]})"
    return ""


@gradscope.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--list", "list_only", is_flag=True, help="List the programs and what each must show.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="gradscope_demo",
    show_default=True,
    help="The folder for runs and reports.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="The seed of weights, batches and split."
)
def demo(names: tuple[str, ...], list_only: bool, output: Path, seed: int) -> int:
    """Train bundled programs and report them.

    All of them without NAME. Exit status: 0 if each verdict is the one expected, 1 if not.
    """
    from gradscope.demo import run_demos
    from gradscope.models import PROGRAMS
    from gradscope.models.lecture import EXPERIMENTS

    if list_only:
        _show_names({item.name: f"{item.finding or 'healthy'}: {item.summary}" for item in PROGRAMS.values()})
        click.echo("\nExperiments of the lecture, scripts in the source tree:")
        _show_names({item.name: f"{item.shows} ({item.script})" for item in EXPERIMENTS})
        return CLEAN
    outcomes = run_demos(names, output, _console(), seed)
    if len(outcomes) == 1:
        click.echo()
        _show(outcomes[0].report)
    return CLEAN if all(outcome.as_expected for outcome in outcomes) else FOUND


@gradscope.command()
@click.argument("name", required=False)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the page docs/rules.md of all rules.")
def rules(name: str | None, as_markdown: bool) -> int:
    """Say what the rule NAME finds, or list all.

    With NAME: what it finds, why that hurts, what it is not, what helps, and its sources.
    """
    from gradscope.diagnose import RULES, markdown

    if as_markdown:
        click.echo(markdown(RULES), nl=False)
        return CLEAN
    known = {rule.name: rule for rule in RULES}
    if name is None:
        _show_names({rule.name: rule.summary for rule in RULES})
        return CLEAN
    if name not in known:
        raise GradscopeError(f"there is no rule {name!r}{_closest(name, known)}; `gradscope rules` lists all")
    _show_rule(known[name])
    return CLEAN


@gradscope.command()
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True, type=_run_path)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The page; comparison.html if not given."
)
def compare(runs: tuple[Path, ...], output: Path | None) -> int:
    """Put runs side by side in one HTML file.

    Shown are the findings of each, gained and lost against the first run, curves and profiles over depth.
    """
    if len(runs) < 2:
        raise click.UsageError("compare needs at least two runs")
    reports = [_examine(run) for run in runs]
    from gradscope.present.comparison import compare as compare_reports
    from gradscope.present.html import render_comparison
    from gradscope.present.side_by_side import comparison_table

    comparison = compare_reports(reports)
    page = output or Path("comparison.html")
    _write(page, render_comparison(comparison))
    _console().print(comparison_table(comparison))
    click.echo(f"\ncomparison: {page}")
    return CLEAN


@gradscope.command()
@click.argument("target", metavar="[MODULE:FUNCTION]", required=False)
@click.option("--demo", "program", help="Treat a program of `gradscope demo --list` instead.")
@click.option(
    "--steps",
    type=click.IntRange(min=10),
    default=200,
    show_default=True,
    help="Optimizer steps of each training.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Trainings of each; intervals need at least 2.",
)
@click.option("--time-limit", type=float, default=80.0, show_default=True, help="Seconds; inf for none.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="gradscope_treatment",
    show_default=True,
    help="The folder for runs and the page; an interrupted treatment goes on there.",
)
def treat(
    target: str | None, program: str | None, steps: int, seeds: int, time_limit: float, output: Path
) -> int:
    """Try the prescribed remedies and rank them.

    MODULE:FUNCTION is called without arguments and returns (build, data): build() or build(seed) returns a
    LightningModule or (model, optimizer, loss), and data is an iterable of its training batches.
    Exit status: 0, or 2 if nothing could be trained.
    """
    if (target is None) == (program is None):
        raise click.UsageError("give either MODULE:FUNCTION or --demo NAME")
    from contextlib import nullcontext

    from gradscope.demo import one_thread
    from gradscope.treat.session import patient_of_demo, patient_of_module, treat_shown

    name, build, data = patient_of_demo(program) if program else patient_of_module(str(target))
    with one_thread() if program else nullcontext():
        treat_shown(build, data, output / name, steps, seeds, time_limit, _console())
    return CLEAN


@gradscope.command()
@_run_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A folder; RUN-tables if not given.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="The format of the tables.",
)
def export(run: Path, output: Path | None, form: str) -> int:
    """Write RUN's tables as CSV or Parquet.

    One file each for steps, layers and parameters; ranks are merged and restarts resolved.
    """
    read = _read(run)
    folder = output or _beside(read.path, "-tables")
    tables = {"steps": read.steps, "layers": read.layer_statistics, "parameters": read.parameter_statistics}
    for name, table in tables.items():
        path = folder / f"{name}.{form}"
        with _output(path):
            folder.mkdir(parents=True, exist_ok=True)
            table.to_csv(path, index=False) if form == "csv" else table.to_parquet(path, index=False)
        click.echo(f"{path}  {len(table):,} rows")
    return CLEAN


def _read(path: Path) -> Run:
    """Read the run at a path, or the newest below it, and say which."""
    from gradscope.store import find_runs, read_run

    newest, *older = find_runs(path)
    if newest != path and newest / "run.json" != path:
        count = f"the newest of {len(older) + 1} runs" if older else "the only run"
        click.echo(f"gradscope: {newest} ({count} in {path})", err=True)
    return read_run(newest)


def _examine(path: Path) -> Report:
    run = _read(path)
    from gradscope.examine import examine

    return examine(run)


def _show(report: Report) -> None:
    from gradscope.present.terminal import show

    show(report, _console())


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, emoji=False)


def _write(page: Path, text: str) -> None:
    with _output(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_bytes(text.encode(errors="replace"))


@contextmanager
def _output(place: Path) -> Iterator[None]:
    """Say of what can't be written where it was to go, and how to choose another place."""
    try:
        yield
    except OSError as error:
        blocked = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = "a file is where a folder must be" if blocked else error.strerror or error
        raise GradscopeError(
            f"cannot write {place} ({reason}); choose another place with --output"
        ) from error


def _page_path(run: Run, output: Path | None) -> Path:
    if output is None:
        return _beside(run.path, ".html")
    return output / _beside(run.path, ".html").name if output.is_dir() else output


def _beside(run: Path, ending: str) -> Path:
    """Return a path beside the run, also if the run was given as "." or with a trailing dot.

    Of a run at an address it is in the current directory.
    """
    from gradscope.store import address_of

    if address_of(run) is not None:
        return Path(f"{run.name}{ending}")
    place = run if run.name not in ("", "..") else run.resolve()
    return place.with_name(f"{place.name}{ending}")


def _show_names(meanings: Mapping[str, str]) -> None:
    """List names with what they mean: wrapped in a terminal, a line each for a pipe."""
    console, margin = _console(), max(map(len, meanings)) + 2
    for name, text in meanings.items():
        room = max(20, console.width - margin)
        lines = wrap(text, room, break_long_words=False) if console.is_terminal else [text]
        click.echo(f"{name:<{margin}}" + f"\n{'':<{margin}}".join(lines))


def _show_rule(rule: Rule) -> None:
    from rich.markup import escape

    console = _console()
    console.print(f"[bold]{escape(rule.name)}[/]  {escape(rule.summary)}")
    for heading, text in rule.documentation.items():
        console.print(f"\n[bold]{escape(heading)}[/]\n{escape(text)}")


def _closest(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
