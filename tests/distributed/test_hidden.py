"""Parameters that FSDP hides are said to be hidden."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel

import gradscope

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def _alone() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_alone")
def test_fsdp_without_original_parameters_is_said_and_layers_are_recorded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    model = FullyShardedDataParallel(inner, device_id=torch.device("cpu"), use_orig_params=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.watch(model, optimizer, tmp_path / "run", every_n_steps=1, verbose=False) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 3)).square().mean()
            loss.backward()
            optimizer.step()
            scope.step(loss)
    run = gradscope.read_run(tmp_path / "run")
    assert "FSDP hides the parameters; wrap with use_orig_params=True" in [
        event.message for event in run.events
    ]
    assert (run.layer_table("signal_rms")[["0", "1", "2"]] > 0).all(axis=None)
    assert len(run.steps) == 3
