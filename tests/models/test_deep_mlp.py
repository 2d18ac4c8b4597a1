from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradscope.models import DeepMLP
from gradscope.models.deep_mlp import ACTIVATIONS, NORMALIZATIONS
from gradscope.models.initialization import SCHEMES
from gradscope.models.named_optimizers import OPTIMIZERS


def small(**options: Any) -> DeepMLP:
    return DeepMLP(**{"depth": 3, "width": 8, "inputs": 6, "outputs": 4, **options})


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_activation_and_normalization_gives_one_logit_a_class(
    activation: str, normalization: str
) -> None:
    model = small(activation=activation, normalization=normalization, residual=True, dropout=0.5)
    output = model(torch.randn(5, 2, 3))
    assert output.shape == (5, 4)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_depth_counts_the_hidden_layers() -> None:
    linears = [module for module in small(depth=7).modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(6, 8), *[(8, 8)] * 6, (8, 4)]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("activation", "rely", "choose one of: relu"),
        ("initialization", "kaiming", "he"),
        ("normalization", None, "none, batch, layer"),
        ("optimizer", "lion", "moving-average"),
        ("task", "ranking", "classification, regression"),
        ("depth", 0, "at least 1"),
        ("depth", 2.0, "whole number"),
        ("width", True, "whole number"),
        ("pretraining_steps", -1, "at least 0"),
        ("dropout", 1.0, r"\[0, 1\)"),
        ("momentum", -0.1, r"\[0, 1\)"),
        ("learning_rate", float("nan"), r"\[0, inf\)"),
        ("learning_rate", "0.1", r"\[0, inf\)"),
        ("weight_decay", float("inf"), r"\[0, inf\)"),
        ("gain", -1, r"\[0, inf\)"),
        ("clip_norm", 0, r"\(0, inf\)"),
        ("clip_value", -1.0, r"\(0, inf\)"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_says_what_is_allowed(
    option: str, value: object, said: str
) -> None:
    with pytest.raises(ValueError, match=f"^{option} is .*{said}") as caught:
        small(**{option: value})
    assert "\n" not in str(caught.value)


def test_pretraining_is_refused_where_it_is_not_defined() -> None:
    with pytest.raises(ValueError, match="pretraining_steps works with"):
        small(pretraining_steps=5, residual=True)


@pytest.mark.parametrize(
    ("scheme", "deviation"),
    [
        ("he", (2 / 400) ** 0.5),
        ("xavier", (1 / 400) ** 0.5),
        ("lecun", (1 / 400) ** 0.5),
        ("orthogonal", (1 / 400) ** 0.5),
        ("default", (1 / 1200) ** 0.5),
        ("normal", 1.0),
        ("zero", 0.0),
    ],
)
def test_weights_start_with_the_schemes_deviation_times_the_gain(scheme: str, deviation: float) -> None:
    torch.manual_seed(0)
    model = DeepMLP(depth=2, width=400, inputs=400, initialization=scheme, gain=3.0)
    assert model.hidden[1].linear.weight.std().item() == pytest.approx(3 * deviation, rel=0.02, abs=1e-9)


def test_every_scheme_is_tested_above() -> None:
    assert set(SCHEMES) == {"he", "xavier", "lecun", "orthogonal", "default", "normal", "zero"}


def test_biases_start_where_asked() -> None:
    model = small(bias=-1.0)
    assert all(torch.equal(layer.linear.bias, torch.full((8,), -1.0)) for layer in model.hidden)
    assert torch.equal(model.output.bias, torch.zeros(4))


def test_the_residual_sum_keeps_its_size_at_any_depth() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 64)
    sizes = [DeepMLP(depth=depth, residual=True).hidden(x).square().mean().sqrt().item() for depth in (5, 80)]
    assert max(sizes) < 3


def test_moving_average_momentum_equals_its_formula() -> None:
    torch.manual_seed(0)
    model = small(optimizer="moving-average", learning_rate=0.3, momentum=0.8).double()
    optimizer = model.configure_optimizers()
    weight = model.output.weight.detach().clone()
    velocity = torch.zeros_like(weight)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(5, 6, dtype=torch.float64)).square().sum().backward()
        gradient = model.output.weight.grad
        assert gradient is not None
        velocity = 0.8 * velocity + 0.2 * gradient
        weight -= 0.3 * velocity
        optimizer.step()
        torch.testing.assert_close(model.output.weight, weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = small(optimizer=name, learning_rate=0.01)
    optimizer = model.configure_optimizers()
    x, target = torch.randn(32, 6), torch.randint(4, (32,))
    losses = []
    for _ in range(60):
        loss = model.loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("limits", "norm"), [({"clip_norm": 0.5}, 0.5), ({"clip_value": 1e-3}, None)])
def test_gradients_are_clipped_by_norm_or_value(limits: dict[str, float], norm: float | None) -> None:
    model = small(**limits)
    (1000 * model(torch.randn(5, 6))).sum().backward()
    model.configure_gradient_clipping(model.configure_optimizers())
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    if norm is not None:
        assert gradients.norm().item() == pytest.approx(norm, rel=1e-3)
    else:
        assert gradients.abs().max().item() <= 1e-3 + 1e-9


def test_regression_compares_like_shapes() -> None:
    model = small(outputs=1, task="regression")
    output = torch.tensor([[1.0], [2.0]])
    assert model.loss(output, torch.tensor([1.0, 4.0])).item() == 2.0


def fit(model: pl.LightningModule, data: TensorDataset, steps: int) -> pl.Trainer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(data, batch_size=16))
    return trainer


def test_layers_are_pretrained_before_the_first_step() -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 6), torch.randint(4, (64,)))
    model = small(pretraining_steps=20, learning_rate=0.0)
    before = [parameter.clone() for parameter in model.parameters()]
    fit(model, data, steps=1)
    changed = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert changed == [True] * 6 + [False] * 2  # weights and biases of three hidden layers, not the output's


def test_a_checkpoint_gives_the_same_model_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(32, 6), torch.randint(4, (32,)))
    model = small(activation="tanh", normalization="layer", residual=True)
    fit(model, data, steps=2).save_checkpoint(tmp_path / "model.ckpt")
    loaded = DeepMLP.load_from_checkpoint(tmp_path / "model.ckpt")
    assert torch.equal(loaded(data.tensors[0]), model(data.tensors[0]))
