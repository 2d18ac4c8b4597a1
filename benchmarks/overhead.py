"""Measure what recording costs: median ratios to bare training, all variants interleaved step by step.

    python benchmarks/overhead.py [--quick] [--device cuda] [--workload NAME] [--rounds N] [--cpu-time]

Every variant trains its own copy of the same model on the same batch. In each round every variant makes
one step, in a random order, so that a slow moment of a shared machine, and the cache that the step before
left, fall on all of them alike. A ratio is the median over the rounds of (seconds of the variant's step) /
(seconds of bare training's step in the same round).
"""

from __future__ import annotations

import copy
import importlib.util
import json
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from peers import PEERS, AfterStep, nothing
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from workloads import WORKLOADS, Workload

import gradscope

Clock = Callable[[], float]
Variant = Callable[[nn.Module, torch.optim.Optimizer], Any]
TARGETS = {
    "gradscope, every step": {"mlp": 1.08, "tiny": 1.30, "resnet": 1.05, "gpt": 1.04},
    "gradscope, default schedule, 1,000 steps": {"mlp": 1.01, "tiny": 1.04, "resnet": 1.01, "gpt": 1.01},
    "gradscope, a step that is not recorded": {"mlp": 1.003, "tiny": 1.003, "resnet": 1.003, "gpt": 1.003},
}
SCHEDULE_STEPS = 1000


@contextmanager
def recorded(model: nn.Module, optimizer: torch.optim.Optimizer, every: int | str) -> Iterator[AfterStep]:
    """Watch a model by gradscope."""
    with (
        tempfile.TemporaryDirectory() as folder,
        gradscope.watch(
            model, optimizer, run_dir=f"{folder}/run", every_n_steps=every, verbose=False
        ) as scope,
    ):
        yield scope.step


@dataclass
class Trainee:
    """One variant's own model, optimizer and batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    targets: Tensor
    after: AfterStep

    def step(self, synchronize: Callable[[], None], clock: Clock) -> float:
        """Train one step and return its seconds."""
        synchronize()
        start = clock()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.inputs), self.targets)
        loss.backward()
        self.optimizer.step()
        self.after(loss)
        synchronize()
        return clock() - start


def race(
    workload: Workload, variants: dict[str, Variant], rounds: int, device: str, clock: Clock
) -> dict[str, list[float]]:
    """Return every variant's seconds per round; warm-up rounds are left out."""
    torch.manual_seed(0)
    original = workload.build().to(device)
    inputs, targets = (tensor.to(device) for tensor in workload.batch())
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    with ExitStack() as stack:
        trainees = {}
        for name, variant in variants.items():
            model = copy.deepcopy(original)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
            after = stack.enter_context(variant(model, optimizer))
            trainees[name] = Trainee(model, optimizer, inputs, targets, after)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        names = list(variants)
        shuffle = random.Random(0).shuffle
        for _ in range(rounds):
            shuffle(names)
            for name in names:
                seconds[name].append(trainees[name].step(synchronize, clock))
    return seconds


def ratio(seconds: list[float], bare: list[float], warm_up: int = 3) -> float:
    """Return the median ratio of paired steps after the warm-up."""
    return median(one / other for one, other in zip(seconds[warm_up:], bare[warm_up:], strict=True))


def dense(workload: Workload, rounds: int, device: str, clock: Clock) -> dict[str, float]:
    """Race full recording at every step against bare training and against every installed peer."""
    variants: dict[str, Variant] = {"bare": nothing}
    variants["gradscope, every step"] = lambda model, optimizer: recorded(model, optimizer, 1)
    for name, (variant, needs) in PEERS.items():
        if not needs or importlib.util.find_spec(needs):
            variants[name] = variant
    seconds = race(workload, variants, rounds, device, clock)
    return {name: ratio(seconds[name], seconds["bare"]) for name in variants if name != "bare"}


def scheduled(workload: Workload, steps: int, device: str, clock: Clock) -> dict[str, float]:
    """Race the default schedule against bare training over its first `steps` steps."""
    variants: dict[str, Variant] = {"bare": nothing}
    variants["auto"] = lambda model, optimizer: recorded(model, optimizer, "auto")
    variants["never"] = lambda model, optimizer: recorded(model, optimizer, 10**9)
    seconds = race(workload, variants, steps, device, clock)
    whole = sum(seconds["auto"][1:]) / sum(seconds["bare"][1:])
    return {
        "gradscope, default schedule, 1,000 steps": whole,
        "gradscope, a step that is not recorded": ratio(seconds["never"], seconds["bare"]),
    }


def measure(
    chosen: list[Workload], rounds: int, steps: int, device: str, clock: Clock
) -> dict[str, dict[str, float]]:
    """Return ratios by variant and workload."""
    table: dict[str, dict[str, float]] = {}
    for workload in chosen:
        results = dense(workload, rounds, device, clock)
        if steps:
            results |= scheduled(workload, steps, device, clock)
        for name, value in results.items():
            table.setdefault(name, {})[workload.name] = value
    return table


def describe_machine(device: str) -> str:
    """Return the machine, the date and the commit in one line."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    software = f"torch {torch.__version__}, commit {commit or 'unknown'}"
    return f"{platform.machine()}, {where}, {software}, {date.today()}"


def show(table: dict[str, dict[str, float]], console: Console) -> None:
    """Print the ratios, and the targets that were missed."""
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    printed = Table("ratio to bare training", *names, title="What recording costs")
    for variant, row in table.items():
        targets = TARGETS.get(variant, {})
        cells = []
        for name in names:
            missed = name in targets and row[name] > targets[name]
            cells.append(f"{row[name]:.3f}" + (f" (target {targets[name]})" if missed else ""))
        printed.add_row(variant, *cells)
    console.print(printed)


@click.command()
@click.option("--quick", is_flag=True, help="Few rounds: shows that it works, not what it costs.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--workload", "names", multiple=True, help="Only these workloads.")
@click.option(
    "--rounds", default=100, show_default=True, help="Rounds of the race in which every step is recorded."
)
@click.option(
    "--steps", default=SCHEDULE_STEPS, show_default=True, help="Steps under the default schedule; 0 for none."
)
@click.option("--cpu-time", is_flag=True, help="Count processor time: steadier on a busy machine.")
@click.option("--threads", type=int, help="Threads of torch; all cores by default.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the ratios as JSON.")
def main(
    quick: bool,
    device: str,
    names: tuple[str, ...],
    rounds: int,
    steps: int,
    cpu_time: bool,
    threads: int | None,
    output: Path | None,
) -> None:
    """Print the table of ratios."""
    torch.set_num_threads(threads or torch.get_num_threads())
    clock = time.process_time if cpu_time else time.perf_counter
    chosen = [workload for workload in WORKLOADS if not names or workload.name in names]
    table = measure(chosen, 8 if quick else rounds, 40 if quick else steps, device, clock)
    console = Console()
    show(table, console)
    console.print(describe_machine(device))
    if output:
        output.write_text(json.dumps({"machine": describe_machine(device), "ratios": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
