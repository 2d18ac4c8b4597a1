"""Train the catalogue's programs under observation, and write a report each and an index page."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gradscope.errors import GradscopeError
from gradscope.examine import examine
from gradscope.models import PROGRAMS
from gradscope.models.programs import Program, Training
from gradscope.pytorch_lightning import GradScope
from gradscope.records import Finding, Report
from gradscope.store import read_run


@dataclass(frozen=True)
class Outcome:
    """A program, the report on its run, its accuracy on the test images, and how long it all took."""

    program: Program
    report: Report
    accuracy: float
    seconds: float

    @property
    def found(self) -> Finding | None:
        """Return the finding ranked first, None if there is none at warning or above."""
        return next((item for item in self.report.findings if item.severity != "note"), None)

    @property
    def as_expected(self) -> bool:
        """Return whether the verdict and the first finding are the ones that the catalogue names."""
        expected = "healthy" if self.program.finding is None else "ailing"
        found = self.found.rule if self.found else None
        return (self.report.verdict, found) == (expected, self.program.finding)


def train(
    training: Training, run_dir: Path, on_step: Callable[[], None] = lambda: None
) -> tuple[Path, float]:
    """Fit and test under observation; return the recorded run's path and the test accuracy."""
    scope = GradScope(run_dir=str(run_dir), verbose=False)
    trainer = _quiet_trainer(training.steps, [scope, _Ticker(on_step)])
    with _quiet():
        trainer.fit(training.model, training.train)
        accuracy = trainer.test(training.model, training.test, verbose=False)[0]["test_accuracy"]
    assert scope.run_path is not None
    return scope.run_path, accuracy


def run_program(
    program: Program, run_dir: Path, seed: int = 0, on_step: Callable[[], None] = lambda: None
) -> Outcome:
    """Train a program, and examine what was recorded."""
    started = perf_counter()
    path, accuracy = train(program.build(seed), run_dir, on_step)
    return Outcome(program, examine(read_run(path)), accuracy, perf_counter() - started)


class _Ticker(pl.Callback):
    """Tell of every step."""

    def __init__(self, on_step: Callable[[], None]):
        self.on_step = on_step

    def on_train_batch_end(self, *_: Any) -> None:
        self.on_step()


def _quiet_trainer(steps: int, callbacks: list[pl.Callback]) -> pl.Trainer:
    with _quiet():
        return pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice on data loaders and hardware off the terminal."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
