"""How widely attention looks: the entropy of the weights that an attention module shows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

# Of all rows of weights so many are read, evenly spread.
ROWS = 64


def may_show_weights(module: nn.Module) -> bool:
    """Return whether a module is of a kind that may show attention weights: attention, or a softmax."""
    return isinstance(module, nn.MultiheadAttention) or type(module) is nn.Softmax


def shown_weights(module: nn.Module, output: Any) -> Tensor | None:
    """Return the attention weights that a module's output shows, positions last; None if it shows none.

    They show where MultiheadAttention returns them, and where a softmax over the last of three or more axes
    is a module of its own. Fused attention keeps them to itself.
    """
    weights = None
    if isinstance(module, nn.MultiheadAttention):
        weights = output[1] if isinstance(output, tuple) and len(output) == 2 else None
    elif type(module) is nn.Softmax and isinstance(output, Tensor) and output.dim() > 2:
        weights = output if module.dim in (-1, output.dim() - 1) else None
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        return None
    return weights.detach() if weights.numel() > 0 and weights.shape[-1] > 1 else None


def entropy_share(weights: Tensor) -> Tensor:
    """Return the mean entropy of rows of weights over the largest possible one: a scalar, float64 or float32.

    weights: (..., positions), at least 0; rows are scaled to sum to 1, as dropout changes their sum. Rows of
    zeros or NaN, where a mask leaves nothing to look at, are left out; NaN if no row remains.
    """
    rows = weights.flatten(0, -2)
    used = min(len(rows), ROWS)
    rows = rows[:: len(rows) // used][:used]
    rows = rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)
    rows = rows / rows.sum(1, keepdim=True)
    share: Tensor = torch.special.entr(rows).sum(1).nanmean() / math.log(rows.shape[1])
    return share
