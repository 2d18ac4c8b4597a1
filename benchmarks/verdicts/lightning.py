"""Train with Lightning: programs that clip or accumulate, and adversaries under manual optimisation."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.verdicts.program import Adversaries, Batch, Setup
from benchmarks.verdicts.training import score, scored, shuffled

Trace = list[tuple[int, float]]


def fit(setup: Setup | Adversaries, seed: int, run_dir: Path | None) -> tuple[Trace, float]:
    """Train; return the scores on the way and the last one."""
    if isinstance(setup, Adversaries):
        module: _Single | _Pair = _Pair(setup)
        batches: Iterable[Batch] = shuffled((setup.data,), setup.batch_size, seed)
        options: dict[str, Any] = {}
        micro_steps = setup.steps
    else:
        module = _Single(setup)
        batches = shuffled(setup.data, setup.batch_size, seed)
        options = {"gradient_clip_val": setup.clip, "accumulate_grad_batches": setup.accumulate}
        micro_steps = setup.steps * setup.accumulate
    trainer = _trainer(run_dir, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, DataLoader(list(islice(batches, micro_steps)), batch_size=None))
    return module.trace, score(module.scored_model, setup.score)


def _trainer(run_dir: Path | None, options: dict[str, Any]) -> pl.Trainer:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    callbacks: list[pl.Callback] = []
    if run_dir is not None:
        from gradscope import GradScope

        callbacks.append(GradScope(run_dir=str(run_dir)))
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **options,
    )


class _Single(pl.LightningModule):
    """A Setup under automatic optimisation."""

    def __init__(self, setup: Setup):
        super().__init__()
        self.setup_, self.model = setup, setup.model
        self.trace: Trace = []

    @property
    def scored_model(self) -> nn.Module:
        return self.model

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return self.setup_.loss(self.model, batch)

    def on_train_batch_end(self, *arguments: Any) -> None:
        step = self.trainer.global_step - 1
        if scored(step, self.setup_.steps) and (not self.trace or self.trace[-1][0] < step):
            self.trace.append((step, score(self.model, self.setup_.score)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.setup_.optimizer


class _Pair(pl.LightningModule):
    """A generator and a discriminator that take turns."""

    def __init__(self, adversaries: Adversaries):
        super().__init__()
        self.automatic_optimization = False
        self.adversaries = adversaries
        self.generator, self.discriminator = adversaries.generator, adversaries.discriminator
        self.trace: Trace = []

    @property
    def scored_model(self) -> nn.Module:
        return self.generator

    def training_step(self, batch: Batch, index: int) -> None:
        first, second = self.optimizers()
        judge, cheat = self.adversaries.losses
        fake = self.generator(torch.randn(len(batch[0]), self.adversaries.noise))
        self._update(second, judge(self.discriminator(batch[0]), self.discriminator(fake.detach())))
        self._update(first, cheat(self.discriminator(fake)))
        if scored(index, self.adversaries.steps):
            self.trace.append((2 * index + 1, score(self.generator, self.adversaries.score)))

    def _update(self, optimizer: Any, loss: Tensor) -> None:
        if self.adversaries.zero_gradients:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return list(self.adversaries.optimizers)
