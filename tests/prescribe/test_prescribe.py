"""Remedies: every rule has some, they fit the case, and their code runs on real models."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional

from gradscope.prescribe import TABLE, Clipping, TrainingChange, prescribe, surgery, training_change
from gradscope.prescribe.paste import figure
from gradscope.prescribe.training import steps_of
from gradscope.records import REMEDY_KINDS, RULE_NAMES, Finding, OptimizerInfo, Remedy, Run
from tests.prescribe.models import FunctionalMLP, mlp, patients
from tests.prescribe.recorded import record
from tests.runs import empty_run, mlp_run

SGD = OptimizerInfo("SGD", ({"lr": 0.1, "momentum": 0},))
ADAM = OptimizerInfo("Adam", ({"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1},))


def finding(rule: str, **evidence: float) -> Finding:
    return Finding(rule, "critical", "message", evidence=evidence)


def nothing() -> Run:
    run = empty_run()
    return replace(run, info=replace(run.info, layers=(), parameters=(), optimizers=(), loss={}, training={}))


RUNS = {
    "relu": lambda: mlp_run(),
    "deep": lambda: mlp_run(depth=30, width=32, optimizer=ADAM),
    "sigmoid": lambda: mlp_run(activation="sigmoid"),
    "narrow": lambda: mlp_run(depth=13, width=5, activation="sigmoid"),
    "selu": lambda: mlp_run(activation="selu", training={"max_epochs": 3}),
    "shallow": lambda: mlp_run(depth=1),
    "half": lambda: mlp_run(training={"precision": "16-mixed", "clip_value": 0.5}),
    "broken": lambda: mlp_run(
        loss=lambda step: float("nan"), parameter_values={"update_ratio": float("nan")}
    ),
    "empty": empty_run,
    "nothing": nothing,
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_every_rule_has_remedies_in_every_case(rule: str, name: str) -> None:
    run = RUNS[name]()
    remedies = prescribe(finding(rule), run)
    if name != "nothing":
        assert remedies, rule
    assert len(remedies) <= 4
    assert len({remedy.title for remedy in remedies}) == len(remedies)
    assert remedies == prescribe(finding(rule), run)
    for remedy in remedies:
        assert remedy.kind in REMEDY_KINDS
        assert remedy.title[0].isupper()
        assert remedy.why.endswith(".")
        assert remedy.expected
        assert not any(
            word in remedy.why + remedy.title + remedy.expected for word in ("nan", "None", "inf ")
        )
        compile(remedy.code, remedy.title, "exec")


def test_the_table_covers_the_rules() -> None:
    assert tuple(TABLE) == RULE_NAMES


def test_a_consequence_gets_a_pointer_to_its_cause() -> None:
    (remedy,) = prescribe(replace(finding("vanishing-signal"), caused_by="poor-initialization"), mlp_run())
    assert "poor-initialization" in remedy.title
    assert not remedy.action


# The first choice fits the case


def first(rule: str, run: Run, **evidence: float) -> Remedy:
    return prescribe(finding(rule, **evidence), run)[0]


def titles(rule: str, run: Run, **evidence: float) -> str:
    return "; ".join(remedy.title for remedy in prescribe(finding(rule, **evidence), run))


def with_variance(run: Run, variance: float) -> Run:
    parameters = tuple(
        replace(item, initial={**item.initial, "std": (variance / item.shape[-1]) ** 0.5})
        if item.role == "weight"
        else item
        for item in run.parameters
    )
    return replace(run, info=replace(run.info, parameters=parameters))


def test_vanishing_through_torchs_default_is_initialised() -> None:
    run = with_variance(mlp_run(depth=12, width=32), 1 / 3)
    remedy = first("vanishing-gradient", run, gain_per_layer=0.408, sigma_w2=1 / 3)
    assert remedy.kind == "initialization"
    assert remedy.expected == "Gain per layer 0.408 → 1.00; through 12 layers 1e-5 → 1."
    assert "He" in remedy.title
    assert first("poor-initialization", run).expected == remedy.expected


def test_very_deep_networks_get_skips_first_but_not_around_sigmoids() -> None:
    deep = with_variance(mlp_run(depth=30, width=32), 1 / 3)
    for rule in ("vanishing-gradient", "vanishing-signal", "poor-initialization"):
        assert first(rule, deep, gain_per_layer=0.408).kind == "residual"
    assert first("vanishing-gradient", mlp_run(depth=30, activation="sigmoid")).kind == "activation"


def test_exploding_layers_get_adam_as_well_where_sgd_trained_them() -> None:
    evidence = {"gain_per_layer": 4.0, "sigma_w2": 32.0}
    remedy = first("exploding-gradient", with_variance(mlp_run(), 32.0), **evidence)
    change = training_change(remedy.action)
    assert change.optimizer == "AdamW"
    assert 1e-3 <= (change.rate or 0) <= 1e-2
    assert "AdamW" in remedy.code
    fitting = OptimizerInfo("Adam", ({"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8},))
    run = with_variance(mlp_run(optimizer=fitting), 32.0)
    run = replace(run, steps=run.steps.assign(lr=0.01))
    adam = first("exploding-gradient", run, **evidence)
    assert adam.kind == "initialization"
    assert not training_change(adam.action)
    far = first("exploding-gradient", with_variance(mlp_run(optimizer=ADAM), 32.0), **evidence)
    assert training_change(far.action).rate == 0.01


def test_vanishing_through_sigmoids_gets_relu_or_elu_where_relu_would_die() -> None:
    assert "ReLU, with He" in first("vanishing-gradient", mlp_run(activation="sigmoid")).title
    narrow = first("vanishing-gradient", mlp_run(depth=13, width=5, activation="sigmoid"))
    assert "ELU, with Xavier" in narrow.title
    run = mlp_run(activation="sigmoid")
    repeated = replace(run.layers[2], calls=20)
    layers = (*run.layers[:2], repeated, *run.layers[3:])
    assert "Tanh" in first("vanishing-gradient", replace(run, info=replace(run.info, layers=layers))).title


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "gelu"])
@pytest.mark.parametrize("rule", ["vanishing-gradient", "exploding-gradient", "vanishing-signal"])
def test_batch_norm_alone_is_never_prescribed_for_deep_plain_networks(rule: str, activation: str) -> None:
    assert "BatchNorm" not in titles(rule, mlp_run(depth=30, activation=activation))


def test_shallow_networks_may_have_batch_norm_unless_batches_are_tiny() -> None:
    assert "Insert BatchNorm" in titles("vanishing-gradient", mlp_run(depth=8))
    assert "Insert LayerNorm" in titles("vanishing-gradient", mlp_run(depth=8, batch=2))


def test_units_that_died_in_training_get_a_smaller_rate_and_those_born_dead_do_not() -> None:
    run = mlp_run(parameter_values={"update_ratio": 0.3})
    assert first("dead-units", run, dead_at_start=0.0).title == "Lower the learning rate from 0.1 to 0.01"
    assert "rate" not in titles("dead-units", run, dead_at_start=1.0)
    assert "LeakyReLU" in titles("dead-units", run, dead_at_start=1.0)


def test_the_rate_follows_the_first_update_which_nothing_has_disturbed_yet() -> None:
    run = mlp_run(parameter_values={"update_ratio": 0.2})
    remedy = rate_remedy("learning-rate-too-high", run, suggested_factor=1e-6)
    assert remedy.action["rate"] == 0.02
    assert remedy.expected == "First update 0.2 → 0.04 of the weights."
    unmeasured = mlp_run(parameter_values={"update_ratio": float("nan")})
    assert rate_remedy("learning-rate-too-low", unmeasured, suggested_factor=5.0).action["rate"] == 0.5
    assert rate_remedy("learning-rate-too-high", unmeasured).action["rate"] == 0.01


def rate_remedy(rule: str, run: Run, **evidence: float) -> Remedy:
    return next(item for item in prescribe(finding(rule, **evidence), run) if item.kind == "learning-rate")


def test_no_rate_is_prescribed_that_nobody_uses() -> None:
    # Where the present rate, 0.1, lies beyond the usual ones already, three times as much is the most to try.
    for optimizer, largest in ((SGD, 1.0), (ADAM, 0.01)):
        for ratio in (1e9, 1e-9):
            run = mlp_run(optimizer=optimizer, parameter_values={"update_ratio": ratio})
            for rule in ("learning-rate-too-high", "learning-rate-too-low"):
                rates = [training_change(item.action).rate for item in prescribe(finding(rule), run)]
                assert all(1e-6 <= rate <= max(largest, 0.3) for rate in rates if rate is not None), (
                    rule,
                    rates,
                )


def test_plain_sgd_gets_adam_first_where_its_rate_is_wrong_and_momentum_keeps_sgd() -> None:
    plain = mlp_run(optimizer=SGD, parameter_values={"update_ratio": 0.5})
    momentum = mlp_run(
        optimizer=OptimizerInfo("SGD", ({"lr": 0.1, "momentum": 0.9},)),
        parameter_values={"update_ratio": 0.5},
    )
    for rule in ("learning-rate-too-high", "learning-rate-too-low"):
        assert first(rule, plain).title.startswith("Use AdamW")
        assert first(rule, momentum).kind == "learning-rate"


def test_a_loss_that_falls_without_end_gets_its_sign_turned_first() -> None:
    remedy = first("output-mismatch", mlp_run(), mismatch=7.0)
    assert remedy.title == "Turn the sign of the loss"
    assert not remedy.action


def test_frozen_layers_are_never_drawn_anew() -> None:
    run = with_variance(mlp_run(depth=6), 1 / 3)
    frozen = tuple(
        replace(item, trained=False) if item.name.startswith("net.0.") else item for item in run.parameters
    )
    run = replace(run, info=replace(run.info, parameters=frozen), _tables={})
    assert frozen[0].name.startswith("net.0.")
    remedy = first("poor-initialization", run)
    layers = next(part["layers"] for part in steps_of(remedy.action) if part["do"] == "initialize")
    assert "net.0" not in layers
    assert "net.2" in layers


def with_norms(run: Run, norms: np.ndarray) -> Run:
    return replace(run, steps=run.steps.assign(grad_norm=norms))


def test_the_clipping_limit_comes_from_the_norms_that_are_no_spikes() -> None:
    generator = np.random.default_rng(0)
    norms = generator.uniform(0.5, 1.5, 100)
    norms[[40, 60, 80]] = [300.0, 500.0, np.inf]
    adam = mlp_run(optimizer=ADAM)
    remedy = next(
        r for r in prescribe(finding("loss-divergence"), with_norms(adam, norms)) if r.kind == "clipping"
    )
    usual = norms[norms < 100]
    assert np.percentile(usual, 50) <= remedy.action["clipping"]["limit"] <= np.percentile(usual, 90) * 1.01
    assert training_change(remedy.action).clipping == Clipping("norm", remedy.action["clipping"]["limit"])
    assert "500" in remedy.why


def test_a_limit_for_sgd_bounds_the_step_where_all_norms_are_huge() -> None:
    run = with_norms(mlp_run(), np.full(100, 1e9))
    remedy = next(r for r in prescribe(finding("exploding-gradient"), run) if r.kind == "clipping")
    weights = float(np.sqrt((run.parameter_table("weight_norm").to_numpy()[0] ** 2).sum()))
    assert remedy.action["clipping"]["limit"] == pytest.approx(0.01 * weights / 0.1, rel=0.06)


def test_lightning_runs_get_the_trainers_arguments() -> None:
    run = with_norms(mlp_run(training={"max_epochs": 3}), np.linspace(1, 2, 100))
    code = next(r for r in prescribe(finding("loss-divergence"), run) if r.kind == "clipping").code
    space: dict[str, Any] = {}
    exec(code, space)
    assert isinstance(space["trainer"], pl.Trainer)
    assert 1.0 < space["trainer"].gradient_clip_val < 2.0
    manual = replace(run, info=replace(run.info, training={"automatic_optimization": False, "max_epochs": 3}))
    code = next(r for r in prescribe(finding("loss-divergence"), manual) if r.kind == "clipping").code
    assert "clip_grad_norm_" in code


def test_sixteen_bits_get_bfloat16_and_bfloat16_gets_float32() -> None:
    half = mlp_run(training={"precision": "16-mixed"})
    assert first("gradient-underflow", half).action == {"do": "train", "precision": "bf16-mixed"}
    assert "float32" in first("gradient-underflow", mlp_run(training={"precision": "bf16-mixed"})).title


def test_epsilon_goes_below_the_gradients() -> None:
    run = mlp_run(optimizer=ADAM, parameter_values={"second_moment_rms": 1e-16})
    assert first("epsilon-floor", run).action["options"]["eps"] == pytest.approx(1e-10)


def test_forgotten_parameters_join_the_optimizer() -> None:
    model = mlp(depth=3)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    ill = replace(finding("not-optimized"), parameters=("2.weight", "2.bias", "4.weight", "4.bias"))
    exec(prescribe(ill, mlp_run())[0].code, {"model": model, "optimizer": optimizer})
    assert len(optimizer.param_groups) == 2
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == {id(p) for p in model[2:].parameters()}


def test_combined_training_changes() -> None:
    action = {
        "do": "all",
        "actions": [{"do": "train", "rate": 1.0}, {"do": "train", "rate": 2.0, "warmup_steps": 5}],
    }
    assert training_change(action) == TrainingChange(rate=2.0, warmup_steps=5)
    assert not training_change({"do": "widen", "factor": 2})
    assert not training_change({})


# The code runs on the model that was recorded, and does what the action does


def namespace(model: nn.Module, batch: torch.Tensor) -> dict[str, Any]:
    output = model(batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return {
        "model": model,
        "optimizer": optimizer,
        "inputs": batch,
        "targets": torch.zeros_like(output),
        "loss_function": functional.mse_loss,
        "loss": output.square().mean(),
        "dataset": torch.utils.data.TensorDataset(batch),
    }


@pytest.fixture(
    scope="module", params=["mlp", "functional", "conv", "resnet", "lstm", "transformer", "lightning"]
)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model, batch = patients()[request.param]
    run = record(copy.deepcopy(model), batch, tmp_path_factory.mktemp(request.param))
    return model, batch, run


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_the_code_of_every_remedy_runs_on_every_architecture(rule: str, recorded: Any, capsys: Any) -> None:
    model, batch, run = recorded
    usual = prescribe(finding(rule), run)
    told = prescribe(
        finding(
            rule, gain_per_layer=0.3, dead_at_start=1.0, saturated_at_start=1.0, sigma_w2=0.3, mismatch=6
        ),
        run,
    )
    for remedy in {remedy.title: remedy for remedy in (*usual, *told)}.values():
        space = namespace(copy.deepcopy(model), batch)
        if remedy.title == "Scale the loss":
            space["loss"] = space["loss"].float()
        exec(remedy.code, space)
        output = space["model"](batch if batch.dtype == torch.long else space["inputs"])
        assert output.shape == model(batch).shape
        assert torch.isfinite(output).all()


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_every_action_can_be_applied_or_is_a_persons(rule: str, recorded: Any) -> None:
    model, batch, run = recorded
    for remedy in prescribe(finding(rule, gain_per_layer=0.3, sigma_w2=0.3), run):
        if remedy.action:
            treated = surgery.apply(remedy, model, batch)
            assert treated(batch).shape == model(batch).shape
            assert (
                training_change(remedy.action) or str(treated) != str(model) or changed(model, treated, batch)
            )


def changed(model: nn.Module, treated: nn.Module, batch: torch.Tensor) -> bool:
    pairs = zip(model.parameters(), treated.parameters(), strict=False)
    other = any(one.shape != two.shape or not torch.equal(one, two) for one, two in pairs)
    return other or not torch.equal(model.eval()(batch), treated.eval()(batch))


def test_code_and_action_do_the_same(tmp_path: Path) -> None:
    model, batch = mlp(depth=6, activation=nn.Sigmoid, inputs=16), torch.randn(8, 16)
    run = record(copy.deepcopy(model), batch, tmp_path)
    for remedy in prescribe(finding("vanishing-gradient", gain_per_layer=0.2), run):
        by_hand = copy.deepcopy(model)
        torch.manual_seed(1)
        space = {"model": by_hand}
        exec(remedy.code, space)
        torch.manual_seed(1)
        treated = surgery.apply(remedy, model)
        assert torch.allclose(space["model"].eval()(batch), treated.eval()(batch), atol=1e-3), remedy.title


def test_initialisation_code_gives_he_variance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batch = mlp(depth=8, width=200), torch.randn(8, 200)
    run = record(copy.deepcopy(model), batch, tmp_path, lr=1e-6)
    remedy = first("poor-initialization", run)
    exec(remedy.code, {"model": model})
    assert [200 * float(model[i].weight.detach().var()) for i in range(0, 14, 2)] == pytest.approx(
        [2.0] * 7, rel=0.1
    )
    assert "0.333" in remedy.why


class Odd(nn.Module):
    """Layers whose names hold quotes, spaces, braces and letters that aren't ASCII."""

    NAMES = ("it's", 'say "x"', "two words", "{brace}", "größe", "back\\slash")

    def __init__(self) -> None:
        super().__init__()
        for name in self.NAMES:
            self.add_module(name, nn.Linear(8, 8))
            self.add_module(f"{name} act", nn.ReLU())
        self.add_module("out", nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            x = module(x)
        return x


def test_odd_names(tmp_path: Path) -> None:
    model, batch = Odd(), torch.randn(4, 8)
    run = record(copy.deepcopy(model), batch, tmp_path)
    for rule in ("vanishing-gradient", "poor-initialization", "dead-units", "rank-collapse"):
        for remedy in prescribe(finding(rule, gain_per_layer=0.4, dead_at_start=1.0), run):
            space = namespace(copy.deepcopy(model), batch)
            exec(remedy.code, space)
            assert space["model"](batch).shape == (4, 2)


def test_very_many_layers_fold_into_short_code() -> None:
    for remedy in prescribe(
        finding("vanishing-gradient", gain_per_layer=0.4, sigma_w2=0.3), mlp_run(depth=600, steps=2)
    ):
        assert len(remedy.code) < 2000, remedy.title


def test_functional_activations_point_into_forward(tmp_path: Path) -> None:
    model, batch = FunctionalMLP(), torch.randn(4, 8)
    run = record(copy.deepcopy(model), batch, tmp_path)
    remedy = first("vanishing-gradient", run)
    assert "inside forward()" in remedy.code
    space = namespace(model, batch)
    exec(remedy.code, space)
    assert space["model"].forward is not model.forward
    assert figure(0.25) in remedy.why


def test_gaps_in_the_data_are_filled_first_where_the_input_layer_makes_nan_of_finite_weights() -> None:
    run = mlp_run()
    born = replace(finding("non-finite"), layers=(run.layers[0].name,), first_step=30)
    filled = "Put the mean of each feature for inputs that are not finite"
    assert prescribe(born, run)[0].title.startswith(filled)
    later = replace(born, layers=(run.layers[4].name,))
    assert not prescribe(later, run)[0].title.startswith(filled)
    broken = mlp_run(parameter_values={"weight_nonfinite": 1.0})
    assert not prescribe(born, broken)[0].title.startswith(filled)


def test_weight_decay_is_lowered_to_a_figure_that_people_use() -> None:
    names = [item.name for item in mlp_run().parameters]
    groups = ({"lr": 0.05, "weight_decay": 5.0, "parameters": names},)
    run = mlp_run(optimizer=OptimizerInfo("SGD", groups))
    remedy = prescribe(finding("excessive-weight-decay", suggested_weight_decay=5e-11), run)[0]
    assert 1e-5 <= remedy.action["weight_decay"] <= 1e-2


def test_bfloat16_is_not_prescribed_to_bfloat16() -> None:
    run = mlp_run()
    half = tuple(replace(item, dtype="bfloat16") for item in run.parameters)
    run = replace(run, info=replace(run.info, parameters=half), _tables={})
    assert "bfloat16" not in prescribe(finding("gradient-underflow"), run)[0].title
