"""Turn a report into the stable machine interface: one JSON object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradscope.records import Finding, Report, Run

SCHEMA = 1


def to_json(report: Report) -> dict[str, Any]:
    """Return a report as strict JSON can hold it; a figure that is not finite becomes None."""
    return {
        "schema": SCHEMA,
        "run": _run(report.run),
        "verdict": report.verdict,
        "findings": [_finding(finding) for finding in report.findings],
        "not_checked": [{"rule": item.rule, "reason": item.reason} for item in report.not_checked],
    }


def _run(run: Run) -> dict[str, Any]:
    steps = [int(step) for step in run.steps["step"].iloc[[0, -1]]] if len(run.steps) else [None, None]
    return {
        "path": str(run.path),
        "model": run.info.model,
        "status": run.info.status,
        "exception": run.info.exception,
        "started": run.info.started,
        "ended": run.info.ended,
        "restarts": run.info.restarts,
        "ranks": run.info.ranks,
        "recorded_steps": len(run.steps),
        "first_step": steps[0],
        "last_step": steps[1],
        "layers": len(run.layers),
        "parameters": len(run.parameters),
        "problems": list(run.problems),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "rank": finding.rank,
        "caused_by": finding.caused_by,
        "layers": list(finding.layers),
        "parameters": list(finding.parameters),
        "first_step": int(finding.first_step),
        "last_step": int(finding.last_step),
        "message": finding.message,
        "evidence": _figures(finding.evidence),
        "remedies": [
            {name: getattr(remedy, name) for name in ("kind", "title", "why", "code", "expected")}
            for remedy in finding.remedies
        ],
    }


def _figures(evidence: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in evidence.items()}


def _number(value: Any) -> float | None:
    """Return a figure as a Python number, also one that came from NumPy; None if it is not finite."""
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, int | float) and math.isfinite(plain) else None
