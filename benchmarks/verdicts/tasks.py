"""Turn a model and data into a Setup: what is minimised, what is scored, what chance would score."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts.program import Batch, Setup

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def adam(lr: float = 1e-3, **options: Any) -> MakeOptimizer:
    """Return a maker of Adam."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, **options)


def adamw(lr: float = 1e-3, **options: Any) -> MakeOptimizer:
    """Return a maker of AdamW."""
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, **options)


def sgd(lr: float = 0.1, **options: Any) -> MakeOptimizer:
    """Return a maker of SGD."""
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)


def rmsprop(lr: float = 1e-3) -> MakeOptimizer:
    """Return a maker of RMSprop."""
    return lambda parameters: torch.optim.RMSprop(parameters, lr=lr)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def classify(
    model: nn.Module,
    data: Batch,
    optimizer: MakeOptimizer = adam(),  # noqa: B008
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    parameters: Iterable[nn.Parameter] | None = None,
    threshold: float = 0.0,
    **options: Any,
) -> Setup:
    """Classify: score is the accuracy, chance the largest class; one output is held to `threshold`."""
    inputs, targets = data
    wanted = targets.flatten()
    chance = wanted.long().bincount().max().item() / len(wanted)

    def score(model: nn.Module) -> float:
        outputs = model(inputs)
        guessed = outputs.flatten() > threshold if outputs.shape[-1] == 1 else outputs.argmax(1)
        return (guessed == wanted).float().mean().item() if outputs.isfinite().all() else chance

    chosen = list(parameters) if parameters is not None else trained(model)
    return Setup(
        model,
        optimizer(chosen),
        data,
        lambda model, batch: loss(model(batch[0]), batch[1]),
        score,
        chance,
        **options,
    )


def regress(
    model: nn.Module,
    data: Batch,
    optimizer: MakeOptimizer = adam(),  # noqa: B008
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    parameters: Iterable[nn.Parameter] | None = None,
    wanted: Tensor | None = None,
    **options: Any,
) -> Setup:
    """Predict numbers: score is the explained share of the variance on the data (R²), chance the mean's 0.

    wanted: what is to be predicted, where it isn't what the loss is shown.
    """
    inputs, targets = data
    truth = targets if wanted is None else wanted
    spread = (truth - truth.mean(0)).square().mean()

    def score(model: nn.Module) -> float:
        error = (model(inputs).reshape(truth.shape) - truth).square().mean()
        return max(0.0, (1 - error / spread).item()) if error.isfinite() else 0.0

    chosen = list(parameters) if parameters is not None else trained(model)
    return Setup(
        model,
        optimizer(chosen),
        data,
        lambda model, batch: loss(model(batch[0]), batch[1]),
        score,
        0.0,
        **options,
    )


def next_token(
    model: nn.Module, data: tuple[Tensor, Tensor, int], optimizer: MakeOptimizer, **options: Any
) -> Setup:
    """Model a language: score is minus the nats a character, chance that of the letters' frequencies."""
    inputs, targets, alphabet = data
    share = targets.flatten().bincount(minlength=alphabet).clamp(min=1) / targets.numel()
    chance = (share * share.log()).sum().item()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1).float(), batch[1].flatten())

    def score(model: nn.Module) -> float:
        value = -loss(model, (inputs[:256], targets[:256])).item()
        return value if value == value else chance

    return Setup(model, optimizer(trained(model)), (inputs, targets), loss, score, chance, **options)
