"""A quick part of the remedy benchmark: its counts, and that an untreated trial is the recorded training."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.remedies import trials
from benchmarks.remedies.judging import MOST_TRIALS, Course, Step
from benchmarks.remedies.run import treat
from benchmarks.remedies.scoring import CAUSES_IN_CODE, IN_CODE, LISTED_FIRST, Treated, section
from benchmarks.remedies.strategies import GRADSCOPE, STRATEGIES
from benchmarks.remedies.trials import Trial, train
from benchmarks.verdicts import programs, recording
from benchmarks.verdicts.program import Outcome


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


def test_causes_that_put_a_fault_in_the_code_name_no_other_program() -> None:
    listed = {programs.FAMILY[name] for name in IN_CODE}
    told = {
        program.name
        for family in listed
        for program in programs.TUNING[family]
        if program.causes and CAUSES_IN_CODE.issuperset(program.causes)
    }
    assert told
    assert told <= IN_CODE


def test_tables_count_programs_that_were_set_apart_later_both_ways() -> None:
    good, bad = Course((Step("Lower the rate", Trial(0.95)),)), Course((Step("Clip", Trial(0.2)),))
    courses = dict.fromkeys(STRATEGIES, good), dict.fromkeys(STRATEGIES, bad)
    later = sorted(IN_CODE - LISTED_FIRST)[0]
    runs = [
        *(Treated("mlp-adam-lr-1e-6", "mlp", seed, courses[0]) for seed in range(2)),
        Treated("mlp-softmax-twice", "mlp", 0, courses[1]),
        Treated(later, "other", 0, courses[1]),
    ]
    text = section("tuning", runs)
    first, both = [line for line in text.splitlines() if line.startswith("| gradscope")]
    assert "| 100.0%" in first
    assert "| 66.7%" in both
    assert f"- {later} (seed 0): Clip (0.20)" in text
    assert text.count("mlp-softmax-twice") == 1
    failing = Treated("mlp-adam-lr-1e-6", "mlp", 2, courses[1])
    assert "- none of 3: mlp-adam-lr-1e-6 (seed 2): Clip (0.20)" in section("tuning", [*runs, failing])


def test_an_interrupted_benchmark_keeps_every_trial_and_a_changed_source_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    recorded = recording.Recorded("", 0, tmp_path, Outcome(0.5, 0.1))
    monkeypatch.setattr(recording, "find", lambda name, seed: recorded)
    monkeypatch.setattr(trials, "train", lambda *arguments: made.append(1) or 0.46)
    action = {"do": "train", "rate": 0.1}
    first = trials.attempt("mlp-adam-lr-1e-6", 0, action)
    assert first.share == pytest.approx(0.9)
    assert trials.attempt("mlp-adam-lr-1e-6", 0, action) == first
    assert len(made) == 1
    monkeypatch.setattr(trials, "_source_of_trials", lambda: "another")
    assert trials.attempt("mlp-adam-lr-1e-6", 0, action) == first
    assert len(made) == 2


def test_a_classic_fault_is_repaired_at_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "RUNS", tmp_path)
    treated = treat(("mlp-adam-lr-1e-6", 0, False, (GRADSCOPE,)))
    assert treated is not None
    assert treated.courses[GRADSCOPE].first_repairs
    outcome = recording.find("mlp-relu-he", 0).outcome
    assert outcome is not None
    untreated = train(programs.PROGRAMS["mlp-relu-he"], 0, {"do": "train"})
    assert untreated == pytest.approx(outcome.score, abs=1e-6)
