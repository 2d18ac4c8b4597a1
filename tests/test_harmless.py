"""Observing never changes training, and is gone without a trace afterwards."""

from __future__ import annotations

import copy
import io
import pickle
import random
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradscope.observe import Recorder, recorder
from gradscope.records import StepRecord
from gradscope.settings import Settings
from tests.observe.sinks import MemorySink


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(16, 3))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)),
        nn.Conv2d(3, 4, 2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(12, 2, 16, dropout=0.1, batch_first=True)
        self.frozen = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True).requires_grad_(False).eval()
        self.lstm, self.head = nn.LSTM(12, 8, batch_first=True, num_layers=2, dropout=0.2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.frozen(x[:, None].expand(-1, 4, -1))
        return self.head(self.lstm(self.encoder(x))[0][:, -1])


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "conv": conv, "transformer": Transformer}


def random_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def train(build: Callable[[], nn.Module], steps: int, watched: bool) -> tuple[dict[str, Tensor], Any]:
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, foreach=True)
    observer = Recorder(model, [optimizer], MemorySink(), Settings(every_n_steps=2, update_sample=50))
    if watched:
        observer.start()
    for _ in range(steps):
        observer.begin_step()
        optimizer.zero_grad()
        loss = cross_entropy(model(torch.randn(8, 12)), torch.randint(3, (8,)))
        observer.minimised(loss)
        loss.backward()
        observer.before_update(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        observer.end_step({"loss": loss.detach()})
    observer.stop("finished")
    return model.state_dict(), random_states()


@pytest.mark.parametrize("kind", MODELS)
def test_weights_and_random_state_are_equal_to_the_bit(kind: str) -> None:
    bare, bare_random = train(MODELS[kind], 50, watched=False)
    seen, seen_random = train(MODELS[kind], 50, watched=True)
    assert all(torch.equal(bare[name], seen[name]) for name in bare)
    assert bare_random == seen_random


def hooks_on(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    )


def watched(model: nn.Module, sink: Any = None, every: int = 1) -> Recorder:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    observer = Recorder(model, [optimizer], sink or MemorySink(), Settings(every_n_steps=every))
    observer.start()
    observer.begin_step()
    return observer


def test_hooks_are_gone_between_recorded_steps_and_at_the_end() -> None:
    model = mlp()
    observer = watched(model, every=3)
    assert hooks_on(model) > 0
    observer.end_step({})
    observer.begin_step()
    assert hooks_on(model) == 0
    for _ in range(2):
        observer.end_step({})
        observer.begin_step()
    assert hooks_on(model) > 0
    observer.stop("interrupted", "KeyboardInterrupt")
    observer.stop("finished")
    assert hooks_on(model) == 0


def test_copies_of_a_watched_model_do_not_record_and_need_no_gradscope() -> None:
    model, sink = mlp(), MemorySink()
    observer = watched(model, sink)
    file = io.BytesIO()
    torch.save(model, file)
    assert b"gradscope" not in file.getvalue()
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    x = torch.randn(5, 12)
    for twin in copies:
        twin(x).sum().backward()
    observer.end_step({})
    assert np.isnan(sink.records[0].layers).all()
    observer.stop("finished")


class Broken(MemorySink):
    """A sink of which one method fails."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method, self.calls = method, 0

    def __getattribute__(self, name: str) -> Any:
        if name != "method" and name == object.__getattribute__(self, "method"):
            return self._fail
        return object.__getattribute__(self, name)

    def _fail(self, *arguments: object, **options: object) -> None:
        self.calls += 1
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("method", ["begin", "append", "update", "event", "close"])
def test_a_sink_that_fails_is_one_warning_and_training_goes_on(
    method: str, recwarn: pytest.WarningsRecorder
) -> None:
    model, sink = mlp(), Broken(method)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    observer = Recorder(model, [optimizer], sink, Settings(every_n_steps=1))
    observer.start()
    for _ in range(3):
        observer.begin_step()
        model(torch.randn(4, 12)).sum().backward()
        observer.before_update(optimizer)
        optimizer.step()
        observer.end_step({})
    observer.event("stopped", "asked to")
    observer.stop("finished")
    assert len(recwarn) == 1
    assert "training goes on" in str(recwarn[0].message)
    assert hooks_on(model) == 0
    assert observer.step == 3


def test_a_bug_in_a_statistic_is_one_warning_and_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sink = mlp(), MemorySink()
    observer = watched(model, sink)

    def bug(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(observer._flow, "output", bug)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(torch.randn(4, 12)).sum().backward()
        observer.end_step({})
        observer.begin_step()
    assert len(caught) == 1
    assert "training goes on (ZeroDivisionError: a bug)" in str(caught[0].message)
    assert [event.kind for event in sink.events] == ["recorder-failure"]
    assert hooks_on(model) == 0


def test_a_step_that_is_not_recorded_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    observer = watched(model, every=100)
    observer.end_step({})
    monkeypatch.setattr(recorder, "Parcel", None)
    monkeypatch.setattr(observer, "_flow", SimpleNamespace(recording=False, compiled=False))
    monkeypatch.setattr(observer, "_weights", None)
    observer.begin_step()
    model(torch.randn(4, 12)).sum().backward()
    observer.before_update(torch.optim.SGD(model.parameters()))
    observer.end_step({})
    assert observer.alive


def test_validation_between_steps_is_not_counted() -> None:
    model, sink = mlp(), MemorySink()
    observer = watched(model, sink)
    model(torch.randn(4, 12)).sum().backward()
    observer.end_step({})
    with torch.no_grad():
        model.eval()(torch.randn(4, 12))
    observer.begin_step()
    model.train()(torch.randn(4, 12)).sum().backward()
    observer.end_step({})
    record: StepRecord = sink.records[1]
    assert record.layers[0, 0] == 1
    observer.stop("finished")
