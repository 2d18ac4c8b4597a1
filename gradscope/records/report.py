"""What is found, and what would help: remedies, findings, and the report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gradscope.records.run import Run

Severity = Literal["critical", "warning", "note"]
Verdict = Literal["healthy", "ailing", "inconclusive"]

SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "note")

RULE_NAMES: tuple[str, ...] = (
    "vanishing-gradient",
    "exploding-gradient",
    "vanishing-signal",
    "exploding-signal",
    "non-finite",
    "zero-gradient",
    "missing-gradient",
    "dead-units",
    "saturated-activation",
    "attention-collapse",
    "rank-collapse",
    "poor-initialization",
    "symmetric-weights",
    "unscaled-input",
    "output-mismatch",
    "learning-rate-too-high",
    "learning-rate-too-low",
    "not-optimized",
    "excessive-weight-decay",
    "over-clipping",
    "ineffective-clipping",
    "gradient-not-zeroed",
    "gradient-underflow",
    "epsilon-floor",
    "degenerate-normalization",
    "loss-divergence",
)

REMEDY_KINDS: tuple[str, ...] = (
    "activation",
    "initialization",
    "normalization",
    "clipping",
    "learning-rate",
    "warmup",
    "residual",
    "weight-decay",
    "input-scaling",
    "target-scaling",
    "precision",
    "optimizer",
    "loss",
    "width",
    "code",
)


@dataclass(frozen=True)
class Remedy:
    """A suggested change.

    kind: one of REMEDY_KINDS; code: ready to paste, with this model's layer names; expected: the effect, as
    a number where theory gives one; action: the same change for a machine (see prescribe/surgery.py), empty
    if a person has to make it.
    """

    kind: str
    title: str
    why: str
    code: str
    expected: str
    action: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One ailment: the rule that found it, where, since when, and the numbers that show it.

    layers and parameters: where it starts, worst first; message: one sentence; cause: why it happens, one or
    two sentences with this run's figures; evidence: the figures by name; caused_by: the rule of the root
    cause, None if this is one; rank: 1 for the first to be treated.
    """

    rule: str
    severity: Severity
    message: str
    layers: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    first_step: int = 0
    last_step: int = 0
    cause: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    caused_by: str | None = None
    rank: int = 0
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True)
class NotChecked:
    """A rule that could not decide, and why."""

    rule: str
    reason: str


@dataclass(frozen=True)
class Evidence:
    """A figure that supports a verdict: what was looked at, its value, and the range that is normal."""

    name: str
    value: float
    normal: str
    statement: str


@dataclass(frozen=True)
class Report:
    """A run with its verdict, its findings (root causes first, with remedies) and what was not checked."""

    run: Run
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()
    evidence: tuple[Evidence, ...] = ()
