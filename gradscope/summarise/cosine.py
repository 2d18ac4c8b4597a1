"""How alike an output's rows are: the mean cosine between different ones, from a few evenly spread rows.

For normalised rows u_i it is (|sum u_i|² − n) / (n (n − 1)), as in passes.c, which reads host memory.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gradscope.summarise.rows import accumulator

ROWS, LINES, LINE = 16, 64, 16
Between = Literal["samples", "tokens"]


def mean_cosine(stack: Tensor, between: Between) -> Tensor:
    """Return the mean cosine between the rows of each output: (outputs,); NaN with fewer than two rows.

    stack: (outputs, batch, ...). Rows are whole samples, or the last axis of the first sample. Rows that are
    all zero are left out; any non-finite entry among those read makes the result NaN.
    """
    if stack.dim() < 3 or stack.numel() == 0:
        return torch.full((len(stack),), torch.nan, dtype=accumulator(stack), device=stack.device)
    rows = stack[:, 0].flatten(1, -2) if between == "tokens" else stack.flatten(2)
    used = min(rows.shape[1], ROWS)
    rows = rows[:, :: rows.shape[1] // used][:, :used]
    if rows.shape[2] > LINES * LINE:
        apart = rows.shape[2] // LINES
        rows = rows[..., : LINES * apart].unflatten(2, (LINES, apart))[..., :LINE].flatten(2)
    rows = rows.to(accumulator(rows))
    lengths = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
    units = rows / torch.where(lengths == 0, 1.0, lengths)
    number = (lengths != 0).sum(dim=(1, 2)).to(rows.dtype)
    cosine = (units.sum(1).square().sum(1) - number) / (number * (number - 1))
    known = (number > 1) & torch.isfinite(lengths).all(1).squeeze(1)
    return torch.where(known, cosine.clamp(-1.0, 1.0), torch.nan)
