"""Judge a training that still goes on, by the rules that needn't wait for its end."""

from __future__ import annotations

from gradscope.diagnose.engine import fold, rank
from gradscope.diagnose.outcome import outcome
from gradscope.diagnose.rules import RULES
from gradscope.records import Finding, Run
from gradscope.settings import Settings


def so_far(run: Run, settings: Settings) -> tuple[Finding, ...]:
    """Return the critical findings that can be made by now, root causes first.

    None while the loss improves, or where it can't be judged: whatever ails such a training, it isn't lost.
    """
    if outcome(run, settings).progress != "stuck":
        return ()
    results = [rule.check(run, settings) for rule in RULES if rule.online]
    findings = [result for result in results if isinstance(result, Finding)]
    return tuple(finding for finding in rank(fold(findings, settings)) if finding.severity == "critical")
