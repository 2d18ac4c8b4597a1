"""Prescribe remedies for a finding: ordered, with this run's figures and this model's names."""

from __future__ import annotations

from gradscope.prescribe.anyway import prescribe_anyway
from gradscope.prescribe.case import Case
from gradscope.prescribe.fixes import treat_cause
from gradscope.prescribe.table import TABLE
from gradscope.prescribe.training import Clipping, TrainingChange, training_change
from gradscope.records import Finding, Remedy, Run
from gradscope.settings import Settings

__all__ = ["TABLE", "Clipping", "TrainingChange", "prescribe", "prescribe_anyway", "training_change"]

MOST_REMEDIES = 4


def prescribe(finding: Finding, run: Run, settings: Settings | None = None) -> tuple[Remedy, ...]:
    """Return up to four remedies for a finding, best first; for a consequence, a pointer to its cause."""
    case = Case(finding, run, settings or Settings())
    if finding.caused_by:
        return (treat_cause(case),)
    found: dict[str, Remedy] = {}
    for suggest in TABLE.get(finding.rule, ()):
        remedy = suggest(case)
        if remedy is not None:
            found.setdefault(remedy.title, remedy)
    return tuple(found.values())[:MOST_REMEDIES]
