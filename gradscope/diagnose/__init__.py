"""Judge a run: which rules find something, what causes what, and whether the run is healthy."""

from __future__ import annotations

from gradscope.diagnose.engine import Diagnosis, diagnose
from gradscope.diagnose.online import so_far
from gradscope.diagnose.rule import Rule, markdown
from gradscope.diagnose.rules import RULES

__all__ = ["RULES", "Diagnosis", "Rule", "diagnose", "markdown", "so_far"]
