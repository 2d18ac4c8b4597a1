"""Measure what a run takes on the disk: `python benchmarks/size.py`.

A training is recorded at every step until a few segments are sealed; from their bytes a step, and from
how many of a million steps the default schedule records, follows the size of so long a run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1]))

import gradscope
from benchmarks.workloads import mlp
from gradscope.observe.schedule import schedule_from
from gradscope.settings import Settings

LONG, WIDTH = 1_000_000, 32


def bytes_of_a_step(model: nn.Module, steps: int) -> float:
    """Train and record every step; return the bytes of a run directory's sealed segments a step."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        with gradscope.watch(model, optimizer, run, every_n_steps=1, verbose=False) as scope:
            for _ in range(steps):
                optimizer.zero_grad()
                loss = cross_entropy(model(torch.randn(32, WIDTH)), torch.randint(10, (32,)))
                loss.backward()
                optimizer.step()
                scope.step(loss)
        return sum(file.stat().st_size for file in run.rglob("*.parquet")) / steps


def recorded_of(steps: int) -> int:
    """Return how many of so many steps the default schedule records."""
    return sum(map(schedule_from(Settings()), range(steps)))


def megabytes(linears: int, steps: int) -> float:
    """Return the size of a run of LONG steps of `linears` × (Linear + ReLU) and a head."""
    return recorded_of(LONG) * bytes_of_a_step(mlp(linears, WIDTH), steps) / 1e6


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1024)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{recorded_of(LONG):,} of {LONG:,} steps are recorded\n")
    print("| model | layers | parameters | MB |\n|---|---|---|---|")
    for linears in (30, 60):
        size = megabytes(linears, asked.steps)
        print(f"| {linears} × (Linear + ReLU), head | {2 * linears + 1} | {2 * linears + 2} | {size:.0f} |")


if __name__ == "__main__":
    main()
