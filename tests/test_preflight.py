"""Pre-flight: initialisations are judged right, and nothing of the model changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from gradscope.demo import one_thread
from gradscope.errors import GradscopeError
from gradscope.models import DeepMLP


def stack(activation: Callable[[], nn.Module], initialize: Callable[[torch.Tensor], Any] | None) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(20):
        linear = nn.Linear(64, 64)
        if initialize:
            initialize(linear.weight)
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 64, generator=generator), torch.randint(10, (64,), generator=generator)


def he(weight: torch.Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


@pytest.mark.parametrize(
    ("activation", "initialize", "rule"),
    [
        (nn.Sigmoid, None, "vanishing-gradient"),
        (nn.ReLU, None, "vanishing-gradient"),
        (nn.ReLU, nn.init.normal_, "exploding-gradient"),
        (nn.ReLU, he, None),
        (nn.SELU, lambda weight: nn.init.normal_(weight, std=64**-0.5), None),
    ],
    ids=["sigmoid", "torch-default", "unit-variance", "he", "selu-lecun"],
)
def test_initialisations_are_judged_by_one_step(activation: Any, initialize: Any, rule: str | None) -> None:
    report = gradscope.preflight(stack(activation, initialize), batch(), nn.CrossEntropyLoss())
    assert (report.findings[0].rule if report.findings else None) == rule
    assert report.verdict == ("ailing" if rule else "inconclusive")
    assert not rule or report.findings[0].remedies


def test_the_initial_loss_is_compared_with_the_expected_one() -> None:
    report = gradscope.preflight(stack(nn.ReLU, he), batch(), nn.CrossEntropyLoss())
    evidence = {item.name: item for item in report.evidence}["initial loss"]
    assert evidence.value == pytest.approx(2.3, rel=0.2)
    assert "log 10" in evidence.normal


@pytest.mark.parametrize(("activation", "gain"), [(nn.ReLU, 1.0), (nn.Sigmoid, 0.25)])
def test_the_measured_gain_is_compared_with_the_predicted_one(activation: Any, gain: float) -> None:
    initialize = he if activation is nn.ReLU else nn.init.xavier_normal_
    report = gradscope.preflight(stack(activation, initialize), batch(), nn.CrossEntropyLoss())
    evidence = {item.name: item for item in report.evidence}["measured against predicted gain per layer"]
    assert evidence.value == pytest.approx(gain, rel=0.15)
    assert float(evidence.normal.removeprefix("predicted ")) == pytest.approx(gain, rel=0.1)


def dead(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    for layer in (model[4], model[6]):
        nn.init.constant_(layer.bias, -30.0)
    return x


def alike(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    for layer in model[::2]:
        nn.init.constant_(layer.weight, 0.02)
        nn.init.zeros_(layer.bias)
    return x


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [(dead, "dead-units"), (alike, "symmetric-weights"), (lambda model, x: 1000 * x, "unscaled-input")],
    ids=["dead", "alike", "unscaled"],
)
def test_ailments_from_birth_are_found(spoil: Any, rule: str) -> None:
    model, (x, y) = stack(nn.ReLU, he), batch()
    report = gradscope.preflight(model, (spoil(model, x), y), nn.CrossEntropyLoss())
    assert report.findings[0].rule == rule


@pytest.mark.parametrize("end", [nn.Softmax(-1), nn.ReLU()], ids=["softmax-twice", "rectified"])
def test_an_output_that_does_not_fit_the_loss_is_found(end: nn.Module) -> None:
    report = gradscope.preflight(nn.Sequential(stack(nn.ReLU, he), end), batch(), nn.CrossEntropyLoss())
    assert "output-mismatch" in {finding.rule for finding in report.findings}


def test_it_takes_less_than_three_plain_steps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[part for _ in range(8) for part in (nn.Linear(512, 512), nn.ReLU())])
    x, y = torch.randn(256, 512), torch.randint(512, (256,))
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    def fastest(action: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            started = perf_counter()
            action()
            times.append(perf_counter() - started)
        return min(times)

    with one_thread():
        assert fastest(lambda: gradscope.preflight(model, (x, y), criterion)) < 3 * fastest(step)


def test_nothing_of_the_model_changes() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[0].weight.grad = torch.ones(8, 8)
    before, gradient = copy.deepcopy(model.state_dict()), model[0].weight.grad
    torch.manual_seed(3)
    gradscope.preflight(model, (torch.randn(4, 8), torch.tensor([0, 1, 2, 0])), nn.CrossEntropyLoss())
    after_preflight = torch.rand(1)
    torch.manual_seed(3)
    torch.randn(4, 8)
    assert torch.equal(after_preflight, torch.rand(1))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model[0].weight.grad is gradient
    assert model[3].weight.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_a_lightning_module_brings_its_own_loss() -> None:
    report = gradscope.preflight(DeepMLP(depth=15, activation="sigmoid"), batch())
    assert report.findings[0].rule == "vanishing-gradient"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.ReLU(), batch(), nn.MSELoss()), "at least one trained parameter"),
        ((nn.Linear(64, 10), batch()), "needs loss_fn"),
        ((nn.Linear(64, 10), batch()[0], nn.MSELoss()), "must be \\(inputs, targets\\)"),
        ((nn.Linear(64, 10), batch(), lambda output, target: output), "one number"),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments: Any, message: str) -> None:
    with pytest.raises(GradscopeError, match=message):
        gradscope.preflight(*arguments)


def test_hooks_are_gone_and_gradients_back_if_the_model_fails() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError):
        gradscope.preflight(model, batch(), nn.CrossEntropyLoss())
    assert not model._forward_hooks
    assert model.weight.grad is None


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mse": nn.functional.mse_loss,
    "by hand": lambda output, target: (output - target).square().mean(),
    "absolute": lambda output, target: (output - target).abs().mean(),
    "reshaped": lambda output, target: nn.functional.mse_loss(output.flatten(), target),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_broadcast_in_the_loss_are_seen(name: str) -> None:
    inputs = torch.randn(16, 3)
    report = gradscope.preflight(
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)), (inputs, inputs[:, 0]), LOSSES[name]
    )
    found = [finding.message for finding in report.findings if finding.rule == "output-mismatch"]
    assert found == ([] if name == "reshaped" else ["The loss compares shapes (16, 1) and (16,)."])
