"""Modules, outputs and parameters of every kind: recorded right, or said not to be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.observe.sinks import MemorySink, record


def rms(tensor: Tensor) -> float:
    return float(tensor.detach().abs().double().square().mean().sqrt())


@dataclass
class Output:
    hidden: Tensor
    extra: Tensor | None = None


class Wrapped(nn.Module):
    """A leaf whose output is packed into a container."""

    def __init__(self, pack: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.weight, self.pack = nn.Parameter(torch.randn(4, 4)), pack

    def forward(self, x: Tensor) -> object:
        return self.pack(x @ self.weight)


def unpack(output: object) -> Tensor:
    if isinstance(output, tuple):
        return unpack(output[0])
    if isinstance(output, dict):
        return output["hidden"]
    return output.hidden if isinstance(output, Output) else output  # type: ignore[return-value]


@pytest.mark.parametrize(
    "pack",
    [
        lambda h: (h, None, torch.ones(3, dtype=torch.long)),
        lambda h: {"hidden": h, "mask": torch.ones(2, dtype=torch.bool)},
        lambda h: Output(h),
        lambda h: ((h, 3), "text"),
    ],
)
def test_containers_of_tensors(pack: Callable[[Tensor], object]) -> None:
    model, x = Wrapped(pack), torch.randn(8, 4)
    expected = x @ model.weight
    sink = record(model, lambda m: unpack(m(x)).square().sum())
    name = sink.info.layers[0].name
    assert sink.layer(name, "activation_rms") == pytest.approx(rms(expected), rel=1e-5)
    assert sink.layer(name, "signal_rms") == pytest.approx(rms(2 * expected), rel=1e-5)
    assert sink.layer(name, "calls") == 1


def test_a_module_called_64_times_is_merged_over_its_calls() -> None:
    torch.manual_seed(0)
    cell, x = nn.RNNCell(3, 5), torch.randn(64, 7, 3)
    outputs: list[Tensor] = []

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor) -> Tensor:
            outputs.clear()
            h = x.new_zeros(7, 5)
            for step in x:
                h = self.cell(step, h)
                h.retain_grad()
                outputs.append(h)
            return h

    sink = record(Unrolled(), lambda m: m(x).sum())
    whole = torch.stack(outputs)
    signal = torch.stack([output.grad for output in outputs if output.grad is not None])
    assert sink.layer("cell", "calls") == 64
    assert sink.layer("cell", "activation_count") == whole.numel()
    assert sink.layer("cell", "activation_rms") == pytest.approx(rms(whole), rel=1e-5)
    assert sink.layer("cell", "activation_std") == pytest.approx(
        float(whole.detach().std(correction=0)), rel=1e-5
    )
    assert sink.layer("cell", "activation_max") == pytest.approx(float(whole.detach().max()))
    assert sink.layer("cell", "signal_rms") == pytest.approx(rms(signal), rel=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_is_not_counted(reentrant: bool) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return checkpoint(self.inner, h, use_reentrant=reentrant) if checkpointing else self.inner(h)

    x, checkpointing = torch.randn(6, 4), False
    model = Net()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    plain = record(model, lambda m: m(x).square().sum())
    model.load_state_dict(state)
    checkpointing = True
    again = record(model, lambda m: m(x).square().sum())
    assert torch.equal(
        torch.nan_to_num(torch.from_numpy(plain.records[0].layers)),
        torch.nan_to_num(torch.from_numpy(again.records[0].layers)),
    )
    assert again.layer("inner.1", "calls") == 1
    assert again.layer("inner.1", "signal_rms") > 0


def test_lstm_gru_and_attention_are_watched_whole() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru = nn.LSTM(3, 8, batch_first=True), nn.GRU(8, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            h, _ = self.lstm(x)
            h, _ = self.gru(h)
            h, _ = self.attention(query=h, key=h, value=h)
            return h

    model, x = Net(), torch.randn(2, 5, 3)
    expected = model(x)
    sink = record(model, lambda m: m(x).sum())
    assert [layer.name for layer in sink.info.layers] == ["lstm", "gru", "attention"]
    assert [layer.role for layer in sink.info.layers] == ["recurrent", "recurrent", "attention"]
    assert sink.layer("attention", "activation_rms") == pytest.approx(rms(expected), rel=1e-5)
    assert sink.layer("attention", "signal_rms") == pytest.approx(1.0)
    assert sink.layer("lstm", "activation_count") == 2 * 5 * 8
    assert {p.layer for p in sink.info.parameters} == {"lstm", "gru", "attention"}
    assert sink.info.layers[2].inputs == ("gru",)


def test_sparse_embedding_gradients() -> None:
    torch.manual_seed(0)
    model, tokens = (
        nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(12, 1)),
        torch.tensor([[1, 2, 1], [7, 7, 7]]),
    )
    dense = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(12, 1))
    dense.load_state_dict(model.state_dict())
    left = record(model, lambda m: m(tokens).square().sum())
    right = record(dense, lambda m: m(tokens).square().sum())
    for column in (
        "gradient_norm",
        "gradient_rms",
        "gradient_absmax",
        "gradient_zero_fraction",
        "update_norm",
    ):
        assert left.parameter("0.weight", column) == pytest.approx(
            right.parameter("0.weight", column), rel=1e-5
        )
    assert left.parameter("0.weight", "gradient_zero_fraction") == pytest.approx(1 - 3 / 50)


def test_frozen_unused_and_zero_gradients_are_three_things() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.unused, self.used = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return 0.0 * self.used(self.frozen(x))

    model = Net()
    sink = record(model, lambda m: m(torch.ones(2, 3)).sum())
    assert math.isnan(sink.parameter("frozen.weight", "gradient_missing"))
    assert sink.parameter("unused.weight", "gradient_missing") == 1.0
    assert math.isnan(sink.parameter("unused.weight", "gradient_norm"))
    assert sink.parameter("used.weight", "gradient_missing") == 0.0
    assert sink.parameter("used.weight", "gradient_norm") == 0.0
    assert sink.parameter("used.weight", "gradient_zero_fraction") == 1.0
    assert [event.layer for event in sink.events if event.kind == "never-fired"] == ["unused"]
    info = {layer.name: layer for layer in sink.info.layers}
    assert info["unused"].depth == -1
    assert info["unused"].not_observable
    assert math.isnan(sink.layer("unused", "calls"))
    assert math.isnan(sink.layer("frozen", "signal_rms"))
    assert {p.name: p.trained for p in sink.info.parameters}["frozen.bias"] is False


def test_tied_parameters_have_one_row_and_aliases() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.words(x))

    sink = record(Tied(), lambda m: m(torch.tensor([1, 2])).sum())
    assert [(p.name, p.aliases) for p in sink.info.parameters] == [("words.weight", ("head.weight",))]


def test_lazy_parametrised_complex_and_double_modules() -> None:
    lazy = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyBatchNorm1d(), nn.Linear(4, 2))
    sink = record(lazy, lambda m: m(torch.randn(5, 3)).sum(), steps=2)
    assert sink.parameter("0.weight", "weight_norm") > 0
    assert {p.name: p.shape for p in sink.info.parameters}["0.weight"] == (4, 3)
    assert [layer.kind for layer in sink.info.layers] == ["Linear", "ReLU", "BatchNorm1d", "Linear"]
    assert [layer.fan_in for layer in sink.info.layers] == [3, None, None, 4]

    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh())
    sink = record(normed, lambda m: m(torch.randn(5, 3)).sum())
    assert [layer.name for layer in sink.info.layers] == ["0", "1"]
    assert sink.layer("0", "activation_rms") > 0
    assert {p.layer for p in sink.info.parameters} == {"0"}

    double = nn.Linear(3, 4).double()
    with torch.no_grad():
        double.weight.mul_(1e-100)
        double.bias.zero_()
    sink = record(double, lambda m: m(torch.ones(5, 3, dtype=torch.float64)).sum())
    assert 0 < sink.parameter("weight", "weight_norm") < 1e-90

    phases = nn.Linear(3, 4, dtype=torch.complex64)
    x = torch.randn(5, 3, dtype=torch.complex64)
    expected, norm = rms(phases(x)), float(phases.weight.detach().norm())
    sink = record(phases, lambda m: m(x).abs().sum())
    assert sink.records[0].layers[0][4] == pytest.approx(expected, rel=1e-5)
    assert sink.parameter("weight", "weight_norm") == pytest.approx(norm, rel=1e-5)


def test_empty_batches_integer_outputs_and_views() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.flatten = nn.Linear(3, 4), nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            return self.flatten(self.linear(x))

    sink = record(Net(), lambda m: m(torch.ones(0, 3)).sum())
    assert sink.layer("linear", "calls") == 1
    assert math.isnan(sink.layer("linear", "activation_rms"))

    class Codes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(-1)

    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.codes = nn.Linear(3, 4), Codes()

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            return h.gather(-1, self.codes(h)[:, None]).t()[:, ::2]

    sink = record(Coded(), lambda m: m(torch.randn(6, 3)).sum())
    assert sink.layer("codes", "calls") == 1
    assert math.isnan(sink.layer("codes", "activation_rms"))


def test_batches_of_changing_size() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    batches = [torch.randn(size, 3) for size in (4, 2, 4, 9, 1)]
    expected = []

    def loss(m: nn.Module) -> Tensor:
        h = model[0](batches[len(expected)])
        expected.append(rms(h))
        return model[1](h).sum()

    sink = record(model, loss, steps=5)
    assert [sink.layer("0", "activation_rms", step) for step in range(5)] == pytest.approx(expected, rel=1e-5)


def test_name_patterns_choose_what_is_watched() -> None:
    block = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model = nn.Sequential(block, nn.Sequential(nn.Linear(3, 3), nn.ReLU()))

    def names(*patterns: str) -> list[str]:
        sink: MemorySink = record(model, lambda m: m(torch.ones(1, 3)).sum(), layers=patterns)
        return [layer.name for layer in sink.info.layers]

    assert names() == ["0.0", "0.1", "1.0", "1.1"]
    assert names("0*") == ["0", "0.0", "0.1"]
    assert names("?.1") == ["0.1", "1.1"]
