"""Turn a report into plain rows and numbers, ready to show: all rounding, caps and down-sampling are here.

A renderer only has to lay them out. Names and texts are free of control characters, but not yet escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gradscope.present import wording
from gradscope.present.curves import History, Line, Profile, history, profiles
from gradscope.present.events import Occasion, occasion
from gradscope.present.facts import Fact, key_facts, more_facts
from gradscope.present.grids import GRID_COLUMNS, GRID_ROWS, Grid, edges, grids
from gradscope.present.table import Table, layer_table
from gradscope.records import Evidence, Finding, Remedy, Report, Run
from gradscope.settings import Settings

CARDS = 40
REMEDIES = 8
NAMES = 24
PROOFS = 60
EVENTS = 60
STRIP_CELLS = 120
SPARK_POINTS = 100


@dataclass(frozen=True)
class RemedyCard:
    """A remedy, ready to show."""

    kind: str
    title: str
    why: str
    code: str
    expected: str


@dataclass(frozen=True)
class Card:
    """A finding, ready to show, with its consequences folded under it."""

    anchor: str
    rank: int
    rule: str
    title: str
    severity: str
    message: str
    first: str
    since: str
    where: str
    layers: tuple[str, ...]
    parameters: tuple[str, ...]
    hidden_names: int
    strip: tuple[bool, ...]
    cause: str
    caused_by: str
    evidence: tuple[Fact, ...]
    remedies: tuple[RemedyCard, ...]
    consequences: tuple[Card, ...] = ()

    @property
    def ill_cells(self) -> int:
        """Return how many cells of the strip are ill."""
        return sum(self.strip)


@dataclass(frozen=True)
class Proof:
    """A figure behind the verdict, beside what is normal."""

    name: str
    value: str
    normal: str
    statement: str


@dataclass(frozen=True)
class Page:
    """Everything on the page."""

    title: str
    model: str
    run: str
    verdict: str
    headline: str
    lead: str
    proofs: tuple[Proof, ...]
    facts: tuple[Fact, ...]
    more_facts: tuple[Fact, ...]
    failure: str
    cards: tuple[Card, ...]
    hidden_findings: int
    not_checked: tuple[Fact, ...]
    problems: tuple[str, ...]
    events: tuple[Occasion, ...]
    hidden_events: int
    grids: tuple[Grid, ...]
    history: History
    sparkline: str
    profiles: tuple[Profile, ...]
    table: Table
    notes: tuple[str, ...]

    @property
    def first_remedy(self) -> str:
        """Return what to try first; nothing if the run isn't ill."""
        if self.verdict != "ailing" or not self.cards or not self.cards[0].remedies:
            return ""
        return self.cards[0].remedies[0].title

    @property
    def others(self) -> tuple[Card, ...]:
        """Return the cards that the headline doesn't tell of."""
        return self.cards[1:] if self.verdict == "ailing" else self.cards


def page(report: Report) -> Page:
    """Return everything that the page of a report shows."""
    run = report.run
    cards, curves = finding_cards(report), history(report)
    drawn, silent = grids(run)
    model = wording.name(run.info.model)
    return Page(
        title=f"{wording.elide(model, 80)}: {report.verdict}",
        model=model,
        run=wording.clean(run.path, 300),
        verdict=report.verdict,
        headline=_headline(report, cards),
        lead=_lead(report, cards),
        proofs=tuple(_proof(item) for item in report.evidence[:PROOFS]),
        facts=key_facts(run),
        more_facts=more_facts(run),
        failure=wording.clean(run.info.exception),
        cards=cards,
        hidden_findings=max(0, len(report.findings) - CARDS),
        not_checked=tuple(
            Fact(wording.clean(item.rule, 80), wording.clean(item.reason)) for item in report.not_checked
        ),
        problems=tuple(wording.clean(problem) for problem in run.problems[:EVENTS]),
        events=tuple(occasion(event) for event in run.events[:EVENTS]),
        hidden_events=max(0, len(run.events) - EVENTS),
        grids=drawn,
        history=curves,
        sparkline=_sparkline(curves.loss),
        profiles=profiles(report),
        table=layer_table(report),
        notes=(*silent, *_reductions(run)),
    )


def _reductions(run: Run) -> tuple[str, ...]:
    """Say what the maps leave out."""
    notes = []
    if len(run.steps) > GRID_COLUMNS:
        size = -(-len(run.steps) // GRID_COLUMNS)
        notes.append(f"each column of a map merges {size:,} of the {len(run.steps):,} recorded steps")
    if len(run.layers) > GRID_ROWS:
        notes.append(f"rows merge neighbours, so that {len(run.layers):,} layers fit into {GRID_ROWS} rows")
    if not notes:
        return ()
    text = "; ".join(notes)
    return (f"{text[0].upper()}{text[1:]}: the median for logarithms, the worst for shares.",)


def _sparkline(loss: Line | None) -> str:
    """Return the loss as an SVG path in a box of 100 by 20, broken where it wasn't finite."""
    if loss is None:
        return ""
    known = [value for value in loss.values if value is not None]
    low, span = min(known), (max(known) - min(known)) or 1.0
    places = range(0, len(loss.values), -(-len(loss.values) // SPARK_POINTS))
    path, move = [], "M"
    for place in places:
        value = loss.values[place]
        if value is not None:
            x = 100 * place / max(1, len(loss.values) - 1)
            path.append(f"{move}{x:.1f} {19 - 18 * min(1.0, (value - low) / span):.1f}")
        move = "L" if value is not None else "M"
    return "".join(path) if len(path) > 1 else ""


def _headline(report: Report, cards: Sequence[Card]) -> str:
    if report.verdict == "healthy":
        return "No ailment found"
    if report.verdict == "inconclusive":
        return "Too little was recorded to judge"
    return cards[0].title if cards else "Ailing"


def _lead(report: Report, cards: Sequence[Card]) -> str:
    """Say in one or two sentences what the verdict rests on."""
    steps = wording.count(len(report.run.steps), "recorded step")
    if report.verdict == "healthy":
        notes = f" {wording.count(len(report.findings), 'note')} below." if report.findings else ""
        return f"Nothing at warning or above in {steps}.{notes}"
    if report.verdict == "inconclusive":
        reason = cards[0].message if cards else "This is neither a clean bill of health nor an ailment."
        return f"{steps[0].upper()}{steps[1:]}. {reason}{_budget_hint(report)}"
    return ""  # the headline names the first finding, and its card follows at once


def _budget_hint(report: Report) -> str:
    """Say what to change where it was the overhead budget that left too few recorded steps."""
    budget = report.run.info.settings.get("overhead_budget")
    if not isinstance(budget, float) or len(report.run.steps) >= Settings().fewest_steps:
        return ""
    return f" Recording was kept within {wording.percent(budget)} of the time: allow more, or train longer."


def finding_cards(report: Report) -> tuple[Card, ...]:
    """Return one card for each root cause, in order, with all that follows from it folded under it."""
    findings = report.findings[:CARDS]
    roots = [_root(finding, findings) for finding in findings]
    return tuple(
        _card(
            report.run,
            finding,
            place,
            tuple(
                _card(report.run, other, number)
                for number, other in enumerate(findings)
                if roots[number] is finding and other is not finding
            ),
        )
        for place, finding in enumerate(findings)
        if roots[place] is finding
    )


def _root(finding: Finding, findings: Sequence[Finding]) -> Finding:
    """Follow caused_by to its end; a cause that is not there, or a circle, makes the finding its own root."""
    seen, current = [finding], finding
    while current.caused_by is not None:
        cause = next((item for item in findings if item.rule == current.caused_by), None)
        if cause is None:
            return current
        if any(cause is item for item in seen):
            return min(seen, key=lambda item: [id(known) for known in findings].index(id(item)))
        seen.append(cause)
        current = cause
    return current


def _card(run: Run, finding: Finding, place: int, consequences: tuple[Card, ...] = ()) -> Card:
    return Card(
        anchor=f"finding-{place + 1}",
        rank=finding.rank or place + 1,
        rule=wording.clean(finding.rule, 80),
        title=wording.rule_title(finding.rule),
        severity=finding.severity,
        message=wording.clean(finding.message),
        first=f"step {finding.first_step:,}",
        since=_since(run, finding),
        where=_where(finding),
        layers=tuple(wording.name(name) for name in finding.layers[:NAMES]),
        parameters=tuple(wording.name(name) for name in finding.parameters[:NAMES]),
        hidden_names=sum(max(0, len(names) - NAMES) for names in (finding.layers, finding.parameters)),
        strip=_strip(run, finding),
        cause=wording.clean(finding.cause),
        caused_by=wording.clean(finding.caused_by or "", 80),
        evidence=evidence_rows(finding.evidence),
        remedies=tuple(_remedy(remedy) for remedy in finding.remedies[:REMEDIES]),
        consequences=consequences,
    )


def evidence_rows(evidence: Mapping[str, Any]) -> tuple[Fact, ...]:
    """Return the figures of a finding, shares as percentages."""
    return tuple(
        Fact(_figure_name(name), _figure(name, value)) for name, value in [*evidence.items()][:PROOFS]
    )


def _figure_name(name: str) -> str:
    return wording.clean(name, 120).replace("_", " ")


def _figure(name: str, value: Any) -> str:
    share = name.endswith(("fraction", "share")) and isinstance(value, (int, float)) and 0 <= value <= 1
    return wording.percent(float(value)) if share else wording.figure(value)


def _remedy(remedy: Remedy) -> RemedyCard:
    return RemedyCard(
        wording.clean(remedy.kind, 40),
        wording.clean(remedy.title, 300),
        wording.clean(remedy.why),
        wording.code(remedy.code),
        wording.clean(remedy.expected),
    )


def _since(run: Run, finding: Finding) -> str:
    """Say when it began, and when it ended if it did before the run."""
    first, last = finding.first_step, finding.last_step
    end = int(run.steps["step"].iloc[-1]) if len(run.steps) else last
    if last < first or last >= end:
        return f"step {first:,}" + (", to the end" if end > first else "")
    return f"step {first:,} only" if last == first else f"step {first:,}, until step {last:,}"


def _where(finding: Finding) -> str:
    """Name the worst place, and say how many more there are."""
    names, noun = (finding.layers, "layer") if finding.layers else (finding.parameters, "parameter")
    if not names:
        return "the whole model"
    first = wording.elide(wording.name(names[0]), 80)
    return first if len(names) == 1 else f"{first} and {wording.count(len(names) - 1, f'more {noun}')}"


def _strip(run: Run, finding: Finding) -> tuple[bool, ...]:
    """Return what is ill over the depth, in at most STRIP_CELLS cells; nothing if no layer is named."""
    ill = set(finding.layers) | _layers_of(run, finding.parameters)
    names = [layer.name for layer in run.layers]
    if len(names) < 2 or not ill & set(names):
        return ()
    bounds = edges(len(names), STRIP_CELLS)
    return tuple(bool(ill & set(names[start:end])) for start, end in pairwise(bounds))


def _layers_of(run: Run, parameters: Iterable[str]) -> set[str]:
    wanted = set(parameters)
    return {parameter.layer for parameter in run.parameters if parameter.name in wanted}


def _proof(item: Evidence) -> Proof:
    value = item.value if item.value is not None else np.nan
    return Proof(
        _figure_name(item.name),
        _figure(item.name, value),
        wording.clean(item.normal, 200),
        wording.clean(item.statement),
    )
