"""Measure how the cost of recording grows with the number of layers, and with the steps recorded so far.

    python benchmarks/scaling.py [--layers 100 --layers 1000 ...] [--steps 20]

Trains layers of 16 units with a batch of 16, bare and watched at every step in turn, on one thread. Prints
the median extra processor time of a recorded step for each layer, beside that of a bare step, which outgrows
the caches as well. Extra time that stays a constant multiple of the bare time is linear growth.
"""

from __future__ import annotations

import tempfile
import time
from statistics import median

import click
import torch
from overhead import describe_machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import gradscope

WIDTH = 16


def network(layers: int) -> nn.Module:
    """Build so many watched layers: linear ones and rectifiers in turn."""
    return nn.Sequential(*(nn.ReLU() if place % 2 else nn.Linear(WIDTH, WIDTH) for place in range(layers)))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> Tensor:
    """Train one step."""
    optimizer.zero_grad()
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def extra_seconds(layers: int, steps: int) -> tuple[float, float, float]:
    """Return the median extra seconds of a step early and late in the run, and a bare step's seconds."""
    torch.manual_seed(0)
    inputs = torch.randn(WIDTH, WIDTH)
    bare, watched = network(layers), network(layers)
    bare_sgd = torch.optim.SGD(bare.parameters(), 1e-6)
    watched_sgd = torch.optim.SGD(watched.parameters(), 1e-6)
    with (
        tempfile.TemporaryDirectory() as folder,
        gradscope.watch(watched, watched_sgd, f"{folder}/run", verbose=False, every_n_steps=1) as scope,
    ):
        plain, more = [], []
        for _ in range(steps + 2):
            start = time.process_time()
            step(bare, bare_sgd, inputs)
            middle = time.process_time()
            scope.step(step(watched, watched_sgd, inputs))
            plain.append(middle - start)
            more.append(time.process_time() - middle - plain[-1])
    more, quarter = more[2:], max(1, steps // 4)
    return median(more[:quarter]), median(more[-quarter:]), median(plain)


@click.command()
@click.option("--layers", multiple=True, type=int, default=(100, 1000, 10_000), show_default=True)
@click.option("--steps", default=40, show_default=True)
def main(layers: tuple[int, ...], steps: int) -> None:
    """Print the extra time of a recorded step for each layer."""
    torch.set_num_threads(1)
    table = Table("layers", "bare, µs a layer", "recording, first quarter", "recording, last quarter")
    for count in layers:
        first, last, plain = extra_seconds(count, steps)
        table.add_row(
            f"{count:,}",
            f"{1e6 * plain / count:.1f}",
            *(f"{1e6 * extra / count:.1f} ({extra / plain:.2f} × bare)" for extra in (first, last)),
        )
    console = Console()
    console.print(table)
    console.print(describe_machine("cpu"))


if __name__ == "__main__":
    main()
