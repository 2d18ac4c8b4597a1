"""Run a model on a batch without leaving a trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gradscope.errors import SurgeryRefused


def run(model: nn.Module, batch: Any) -> Any:
    """Run a model on an input or a tuple in evaluation mode, and restore modes and random state."""
    mode = {module: module.training for module in model.modules()}
    inputs = batch if isinstance(batch, tuple) else (batch,)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            return model.eval()(*inputs)
    finally:
        for module, training in mode.items():
            module.training = training


def runs(model: nn.Module, batch: Any) -> bool:
    """Say whether a model can be called with a batch; a LightningModule without forward() can't."""
    try:
        run(model, batch)
    except Exception:
        return False
    return True


def check_shape(model: nn.Module, changed: nn.Module, batch: Any) -> None:
    """Raise SurgeryRefused if the changed model doesn't run on a batch, or gives another shape."""
    try:
        after = run(changed, batch)
    except Exception as error:
        raise SurgeryRefused(f"the changed model doesn't run: {str(error).splitlines()[0]}") from error
    shapes = [getattr(output, "shape", None) for output in (run(model, batch), after)]
    if shapes[0] != shapes[1]:
        raise SurgeryRefused(f"the output's shape would change from {shapes[0]} to {shapes[1]}")
