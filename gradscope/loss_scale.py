"""The loss scale of 16-bit mixed precision, and the updates that it skips."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def scale_of(scaler: Any) -> Tensor | None:
    """Return a scaler's present loss scale, still on its device; None without one."""
    scale = getattr(scaler, "_scale", None)
    return scale.detach().clone() if isinstance(scale, Tensor) else None


def was_skipped(before: Tensor | None, scaler: Any) -> Tensor | float:
    """Return 1 if the scaler skipped the update, which it shows by a lower scale afterwards; else 0."""
    after = scale_of(scaler)
    return (after < before).double() if before is not None and after is not None else 0.0


def unscales_itself(optimizer: Optimizer) -> bool:
    """Return whether an optimizer's step divides the gradients by the scale: fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
