"""Put several runs side by side: findings gained and lost, curves and profiles laid over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradscope.present import wording
from gradscope.present.curves import Line, Profile, history, profiles
from gradscope.present.facts import Fact, key_facts
from gradscope.records import Finding, Report

RUNS = 8


@dataclass(frozen=True)
class Contestant:
    """One run of the comparison, ready to show; gained and lost are findings against the first run."""

    label: str
    path: str
    model: str
    verdict: str
    findings: tuple[str, ...]
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Overlay:
    """One quantity of all runs. x: steps, or for a profile the share of the depth in percent."""

    key: str
    title: str
    meaning: str
    across: str
    logarithmic: bool
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Curve:
    """One run's curve in an overlay, None where nothing finite was measured; names label the points."""

    label: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison shows."""

    title: str
    contestants: tuple[Contestant, ...]
    overlays: tuple[Overlay, ...]
    hidden: int


def compare(reports: Sequence[Report], labels: Sequence[str] = ()) -> Comparison:
    """Return the comparison of two to eight reports; labels default to what tells the paths apart."""
    shown = list(reports[:RUNS])
    names = [wording.clean(label, 80) for label in labels] or distinct_labels(
        [report.run.path for report in shown]
    )
    first = _rules(shown[0])
    contestants = tuple(
        _contestant(report, label, first) for report, label in zip(shown, names, strict=False)
    )
    return Comparison(
        title=" against ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else ""),
        contestants=contestants,
        overlays=tuple(overlay for overlay in _overlays(shown, names) if overlay.curves),
        hidden=len(reports) - len(shown),
    )


def distinct_labels(paths: Sequence[Path]) -> list[str]:
    """Return for each path the shortest of its endings that no other path shares."""
    parts = [path.resolve().parts for path in paths]
    others = set(parts)  # the same path twice is told apart by a number
    labels = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in others) > 1:
            length += 1
        labels.append(wording.clean("/".join(own[-length:]), 80))
    return [label if labels.count(label) == 1 else f"{label} ({n + 1})" for n, label in enumerate(labels)]


def _rules(report: Report) -> dict[str, Finding]:
    return {finding.rule: finding for finding in report.findings if finding.severity != "note"}


def _contestant(report: Report, label: str, first: dict[str, Finding]) -> Contestant:
    own = _rules(report)
    return Contestant(
        label=label,
        path=wording.clean(report.run.path, 300),
        model=wording.name(report.run.info.model),
        verdict=report.verdict,
        findings=tuple(wording.clean(rule, 80) for rule in own),
        gained=tuple(wording.clean(rule, 80) for rule in own if rule not in first),
        lost=tuple(wording.clean(rule, 80) for rule in first if rule not in own),
        facts=key_facts(report.run),
    )


def _overlays(reports: Sequence[Report], labels: Sequence[str]) -> list[Overlay]:
    histories = [history(report) for report in reports]
    losses = [_over_steps(label, item.loss) for label, item in zip(labels, histories, strict=True)]
    norms = [
        _over_steps(label, item.norms[0] if item.norms else None)
        for label, item in zip(labels, histories, strict=True)
    ]
    overlays = [
        Overlay("loss", "Loss", "over optimizer steps", "step", _spread(losses), _present(losses)),
        Overlay(
            "norm", "Gradient norm", "before clipping, over optimizer steps", "step", True, _present(norms)
        ),
    ]
    return overlays + _depth_overlays(reports, labels)


def _over_steps(label: str, line: Line | None) -> Curve | None:
    return Curve(label, tuple(float(step) for step in line.steps), line.values) if line else None


def _present(curves: Sequence[Curve | None]) -> tuple[Curve, ...]:
    return tuple(curve for curve in curves if curve is not None)


def _spread(curves: Sequence[Curve | None]) -> bool:
    """Return whether the values are all positive and span more than a factor of 30."""
    values = [value for curve in _present(curves) for value in curve.y if value is not None]
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def _depth_overlays(reports: Sequence[Report], labels: Sequence[str]) -> list[Overlay]:
    """Return one overlay for each statistic that is drawn over depth, of the runs that have it."""
    drawn: dict[str, Overlay] = {}
    for report, label in zip(reports, labels, strict=True):
        for profile in profiles(report):
            meaning = f"{profile.meaning}, median over the run, layers with weights"
            across = "depth, % of the layers with weights"
            known = drawn.setdefault(
                profile.key, Overlay(profile.key, profile.title, meaning, across, True, ())
            )
            drawn[profile.key] = replace(known, curves=(*known.curves, _over_depth(label, profile)))
    return list(drawn.values())


def _over_depth(label: str, profile: Profile) -> Curve:
    last = max(1, len(profile.layers) - 1)
    depth = tuple(100 * place / last for place in range(len(profile.layers)))
    return Curve(label, depth, profile.median, profile.layers)
