"""Carry a change of the training out: on an optimizer, on gradients, as a schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR

from gradscope.errors import SurgeryRefused
from gradscope.prescribe.training import Clipping, TrainingChange

_LEAST_WEIGHT = 1e-3  # as in Brock et al. 2021: units that start at zero must be able to leave it


def change_optimizer(
    change: TrainingChange, optimizer: Optimizer, model: nn.Module | None = None
) -> Optimizer:
    """Return a new optimizer over the same groups with a change applied; the given one stays as it is.

    The state starts empty. model: whose trainable parameters all join, where the change asks for that.
    """
    kind: Any = getattr(torch.optim, change.optimizer, None) if change.optimizer else type(optimizer)
    if kind is None:
        raise SurgeryRefused(f"torch.optim has no {change.optimizer!r}")
    changes = {**change.options}
    if change.rate is not None:
        changes["lr"] = change.rate
    if change.weight_decay is not None:
        changes["weight_decay"] = change.weight_decay
    kept = kind is type(optimizer)
    groups = [
        {**(group if kept else {"params": group["params"], "lr": group["lr"]}), **changes}
        for group in optimizer.param_groups
    ]
    for group in groups:
        group["lr"] *= change.rate_factor or 1.0
        group.pop("initial_lr", None)
    if change.all_parameters and model is not None:
        groups.append(_left_out(groups, model, changes))
    made: Optimizer = kind([group for group in groups if group["params"]])
    return made


def clip_gradients(clipping: Clipping, parameters: Iterable[nn.Parameter]) -> None:
    """Clip gradients in place."""
    chosen = [parameter for parameter in parameters if parameter.grad is not None]
    if clipping.algorithm == "norm":
        torch.nn.utils.clip_grad_norm_(chosen, clipping.limit)
    elif clipping.algorithm == "value":
        torch.nn.utils.clip_grad_value_(chosen, clipping.limit)
    elif clipping.algorithm == "adaptive":
        for parameter in chosen:
            _clip_units(parameter, clipping.limit)


def warm_up(optimizer: Optimizer, steps: int) -> LinearLR:
    """Return a schedule that rises linearly to the optimizer's rate; step it after each optimizer step."""
    return LinearLR(optimizer, start_factor=1 / max(steps, 1), total_iters=max(steps, 1))


def _left_out(groups: list[dict[str, Any]], model: nn.Module, changes: dict[str, Any]) -> dict[str, Any]:
    known = {id(parameter) for group in groups for parameter in group["params"]}
    missing = [item for item in model.parameters() if item.requires_grad and id(item) not in known]
    return {**groups[0], **changes, "params": missing}


@torch.no_grad()
def _clip_units(parameter: nn.Parameter, limit: float) -> None:
    """Clip each unit's gradient to a share of its weights' norm (Brock et al. 2021)."""
    gradient = parameter.grad
    if gradient is None or parameter.dim() < 2:
        return
    weight = parameter.flatten(1).norm(dim=1).clamp(min=_LEAST_WEIGHT)
    size = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
    scale = (limit * weight / size).clamp(max=1.0)
    gradient.mul_(scale.view(-1, *[1] * (parameter.dim() - 1)))
