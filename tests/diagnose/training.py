"""Train something tiny under gradscope and judge it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope
from gradscope import read_run
from gradscope.diagnose import Diagnosis, diagnose

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def mse(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(model(inputs), targets)


def judge(tmp_path: Path, build: Callable[[], nn.Module], loss: Loss = mse, **options: float) -> Diagnosis:
    """Train on a sine of four inputs and judge; scale: of the inputs; rate: its factor a step."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 4)
    targets, model = (2 * inputs[:, :1]).sin(), build()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=options.get("decay", 0.0))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, options.get("rate", 1.0))
    with gradscope.watch(model, optimizer, run_dir=tmp_path / "run", verbose=False) as scope:
        for _ in range(int(options.get("steps", 60))):
            rows = torch.randint(0, 256, (64,))
            optimizer.zero_grad()
            value = loss(model, options.get("scale", 1.0) * inputs[rows], targets[rows])
            value.backward()
            optimizer.step()
            scope.step(value)
            schedule.step()
    return diagnose(read_run(tmp_path / "run"))


def body(width: int = 16, *end: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1), *end)


def found(diagnosis: Diagnosis) -> list[str]:
    return [finding.rule for finding in diagnosis.findings if finding.severity != "note"]
