"""The nouns of the benchmark: a program, what it trains, and how its training ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
Label = Literal["healthy", "ailing", "borderline"]


@dataclass(frozen=True)
class Setup:
    """Everything a training loop needs.

    data: tensors with samples along the first axis, from which `batch_size` rows are drawn a micro-batch;
    loss: (model, batch) -> scalar; score: higher is better, measured in evaluation mode; chance: the score of
    the best constant answer. zero_gradients False forgets `optimizer.zero_grad`. clip: largest gradient norm.
    A program that clips or accumulates is trained by Lightning, which knows of both; others in a plain loop.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: Batch
    loss: Callable[[nn.Module, Batch], Tensor]
    score: Callable[[nn.Module], float]
    chance: float
    steps: int = 250
    batch_size: int = 64
    clip: float | None = None
    accumulate: int = 1
    zero_gradients: bool = True
    schedule: Callable[[int], float] | None = None
    autocast: torch.dtype | None = None

    @property
    def by_lightning(self) -> bool:
        """Tell whether Lightning runs the loop."""
        return self.clip is not None or self.accumulate > 1


@dataclass(frozen=True)
class Adversaries:
    """A generative adversarial network, trained by Lightning under manual optimisation.

    losses: of the discriminator (given the real and the generated points) and of the generator (given the
    discriminator's answer to the generated points); noise: width of the generator's input.
    """

    generator: nn.Module
    discriminator: nn.Module
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    losses: tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]
    data: Tensor
    score: Callable[[nn.Module], float]
    chance: float
    noise: int = 4
    steps: int = 200
    batch_size: int = 128
    zero_gradients: bool = True


@dataclass(frozen=True)
class Program:
    """A training program, with what is wrong with it and the program that repairs it.

    build: called with the global random state seeded; returns a Setup, or, for manual optimisation, an
    Adversaries. twin: name of the repaired program that the outcome is compared with; one without is a
    reference, compared with `target`, the score that is known to be possible. causes: rules that name the
    fault rightly, none for a control. where: name patterns of the faulty layers; empty if the fault has no
    one place (a learning rate, an initialisation throughout).
    """

    name: str
    build: Callable[[], Setup | Adversaries] = field(repr=False, compare=False)
    twin: str | None = None
    causes: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    target: float | None = None

    @property
    def is_control(self) -> bool:
        """Tell whether nothing is wrong with the program as written."""
        return not self.causes


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its score, that of a constant answer, and scores on the way (step, score)."""

    score: float
    chance: float
    trace: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0


HEALTHY_FROM = 0.9  # share of the twin's improvement that counts as trained
AILING_BELOW = 0.75  # share below which a run failed beyond the noise of a score


def improvement(outcome: Outcome, reference: float) -> float:
    """Return the share of the reference's improvement over chance that a run reached."""
    gained = outcome.score - outcome.chance
    possible = reference - outcome.chance
    return gained / possible if possible > 0 and gained == gained else 0.0


def label(share: float, is_control: bool) -> Label:
    """Judge a run by its outcome; a control that failed has no known cause, so it is counted nowhere."""
    if share >= HEALTHY_FROM:
        return "healthy"
    return "ailing" if share < AILING_BELOW and not is_control else "borderline"
