"""Compiled models: recorded without a graph break where watched first, else said not to be observable."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import gradscope
from gradscope.observe import Recorder
from gradscope.settings import Settings
from tests.observe.sinks import LAYER, MemorySink, record
from tests.observe.test_modules import Output, Wrapped


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 3)
    )


class Packed(nn.Module):
    """Outputs in a tuple, a dict and a dataclass; a module called twice; recomputation."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Wrapped(lambda h: (h, None))
        self.named = Wrapped(lambda h: {"hidden": h, "codes": torch.ones(2, dtype=torch.long)})
        self.record = Wrapped(Output)
        self.twice, self.again = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h: Any = self.record(self.named(self.pair(x)[0])["hidden"])
        h = checkpoint(self.again, self.twice(self.twice(h.hidden)), use_reentrant=False)
        return self.head(h)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x[:, None].expand(-1, 3, -1))[:, 0])


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "packed": Packed, "encoder": Encoder}


def train(
    build: Callable[[], nn.Module], backend: str | None, watched: bool, every: int = 2
) -> tuple[list[Tensor], MemorySink, int]:
    """Return the weights after six steps, what was recorded, and how many graphs were compiled."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model, sink = build(), MemorySink()
    run = torch.compile(model, backend=backend, fullgraph=True) if backend else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    observer = Recorder(model, [optimizer], sink, Settings(every_n_steps=every))
    if watched:
        observer.start()
    for _ in range(6):
        observer.begin_step()
        optimizer.zero_grad()
        loss = cross_entropy(run(torch.randn(5, 4)), torch.randint(3, (5,)))
        loss.backward()
        observer.before_update(optimizer)
        optimizer.step()
        observer.end_step({})
    observer.stop("finished")
    return [item.detach().clone() for item in model.parameters()], sink, counters["stats"]["unique_graphs"]


def check(build: Callable[[], nn.Module], backend: str) -> None:
    bare, _, _ = train(build, backend, watched=False)
    seen, sink, graphs = train(build, backend, watched=True)
    assert not counters["graph_break"]
    assert graphs <= 3  # with probes, without, and the first recorded step's
    _, plain, _ = train(build, None, watched=True)
    assert len(sink.records) == len(plain.records) == 3
    functional = [
        left.activation != right.activation
        for left, right in zip(sink.info.layers, plain.info.layers, strict=True)
    ]
    for left, right in zip(sink.records, plain.records, strict=True):
        right.layers[functional, LAYER["activation_dead_unit_fraction"]] = np.nan
        right.layers[:, [LAYER["attention_entropy"], LAYER["attention_entropy_lowest"]]] = np.nan
        np.testing.assert_allclose(left.layers, right.layers, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(left.parameters, right.parameters, rtol=1e-4, atol=1e-6)
    assert [layer.depth for layer in sink.info.layers] == [layer.depth for layer in plain.info.layers]
    assert [layer.output_shape for layer in sink.info.layers] == [
        layer.output_shape for layer in plain.info.layers
    ]
    if backend != "inductor":  # which fuses otherwise around what is looked at
        assert all(torch.equal(left, right) for left, right in zip(bare, seen, strict=True))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_full_statistics_without_a_graph_break_and_training_equal_to_the_bit(kind: str, backend: str) -> None:
    check(MODELS[kind], backend)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="inductor compiles C++")
def test_inductor_gives_the_same_statistics() -> None:
    check(lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Linear(16, 3)), "inductor")


def test_a_model_that_ran_before_it_was_watched_is_said_not_to_be_observable() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(5, 4)
    compiled = torch.compile(model, backend="eager")
    compiled(x).sum().backward()
    sink = record(model, lambda m: compiled(x).sum(), steps=2)
    assert {event.kind for event in sink.events} == {"not-observable", "never-fired"}
    assert "compiled" in sink.events[0].message
    assert all("compiled before watching began" in layer.not_observable for layer in sink.info.layers)
    assert torch.tensor(sink.records[-1].layers).isnan().all()
    assert sink.parameter("0.weight", "gradient_norm") > 0


def test_a_second_training_in_the_same_process_is_recorded_and_compiles_nothing() -> None:
    def fit() -> MemorySink:
        model = mlp()
        compiled, x = torch.compile(model, backend="eager"), torch.randn(5, 4)
        return record(model, lambda m: compiled(x).sum(), steps=3)

    fit()
    graphs = counters["stats"]["unique_graphs"]
    sink = fit()
    assert not sink.events[1:]
    assert sink.layer("4", "signal_rms") == pytest.approx(1.0)
    assert counters["stats"]["unique_graphs"] == graphs


def test_what_a_compiled_model_does_not_show_is_said() -> None:
    compiled = torch.compile(mlp(), backend="eager")
    sink = record(compiled, lambda m: m(torch.randn(5, 4)).sum())
    assert [event.kind for event in sink.events] == ["not-observable"]
    assert "which layers feed which" in sink.events[0].message
    assert [layer.name for layer in sink.info.layers] == ["0", "1", "2", "3", "4"]
    assert [parameter.name for parameter in sink.info.parameters] == [
        "0.weight",
        "0.bias",
        "4.weight",
        "4.bias",
    ]


class Net(pl.LightningModule):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Linear(16, 3))
        if how == "inner":
            self.net = torch.compile(self.net, backend="aot_eager")
        if how == "in place":
            self.net.compile(backend="aot_eager")

    def training_step(self, batch: Any, index: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["whole", "inner", "in place"])
def test_fit_of_a_compiled_model(how: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(5, 4, generator=generator), torch.randint(3, (5,), generator=generator))
        for _ in range(4)
    ]

    def fit(scope: Any) -> Any:
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        model: Any = Net(how)
        if how == "whole":
            model = torch.compile(model, backend="aot_eager")
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[scope] if scope else [],
        )
        trainer.fit(model, *[DataLoader(batches, batch_size=None)] * 2)
        return [item.detach().clone() for item in model.parameters()]

    bare = fit(None)
    broken = dict(counters["graph_break"])
    seen = fit(gradscope.GradScope(str(tmp_path / "run"), every_n_steps=3, verbose=False))
    assert dict(counters["graph_break"]) == broken == {}
    assert all(torch.equal(left, right) for left, right in zip(bare, seen, strict=True))
    run = gradscope.read_run(tmp_path / "run")
    assert run.info.model.endswith(".Net")
    assert [layer.name for layer in run.layers] == ["net.0", "net.1", "net.2"]
    assert [parameter.name for parameter in run.parameters][:2] == ["net.0.weight", "net.0.bias"]
    assert run.steps["step"].tolist() == [0, 3, 6]
    assert (run.layer_table("calls") == 1).all().all()
    assert (run.layer_table("signal_rms") > 0).all().all()
