"""The verdict benchmark's judging: the tools' rules on runs built in memory, the counts, a quick pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.verdicts import programs, recording, run, scoring
from benchmarks.verdicts.baselines import BASELINES, Symptom
from benchmarks.verdicts.judging import GRADSCOPE, TOOLS, Judgement, cut, judge
from benchmarks.verdicts.scoring import Judged
from tests.runs import mlp_run


def rules(tool: str, **values: object) -> set[str]:
    return {symptom.rule for symptom in BASELINES[tool](mlp_run(**values), ((10, 0.2), (20, 0.8)))}


def test_autotrainer_and_bttackler_are_silent_on_a_healthy_run() -> None:
    assert rules("AUTOTRAINER") == set()
    assert rules("BTTackler") == set()


@pytest.mark.parametrize("tool", ["AUTOTRAINER", "DeepDiagnosis", "SageMaker Debugger", "BTTackler"])
def test_baselines_find_a_gradient_that_vanishes(tool: str) -> None:
    vanished = {"gradient_rms": lambda step, depth: 1e-2 * 10.0 ** (depth - 9)}
    assert "vanishing-gradient" in rules(tool, parameter_values=vanished)


@pytest.mark.parametrize("tool", ["DeepDiagnosis", "SageMaker Debugger", "TheDeepChecker", "torchmortem"])
def test_baselines_know_update_ratios(tool: str) -> None:
    assert "learning-rate-too-high" in rules(tool, parameter_values={"update_ratio": 20.0})
    assert "learning-rate-too-low" in rules(tool, parameter_values={"update_ratio": 1e-9})


@pytest.mark.parametrize("tool", ["DeepDiagnosis", "torchmortem"])
def test_baselines_know_dead_activations(tool: str) -> None:
    dead = {"activation_zero_fraction": 0.9, "activation_dead_unit_fraction": 0.9}
    assert "dead-units" in rules(tool, activation_values=dead)


def test_saturation_is_asked_of_the_inputs() -> None:
    wide = {"activation_std": 30.0}
    assert "saturated-activation" in rules("DeepDiagnosis", activation="tanh", layer_values=wide)
    assert "saturated-activation" not in rules("DeepDiagnosis", activation="tanh")


def test_a_cut_run_ends_before_the_step() -> None:
    whole = mlp_run(steps=50)
    short = cut(whole, 8)
    assert short.steps["step"].max() == 7
    assert len(short.layer_table("activation_rms")) == 8
    assert short.info.status == "running"


def test_a_tool_that_fails_is_silent_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no such table")

    monkeypatch.setitem(BASELINES, "torchmortem", fails)
    said = judge("torchmortem", mlp_run(), ())
    assert not said.ailing
    assert said.error == "ValueError: no such table"


def judged(name: str, label: str, *symptoms: Symptom) -> Judged:
    said = dict.fromkeys(TOOLS, Judgement(symptoms, 4 if symptoms else None))
    return Judged(programs.PROGRAMS[name], programs.FAMILY[name], 0, 0.0, label, said)


def test_counts_cause_rank_and_layer() -> None:
    right = judged("mlp-dead-layer", "ailing", Symptom("dead-units", ("5",)))
    second = judged("mlp-dead-layer", "ailing", Symptom("non-finite"), Symptom("dead-units", ("model.5",)))
    wrong = judged("mlp-dead-layer", "ailing", Symptom("dead-units", ("1", "3", "5")))
    alarm = judged("mlp-relu-he", "healthy", Symptom("dead-units"))
    runs = [right, second, wrong, alarm]
    row = next(line for line in scoring.table(runs).splitlines() if line.startswith("| gradscope"))
    shares = [cell.strip().split(" ")[0] for cell in row.split("|")[2:-2]]
    assert shares == ["100.0%", "100.0%", "66.7%", "100.0%", "66.7%"]
    assert [line.split(": ")[1] for line in scoring.misses(runs, GRADSCOPE)] == [
        "cause not first",
        "wrong layer",
        "false alarm",
    ]


def test_interval_has_width_even_where_all_agree() -> None:
    low, high = scoring.interval([[True]] * 50)
    assert 0.9 < low < 1
    assert high == pytest.approx(1)
    low, high = scoring.interval([[True, False, True]] * 30)
    assert low < 2 / 3 < high


def test_quick_programs_are_judged_rightly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recording, "RUNS", tmp_path)
    assert run.main(["--quick", "--jobs", "1"]) == 0
    runs = run.judge_all(run.chosen("all", "", quick=True), seeds=1, jobs=1)
    assert {item.program.name for item in runs} >= set(run.QUICK)
    assert all(item.label == ("healthy" if item.program.is_control else "ailing") for item in runs)
    assert scoring.misses(runs, GRADSCOPE) == []
    assert "| gradscope | 0.0%" in capsys.readouterr().out
    shutil.rmtree(tmp_path)
