"""Mechanisms behind verdicts, each on a tiny training of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.diagnose.training import body, found, judge


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
    first = judge(tmp_path, lambda: _Product(0.0)).findings[0]
    assert (first.rule, set(first.layers)) == ("zero-gradient", {"left", "right"})


def test_decay_of_tables_counts_as_that_of_weights(tmp_path: Path) -> None:
    assert found(judge(tmp_path, lambda: _Product(0.3), decay=3.0))[:1] == ["excessive-weight-decay"]


def test_nan_is_placed_in_the_module_whose_own_code_makes_it(tmp_path: Path) -> None:
    first = judge(tmp_path, _Parts).findings[0]
    assert (first.rule, first.layers) == ("non-finite", ("root",))


def test_parameters_in_a_plain_list_are_not_optimized(tmp_path: Path) -> None:
    first = judge(tmp_path, _Listed).findings[0]
    assert (first.rule, first.layers) == ("not-optimized", ("layers.0",))


def test_inputs_are_judged_behind_an_identity(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Identity(), *body())

    assert found(judge(tmp_path, build, scale=3e3))[:1] == ["unscaled-input"]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("by_hand", [False, True])
def test_broadcast_shapes_are_found_without_the_shapes(tmp_path: Path, by_hand: bool) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = model(inputs)
        return ((outputs - targets) ** 2).mean() if by_hand else F.mse_loss(outputs, targets)

    assert found(judge(tmp_path, lambda: body(16, nn.Flatten(0)), loss))[:1] == ["output-mismatch"]


def test_one_layer_of_a_scalar_input_is_no_poor_initialization(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1))
        nn.init.normal_(model[0].weight, 0, 0.12)
        return model

    assert "poor-initialization" not in found(judge(tmp_path, build))


def test_bias_that_a_derivative_ignores_is_not_cut_off(tmp_path: Path) -> None:
    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        places = inputs.clone().requires_grad_()
        slope = torch.autograd.grad(model(places).sum(), places, create_graph=True)[0][:, :1]
        return F.mse_loss(slope, targets)

    assert "missing-gradient" not in found(judge(tmp_path, body, loss))


def test_output_that_is_saturated_at_birth_and_stays_so_blocks_training(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = body(16, nn.Tanh())
        with torch.no_grad():
            model[2].weight.mul_(3000)
        return model

    assert set(found(judge(tmp_path, build))[:1]) & {"saturated-activation", "poor-initialization"}


class _Silencing(nn.Module):
    """Standardises over an axis of one entry."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - inputs[:, None].mean(1)


class _Length(nn.Module):
    """The length of vectors, whose derivative at zero is 0 / 0."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.square().sum(1, keepdim=True).sqrt()


class _Cell(nn.Module):
    """A recurrence by hand over the sequence that is made of the inputs, twelve times."""

    def __init__(self, activation: nn.Module, gain: float) -> None:
        super().__init__()
        self.enter, self.back = nn.Linear(3, 16), nn.Linear(16, 16, bias=False)
        self.activation, self.leave = activation, nn.Linear(16, 1)
        nn.init.orthogonal_(self.back.weight, gain)

    def forward(self, inputs: Tensor) -> Tensor:
        state = torch.zeros(len(inputs), 16)
        for _ in range(12):
            state = self.activation(self.enter(inputs[:, :3]) + self.back(state))
        return self.leave(state)


class _Made(nn.Module):
    """Weights that are made by a layer, times weights that it makes too."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 65))
        nn.init.zeros_(self.maker[2].weight)
        nn.init.zeros_(self.maker[2].bias)

    def forward(self, inputs: Tensor) -> Tensor:
        first, second, level = self.maker(inputs).split((32, 32, 1), 1)
        return 0.0 * level + (first * second).sum(1, keepdim=True) + level.mean()


def test_module_of_ones_own_that_makes_zeros_of_the_data_ends_the_signal(tmp_path: Path) -> None:
    first = judge(tmp_path, lambda: nn.Sequential(_Silencing(), *body())).findings[0]
    assert (first.rule, first.layers) == ("vanishing-signal", ("0",))


def test_gradient_that_a_module_of_ones_own_breaks_is_placed_there(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3, bias=False), _Length(), nn.Linear(1, 1))

    first = judge(tmp_path, build, scale=0.0).findings[0]
    assert (first.rule, first.layers) == ("non-finite", ("1",))


def test_inputs_of_a_recurrence_by_hand_are_judged(tmp_path: Path) -> None:
    assert found(judge(tmp_path, lambda: _Cell(nn.Tanh(), 0.9), scale=1e5))[:1] == ["unscaled-input"]


def test_recurrence_by_hand_that_explodes_is_named(tmp_path: Path) -> None:
    first = judge(tmp_path, lambda: _Cell(nn.ReLU(), 4.0)).findings[0]
    assert (first.rule, first.layers) == ("exploding-gradient", ("back",))


def test_products_of_zeros_leave_most_entries_without_a_gradient(tmp_path: Path) -> None:
    assert "zero-gradient" in found(judge(tmp_path, _Made))


def test_rate_that_a_schedule_takes_away_is_too_low(tmp_path: Path) -> None:
    assert found(judge(tmp_path, body, steps=120, rate=0.3))[:1] == ["learning-rate-too-low"]


@pytest.mark.parametrize("trained_before", [False, True])
@pytest.mark.parametrize("zero_biases", [False, True])
def test_frozen_body_is_named_only_if_it_was_never_trained(
    tmp_path: Path, zero_biases: bool, trained_before: bool
) -> None:
    def build() -> nn.Sequential:
        inner = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2), nn.Tanh())
        for parameter in inner.parameters():
            if zero_biases and parameter.dim() == 1:
                nn.init.zeros_(parameter)
            if trained_before:  # which moves every entry
                parameter.data += 0.05 * torch.randn_like(parameter)
        return nn.Sequential(*inner.requires_grad_(False), nn.Linear(2, 1))

    assert ("not-optimized" in found(judge(tmp_path, build))) is not trained_before


def test_frozen_body_of_random_features_that_serve_is_no_ailment(tmp_path: Path) -> None:
    def build() -> nn.Sequential:
        wide = nn.Sequential(nn.Linear(4, 256), nn.Tanh())
        nn.init.normal_(wide[0].weight, 0, 0.7)
        nn.init.zeros_(wide[0].bias)
        return nn.Sequential(*wide.requires_grad_(False), nn.Linear(256, 1))

    assert "not-optimized" not in found(judge(tmp_path, build, steps=300))
