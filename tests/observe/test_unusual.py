"""Unusual models and loops: memory formats, averages, parameters used now and then, hidden gradients."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.observe.sinks import record
from tests.observe.test_exact import check_layer, truth


def images() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten()
    )


@pytest.mark.parametrize("size", [6, 64])  # small outputs are held or copied, large ones read at once
def test_channels_last(size: int) -> None:
    model = images().to(memory_format=torch.channels_last)
    x = torch.randn(8, 3, size, size).to(memory_format=torch.channels_last)
    exact = images().double()
    outputs, signals = truth(exact, lambda m: m(x.double()).square().mean())
    sink = record(
        model, lambda m: m(x).square().mean(), steps=2, optimizer=torch.optim.SGD(model.parameters(), 0.0)
    )
    for name, output in outputs.items():
        check_layer(sink, name, output, signals[name])
    for name, parameter in exact.named_parameters():
        assert parameter.grad is not None
        assert sink.parameter(name, "gradient_norm") == pytest.approx(float(parameter.grad.norm()), rel=1e-4)


def test_a_float64_model_is_recorded_in_float64() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2)).double()
    x = 1e-30 * torch.randn(6, 4, dtype=torch.float64)
    outputs, signals = truth(copy.deepcopy(model), lambda m: 1e-60 * m(x).square().mean())
    sink = record(model, lambda m: 1e-60 * m(x).square().mean())
    for name, output in outputs.items():
        rms = float(signals[name].square().mean().sqrt())
        assert rms < 1e-50
        assert sink.layer(name, "signal_rms") == pytest.approx(rms, rel=1e-9)
        assert sink.layer(name, "activation_mean") == pytest.approx(float(output.mean()), rel=1e-9)


class Sometimes(nn.Module):
    """Use one of two branches in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.even, self.odd = -1, nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.step += 1
        return (self.odd if self.step % 2 else self.even)(x)


def test_a_parameter_that_is_used_now_and_then() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    model = Sometimes()
    expected = float(copy.deepcopy(model).even.double()(x.double()).detach().square().mean().sqrt())
    sink = record(model, lambda m: m(x).square().sum(), steps=4)
    for name, used in (("even", (0, 2)), ("odd", (1, 3))):
        for step in range(4):
            missing = sink.parameter(f"{name}.weight", "gradient_missing", step)
            assert missing == (0.0 if step in used else 1.0)
            assert math.isnan(sink.layer(name, "activation_rms", step)) is (step not in used)
            assert (sink.parameter(f"{name}.weight", "update_norm", step) > 0) is (step in used)
            norm = sink.parameter(f"{name}.weight", "gradient_norm", step)
            assert math.isnan(norm) is (step not in used)
    assert sink.layer("even", "activation_rms", 0) == pytest.approx(expected, rel=1e-5)
    assert [event.layer for event in sink.events] == ["odd"]
    assert {layer.name: layer.depth for layer in sink.info.layers} == {"even": 0, "odd": 1}
    assert not any(layer.not_observable for layer in sink.info.layers)


@pytest.mark.parametrize("transposed", [False, True])
def test_views_of_a_larger_tensor_are_read_without_the_rest(transposed: bool) -> None:
    class Slice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            part = x[:, 2:5]
            return part.t() if transposed else part

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), Slice()), torch.randn(6, 4)
    outputs, signals = truth(copy.deepcopy(model).double(), lambda m: m(x.double()).square().mean())
    sink = record(model, lambda m: m(x).square().mean())
    for name, output in outputs.items():
        check_layer(sink, name, output, signals[name])
    assert sink.layer("0", "signal_zero_fraction") == pytest.approx(5 / 8)


def test_attention_by_its_fast_path_is_left_on_it() -> None:
    """In evaluation mode torch runs an encoder layer by one kernel, unless a hook is on something in it."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval().requires_grad_(False)
    head, x = nn.Linear(8, 2), torch.randn(3, 5, 8)

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = encoder, head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x))

    with torch.no_grad():
        fast = encoder(x)
        outcome = head(fast).double()
    seen: list[Tensor] = []
    sink = record(Frozen(), lambda m: (seen.append(m.encoder(x)), m(x).square().mean())[1])
    assert torch.equal(seen[0], fast)
    assert sink.layer("head", "activation_rms") == pytest.approx(
        float(outcome.square().mean().sqrt()), rel=1e-5
    )
    assert {layer.name for layer in sink.info.layers if layer.not_observable} >= {"encoder.self_attn"}


def test_attention_that_needs_no_weights_is_recorded() -> None:
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    double = copy.deepcopy(attention).double()
    expected = float(
        double(x.double(), x.double(), x.double(), need_weights=False)[0].detach().square().mean().sqrt()
    )
    sink = record(Net(), lambda m: m(x).sum())
    assert sink.layer("attention", "activation_rms") == pytest.approx(expected, rel=1e-5)
    assert sink.layer("attention", "signal_rms") == pytest.approx(1.0)


def test_averages_of_a_watched_model() -> None:
    """A copy of the model that follows it (EMA) is neither observed nor changed."""

    def train(watched: bool) -> tuple[dict[str, Tensor], Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        averages: list[Any] = []
        x = torch.randn(5, 4)

        def loss(m: nn.Module) -> Tensor:
            if not averages:
                averages.append(AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9)))
            averages[0].update_parameters(m)
            averages[0](x)
            return m(x).square().mean()

        sink = record(model, loss, steps=5) if watched else None
        if not watched:
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(5):
                optimizer.zero_grad()
                loss(model).backward()
                optimizer.step()
        return averages[0].state_dict(), sink

    (bare, _), (seen, sink) = train(False), train(True)
    assert all(torch.equal(bare[name], seen[name]) for name in bare)
    assert [sink.layer("0", "calls", step) for step in range(5)] == [1.0] * 5


class Hiding(torch.optim.SGD):
    """Update the weights from gradients that nobody else sees, as DeepSpeed does."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(self.hidden[parameter], alpha=-group["lr"])


def test_hidden_gradients_are_not_observable_rather_than_missing() -> None:
    model = nn.Linear(3, 2)
    optimizer = Hiding(model.parameters(), 0.1)

    def loss(m: nn.Module) -> Tensor:
        value = m(torch.ones(4, 3)).square().sum()
        gradients = torch.autograd.grad(value, list(m.parameters()), retain_graph=True)
        optimizer.hidden = dict(zip(m.parameters(), gradients, strict=True))
        return value

    def hide() -> None:
        for parameter in model.parameters():
            parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda item: setattr(item, "grad", None))
    sink = record(model, loss, steps=3, optimizer=optimizer, clip=hide)
    assert [event.kind for event in sink.events] == ["not-observable"]
    assert "hides" in sink.events[0].message
    assert sink.parameter("weight", "update_norm") > 0
    for column in ("gradient_missing", "gradient_norm"):
        assert math.isnan(sink.parameter("weight", column))
    assert "grad_norm" not in sink.records[0].step


def test_a_gradient_that_is_missing_while_weights_rest_is_missing() -> None:
    model = nn.Linear(3, 2)
    sink = record(model, lambda m: torch.ones((), requires_grad=True) * 2, steps=2)
    assert sink.parameter("weight", "gradient_missing") == 1.0
    assert not [event for event in sink.events if "hides" in event.message]


@pytest.mark.parametrize("empty", [(0, 4), (3, 0, 4)])
def test_zero_sized_batches(empty: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    full, calls = torch.randn(6, 4), iter(range(3))
    sink = record(model, lambda m: m(torch.empty(empty) if next(calls) == 1 else full).sum(), steps=3)
    assert [sink.layer("0", "calls", step) for step in range(3)] == [1.0] * 3
    assert [math.isnan(sink.layer("0", "activation_rms", step)) for step in range(3)] == [False, True, False]
    assert sink.parameter("0.weight", "gradient_norm", 1) == 0.0
    assert np.isfinite(sink.parameter("0.weight", "gradient_norm", 2))


def test_layers_inside_of_vmap_are_read_whole() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(6, 4)
    plain = record(copy.deepcopy(net), lambda m: m(x).square().sum())
    mapped = record(net, lambda m: torch.func.vmap(m)(x).square().sum())
    for name in ("0", "1", "2"):
        for column in ("calls", "activation_count", "activation_rms", "activation_max", "signal_rms"):
            assert mapped.layer(name, column) == pytest.approx(plain.layer(name, column), rel=1e-5), column
    assert mapped.layer("1", "activation_dead_unit_fraction") == plain.layer(
        "1", "activation_dead_unit_fraction"
    )


def test_derivatives_inside_of_the_model_do_not_stop_the_recording() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    slope = torch.func.vmap(torch.func.grad(lambda point: net(point).squeeze()))
    sink = record(net, lambda m: slope(torch.randn(6, 4)).square().sum(), steps=2)
    assert len(sink.records) == 2
    assert sink.layer("0", "activation_rms") > 0
    assert not sink.events
