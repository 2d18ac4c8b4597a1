"""What is treated: a model with what trains it, built anew for each trial, and the batches of all trials."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.errors import GradscopeError


@dataclass(frozen=True)
class Patient:
    """A plain torch model with its optimizer and loss; a LightningModule needs none of this.

    optimizer: makes the optimizer of a model, as a remedy may exchange parameters.
    loss: (output, target) -> scalar.
    """

    model: nn.Module
    optimizer: Callable[[nn.Module], Optimizer]
    loss: Callable[[Any, Any], Tensor]


def admit(build: Callable[..., Any], seed: int) -> Patient | pl.LightningModule:
    """Build the patient of a seed; GradscopeError if what was built can't be trained."""
    torch.manual_seed(seed)
    try:
        built = build(seed) if _takes_a_seed(build) else build()
    except Exception as error:
        raise GradscopeError(f"treat's build function failed: {type(error).__name__}: {error}") from error
    if isinstance(built, tuple) and len(built) == 3:
        built = Patient(*built)
    if isinstance(built, Patient):
        return replace(built, optimizer=optimizer_like(built.model, built.optimizer))
    if isinstance(built, pl.LightningModule) or _is_lightning_twin(built):
        return built  # type: ignore[no-any-return]
    raise GradscopeError(
        "treat's build function must return a LightningModule, a gradscope.treat.Patient, or "
        f"(model, optimizer, loss); it returned {type(built).__name__}"
    )


def _is_lightning_twin(built: object) -> bool:
    return any(
        kind.__name__ == "LightningModule" and kind.__module__.startswith("lightning.")
        for kind in type(built).__mro__
    )


def _takes_a_seed(build: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(item.kind in positional and item.default is item.empty for item in parameters)


def optimizer_like(
    model: nn.Module, optimizer: Optimizer | Callable[[nn.Module], Optimizer]
) -> Callable[[nn.Module], Optimizer]:
    """Return what makes the optimizer: from an optimizer, what makes its like for a changed copy of a model.

    Groups are found again by the names of their parameters; what a remedy added joins the first group.
    Parameters that aren't the model's stay: to have been given another model's is an ailment of its own.
    """
    if not isinstance(optimizer, Optimizer):
        return optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        (
            {names[id(item)] for item in group["params"] if id(item) in names},
            [item for item in group["params"] if id(item) not in names],
            {k: v for k, v in group.items() if k != "params"},
        )
        for group in optimizer.param_groups
    ]
    known = set().union(*(members for members, _, _ in groups))
    kind: Any = type(optimizer)
    unoptimized = set(names.values()) - known

    def make(changed: nn.Module) -> Optimizer:
        parameters = dict(changed.named_parameters())
        new = [name for name in parameters if name not in known and name not in unoptimized]
        made = []
        for index, (members, foreign, options) in enumerate(groups):
            chosen = [name for name in parameters if name in members] + (new if index == 0 else [])
            made.append({**options, "params": [*(parameters[name] for name in chosen), *foreign]})
        return kind([group for group in made if group["params"]])  # type: ignore[no-any-return]

    return make


def draw_batches(data: Any, steps: int, seed: int) -> list[Any]:
    """Return the `steps` batches that all trials of a seed share; data is gone through as often as needed.

    data: an iterable of batches, a LightningDataModule, or a function seed -> either.
    GradscopeError if it is empty.
    """
    torch.manual_seed(seed)
    try:
        source = _loader(data(seed) if callable(data) and not isinstance(data, Iterable) else data)
        return list(islice(_endless(source), steps))
    except GradscopeError:
        raise
    except Exception as error:
        raise GradscopeError(f"treat's data failed: {type(error).__name__}: {error}") from error


def _loader(data: Any) -> Iterable[Any]:
    if hasattr(data, "train_dataloader"):
        data.prepare_data()
        data.setup("fit")
        data = data.train_dataloader()
    if not isinstance(data, Iterable):
        raise GradscopeError(
            f"treat's data must be an iterable of batches, such as a DataLoader; got {type(data).__name__}"
        )
    return data


def _endless(source: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in source:
            empty = False
            yield batch
        if empty:
            raise GradscopeError(
                "treat's data gave no batch: pass an iterable that can be gone through again"
            )
