"""The nouns: what was watched, what was recorded, what was found, what would help."""

from gradscope.records.model import LayerInfo, OptimizerInfo, ParameterInfo
from gradscope.records.names import storable
from gradscope.records.report import (
    REMEDY_KINDS,
    RULE_NAMES,
    SEVERITIES,
    Evidence,
    Finding,
    NotChecked,
    Remedy,
    Report,
    Severity,
    Verdict,
)
from gradscope.records.run import FORMAT_VERSION, Event, Run, RunInfo, Status, StepRecord
from gradscope.records.treatment import Effect, Treatment, Trial

__all__ = [
    "FORMAT_VERSION",
    "REMEDY_KINDS",
    "RULE_NAMES",
    "SEVERITIES",
    "Effect",
    "Event",
    "Evidence",
    "Finding",
    "LayerInfo",
    "NotChecked",
    "OptimizerInfo",
    "ParameterInfo",
    "Remedy",
    "Report",
    "Run",
    "RunInfo",
    "Severity",
    "Status",
    "StepRecord",
    "Treatment",
    "Trial",
    "Verdict",
    "storable",
]
