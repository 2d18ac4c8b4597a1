"""Laws of every verdict, from training to diagnosis: what means nothing to training changes nothing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradscope
from gradscope.diagnose import diagnose
from gradscope.records import Run

WIDTH, STEPS = 8, 20


def network(activation: type[nn.Module], gain: float, order: list[int]) -> nn.Sequential:
    """Build 4 → 8 → 8 → 8 → 8 → 3 with hidden units in the given order."""
    torch.manual_seed(0)
    sizes = [4, *[WIDTH] * 4, 3]
    layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(gain)
        for below, above in pairwise(layers):
            below.weight.copy_(below.weight[order])
            below.bias.copy_(below.bias[order])
            above.weight.copy_(above.weight[:, order])
    inner = [module for layer in layers[:-1] for module in (layer, activation())]
    return nn.Sequential(*inner, layers[-1])


def trained(model: nn.Module, rate: float = 0.1, scale: float = 1.0) -> Run:
    """Train on three clouds, in double precision, with the loss times `scale` and the rate divided by it."""
    random = torch.Generator().manual_seed(1)
    targets = torch.arange(48) % 3
    inputs = torch.randn(48, 4, generator=random).double() + targets[:, None]
    optimizer = torch.optim.SGD(model.double().parameters(), rate / scale)
    with TemporaryDirectory() as folder:
        with gradscope.watch(model, optimizer, Path(folder) / "run", verbose=False) as scope:
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss = scale * nn.functional.cross_entropy(model(inputs), targets)
                loss.backward()
                optimizer.step()
                scope.step(loss)
        return gradscope.read_run(Path(folder) / "run")


def said(run: Run) -> tuple[object, ...]:
    diagnosis = diagnose(run)
    findings = [(item.rule, item.severity, item.caused_by, item.layers) for item in diagnosis.findings]
    return diagnosis.verdict, findings, [item.rule for item in diagnosis.not_checked]


PATIENTS = pytest.mark.parametrize(
    ("activation", "gain", "rate"),
    [
        (nn.ReLU, 1.0, 0.1),
        (nn.Sigmoid, 1.0, 0.1),
        (nn.Tanh, 30.0, 0.1),
        (nn.ReLU, 0.01, 0.1),
        (nn.Tanh, 1.0, 1e-5),
        (nn.ReLU, 1.0, 100.0),
    ],
)


@PATIENTS
@given(order=st.permutations(range(WIDTH)))
@settings(max_examples=4, deadline=None)
def test_permuting_units_changes_no_verdict(
    activation: type[nn.Module], gain: float, rate: float, order: list[int]
) -> None:
    usual = said(trained(network(activation, gain, list(range(WIDTH))), rate))
    assert said(trained(network(activation, gain, order), rate)) == usual


@PATIENTS
@given(exponent=st.integers(-20, 20))
@settings(max_examples=4, deadline=None)
def test_scaling_the_loss_changes_no_verdict(
    activation: type[nn.Module], gain: float, rate: float, exponent: int
) -> None:
    order = list(range(WIDTH))
    usual = said(trained(network(activation, gain, order), rate))
    assert said(trained(network(activation, gain, order), rate, 2.0**exponent)) == usual
