"""Compiled models: recorded where the probes came first, else said not to be observable."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.observe.sinks import record

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # dynamo says where it leaves the graph


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def test_a_model_watched_before_its_first_run_is_recorded_like_any_other() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4)
    compiled = torch.compile(model, backend="eager")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seen = record(model, lambda m: compiled(x).sum(), steps=2)
    model.load_state_dict(state)
    plain = record(model, lambda m: m(x).sum(), steps=2)
    for name in ("0", "1", "2"):
        for column in ("calls", "activation_rms", "signal_rms"):
            assert seen.layer(name, column) == pytest.approx(plain.layer(name, column), rel=1e-5)


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
