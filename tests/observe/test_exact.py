"""What a recorded step says against a plain float64 computation of the same step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.observe.sinks import MemorySink, record


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.view(-1, 3, 10, 10))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(300, 200), nn.Sigmoid(), nn.Linear(200, 5))


MODELS: dict[str, Callable[[], nn.Module]] = {"conv": Conv, "mlp": mlp}


def truth(
    model: nn.Module, loss: Callable[[nn.Module], Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return every leaf's output and the loss's gradient with respect to it, by plain autograd."""
    outputs: dict[str, Tensor] = {}
    signals: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, arguments: object, output: Tensor) -> None:
            outputs[name] = output.detach().clone()
            output.register_hook(lambda gradient: signals.__setitem__(name, gradient.clone()))

        return keep

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    loss(model).backward()
    for handle in handles:
        handle.remove()
    return outputs, signals


@pytest.mark.parametrize("batch", [4, 400])  # small outputs are staged, large ones summarised at once
@pytest.mark.parametrize("kind", MODELS)
def test_layers_of_a_step(kind: str, batch: int) -> None:
    torch.manual_seed(0)
    model, x, y = MODELS[kind](), torch.randn(batch, 300), torch.randint(5, (batch,))
    exact = copy.deepcopy(model).double()
    outputs, signals = truth(exact, lambda m: cross_entropy(m(x.double()), y))
    sink = record(model, lambda m: cross_entropy(m(x), y))
    assert {layer.name for layer in sink.info.layers} == set(outputs)
    for name, output in outputs.items():
        check_layer(sink, name, output, signals[name])


def check_layer(sink: MemorySink, name: str, output: Tensor, signal: Tensor) -> None:
    def of(column: str) -> float:
        return sink.layer(name, column)

    rms = float(output.square().mean().sqrt())
    assert of("calls") == 1
    assert of("activation_count") == of("signal_count") == output.numel()
    assert of("activation_rms") == pytest.approx(rms, rel=1e-4)
    assert of("activation_mean") == pytest.approx(float(output.mean()), rel=1e-3, abs=1e-5 * rms)
    assert of("activation_std") == pytest.approx(float(output.std(correction=0)), rel=1e-4)
    assert of("activation_min") == pytest.approx(float(output.min()), rel=1e-4, abs=1e-6)
    assert of("activation_max") == pytest.approx(float(output.max()), rel=1e-4)
    assert of("activation_zero_fraction") == pytest.approx(float((output == 0).double().mean()), abs=0.03)
    assert of("activation_nonfinite") == of("signal_nonfinite") == 0
    assert of("signal_rms") == pytest.approx(float(signal.square().mean().sqrt()), rel=1e-3)
    assert of("signal_absmax") == pytest.approx(float(signal.abs().max()), rel=1e-3)
    assert of("signal_zero_fraction") == pytest.approx(float((signal == 0).double().mean()), abs=0.03)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("sample", [10**6, 64])
def test_parameters_of_a_step(kind: str, sample: int) -> None:
    torch.manual_seed(1)
    model, x, y = MODELS[kind](), torch.randn(32, 300), torch.randint(5, (32,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    exact = copy.deepcopy(model).double()
    cross_entropy(exact(x.double()), y).backward()
    sink = record(
        model,
        lambda m: cross_entropy(m(x), y),
        optimizer=optimizer,
        clip=lambda: nn.utils.clip_grad_norm_(model.parameters(), 0.01),
        update_sample=sample,
    )
    total = math.sqrt(sum(float(p.grad.square().sum()) for p in exact.parameters() if p.grad is not None))
    step = sink.records[0].step
    assert step["grad_norm"] == pytest.approx(total, rel=1e-4)
    assert step["clipped_grad_norm"] == pytest.approx(0.01, rel=1e-3)
    assert step["clip_coefficient"] == pytest.approx(0.01 / total, rel=1e-3)
    for name, weight in exact.named_parameters():
        assert weight.grad is not None
        gradient, weight = weight.grad, weight.detach()
        scale = float(weight.square().mean().sqrt())
        for column, value, tolerance in (
            ("count", weight.numel(), 0),
            ("weight_norm", weight.norm(), 1e-5 * scale),
            ("weight_rms", scale, 0),
            ("weight_absmax", weight.abs().max(), 0),
            ("weight_std", weight.std(correction=0), 1e-6 * scale),
            ("weight_nonfinite", 0, 0),
            ("gradient_missing", 0, 0),
            ("gradient_norm", gradient.norm(), 1e-7),
            ("gradient_rms", gradient.square().mean().sqrt(), 1e-7),
            ("gradient_absmax", gradient.abs().max(), 1e-7),
            ("gradient_nonfinite", 0, 0),
            ("clipped_gradient_norm", gradient.norm() * 0.01 / total, 1e-7),
            ("momentum_norm", gradient.norm() * 0.01 / total, 1e-7),
        ):
            assert sink.parameter(name, column) == pytest.approx(float(value), rel=1e-3, abs=tolerance), (
                name,
                column,
            )
        update = 0.1 * float(gradient.norm()) * 0.01 / total
        sampled = weight.numel() > sample
        assert sink.parameter(name, "update_norm") == pytest.approx(
            update, rel=0.9 if sampled else 0.02, abs=1e-6
        )


def test_adam_state() -> None:
    torch.manual_seed(2)
    model, x, y = mlp(), torch.randn(32, 300), torch.randint(5, (32,))
    x[:, :30] = 0.0  # a tenth of the first layer's gradient is exactly zero
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    sink = record(model, lambda m: cross_entropy(m(x), y), steps=3, optimizer=optimizer, update_sample=10**6)
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        second = state["exp_avg_sq"].double()
        floor = ((second / (1 - 0.999**3)).sqrt() < 10e-8).double().mean()
        assert sink.parameter(name, "momentum_norm") == pytest.approx(
            float(state["exp_avg"].norm()), rel=1e-4
        )
        rms = float(second.square().mean().sqrt())
        assert sink.parameter(name, "second_moment_rms") == pytest.approx(rms, rel=1e-4)
        assert sink.parameter(name, "epsilon_fraction") == pytest.approx(float(floor), abs=1e-3)
    assert sink.parameter("0.weight", "epsilon_fraction") == pytest.approx(0.1, abs=0.01)
    assert sink.parameter("0.weight", "gradient_zero_fraction") == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("module", "saturated"),
    [
        (nn.Tanh(), lambda x: 1 - x.tanh() ** 2 < 0.05),
        (nn.Sigmoid(), lambda x: x.sigmoid() * (1 - x.sigmoid()) < 0.05 * 0.25),
        (nn.Softsign(), lambda x: 1 / (1 + x.abs()) ** 2 < 0.05),
        (nn.Hardtanh(-2, 2), lambda x: x.abs() >= 2),
    ],
)
@pytest.mark.parametrize("functional", [False, True])
def test_saturation_is_about_the_derivative(
    module: nn.Module, saturated: Callable[[Tensor], Tensor], functional: bool
) -> None:
    if functional and isinstance(module, (nn.Hardtanh, nn.Softsign)):
        pytest.skip("its limits, or itself, do not show in the graph")
    torch.manual_seed(3)
    scale = nn.Linear(1, 50)
    nn.init.normal_(scale.weight, 0, 5)
    x = torch.randn(20, 1)
    expected = float(saturated(scale(x).double()).double().mean())

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = scale
            self.hidden = [module]  # in a list: torch does not see it

        def forward(self, x: Tensor) -> Tensor:
            return self.hidden[0](self.scale(x))

    model = Hidden() if functional else nn.Sequential(scale, module)
    sink = record(model, lambda m: 0.0 * m(x).sum(), steps=2)
    name = "scale" if functional else "1"
    assert 0.1 < expected < 0.95
    assert sink.layer(name, "activation_saturated_fraction") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("functional", [False, True])
def test_a_dead_unit_was_active_for_no_sample_in_the_window(functional: bool) -> None:
    torch.manual_seed(4)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.relu = nn.Linear(2, 4, bias=False), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            return torch.relu_(h) if functional else self.relu(h)

    model = Net()
    with torch.no_grad():
        model.linear.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    batches = [[[1.0, 1.0]]] * 2 + [[[-1.0, 1.0]]] + [[[1.0, 1.0]]] * 4
    xs = iter([torch.tensor(batch) for batch in batches])
    sink = record(model, lambda m: 0.0 * m(next(xs)).sum(), steps=7, dead_window=3)
    name = "linear" if functional else "relu"
    shares = [sink.layer(name, "activation_dead_unit_fraction", step) for step in range(7)]
    assert shares[1:] == [0.5, 0.25, 0.25, 0.25, 0.5, 0.5]


def test_non_finite_values_are_counted_where_they_are() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    sink = record(model, lambda m: m(torch.ones(5, 2)).sum())
    assert sink.layer("0", "activation_nonfinite") == 5
    assert math.isnan(sink.layer("0", "activation_rms"))
    assert sink.layer("0", "signal_nonfinite") == 0
    assert sink.parameter("0.weight", "weight_nonfinite") == 1
    assert "grad_norm" in sink.records[0].step


class Overwriting(nn.Module):
    """Change a linear layer's output in place in some steps only."""

    def __init__(self, overwritten: tuple[int, ...]) -> None:
        super().__init__()
        self.linear, self.relu, self.last = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)
        self.overwritten, self.step = overwritten, -1

    def forward(self, x: Tensor) -> Tensor:
        self.step += 1
        h = self.linear(x)
        h = h.mul_(2) if self.step in self.overwritten else 2 * h
        return self.last(self.relu(h))


@pytest.mark.parametrize("overwritten", [(), (0, 3), (2, 4)])
def test_outputs_that_are_changed_in_place_later_are_exact(overwritten: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = Overwriting(overwritten), torch.randn(7, 6)
    still = torch.optim.SGD(model.parameters(), 0.0)
    sink = record(model, lambda m: m(x).square().sum(), steps=6, optimizer=still)
    truth_rms = float(model.linear(x).detach().double().square().mean().sqrt())
    for step in range(6):
        seen = sink.layer("linear", "activation_rms", step)
        assert seen == pytest.approx(truth_rms, rel=1e-5)
        assert sink.layer("linear", "calls", step) == 1
        assert sink.layer("relu", "activation_rms", step) > 0
        assert sink.layer("linear", "signal_rms", step) == pytest.approx(
            sink.layer("linear", "signal_rms", 0)
        )


def test_the_state_of_a_large_parameter_is_estimated_from_a_sample() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(500, 300), torch.randn(32, 500)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    sink = record(model, lambda m: m(x).square().sum(), steps=3, optimizer=optimizer)
    state = optimizer.state[model.weight]
    for column, exact in (
        ("momentum_norm", state["exp_avg"].double().norm()),
        ("second_moment_rms", state["exp_avg_sq"].double().square().mean().sqrt()),
    ):
        assert sink.parameter("weight", column, 2) == pytest.approx(float(exact), rel=0.15)
    for column, exact in (
        ("momentum_norm", optimizer.state[model.bias]["exp_avg"].double().norm()),
        ("gradient_norm", model.bias.grad.double().norm()),
    ):
        assert sink.parameter("bias", column, 2) == pytest.approx(float(exact), rel=1e-5)


def test_a_parameter_of_more_than_sixteen_million_entries() -> None:
    """Some of torch's operations, such as quantile, refuse tensors of that size."""
    model = nn.Embedding(1 << 18, 65, _weight=torch.full((1 << 18, 65), 0.5))
    sink = record(
        model, lambda m: m(torch.arange(4)).sum(), optimizer=torch.optim.SGD(model.parameters(), 0.1)
    )
    entries = (1 << 18) * 65
    assert sink.parameter("weight", "count") == entries
    assert sink.parameter("weight", "weight_norm") == pytest.approx(0.5 * math.sqrt(entries), rel=1e-6)
    assert sink.parameter("weight", "weight_std") == pytest.approx(0.0, abs=1e-6)
    assert sink.parameter("weight", "gradient_norm") == pytest.approx(math.sqrt(4 * 65), rel=1e-6)
    assert sink.parameter("weight", "gradient_zero_fraction") == pytest.approx(1 - 4 / (1 << 18), abs=1e-9)
