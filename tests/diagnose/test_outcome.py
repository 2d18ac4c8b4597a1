"""What the loss shows: guesses, targets that don't show, losses without a minimum, outputs at a bound."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope
from gradscope import read_run
from gradscope.diagnose import diagnose
from gradscope.diagnose.outcome import answers_alike, outcome
from gradscope.settings import Settings
from tests.diagnose.cases import with_info
from tests.diagnose.training import body, found, judge
from tests.runs import mlp_run


class _Clamped(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.clamp(0, 1)


class _Same(nn.Module):
    """Forgets which sample it sees."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(0, keepdim=True).expand_as(inputs)


def _far_beyond(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    error = targets - model(inputs)
    return torch.maximum(50 * error, 49 * error).mean()


def test_loss_without_a_minimum_diverges(tmp_path: Path) -> None:
    first = judge(tmp_path, body, _far_beyond, steps=150).findings[0]
    assert (first.rule, first.evidence.get("unbounded")) == ("loss-divergence", 1.0)


def test_density_that_gets_likely_is_not_without_bound(tmp_path: Path) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        mean, log = model(inputs).chunk(2, 1)
        return (log + 0.5 * ((1e-2 * targets - mean) / log.exp()).square()).mean()

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))

    assert "loss-divergence" not in found(judge(tmp_path, build, loss, steps=150))


def test_targets_far_smaller_than_outputs_are_an_output_mismatch(tmp_path: Path) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(model(inputs), 1e-9 * targets)

    assert found(judge(tmp_path, body, loss))[:1] == ["output-mismatch"]


def test_function_of_ones_own_that_cuts_the_output_off_is_an_output_mismatch(tmp_path: Path) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(model(inputs), targets - 0.8)

    assert found(judge(tmp_path, lambda: body(16, _Clamped()), loss))[:1] == ["output-mismatch"]


def test_output_that_lies_at_its_bound_is_an_output_mismatch(tmp_path: Path) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        rate = model(inputs)
        return (rate.exp() - (targets + 9) * rate).mean()

    assert found(judge(tmp_path, lambda: body(16, nn.Sigmoid()), loss, steps=150))[:1] == ["output-mismatch"]


def test_network_that_answers_alike_has_got_no_further_than_a_guess(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), _Same(), nn.Linear(16, 1))

    assert judge(tmp_path, build).verdict != "healthy"
    run = read_run(tmp_path / "run")
    assert answers_alike(run)
    assert outcome(run, Settings()).progress == "stuck"


def test_noise_is_no_progress(tmp_path: Path) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.l1_loss(model(inputs), torch.randn_like(targets).sign() * torch.rand(()) * 4)

    judge(tmp_path, body, loss)
    assert outcome(read_run(tmp_path / "run"), Settings()).progress == "stuck"


def test_sum_of_losses_has_no_known_guess(tmp_path: Path) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = model(inputs)
        likely = F.binary_cross_entropy_with_logits(outputs, (targets > 0).float())
        return 1e-6 * (likely + F.mse_loss(outputs, targets))

    judge(tmp_path, body, loss)
    assert not outcome(read_run(tmp_path / "run"), Settings()).chance > 0


def test_infinite_squared_error_whose_residuals_are_all_alike_is_judged_without_a_warning() -> None:
    run = mlp_run(3, 4, 40, loss=lambda step: math.inf, layer_values={"signal_rms": 1e-4})
    run = with_info(run, loss={**run.info.loss, "functions": ("MseLossBackward0",)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(outcome(run, Settings()).chance)


def test_outputs_that_draw_together_have_collapsed_however_far_the_loss_falls(tmp_path: Path) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        views = (torch.randn_like(inputs) for _ in range(2))
        return F.mse_loss(*(model(view) for view in views))

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))

    findings = judge(tmp_path, build, loss, steps=200).findings
    assert [(item.rule, item.layers) for item in findings[:1]] == [("rank-collapse", ("2",))]


def test_logarithm_inside_a_module_of_ones_own_is_not_missed(tmp_path: Path) -> None:
    class Likely(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.log_softmax(1)

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.nll_loss(model(inputs), torch.randint(0, 3, (len(inputs),)))

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3), Likely())

    assert "output-mismatch" not in found(judge(tmp_path, build, loss))


@pytest.mark.parametrize("batches", [1, 4])
def test_accumulated_batches_are_no_broadcast_loss(tmp_path: Path, batches: int) -> None:
    """The loss that is told is the last batch's, the signal that of all batches."""
    torch.manual_seed(0)
    model = body(32)
    optimizer, inputs = torch.optim.Adam(model.parameters(), 1e-2), torch.randn(256, 4)
    targets = inputs[:, :1].sin() + 0.3 * torch.randn(256, 1)
    with gradscope.watch(model, optimizer, run_dir=tmp_path / "run", verbose=False) as scope:
        for _ in range(100):
            optimizer.zero_grad()
            for _ in range(batches):
                rows = torch.randint(0, 256, (16,))
                loss = F.mse_loss(model(inputs[rows]), targets[rows]) / batches
                loss.backward()
            optimizer.step()
            scope.step(loss * batches)
    assert found(diagnose(read_run(tmp_path / "run"))) == []
