"""Count what the tools got right, with intervals; write it as a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.verdicts.judging import TOOLS, Judgement
from benchmarks.verdicts.program import Label, Program


@dataclass(frozen=True)
class Judged:
    """A labelled run and what each tool said of it."""

    program: Program
    family: str
    seed: int
    share: float
    label: Label
    judgements: dict[str, Judgement]

    @property
    def name(self) -> str:
        """Return program and seed."""
        return f"{self.program.name} (seed {self.seed})"


@dataclass(frozen=True)
class Column:
    """A share of runs: which runs count, and which of them are hits."""

    title: str
    counts: Callable[[Judged], bool]
    hit: Callable[[Judged, Judgement], bool]


def _ailing(run: Judged) -> bool:
    return run.label == "ailing"


COLUMNS = (
    Column("false alarms", lambda run: run.label == "healthy", lambda run, said: said.ailing),
    Column("detected", _ailing, lambda run, said: said.ailing),
    Column("cause first", _ailing, lambda run, said: said.names(run.program.causes, first=True)),
    Column("cause named", _ailing, lambda run, said: said.names(run.program.causes, first=False)),
    Column(
        "layer",
        lambda run: _ailing(run) and bool(run.program.where),
        lambda run, said: said.localises(run.program),
    ),
)


def table(runs: Sequence[Judged], tools: Sequence[str] = TOOLS) -> str:
    """Return the comparison as a Markdown table: share of runs, [95 % interval over programs]."""
    sizes = [sum(column.counts(run) for run in runs) for column in COLUMNS]
    heads = [f"{column.title} (n={size})" for column, size in zip(COLUMNS, sizes, strict=True)]
    lines = ["| tool | " + " | ".join(heads) + " | steps to alarm |", "|---" * (len(COLUMNS) + 2) + "|"]
    for tool in tools:
        cells = [_cell(tool, column, runs) for column in COLUMNS]
        lines.append(f"| {tool} | " + " | ".join(cells) + f" | {_steps(tool, runs)} |")
    return "\n".join(lines)


def by_family(runs: Sequence[Judged], tool: str) -> str:
    """Return one tool's counts for each family as a Markdown table."""
    families = list(dict.fromkeys(run.family for run in runs))
    lines = ["| family | " + " | ".join(column.title for column in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for family in families:
        chosen = [run for run in runs if run.family == family]
        cells = ["{} / {}".format(*map(len, _hits(tool, column, chosen))) for column in COLUMNS]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def misses(runs: Iterable[Judged], tool: str) -> list[str]:
    """Return one line for each run that a tool judged wrongly in any column."""
    lines = []
    for run in runs:
        said = run.judgements.get(tool, Judgement())
        rules = ", ".join(symptom.rule for symptom in said.symptoms) or said.error or "healthy"
        if run.label == "healthy" and said.ailing:
            lines.append(f"{run.name}: false alarm: {rules}")
        elif run.label == "ailing" and not said.names(run.program.causes, first=True):
            kind = "cause not first" if said.names(run.program.causes, first=False) else "cause not named"
            kind = kind if said.ailing else "not detected"
            lines.append(f"{run.name}: {kind}: {rules}; right: {', '.join(run.program.causes)}")
        elif run.label == "ailing" and run.program.where and not said.localises(run.program):
            places = ", ".join(said.symptoms[0].layers[:6]) or "no layer"
            lines.append(f"{run.name}: wrong layer: {places}; right: {', '.join(run.program.where)}")
    return lines


def _hits(tool: str, column: Column, runs: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    counted = [run for run in runs if column.counts(run)]
    return [run for run in counted if column.hit(run, run.judgements[tool])], counted


def _cell(tool: str, column: Column, runs: Sequence[Judged]) -> str:
    hits, counted = _hits(tool, column, runs)
    if not counted:
        return "–"
    named = {id(run) for run in hits}
    outcomes = defaultdict(list)
    for run in counted:
        outcomes[run.program.name].append(id(run) in named)
    low, high = interval(list(outcomes.values()))
    return f"{len(hits) / len(counted):.1%} [{low:.0%}, {high:.0%}]"


def interval(outcomes: Sequence[Sequence[bool]], draws: int = 2000) -> tuple[float, float]:
    """Return the wider of two 95 % intervals of a share: bootstrap over programs, and Wilson's over programs.

    Seeds of one program are not independent, so programs are what is drawn. Where all agree, the bootstrap
    has no width, and Wilson's interval (1927) with one observation a program says what is still possible.
    """
    hits = np.array([sum(group) for group in outcomes], dtype=float)
    sizes = np.array([len(group) for group in outcomes], dtype=float)
    chosen = np.random.default_rng(0).integers(0, len(hits), (draws, len(hits)))
    shares = hits[chosen].sum(1) / sizes[chosen].sum(1)
    low, high = np.quantile(shares, [0.025, 0.975])
    wilson = _wilson(hits.sum() / sizes.sum(), len(hits))
    return float(min(low, wilson[0])), float(max(high, wilson[1]))


def _wilson(share: float, count: int) -> tuple[float, float]:
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def _steps(tool: str, runs: Sequence[Judged]) -> str:
    steps = [run.judgements[tool].step for run in runs if _ailing(run)]
    known = [step for step in steps if step is not None]
    return f"{median(known):.0f}" if known else "–"
