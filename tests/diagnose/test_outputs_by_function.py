"""Outputs that a function shapes, no module, before a loss that they don't fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.diagnose.training import Loss, body, found, judge

Shape = Callable[[Tensor], Tensor]


def against(targets_of: Shape, shape: Shape) -> Loss:
    """Return a mean squared error of shaped outputs and shaped targets."""

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(shape(model(inputs)), targets_of(targets))

    return loss


@pytest.mark.parametrize(("shape", "mismatch"), [(torch.relu, 9), (torch.sigmoid, 6)])
def test_a_function_that_keeps_targets_out_of_reach(tmp_path: Path, shape: Shape, mismatch: int) -> None:
    low = against(lambda targets: targets - 1.0, shape)
    first = judge(tmp_path, body, low, steps=150).findings[0]
    assert (first.rule, first.evidence["mismatch"], first.layers) == ("output-mismatch", mismatch, ("2",))


@pytest.mark.parametrize("shape", [torch.relu, torch.sigmoid, torch.tanh])
@pytest.mark.parametrize("steps", [20, 150])
def test_a_function_that_suits_its_targets(tmp_path: Path, shape: Shape, steps: int) -> None:
    suiting = against(lambda targets: shape(2.0 * targets), shape)
    assert "output-mismatch" not in found(judge(tmp_path, lambda: body(64), suiting, steps=steps))


@pytest.mark.parametrize("rectify", [True, False])
def test_rectified_scores_before_a_cross_entropy(tmp_path: Path, rectify: bool) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        scores = model(inputs)
        wrong = (targets[:, 0] > 0).long()
        wrong[::3] = 1 - wrong[::3]  # nothing that can be learned well
        return F.cross_entropy(scores.relu() if rectify else scores, wrong)

    rules = found(judge(tmp_path, lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)), loss))
    assert ("output-mismatch" in rules) == rectify


@pytest.mark.parametrize(("factor", "ill"), [(1e-9, True), (1.0, False)])
def test_a_loss_in_billionths_is_not_taken_for_a_small_one(tmp_path: Path, factor: float, ill: bool) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return factor * F.binary_cross_entropy_with_logits(model(inputs), (targets > 0).float())

    assert bool(found(judge(tmp_path, body, loss, steps=100))) == ill


@pytest.mark.parametrize(("scale", "ill"), [(1e-4, True), (1.0, False)])
def test_inputs_that_vanish_beside_the_bias(tmp_path: Path, scale: float, ill: bool) -> None:
    assert found(judge(tmp_path, body, scale=scale, steps=100))[:1] == (["unscaled-input"] if ill else [])
