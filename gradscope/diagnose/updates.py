"""How far updates move the weights, for the rules on learning rates."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnose.series import column, median
from gradscope.records import ParameterInfo, Run


def learning_rate(run: Run) -> float:
    """Return the typical learning rate: of the recorded steps, else the optimizer's when watching began."""
    recorded = median(column(run, "lr"))
    groups = [group for optimizer in run.info.optimizers for group in optimizer.groups if "lr" in group]
    return recorded if math.isfinite(recorded) or not groups else float(groups[0]["lr"])


def update_ratios(run: Run) -> tuple[list[ParameterInfo], NDArray[np.float64]]:
    """Return the trained weights and their |update| / |weight|, steps down; NaN for zero weights."""
    items = [item for item in run.parameters if item.trained and item.role in ("weight", "embedding")]
    table = run.parameter_table("update_ratio")[[item.name for item in items]].to_numpy()
    return items, np.where(np.isfinite(table), table, np.nan)
