"""Treatments of small patients: what helps is told from what doesn't, and nothing is lost."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeError
from gradscope.present.treatment import lead
from gradscope.records import Effect, Finding, Remedy, Report, Treatment
from gradscope.treat import treat
from gradscope.treat.treatment import prescribed
from tests.runs import mlp_run

LOWER = Remedy("learning-rate", "Lower the rate", "", "", "", {"do": "train", "rate": 0.05})
RAISE = Remedy("learning-rate", "Raise the rate", "", "", "", {"do": "train", "rate": 1e3})
BY_HAND = Remedy("code", "Look at the data", "", "", "", {})
CLIPPING = {"algorithm": "norm", "limit": 1e9}
NONSENSE = Remedy("activation", "Replace what is not there", "", "", "", {"do": "no such operation"})


def batches(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8, 32, 6, generator=generator)
    weights = torch.randn(6, generator=torch.Generator().manual_seed(0))
    return [(x, (x @ weights > 0).long()) for x in inputs]


def build(rate: float) -> Any:
    def make() -> Any:
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
        return model, torch.optim.SGD(model.parameters(), lr=rate), nn.CrossEntropyLoss()

    return make


def test_what_helps_is_told_from_what_does_not(tmp_path: Path) -> None:
    remedies = [RAISE, BY_HAND, NONSENSE, LOWER]
    treatment = treat(build(50.0), batches, remedies, steps=40, seeds=3, run_dir=tmp_path / "t")
    by_title = {effect.remedy.title: effect for effect in treatment.effects}
    assert treatment.effects[0].remedy is LOWER
    assert by_title["Lower the rate"].outcome == "helps"
    assert by_title["Raise the rate"].outcome != "helps"
    assert by_title["Look at the data"].outcome == "not tried"
    assert "unknown operation" in by_title["Replace what is not there"].failure
    assert treatment.verdict == "repaired"
    assert treatment.winner is treatment.effects[0]
    assert treatment.complete
    assert Path(treatment.winner.trials[0].run, "run.json").exists()


def _found(rule: str, *remedies: Remedy, **facts: Any) -> Finding:
    return Finding(rule, facts.pop("severity", "critical"), "message", remedies=remedies, **facts)


def test_several_root_causes_are_treated_together_first() -> None:
    scale = Remedy(
        "input-scaling", "Standardise the inputs", "", "", "", {"do": "train", "scale_inputs": True}
    )
    report = Report(
        mlp_run(),
        "ailing",
        (
            _found("output-mismatch", BY_HAND, LOWER),
            _found("unscaled-input", scale),
            _found("learning-rate-too-high", RAISE),  # would change the rate again
            _found("dead-units", NONSENSE, caused_by="unscaled-input"),
        ),
    )
    chosen = [remedy.title for remedy in prescribed(report)]
    assert chosen[0] == "Lower the rate, and standardise the inputs"
    assert "at the rate that a short search finds" in chosen[1]  # no other remedy changes anything else
    assert chosen[2:6] == ["Look at the data", "Lower the rate", "Standardise the inputs", "Raise the rate"]
    alone = replace(report, findings=(report.findings[0], _found("unscaled-input", scale, severity="note")))
    assert prescribed(alone)[0] is BY_HAND


def test_the_best_two_are_tried_together(tmp_path: Path) -> None:
    other = Remedy("learning-rate", "Another rate", "", "two()", "", {"do": "train", "rate": 0.5})
    treatment = treat(build(50.0), batches, [LOWER, other], steps=40, seeds=3, run_dir=tmp_path / "t")
    both = treatment.combination
    assert both is not None
    assert both.remedy.title == "Another rate, and lower the rate"
    assert both.remedy.code.startswith("two()")
    assert len(both.trials) == 3
    assert (
        treatment.winner is treatment.effects[0]
    )  # of two rates the later stands: together they gain nothing


@pytest.mark.parametrize(("gain", "wins"), [(0.015, False), (0.05, True)])
def test_both_together_win_only_where_that_is_clearly_better(gain: float, wins: bool, tmp_path: Path) -> None:
    one = Effect(LOWER, (), 0.8, 0.5, 0.4, 0.6, 1.0, "helps")
    both = replace(one, gained=one.gained + gain, cost=1.5)
    treatment = Treatment(tmp_path, (), (), (one,), both, "repaired", 40, 3, True)
    assert treatment.winner is (both if wins else one)


def test_what_changes_nothing_is_said_not_to_help(tmp_path: Path) -> None:
    idle = Remedy(
        "clipping", "Clip what is never so large", "", "", "", {"do": "train", "clipping": CLIPPING}
    )
    treatment = treat(build(1e-6), batches, [idle], steps=20, seeds=3, run_dir=tmp_path / "t")
    assert treatment.effects[0].outcome == "no clear effect"
    assert treatment.effects[0].gained == 0
    assert treatment.winner is None
    assert treatment.verdict == "not repaired"
    assert "No remedy that was tried has a clear effect" in lead(treatment)


def test_a_patient_that_trains_well_is_not_ill(tmp_path: Path) -> None:
    treatment = treat(build(0.5), batches, [RAISE], steps=60, seeds=2, run_dir=tmp_path / "t")
    assert treatment.verdict == "not ill"
    assert treatment.winner is None
    assert treatment.effects[0].outcome in ("harms", "no clear effect")


def _figures(treatment: Any) -> list[Any]:
    return [[trial.losses for trial in effect.trials] for effect in treatment.effects]


def test_a_treatment_is_deterministic(tmp_path: Path) -> None:
    one = treat(build(5.0), batches, [LOWER], steps=20, seeds=2, run_dir=tmp_path / "a")
    other = treat(build(5.0), batches, [LOWER], steps=20, seeds=2, run_dir=tmp_path / "b")
    assert _figures(one) == _figures(other)
    assert [trial.losses for trial in one.patient] == [trial.losses for trial in other.patient]


def test_it_stops_at_its_time_limit_with_what_it_has_and_goes_on_later(tmp_path: Path) -> None:
    stopped = treat(build(5.0), batches, [LOWER], steps=20, seeds=2, run_dir=tmp_path / "t", time_limit=1e-6)
    assert not stopped.complete
    assert len(stopped.patient) == 1
    assert stopped.effects[0].outcome == "not tried"
    resumed = treat(build(5.0), batches, [LOWER], steps=20, seeds=2, run_dir=tmp_path / "t")
    whole = treat(build(5.0), batches, [LOWER], steps=20, seeds=2, run_dir=tmp_path / "whole")
    assert resumed.complete
    assert _figures(resumed) == _figures(whole)


def test_an_interrupted_treatment_resumes_without_repeating_what_is_done(tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    seen: list[str] = []

    def stop_in_the_second_seed(name: str, step: int, steps: int) -> None:
        seen.append(name)
        if name == "Lower the rate, seed 1" and step == 5:
            raise Stop

    with pytest.raises(Stop):
        treat(build(5.0), batches, [LOWER], 20, 2, tmp_path / "t", progress=stop_in_the_second_seed)
    seen.clear()
    treatment = treat(
        build(5.0), batches, [LOWER], 20, 2, tmp_path / "t", progress=lambda name, *_: seen.append(name)
    )
    assert set(seen) == {"Lower the rate, seed 1"}
    assert treatment.complete


def test_a_treatment_that_was_moved_goes_on_where_it_is(tmp_path: Path) -> None:
    first = treat(build(5.0), batches, [LOWER], 20, 1, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = treat(build(5.0), batches, [LOWER], 20, 1, tmp_path / "there")
    assert _figures(moved) == _figures(first)
    runs = [trial.run for trial in (*moved.patient, *moved.effects[0].trials)]
    assert all(
        Path(run).is_relative_to(tmp_path / "there") and Path(run, "run.json").exists() for run in runs
    )


def test_three_trials_are_of_three_mechanisms() -> None:
    warm = Remedy("warmup", "Warm up", "", "", "", {"do": "train", "warmup_steps": 10})
    drawn = Remedy("initialization", "Draw", "", "", "", {"do": "initialize", "scheme": "he"})
    found = _found("learning-rate-too-high", LOWER, RAISE, warm, drawn)
    chosen = [remedy.title for remedy in prescribed(Report(mlp_run(), "ailing", (found,)))]
    assert chosen[:2] == ["Lower the rate", "Draw"]
    assert "LayerNorm" in chosen[2]
    unexplained = [remedy.title for remedy in prescribed(Report(mlp_run(), "healthy", ()))]
    assert unexplained[0] == chosen[2]
    broken = prescribed(Report(mlp_run(), "ailing", (_found("non-finite"),)))
    assert all(remedy.title.startswith("Keep roots, logarithms and quotients off zero") for remedy in broken)


def test_gaps_and_edges_that_make_nan_are_treated(tmp_path: Path) -> None:
    def make() -> Any:
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        return (
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            lambda output, target: ((d := output - target[:, None]) * (d > 0)).sqrt().mean(),
        )

    def holed(seed: int) -> Any:
        return [(x.where(x > -2, torch.nan), y) for x, y in batches(seed)]

    fill = Remedy("input-scaling", "Fill", "", "", "", {"do": "train", "fill_missing": True})
    both = {"do": "train", "fill_missing": True, "keep_finite": True, "search": [0.01, 0.1]}
    guard = Remedy("code", "Fill and guard", "", "", "", both)
    treatment = treat(make, holed, [fill, guard], steps=20, seeds=1, run_dir=tmp_path / "t")
    by_title = {effect.remedy.title: effect.trials[0] for effect in treatment.effects}
    assert not math.isfinite(treatment.patient[0].final)
    assert math.isfinite(by_title["Fill and guard"].final)
    assert treatment.winner is not None
    assert treatment.winner.remedy is guard


def test_a_trial_under_way_is_given_up_at_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    module = importlib.import_module("gradscope.treat.treatment")
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    seen: list[str] = []

    def tick(name: str, step: int, steps: int) -> None:
        clock[0] += 1.0
        seen.append(name)

    treatment = treat(build(5.0), batches, [LOWER], 20, 3, tmp_path / "t", time_limit=47.5, progress=tick)
    assert seen[-1] == "untreated, seed 1"
    assert len(seen) == 48
    assert not treatment.complete
    assert len(treatment.patient) == 1
    assert len(treatment.effects[0].trials) == 1
    assert treatment.effects[0].outcome != "not tried"


class Foreign(pl.LightningModule):
    """Has no forward(), dictionaries as batches, its head registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(16, 2), nn.Linear(6, 16)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(torch.sigmoid(self.body(batch["x"]))), batch["y"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*:UserWarning")
def test_a_module_that_only_training_step_knows_how_to_call_is_treated(tmp_path: Path) -> None:
    remedy = Remedy("initialization", "Initialise", "", "", "", {"do": "initialize", "scheme": "xavier"})
    data = [{"x": x, "y": y} for x, y in batches(0)]
    treatment = treat(Foreign, data, [remedy], steps=10, seeds=1, run_dir=tmp_path / "t")
    assert treatment.effects[0].failure == ""
    assert treatment.effects[0].outcome != "not tried"


def test_a_plain_model_in_sixteen_bits_is_treated_in_float32(tmp_path: Path) -> None:
    def make() -> Any:
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).bfloat16()
        return (
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            lambda y, t: nn.functional.cross_entropy(y.float(), t),
        )

    def data(seed: int) -> Any:
        return [(x.bfloat16(), y) for x, y in batches(seed)]

    wide = Remedy("precision", "float32", "", "", "", {"do": "train", "precision": "32-true"})
    mixed = Remedy("precision", "mixed", "", "", "", {"do": "train", "precision": "bf16-mixed"})
    scaled = Remedy("precision", "scaled", "", "", "", {"do": "train", "precision": "16-mixed"})
    treatment = treat(make, data, [wide, mixed, scaled], steps=10, seeds=1, run_dir=tmp_path / "t")
    failures = {effect.remedy.title: effect.failure for effect in treatment.effects}
    assert failures["float32"] == failures["mixed"] == ""
    assert "scaler" in failures["scaled"]


@pytest.mark.parametrize("part", ["build", "data"])
def test_what_the_users_code_raises_is_one_line(tmp_path: Path, part: str) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("no such file")

    arguments = (fail, batches) if part == "build" else (build(0.5), fail)
    with pytest.raises(GradscopeError, match=rf"{part}.* failed: ValueError: no such file"):
        treat(*arguments, [], steps=10, seeds=1, run_dir=tmp_path / "t")


def test_another_treatment_in_the_same_place_is_refused(tmp_path: Path) -> None:
    treat(build(5.0), batches, [], steps=20, seeds=1, run_dir=tmp_path / "t")
    with pytest.raises(GradscopeError, match="another treatment"):
        treat(build(5.0), batches, [], steps=30, seeds=1, run_dir=tmp_path / "t")


def test_the_patient_is_never_touched_even_if_build_returns_one_and_the_same(tmp_path: Path) -> None:
    model, optimizer, loss = build(0.5)()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    remedy = Remedy("initialization", "Initialise", "", "", "", {"do": "initialize", "scheme": "xavier"})
    treatment = treat(lambda: (model, optimizer, loss), batches, [remedy], 10, 1, tmp_path / "t")
    assert treatment.effects[0].outcome != "not tried"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_patient_that_cannot_be_trained_is_said_in_one_line(tmp_path: Path) -> None:
    def broken() -> Any:
        model = nn.Linear(3, 2)
        return model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()

    with pytest.raises(GradscopeError, match="the patient itself can't be trained"):
        treat(broken, batches, [], steps=10, seeds=1, run_dir=tmp_path / "t")


def test_bad_arguments_are_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="at least 10 steps"):
        treat(build(0.5), batches, [], steps=2, run_dir=tmp_path / "t")
    for limit in (0, -3, math.nan):
        with pytest.raises(GradscopeError, match="above 0 seconds"):
            treat(build(0.5), batches, [], steps=10, run_dir=tmp_path / "t", time_limit=limit)
    with pytest.raises(GradscopeError, match="prescribed"):
        treat(build(0.5), batches, "all", steps=10, seeds=1, run_dir=tmp_path / "t")


def test_a_training_that_diverges_counts_as_the_worst(tmp_path: Path) -> None:
    breaking = Remedy("learning-rate", "Break it", "", "", "", {"do": "train", "rate": math.inf})
    treatment = treat(build(0.5), batches, [breaking], steps=20, seeds=2, run_dir=tmp_path / "t")
    assert all(trial.improvement == -1 for trial in treatment.effects[0].trials)
    assert treatment.effects[0].outcome == "harms"


def test_the_package_is_the_function(tmp_path: Path) -> None:
    treatment = gradscope.treat(build(0.5), batches, [], steps=10, seeds=1, run_dir=tmp_path / "t")
    assert treatment.steps == 10
