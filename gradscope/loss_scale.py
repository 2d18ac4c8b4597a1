"""The loss scale of 16-bit mixed precision, and the updates that it skips."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def scale_of(scaler: Any) -> Tensor | None:
    """Return a scaler's present loss scale, still on its device; None without one."""
    scale = getattr(scaler, "_scale", None)
    if isinstance(scale, Tensor):
        return scale.detach().clone()
    # A scaler that has not scaled a loss yet has no tensor, only what it will begin with.
    first = getattr(scaler, "_init_scale", None)
    return torch.tensor(float(first)) if first is not None and scaler.is_enabled() else None


def was_skipped(before: Tensor | None, scaler: Any) -> Tensor | float:
    """Return 1 if the scaler skipped the update, which it shows by a lower scale afterwards; else 0."""
    after = scale_of(scaler)
    return (after < before.to(after.device)).double() if before is not None and after is not None else 0.0


def unscales_itself(optimizer: Optimizer) -> bool:
    """Return whether an optimizer's step divides the gradients by the scale: fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
