"""A quick part of the remedy benchmark: its counts, and that an untreated trial is the recorded training."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.remedies.judging import MOST_TRIALS, Course, Step
from benchmarks.remedies.run import treat
from benchmarks.remedies.scoring import IN_CODE
from benchmarks.remedies.strategies import GRADSCOPE
from benchmarks.remedies.trials import Trial, train
from benchmarks.verdicts import programs, recording


def test_refusals_cost_no_trial_and_edits_are_no_repair() -> None:
    edit, refused = Step("edit", None), Step("refused", Trial(refused="why"))
    failed, repaired = Step("failed", Trial(0.5)), Step("repaired", Trial(0.95))
    course = Course((edit, refused, failed, repaired))
    assert course.first_is_an_edit
    assert not course.first_repairs
    assert course.trials == 2
    assert course.repairs_within(2)
    assert not course.repairs_within(1)
    assert Course((failed,)).trials == MOST_TRIALS + 1


def test_every_fault_in_code_is_a_program() -> None:
    assert set(programs.PROGRAMS) >= IN_CODE


def test_a_classic_fault_is_repaired_at_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "RUNS", tmp_path)
    treated = treat(("mlp-adam-lr-1e-6", 0, False))
    assert treated is not None
    assert treated.courses[GRADSCOPE].first_repairs
    outcome = recording.find("mlp-relu-he", 0).outcome
    assert outcome is not None
    untreated = train(programs.PROGRAMS["mlp-relu-he"], 0, {"do": "train"})
    assert untreated == pytest.approx(outcome.score, abs=1e-6)
