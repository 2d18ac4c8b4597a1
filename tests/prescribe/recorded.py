"""Runs recorded from real models, so that remedies carry names and shapes that exist."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope.loop import watch
from gradscope.records import Run
from gradscope.store import read_run


def record(model: nn.Module, batch: Tensor, folder: Path, lr: float = 0.01, steps: int = 3) -> Run:
    """Train a model for a few steps of SGD towards zero and return what gradscope recorded."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with watch(model, optimizer, run_dir=folder) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            output = model(batch)
            loss = functional.mse_loss(output, torch.zeros_like(output))
            loss.backward()
            optimizer.step()
            scope.step(loss)
    runs = sorted(path.parent for path in folder.rglob("run.json"))
    return read_run(runs[0])
