"""Run all rules, find out which finding causes which, rank them, and give the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gradscope.diagnose.evidence import evidence
from gradscope.diagnose.rule import Rule
from gradscope.diagnose.rules import RULES
from gradscope.records import SEVERITIES, Evidence, Finding, NotChecked, Run, Verdict
from gradscope.settings import Settings

_SIGNAL = ("vanishing-signal", "exploding-signal")
_GRADIENT = ("vanishing-gradient", "exploding-gradient")
_UNITS = ("dead-units", "saturated-activation")
_STANDSTILL = ("zero-gradient", "learning-rate-too-low", "epsilon-floor", "rank-collapse")
_BLOW_UP = ("non-finite", "loss-divergence")

# What follows from what. The order is a physician's: code, data, initialisation, settings of the optimizer, then
# the mechanisms by which they do harm, then symptoms. A finding is folded under the first of these that can cause it.
CONSEQUENCES: dict[str, tuple[str, ...]] = {
    "missing-gradient": ("learning-rate-too-low",),
    "not-optimized": ("learning-rate-too-low",),
    "output-mismatch": (*_STANDSTILL, "vanishing-gradient", "learning-rate-too-high", "loss-divergence"),
    "gradient-not-zeroed": ("learning-rate-too-high", *_UNITS, *_SIGNAL, *_GRADIENT, *_STANDSTILL, *_BLOW_UP),
    "unscaled-input": ("learning-rate-too-high", *_UNITS, *_SIGNAL, *_GRADIENT, *_STANDSTILL, *_BLOW_UP),
    "symmetric-weights": ("poor-initialization", *_SIGNAL, *_GRADIENT, *_UNITS, *_STANDSTILL),
    "poor-initialization": (
        *_SIGNAL,
        *_GRADIENT,
        *_UNITS,
        *_STANDSTILL,
        *_BLOW_UP,
        "learning-rate-too-high",
        "attention-collapse",
    ),
    "degenerate-normalization": (*_SIGNAL, *_GRADIENT, *_STANDSTILL),
    "excessive-weight-decay": (*_SIGNAL, "vanishing-gradient", "dead-units", *_STANDSTILL),
    "over-clipping": ("learning-rate-too-low", "epsilon-floor"),
    "gradient-underflow": _STANDSTILL,
    "learning-rate-too-high": (*_UNITS, *_SIGNAL, *_GRADIENT, "attention-collapse", *_STANDSTILL, *_BLOW_UP),
    "exploding-signal": ("saturated-activation", *_GRADIENT, "learning-rate-too-high", *_BLOW_UP),
    "ineffective-clipping": ("exploding-gradient", *_BLOW_UP),
    "saturated-activation": ("vanishing-gradient", *_STANDSTILL),
    "vanishing-signal": ("vanishing-gradient", "dead-units", *_STANDSTILL),
    "dead-units": ("vanishing-signal", "vanishing-gradient", *_STANDSTILL),
    "attention-collapse": ("vanishing-gradient", "rank-collapse"),
    "exploding-gradient": ("dead-units", *_BLOW_UP),
    "vanishing-gradient": _STANDSTILL,
    "zero-gradient": ("learning-rate-too-low", "epsilon-floor"),
    "non-finite": ("loss-divergence", "zero-gradient", "missing-gradient"),
    "rank-collapse": (),
    "epsilon-floor": ("learning-rate-too-low",),
    "learning-rate-too-low": (),
    "loss-divergence": (),
}
# These act through updates, so nothing that is there at the first step follows from them.
BY_UPDATES = ("learning-rate-too-high", "excessive-weight-decay", "gradient-not-zeroed", "over-clipping")


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
    """Say whether a cause is no milder than what it is to explain, and was there in time."""
    serious = SEVERITIES.index(cause.severity) <= SEVERITIES.index(finding.severity)
    if cause.rule in BY_UPDATES:
        return serious and cause.first_step < finding.first_step
    return serious and cause.first_step <= max(finding.first_step, _head_start(cause))


def _head_start(cause: Finding) -> int:
    """Return by when a consequence may have been seen before its cause: a tenth of the cause's stretch."""
    return cause.first_step + (cause.last_step - cause.first_step) // 10


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
