"""Zeros and absences that are there by design are no ailment."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gradscope
from gradscope.records import Finding

STEPS, CLASSES = 80, 3


class BiasBeforeNorm(nn.Module):
    """A bias that batch normalisation subtracts again: its gradient is 0 but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class KeyBias(nn.Module):
    """Attention, whose key bias moves all scores of a query alike."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(2, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.unflatten(1, (4, 2)))
        return self.head((h + self.attention(h, h, h, need_weights=False)[0]).flatten(1, 1).mean(1))


class ReZero(nn.Module):
    """Residual branches that start at a gain of 0 (Bachlechner 2021): no gradient for them at first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, CLASSES)
        self.branches = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.gains = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for gain, branch in zip(self.gains, self.branches, strict=True):
            h = h + gain * branch(h).relu()
        return self.head(h)


class Adapted(nn.Module):
    """A low-rank product beside a frozen layer (Hu 2022): B starts at 0, so A has no gradient at first."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 16).requires_grad_(False)
        self.a, self.b, self.head = (
            nn.Linear(8, 4, bias=False),
            nn.Linear(4, 16, bias=False),
            nn.Linear(16, CLASSES),
        )
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.frozen(x) + self.b(self.a(x))))


class RareWords(nn.Module):
    """A table of which most rows never occur."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(500, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words((x > 0).long() + 2 * torch.arange(8)).mean(1))


class Experts(nn.Module):
    """Each sample goes to one of many experts; some get none in a batch, and then have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 12)
        self.experts = nn.ModuleList(nn.Linear(8, CLASSES) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(1)
        chosen, outputs = shares.argmax(1), x.new_zeros(len(x), CLASSES)
        for index in chosen.unique().tolist():
            rows = chosen == index
            outputs[rows] = shares[rows, index, None] * self.experts[index](x[rows])
        return outputs


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bias before a normalisation": BiasBeforeNorm,
    "key bias": KeyBias,
    "residual gains of zero": ReZero,
    "adapters": Adapted,
    "rows that never occur": RareWords,
    "experts without samples": Experts,
    "warm-up from zero": BiasBeforeNorm,
}


def findings_of(kind: str, run: Path) -> list[Finding]:
    torch.manual_seed(0)
    model = MODELS[kind]()
    optimizer = torch.optim.Adam([item for item in model.parameters() if item.requires_grad], 0.02)
    warm_up = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / 20) if kind == "warm-up from zero" else 1.0
    )
    rule = torch.randn(8, CLASSES)
    with gradscope.watch(model, optimizer, run, every_n_steps=1, verbose=False) as scope:
        for _ in range(STEPS):
            x = torch.randn(64, 8)
            optimizer.zero_grad()
            loss = cross_entropy(model(x), (x.sign() @ rule).argmax(1))
            loss.backward()
            optimizer.step()
            warm_up.step()
            scope.step(loss)
    recorded = gradscope.read_run(run)
    assert math.isfinite(recorded.steps["loss"].iloc[-1])
    return list(gradscope.examine(recorded).findings)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_zero_by_design_is_no_ailment(kind: str, tmp_path: Path) -> None:
    found = findings_of(kind, tmp_path / "run")
    assert [(item.rule, item.message) for item in found if item.severity != "note"] == []
