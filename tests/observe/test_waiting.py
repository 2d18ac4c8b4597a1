"""On an accelerator nothing in a recorded step may wait for the device, before its values are delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradscope.observe import Recorder, recorder
from gradscope.settings import Settings
from gradscope.summarise import host
from tests.observe.sinks import MemorySink
from tests.observe.test_attention import Hand, fused

# What has to know values that the device may not have computed yet.
WAITING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2")


class NoWaiting(TorchDispatchMode):
    """Raise at any operation that would stall an accelerator."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function.overloadpacket.__name__ in WAITING:
            raise AssertionError(f"{function} waits")
        return function(*arguments, **(options or {}))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.attention = nn.Linear(8, 8), nn.ReLU(inplace=True), Hand(fused)
        self.norm, self.tanh, self.big = nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3000)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention(self.relu(self.first(x)))
        return self.big(self.tanh(self.norm(h)))


def train(device: str, watching: Callable[[], Any]) -> MemorySink:
    torch.manual_seed(0)
    model, sink = Net().to(device), MemorySink()
    x = torch.randn(4, 9, 8).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    observer = Recorder(model, [optimizer], sink, Settings(every_n_steps=1))
    observer.start()
    for _ in range(4):
        with watching():
            observer.begin_step()
            optimizer.zero_grad()
            loss = model(x).square().mean()
            observer.minimised(loss)
            loss.backward()
            observer.before_update(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            observer.end_step({"loss": loss.detach()})
    observer.stop("finished")
    assert [event.kind for event in sink.events] == []
    return sink


def test_no_operation_of_a_recorded_step_asks_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's operations, as on an accelerator; values are delivered after the mode has ended."""
    monkeypatch.setattr(host, "_passes", None)
    delivered: list[int] = []
    real = recorder.Recorder._deliver

    def deliver(self: Recorder) -> None:
        with torch.utils._python_dispatch._disable_current_modes():
            delivered.append(1)
            real(self)

    monkeypatch.setattr(recorder.Recorder, "_deliver", deliver)
    sink = train("cpu", NoWaiting)
    assert len(sink.records) == 4
    assert delivered
    assert sink.layer("attention.out", "attention_entropy") > 0
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        torch.ones(1).item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_step_never_waits_for_a_gpu() -> None:
    @contextmanager
    def strict() -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    sink, on_cpu = train("cuda", strict), train("cpu", strict)
    for name in ("first", "relu", "attention.out", "norm", "tanh", "big"):
        for column in ("activation_rms", "signal_rms", "activation_max"):
            assert sink.layer(name, column) == pytest.approx(on_cpu.layer(name, column), rel=1e-2), name
