"""Train one program with one seed, watched or not, and say how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.verdicts.program import Adversaries, Batch, Outcome, Program, Setup

SCORINGS = 10  # scores taken on the way, as a user would validate

Report = Callable[[Tensor], object]


def train(program: Program, seed: int, run_dir: Path | None = None) -> Outcome:
    """Train a program; record it into `run_dir` if given."""
    torch.manual_seed(seed)
    setup = program.build()
    started = time.perf_counter()
    if isinstance(setup, Adversaries) or setup.by_lightning:
        from benchmarks.verdicts.lightning import fit

        trace, final = fit(setup, seed, run_dir)
    else:
        trace, final = _plain(setup, seed, run_dir), score(setup.model, setup.score)
    return Outcome(final, setup.chance, tuple(trace), time.perf_counter() - started)


def _plain(setup: Setup, seed: int, run_dir: Path | None) -> list[tuple[int, float]]:
    batches = shuffled(setup.data, setup.batch_size, seed)
    trace = []
    with _watched(setup, run_dir) as report:
        scheduler = setup.schedule and torch.optim.lr_scheduler.LambdaLR(setup.optimizer, setup.schedule)
        for step in range(setup.steps):
            report(_step(setup, batches))
            if scheduler:
                scheduler.step()
            if scored(step, setup.steps):
                trace.append((step, score(setup.model, setup.score)))
    return trace


def scored(step: int, steps: int) -> bool:
    """Tell whether the score is taken after this step."""
    return (step + 1) % max(1, steps // SCORINGS) == 0


def _watched(setup: Setup, run_dir: Path | None) -> AbstractContextManager[Report]:
    """Return a context that yields the function to be told each step's loss."""
    if run_dir is None:
        return nullcontext(lambda loss: None)
    return _Watch(setup, run_dir)


class _Watch:
    """gradscope.watch, yielding its `step`."""

    def __init__(self, setup: Setup, run_dir: Path):
        import gradscope

        self.scope: Any = gradscope.watch(setup.model, setup.optimizer, run_dir=run_dir, verbose=False)

    def __enter__(self) -> Report:
        return self.scope.__enter__().step

    def __exit__(self, *exception: Any) -> Any:
        return self.scope.__exit__(*exception)


def _step(setup: Setup, batches: Iterator[Batch]) -> Tensor:
    """Do one optimizer step as a user's plain loop does; return its loss."""
    if setup.zero_gradients:
        setup.optimizer.zero_grad()
    with _precision(setup.autocast):
        loss = setup.loss(setup.model, next(batches))
    loss.backward()
    setup.optimizer.step()
    return loss


def _precision(kind: torch.dtype | None) -> AbstractContextManager[object]:
    return torch.autocast("cpu", kind) if kind else nullcontext()


def shuffled(data: Batch, size: int, seed: int) -> Iterator[Batch]:
    """Yield shuffled batches without end, one permutation an epoch; the last, smaller one is left out."""
    random = torch.Generator().manual_seed(1000 + seed)
    count = len(data[0])
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=random)
        for start in range(0, count - size + 1, size):
            yield tuple(tensor[order[start : start + size]] for tensor in data)


def score(model: nn.Module, measure: Callable[[nn.Module], float]) -> float:
    """Measure a model in evaluation mode, and leave it in training mode."""
    model.eval()
    with torch.no_grad():
        value = measure(model)
    model.train()
    return value
