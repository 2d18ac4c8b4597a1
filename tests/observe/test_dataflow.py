"""Which layers feed which, read from the autograd graph."""

from __future__ import annotations

import gc
import warnings
import weakref

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.observe.sinks import record


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x), inplace=True)
        return self.last(self.same(h + F.gelu(self.second(h))))


def test_skips_functional_activations_and_the_loss() -> None:
    model, x, y = Residual(), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    sink = record(model, lambda m: F.cross_entropy(m(x), y) / 2)
    layers = {layer.name: layer for layer in sink.info.layers}
    assert layers["first"].inputs == ()
    assert layers["second"].inputs == ("first",)
    assert layers["second"].functions == ("ReluBackward0",)
    assert layers["same"].inputs == ("first", "second")
    assert "AddBackward0" in layers["same"].functions
    assert layers["last"].inputs == ("same",)
    assert layers["first"].activation == "relu"
    assert layers["second"].activation == "gelu"
    assert layers["last"].activation is None
    assert sink.info.loss == {
        "functions": ("NllLossBackward0", "LogSoftmaxBackward0"),
        "inputs": ("last",),
        "shapes": ((5, 3), (5,)),
    }
    assert [layers[name].depth for name in ("first", "second", "same", "last")] == [0, 1, 2, 3]


def test_selu_and_relu6_are_told_from_elu_and_hardtanh() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(2, 2) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.d(F.elu(self.c(F.relu6(self.b(F.selu(self.a(x))))))))

    sink = record(Net(), lambda m: m(torch.ones(1, 2)).sum())
    assert [layer.activation for layer in sink.info.layers] == ["selu", "relu6", "elu", "tanh"]


def test_a_mismatched_regression_shows_its_shapes() -> None:
    model = nn.Linear(3, 1)
    x, y = torch.randn(8, 3), torch.randn(8)

    def loss(m: nn.Module) -> Tensor:
        return (m(x) - y).square().mean()

    assert record(model, loss).info.loss["functions"] == ("MeanBackward0", "PowBackward0", "SubBackward0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sink = record(model, lambda m: F.mse_loss(m(x), y))
    assert sink.info.loss["inputs"] == (sink.info.layers[0].name,)


def test_frozen_layers_are_followed_too() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    sink = record(model, lambda m: m(torch.ones(1, 3)).sum())
    assert [layer.inputs for layer in sink.info.layers] == [(), ("0",), ("1",)]


def test_the_graph_is_let_go_after_the_first_recorded_step() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    kept: list[weakref.ref[object]] = []

    class Marker(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient

    def loss(m: nn.Module) -> Tensor:
        value = Marker.apply(m(torch.ones(1, 3)))
        kept.append(weakref.ref(value.grad_fn))
        return value.sum()

    record(model, loss, steps=2)
    gc.collect()
    assert kept[0]() is None
