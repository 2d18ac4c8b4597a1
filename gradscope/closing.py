"""How a training ended, and the line that is printed then."""

from __future__ import annotations

import shlex
from pathlib import Path

from gradscope.records import Report, Status
from gradscope.store import read_run


def ended_by(error: BaseException) -> tuple[Status, str]:
    """Return what an exception makes of a run: "interrupted" if somebody asked for it, and its text."""
    # A generator that trains is left by GeneratorExit when whoever asks for its steps has enough.
    asked = (
        isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)) or "SIGTERM" in type(error).__name__
    )
    return "interrupted" if asked else "failed", f"{type(error).__name__}: {error}".rstrip(": ")


def closing_line(path: Path) -> str:
    """Return one line: the verdict, the top finding, and how to see the report."""
    try:
        command = f"gradscope report {shlex.quote(_shown(path))}"
        run = read_run(path)
    except Exception as error:  # whatever it is, the training that ends here must not fail for it
        return f"gradscope: nothing was recorded: {' '.join(str(error).split())}"
    try:
        from gradscope.examine import examine

        report = examine(run)
    except Exception:  # the command will say what is wrong
        return f"gradscope: the run is recorded. Next: {command}"
    ended = f" Training ended by {_short(run.info.exception)}." if run.info.exception else ""
    return f"gradscope: {report.verdict}{_top(report)}{ended} Next: {command}"


def _shown(path: Path) -> str:
    """Return a path as a user would give it: from where the process is, if the run lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if here != path and path.is_relative_to(here) else str(path)


def _top(report: Report) -> str:
    if not report.findings:
        return "."
    top = report.findings[0]
    return f"; {top.rule}: {' '.join(top.message.split())}"


def _short(text: str, most: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
