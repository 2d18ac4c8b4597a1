"""Run all rules, find out which finding causes which, rank them, and give the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gradscope.diagnose.evidence import evidence
from gradscope.diagnose.rule import Rule
from gradscope.diagnose.rules import RULES
from gradscope.records import SEVERITIES, Evidence, Finding, NotChecked, Run, Verdict
from gradscope.settings import Settings

# cause: what follows from it. A finding is folded under the first rule, in this order, that was found too and
# did not begin later. The order is that of a physician: code, data, initialisation, learning rate, then
# the mechanisms by which they do harm, then symptoms.
CONSEQUENCES: dict[str, tuple[str, ...]] = {
    "missing-gradient": ("learning-rate-too-low",),
    "poor-initialization": (
        "vanishing-signal",
        "exploding-signal",
        "vanishing-gradient",
        "exploding-gradient",
        "saturated-activation",
        "dead-units",
        "zero-gradient",
        "non-finite",
        "loss-divergence",
        "learning-rate-too-high",
        "learning-rate-too-low",
    ),
    "learning-rate-too-high": (
        "dead-units",
        "saturated-activation",
        "vanishing-signal",
        "exploding-signal",
        "vanishing-gradient",
        "exploding-gradient",
        "zero-gradient",
        "loss-divergence",
        "non-finite",
    ),
    "exploding-signal": (
        "saturated-activation",
        "exploding-gradient",
        "vanishing-gradient",
        "non-finite",
        "loss-divergence",
    ),
    "saturated-activation": ("vanishing-gradient", "zero-gradient", "learning-rate-too-low"),
    "vanishing-signal": ("vanishing-gradient", "zero-gradient", "dead-units", "learning-rate-too-low"),
    "dead-units": ("zero-gradient", "vanishing-gradient", "vanishing-signal", "learning-rate-too-low"),
    "exploding-gradient": ("non-finite", "loss-divergence", "dead-units"),
    "vanishing-gradient": ("zero-gradient", "learning-rate-too-low"),
    "non-finite": ("loss-divergence", "zero-gradient", "missing-gradient"),
    "loss-divergence": (),
}


@dataclass(frozen=True)
class Diagnosis:
    """The verdict, the findings (root causes first), what was not checked, and the evidence."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    not_checked: tuple[NotChecked, ...]
    evidence: tuple[Evidence, ...]


def diagnose(run: Run, settings: Settings | None = None, rules: Sequence[Rule] = RULES) -> Diagnosis:
    """Judge a run by all rules."""
    settings = settings or Settings()
    findings: list[Finding] = []
    unchecked: list[NotChecked] = []
    for rule in rules:
        result = rule.check(run, settings)
        if isinstance(result, Finding):
            findings.append(result)
        elif isinstance(result, NotChecked):
            unchecked.append(result)
    ranked = rank(fold(findings))
    return Diagnosis(_verdict(run, ranked, settings), ranked, tuple(unchecked), evidence(run, settings))


def fold(findings: Sequence[Finding]) -> list[Finding]:
    """Name in each finding the root that it follows from, if that was found too."""
    by_rule = {finding.rule: finding for finding in findings}
    return [replace(finding, caused_by=_root(finding, by_rule)) for finding in findings]


def _root(finding: Finding, found: dict[str, Finding]) -> str | None:
    """Follow the causes of a finding up to one that has none."""
    root, current = None, finding
    seen = {finding.rule}
    while (cause := _cause(current, found)) is not None and cause not in seen:
        seen.add(cause)
        root, current = cause, found[cause]
    return root


def _cause(finding: Finding, found: dict[str, Finding]) -> str | None:
    for rule, consequences in CONSEQUENCES.items():
        cause = found.get(rule)
        if finding.rule in consequences and cause is not None and _can_cause(cause, finding):
            return rule
    return None


def _can_cause(cause: Finding, finding: Finding) -> bool:
    """A cause is no milder than what it explains, and did not begin after it."""
    serious = SEVERITIES.index(cause.severity) <= SEVERITIES.index(finding.severity)
    return serious and cause.first_step <= finding.last_step


def rank(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Order findings: roots before consequences, the severe before the mild, causes before symptoms."""
    order = list(CONSEQUENCES)

    def key(finding: Finding) -> tuple[int, int, int, str]:
        place = order.index(finding.rule) if finding.rule in order else len(order)
        return (SEVERITIES.index(finding.severity), finding.caused_by is not None, place, finding.rule)

    ordered = sorted(findings, key=key)
    return tuple(replace(finding, rank=number) for number, finding in enumerate(ordered, start=1))


def _verdict(run: Run, findings: Sequence[Finding], settings: Settings) -> Verdict:
    if any(finding.severity != "note" for finding in findings):
        return "ailing"
    return "healthy" if len(run.steps) >= settings.fewest_steps else "inconclusive"
