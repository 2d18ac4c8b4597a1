"""From a run to a report: diagnose, then prescribe. The file to read first."""

from __future__ import annotations

from dataclasses import replace

from gradscope.diagnose import diagnose
from gradscope.prescribe import prescribe
from gradscope.records import Report, Run
from gradscope.settings import Settings


def examine(run: Run, settings: Settings | None = None) -> Report:
    """Judge a run and attach remedies to each finding; deterministic for the same run and settings."""
    diagnosis = diagnose(run, settings or Settings())
    findings = tuple(replace(finding, remedies=prescribe(finding, run)) for finding in diagnosis.findings)
    return Report(run, diagnosis.verdict, findings, diagnosis.not_checked, diagnosis.evidence)
