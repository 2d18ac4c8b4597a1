"""What is prescribed first, where the benchmark of remedies taught that the case decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope.loop import watch
from gradscope.prescribe import guards, prescribe, prescribe_anyway, surgery, training_change
from gradscope.prescribe.case import Case
from gradscope.prescribe.training import steps_of
from gradscope.records import Finding, OptimizerInfo, Remedy, Run
from gradscope.settings import Settings
from gradscope.store import read_run
from tests.runs import mlp_run

ADAM = OptimizerInfo("Adam", ({"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8},))


def finding(rule: str, *layers: str, first_step: int = 0, **evidence: float) -> Finding:
    return Finding(rule, "critical", "message", layers=layers, first_step=first_step, evidence=evidence)


def titles(found: Finding, run: Run) -> list[str]:
    return [remedy.title for remedy in prescribe(found, run)]


def named(found: Finding, run: Run, words: str) -> Remedy:
    return next(remedy for remedy in prescribe(found, run) if words in remedy.title)


def operations(remedy: Remedy) -> list[str]:
    return [step["do"] for step in steps_of(remedy.action)]


def mean_square(output: Tensor) -> Tensor:
    return functional.mse_loss(output, torch.zeros_like(output))


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Run]:
    """Return what trains a model for three steps and reads what was recorded."""

    def recorded(
        model: nn.Module,
        inputs: Any,
        loss: Callable[[Tensor], Tensor] = mean_square,
        optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    ) -> Run:
        trained = optimizer(model.parameters(), lr=0.01)  # type: ignore[call-arg]
        with watch(model, trained, run_dir=tmp_path, verbose=False) as scope:
            for _ in range(3):
                trained.zero_grad()
                value = loss(model(inputs))
                value.backward()
                trained.step()
                scope.step(value)
        return read_run(next(path.parent for path in tmp_path.rglob("run.json")))

    return recorded


# Outputs


def test_an_output_that_training_saturated_is_freed_and_one_born_so_is_drawn_anew(record: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh())
    with torch.no_grad():
        model[2].weight.mul_(100)  # type: ignore[operator]
    run = record(model, torch.randn(16, 8))
    later = titles(finding("saturated-activation", "3", saturated_at_start=0.0), run)
    assert later[0] == "Take tanh away from the output"
    at_once = titles(finding("saturated-activation", "3", saturated_at_start=1.0, sigma_w2=1e4), run)
    assert at_once[0].startswith("Initialise with")
    assert "Take tanh away from the output" not in at_once


def test_a_loss_of_probabilities_gets_a_sigmoid_instead_of_raw_scores(record: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5), nn.Softmax(1))
    labels = torch.ones(16, 5)
    run = record(model, torch.randn(16, 8), lambda output: functional.binary_cross_entropy(output, labels))
    remedy = prescribe(finding("output-mismatch", "3", mismatch=10.0), run)[0]
    assert remedy.title == "Put a sigmoid for softmax at the output"
    assert isinstance(surgery.apply(remedy, model)[3], nn.Sigmoid)  # type: ignore[index]
    space: dict[str, Any] = {"model": model}
    exec(remedy.code, space)
    assert isinstance(model[3], nn.Sigmoid)


def test_a_softmax_over_one_unit_of_a_regression_goes_and_nothing_else_comes(record: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1), nn.Softmax(1))
    run = record(model, torch.randn(16, 8))
    remedy = prescribe(finding("output-mismatch", "3", mismatch=1.0), run)[0]
    assert remedy.title.startswith("Take the softmax off the single output, and use AdamW")
    assert "BCE" not in remedy.code
    assert isinstance(surgery.apply(remedy, model)[3], nn.Identity)  # type: ignore[index]


class Product(nn.Module):
    """Multiplies two embeddings; what bounds the output stands behind no layer with weights."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.left, self.right, self.end = nn.Embedding(9, 4), nn.Embedding(9, 4, padding_idx=0), nn.Sigmoid()
        for table in (self.left, self.right):
            nn.init.normal_(table.weight, 0, spread)

    def forward(self, pairs: Tensor) -> Tensor:
        return self.end((self.left(pairs[:, 0]) * self.right(pairs[:, 1])).sum(1, keepdim=True))


def test_the_output_that_a_finding_blames_is_freed_wherever_it_stands(record: Any) -> None:
    run = record(Product(0.3), torch.randint(9, (16, 2)))
    remedy = prescribe(finding("output-mismatch", "end", mismatch=6.0, target_rms=2.5), run)[0]
    assert remedy.title == "Take sigmoid away from the output"
    assert remedy.action["layers"] == ["end"]


# Embeddings


def test_embeddings_of_zero_are_drawn_anew_but_for_the_row_that_fills_up(record: Any) -> None:
    model = Product(0.0)
    run = record(model, torch.randint(9, (16, 2)))
    remedy = prescribe(finding("zero-gradient", "left", "right"), run)[0]
    assert remedy.title == "Draw the embeddings of left, right at random"
    changed: Any = surgery.apply(remedy, model)
    assert 0.05 < float(changed.left.weight.detach().std()) < 0.2
    assert not changed.right.weight[0].any()
    assert changed.right.weight[1:].all()
    exec(remedy.code, {"model": model})
    assert model.left.weight.all()


def test_embeddings_tell_adam_its_rate_where_there_are_no_other_weights(record: Any) -> None:
    run = record(Product(0.3), torch.randint(9, (16, 2)))
    assert titles(finding("learning-rate-too-low"), run)[0] == "Use AdamW at 0.01 instead of SGD"


# Attention


class Looking(nn.Module):
    """Attention by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.softmax = nn.Linear(8, 8), nn.Linear(8, 8), nn.Softmax(-1)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.softmax(self.query(x) @ self.key(x).transpose(1, 2)) @ x)


def test_attention_that_was_sharp_from_the_start_is_drawn_anew(record: Any) -> None:
    model = Looking()
    run = record(model, torch.randn(4, 5, 8))
    remedy = prescribe(finding("attention-collapse", "softmax"), run)[0]
    assert remedy.action == {"do": "initialize", "scheme": "xavier", "layers": ["query", "key"]}
    exec(remedy.code, {"model": model})
    later = prescribe(finding("attention-collapse", "softmax", first_step=50), run)[0]
    assert later.kind == "warmup"


class Bare(nn.Module):
    """Attention without a way past it."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=False)[0]


def test_bare_attention_gets_skips(record: Any) -> None:
    torch.manual_seed(0)
    model, batch = nn.Sequential(*(Bare() for _ in range(6)), nn.Linear(8, 2)), torch.randn(4, 5, 8)
    run = record(model, batch)
    remedy = prescribe(finding("rank-collapse", "3.attend", cosine_first=0.1), run)[0]
    assert remedy.title == "Add residual connections around 5 of 7 layers"  # the first one's input is unseen
    changed: Any = surgery.apply(remedy, model, batch)
    branch = model[1](batch)
    assert torch.allclose(changed[1](batch), batch + 5**-0.5 * branch, atol=1e-2)
    space: dict[str, Any] = {"model": model}
    exec(remedy.code, space)
    assert torch.allclose(space["model"](batch), changed(batch), atol=1e-5)


# Recurrences


def test_a_recurrence_with_relu_is_bounded_first_and_gets_small_steps(record: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNN(4, 32, nonlinearity="relu"), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0][-1])

    model, batch = Net(), torch.randn(5, 3, 4)
    run = record(model, batch)
    remedy = prescribe(finding("exploding-gradient", "cell"), run)[0]
    assert remedy.title.startswith(
        "Use tanh instead of ReLU in the recurrence, started orthogonally, and use"
    )
    assert training_change(remedy.action).optimizer == "AdamW"
    assert (training_change(remedy.action).rate or 1) <= 0.005
    changed: Any = surgery.apply(remedy, model, batch)
    assert changed.cell.nonlinearity == "tanh"
    space: dict[str, Any] = {"model": model}
    exec(remedy.code, space)
    assert model.cell.mode == "RNN_TANH"
    assert isinstance(space["optimizer"], torch.optim.AdamW)


def test_vanishing_recurrences_start_orthogonally_with_the_steps_that_suit(record: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTM(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0][-1])

    model = Net()
    remedies = prescribe(finding("vanishing-gradient", "cell"), record(model, torch.randn(5, 3, 4)))
    assert remedies[0].title.startswith(
        "Initialise the recurrence orthogonally and open the forget gates, and use AdamW"
    )
    assert operations(remedies[0]) == ["initialize", "train"]
    assert remedies[1].title == "Initialise the recurrence orthogonally and open the forget gates"


# Activations


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=3).exp()


def test_an_activation_of_the_users_own_that_overflows_is_replaced(record: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 6), Exponential(), nn.Linear(6, 6), Exponential(), nn.Linear(6, 2))
    run = record(model, torch.randn(8, 6))
    plain = replace(run, info=replace(run.info, layers=tuple(replace(x, functions=()) for x in run.layers)))
    remedy = named(finding("non-finite", "1"), plain, "Replace Exponential by ReLU, with He initialisation")
    changed: Any = surgery.apply(remedy, model)
    assert isinstance(changed[1], nn.ReLU)
    assert isinstance(changed[3], nn.ReLU)
    exec(remedy.code, {"model": model})
    assert isinstance(model[1], nn.ReLU)


def test_units_that_died_get_a_leak_first_where_layers_are_narrow() -> None:
    narrow = titles(finding("dead-units", dead_at_start=0.0), mlp_run(depth=17, width=5))
    assert narrow[0] == "Replace ReLU by LeakyReLU"
    assert any(title.startswith("Lower the learning rate") for title in narrow)
    wide = titles(finding("dead-units", dead_at_start=0.0), mlp_run(depth=17, width=64))
    assert wide[0].startswith("Lower the learning rate")


def test_a_squashing_activation_may_become_relu_or_else_elu() -> None:
    run = mlp_run(activation="sigmoid", optimizer=ADAM)
    found = titles(finding("vanishing-gradient"), run)
    assert sum("by ReLU, with He" in title for title in found) >= 1
    assert "Replace sigmoid by ELU, with Xavier initialisation" in found


@pytest.mark.parametrize("rule", ["vanishing-gradient", "vanishing-signal", "poor-initialization"])
def test_plain_sgd_gets_new_steps_with_every_change_of_the_network(rule: str) -> None:
    deep = named(finding(rule, gain_per_layer=0.408), mlp_run(depth=30, width=32), "residual")
    squashing = named(finding(rule), mlp_run(activation="sigmoid", depth=12), "by ReLU")
    assert operations(deep) == ["residual", "train"]
    assert operations(squashing) == ["replace-activation", "initialize", "train"]
    for remedy in (deep, squashing):
        assert training_change(remedy.action).optimizer == "AdamW"
        assert "and use AdamW" in remedy.title
        assert "AdamW" in remedy.code


def test_a_norm_of_one_value_goes_together_with_what_dies_behind_it(record: Any) -> None:
    model = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1), nn.LayerNorm(1), nn.ReLU(), nn.Linear(1, 3)
    )
    run = record(model, torch.randn(16, 8))
    remedy = named(finding("degenerate-normalization", "3"), run, "Take 3 away")
    assert remedy.title == "Take 3 away, and replace ReLU by LeakyReLU"
    changed: Any = surgery.apply(remedy, model)
    assert isinstance(changed[3], nn.Identity)
    assert isinstance(changed[4], nn.LeakyReLU)


# Scales and rates


def test_rows_that_are_alike_from_the_first_layer_on_have_their_mean_taken_away() -> None:
    assert titles(finding("rank-collapse", cosine_first=0.7), mlp_run())[0] == "Standardise the inputs"
    assert "Standardise the inputs" not in titles(finding("rank-collapse", cosine_first=0.1), mlp_run())


def test_far_targets_are_standardised_with_the_inputs(record: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    run = record(model, torch.randn(16, 4))
    found = finding("unscaled-input", "0", input_rms=1e4)
    assert titles(found, run)[0] == "Standardise the inputs"
    far = replace(run, steps=run.steps.assign(loss=1e6))
    both = prescribe(found, far)[0]
    assert both.title == "Standardise the inputs, and standardise the targets"
    change = training_change(both.action)
    assert change.scale_inputs
    assert change.scale_targets


@pytest.mark.parametrize("rule", ["vanishing-gradient", "rank-collapse"])
def test_a_step_of_adam_as_large_as_the_weights_is_what_ails(rule: str) -> None:
    far = mlp_run(optimizer=ADAM, parameter_values={"update_ratio": 0.8})
    near = mlp_run(optimizer=ADAM, parameter_values={"update_ratio": 0.05})
    assert titles(finding(rule), far)[0].startswith("Lower the learning rate")
    assert not titles(finding(rule), near)[0].startswith("Lower the learning rate")


def test_weights_far_too_large_are_drawn_anew_before_any_rate_is_tried() -> None:
    found = finding("learning-rate-too-high", sigma_w2=64.0)
    remedy = prescribe(found, mlp_run())[0]
    assert remedy.kind == "initialization"
    assert training_change(remedy.action).optimizer == "AdamW"
    assert prescribe(finding("learning-rate-too-high", sigma_w2=2.0), mlp_run())[0].kind == "optimizer"


# Whatever ails


def test_another_optimizer_comes_first_where_the_memory_of_this_one_is_odd() -> None:
    for odd in (
        OptimizerInfo("SGD", ({"lr": 0.3, "momentum": 0.999},)),
        OptimizerInfo("Adam", ({"lr": 0.3, "betas": (0.9, 0.01)},)),
    ):
        run = mlp_run(optimizer=odd, parameter_values={"update_ratio": 0.5})
        remedy = prescribe(finding("learning-rate-too-high"), run)[0]
        assert remedy.title == "Use AdamW at the rate that a short search finds"
        assert len(training_change(remedy.action).search) > 3
    usual = mlp_run(optimizer=ADAM, parameter_values={"update_ratio": 0.5})
    assert prescribe(finding("learning-rate-too-high"), usual)[0].kind == "learning-rate"


def test_what_no_finding_explains_gets_fresh_weights_norms_and_a_searched_rate() -> None:
    first, second, third, _ = prescribe_anyway(mlp_run())
    assert operations(first) == ["initialize", "normalize", "train"]
    assert operations(second) == ["initialize", "train", "train"]
    assert operations(third) == ["train", "train"]
    two = mlp_run()
    adversaries = replace(two, info=replace(two.info, optimizers=(ADAM, ADAM)))
    assert prescribe_anyway(adversaries) == ()


def test_steps_that_pass_no_gradient_are_passed_and_sixteen_bits_widened() -> None:
    run = mlp_run(activation="tanh")
    assert named(finding("zero-gradient"), run, "straight through").action == {
        "do": "train",
        "pass_steps": True,
    }
    half = tuple(replace(item, dtype="float16") for item in run.parameters)
    narrow = replace(run, info=replace(run.info, parameters=half), _tables={})
    assert prescribe(finding("zero-gradient"), narrow)[0].kind == "precision"


def test_operations_are_guarded_first_where_numbers_were_of_a_usual_size_only() -> None:
    found = finding("non-finite", first_step=1)
    usual = Case(found, mlp_run(layer_values={"activation_max": 3.0}), Settings())
    huge = Case(found, mlp_run(layer_values={"activation_max": 1e30}), Settings())
    assert guards.keep_finite_if_not_grown(usual) is not None
    assert guards.keep_finite_if_not_grown(huge) is None
    assert "Keep roots, logarithms and quotients off zero" in titles(found, huge.run)  # but later
