"""Mechanisms behind verdicts, each on a tiny training of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope
from gradscope import read_run
from gradscope.diagnose import Diagnosis, diagnose

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def _mse(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(model(inputs), targets)


def _judge(tmp_path: Path, build: Callable[[], nn.Module], loss: Loss = _mse, **options: float) -> Diagnosis:
    """Train on a sine of four inputs, scaled by `scale`, and judge."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 4)
    targets, model = (2 * inputs[:, :1]).sin(), build()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=options.get("decay", 0.0))
    with gradscope.watch(model, optimizer, run_dir=tmp_path / "run", verbose=False) as scope:
        for _ in range(60):
            rows = torch.randint(0, 256, (64,))
            optimizer.zero_grad()
            value = loss(model, options.get("scale", 1.0) * inputs[rows], targets[rows])
            value.backward()
            optimizer.step()
            scope.step(value)
    return diagnose(read_run(tmp_path / "run"))


def _body(width: int = 16, *end: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1), *end)


def _found(diagnosis: Diagnosis) -> list[str]:
    return [finding.rule for finding in diagnosis.findings if finding.severity != "note"]


class _Product(nn.Module):
    """Two tables whose product is the output."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.left, self.right, self.bias = nn.Embedding(5, 3), nn.Embedding(5, 3), nn.Embedding(5, 1)
        nn.init.zeros_(self.bias.weight)
        for table in (self.left, self.right):
            nn.init.normal_(table.weight, 0, spread) if spread else nn.init.zeros_(table.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        left, right = (inputs[:, column].long().clamp(0, 4) for column in (0, 1))
        return (self.left(left) * self.right(right)).sum(1, keepdim=True) + self.bias(left)


class _Root(nn.Module):
    """A part whose own code makes NaN of finite outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs).sqrt()


class _Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.root, self.leave = nn.Linear(4, 16), _Root(), nn.Linear(16, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.leave(self.root(self.enter(inputs)))


class _Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.leave = [nn.Linear(4, 2)], nn.Linear(2, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.leave(self.layers[0](inputs).tanh())


def test_tables_that_start_at_zero_are_named_where_their_product_has_no_gradient(tmp_path: Path) -> None:
    first = _judge(tmp_path, lambda: _Product(0.0)).findings[0]
    assert (first.rule, set(first.layers)) == ("zero-gradient", {"left", "right"})


def test_decay_of_tables_counts_as_that_of_weights(tmp_path: Path) -> None:
    assert _found(_judge(tmp_path, lambda: _Product(0.3), decay=3.0))[:1] == ["excessive-weight-decay"]


def test_nan_is_placed_in_the_module_whose_own_code_makes_it(tmp_path: Path) -> None:
    first = _judge(tmp_path, _Parts).findings[0]
    assert (first.rule, first.layers) == ("non-finite", ("root",))


def test_parameters_in_a_plain_list_are_not_optimized(tmp_path: Path) -> None:
    first = _judge(tmp_path, _Listed).findings[0]
    assert (first.rule, first.layers) == ("not-optimized", ("layers.0",))


def test_inputs_are_judged_behind_an_identity(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Identity(), *_body())

    assert _found(_judge(tmp_path, build, scale=3e3))[:1] == ["unscaled-input"]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("by_hand", [False, True])
def test_broadcast_shapes_are_found_without_the_shapes(tmp_path: Path, by_hand: bool) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = model(inputs)
        return ((outputs - targets) ** 2).mean() if by_hand else F.mse_loss(outputs, targets)

    assert _found(_judge(tmp_path, lambda: _body(16, nn.Flatten(0)), loss))[:1] == ["output-mismatch"]


def test_one_layer_of_a_scalar_input_is_no_poor_initialization(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1))
        nn.init.normal_(model[0].weight, 0, 0.12)
        return model

    assert "poor-initialization" not in _found(_judge(tmp_path, build))


def test_bias_that_a_derivative_ignores_is_not_cut_off(tmp_path: Path) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        places = inputs.clone().requires_grad_()
        slope = torch.autograd.grad(model(places).sum(), places, create_graph=True)[0][:, :1]
        return F.mse_loss(slope, targets)

    assert "missing-gradient" not in _found(_judge(tmp_path, _body, loss))


def test_output_that_is_saturated_at_birth_and_stays_so_blocks_training(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = _body(16, nn.Tanh())
        with torch.no_grad():
            model[2].weight.mul_(3000)
        return model

    assert set(_found(_judge(tmp_path, build))[:1]) & {"saturated-activation", "poor-initialization"}
