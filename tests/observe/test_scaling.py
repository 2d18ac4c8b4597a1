"""What recording costs grows with the layers, not with the steps: calls are counted, as time is noisy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradscope


def calls_of_steps(layers: int, steps: int, folder: Path) -> list[int]:
    """Return how many Python and C functions each watched step calls beyond a bare one."""
    counts = [0]

    def count(frame: Any, event: str, argument: Any) -> None:
        counts[-1] += event in ("call", "c_call")

    model = nn.Sequential(*(nn.ReLU() if place % 2 else nn.Linear(4, 4) for place in range(layers)))
    optimizer, inputs = (
        torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, foreach=False),
        torch.randn(3, 4),
    )

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(inputs).sum()
        loss.backward()
        optimizer.step()
        return loss

    def counted(train: Any) -> int:
        counts.append(0)
        sys.setprofile(count)
        try:
            train()
        finally:
            sys.setprofile(None)
        return counts[-1]

    step()
    bare = counted(step)
    with gradscope.watch(model, optimizer, folder, verbose=False, every_n_steps=1) as scope:
        return [counted(lambda: scope.step(step())) - bare for _ in range(steps)]


def test_cost_is_linear_in_layers_and_constant_in_steps(tmp_path: Path) -> None:
    few = calls_of_steps(50, 12, tmp_path / "few")
    many = calls_of_steps(500, 40, tmp_path / "many")
    assert many[6] / few[6] < 10.5
    assert max(many[30:]) <= 1.02 * min(many[4:10])
