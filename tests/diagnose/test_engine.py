"""Folding consequences under causes, ranking, verdicts, and rules that break."""

from __future__ import annotations

import pytest

from gradscope.diagnose import RULES, diagnose
from gradscope.diagnose.engine import CONSEQUENCES, fold, rank
from gradscope.diagnose.rule import HEADINGS, Rule
from gradscope.records import Finding, NotChecked, Run, Severity
from gradscope.settings import Settings
from tests.diagnose.cases import CASES
from tests.runs import mlp_run


def finding(rule: str, severity: Severity = "critical", first: int = 0, last: int = 99) -> Finding:
    return Finding(rule, severity, "It is so.", first_step=first, last_step=last)


def folded(*findings: Finding) -> dict[str, str | None]:
    return {item.rule: item.caused_by for item in fold(findings)}


def test_consequences_name_their_root_not_the_next_cause() -> None:
    chain = folded(finding("vanishing-gradient"), finding("epsilon-floor"), finding("learning-rate-too-low"))
    assert chain == {
        "vanishing-gradient": None,
        "epsilon-floor": "vanishing-gradient",
        "learning-rate-too-low": "vanishing-gradient",
    }


def test_non_finite_follows_from_what_exploded_before() -> None:
    found = folded(
        finding("exploding-gradient"), finding("non-finite", first=30), finding("loss-divergence", first=20)
    )
    assert found["non-finite"] == found["loss-divergence"] == "exploding-gradient"


def test_dead_units_are_the_learning_rates_only_if_they_died_later() -> None:
    assert folded(finding("learning-rate-too-high"), finding("dead-units", first=4))["dead-units"] is not None
    assert folded(finding("learning-rate-too-high"), finding("dead-units", first=0))["dead-units"] is None


def test_milder_finding_causes_nothing_more_severe() -> None:
    assert folded(finding("saturated-activation", "note"), finding("zero-gradient"))["zero-gradient"] is None


def test_cause_must_not_begin_long_after_its_consequence() -> None:
    late = folded(finding("dead-units", first=50), finding("vanishing-gradient", first=0))
    assert late["vanishing-gradient"] is None


def test_every_set_of_findings_keeps_a_root() -> None:
    for first in CONSEQUENCES:
        for second in CONSEQUENCES:
            if first < second:
                causes = folded(finding(first, first=1), finding(second, first=1))
                assert None in causes.values(), (first, second)
    assert None in folded(*(finding(rule, first=1) for rule in CONSEQUENCES)).values()


def test_rank_puts_severe_roots_first_and_numbers_them() -> None:
    ranked = rank(fold([finding("zero-gradient"), finding("loss-divergence", "note"), finding("dead-units")]))
    assert [(item.rule, item.rank) for item in ranked] == [
        ("dead-units", 1),
        ("zero-gradient", 2),
        ("loss-divergence", 3),
    ]


def _rule(detect: object) -> Rule:
    return Rule("dead-units", detect, "A rule.", dict.fromkeys(HEADINGS, "text"))


def test_rule_that_breaks_is_said_and_kills_nothing() -> None:
    def broken(run: Run, settings: Settings) -> None:
        raise ZeroDivisionError("by zero")

    diagnosis = diagnose(mlp_run(), rules=(_rule(broken), *RULES))
    assert diagnosis.not_checked[0] == NotChecked(
        "dead-units", "the rule failed (ZeroDivisionError: by zero)"
    )
    assert diagnosis.verdict == "healthy"


def test_notes_alone_leave_a_run_healthy() -> None:
    diagnosis = diagnose(mlp_run(), rules=(_rule(lambda run, settings: finding("dead-units", "note")),))
    assert diagnosis.verdict == "healthy"


@pytest.mark.parametrize("name", CASES)
def test_ill_run_is_ailing_and_its_finding_is_reported(name: str) -> None:
    diagnosis = diagnose(CASES[name].ill)
    assert diagnosis.verdict == "ailing"
    found = [item for item in diagnosis.findings if item.rule == name]
    assert len(found) == 1
    assert [item.rank for item in diagnosis.findings] == list(range(1, len(diagnosis.findings) + 1))
    assert len({item.rule for item in diagnosis.findings}) == len(diagnosis.findings)
