"""Compare two runs of the same training, statistic by statistic."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gradscope.columns import LAYER_COLUMNS, PARAMETER_COLUMNS
from gradscope.records import Run

STEP_COLUMNS = ("loss", "lr", "grad_norm", "clipped_grad_norm", "clip_coefficient", "micro_batches")
# Weight means are there for shards only; of dead units the merged share is an upper bound; the merged
# cosine is the mean over ranks of those within their own samples: samples of two ranks are never compared.
LEFT_OUT = ("weight_mean", "activation_dead_unit_fraction", "activation_cosine")


def check_same(run: Run, whole: Run, tolerance: float = 2e-3) -> None:
    """Assert that names are equal, and all statistics up to a tolerance relative to the step's largest."""
    assert [layer.name for layer in run.layers] == [layer.name for layer in whole.layers]
    assert [layer.kind for layer in run.layers] == [layer.kind for layer in whole.layers]
    assert [(p.name, p.layer, p.role, p.shape, p.group) for p in run.parameters] == [
        (p.name, p.layer, p.role, p.shape, p.group) for p in whole.parameters
    ]
    for column in STEP_COLUMNS:
        check_close(run.steps[[column]], whole.steps[[column]], column, tolerance)
    for column in (item.name for item in LAYER_COLUMNS):
        if column not in LEFT_OUT:
            check_close(run.layer_table(column), whole.layer_table(column), column, tolerance)
    for column in (item.name for item in PARAMETER_COLUMNS):
        if column not in LEFT_OUT:
            check_close(run.parameter_table(column), whole.parameter_table(column), column, tolerance)


def check_close(seen: pd.DataFrame, true: pd.DataFrame, column: str, tolerance: float) -> None:
    assert list(seen.columns) == list(true.columns)
    x, y = seen.to_numpy(), true.to_numpy()
    np.testing.assert_array_equal(np.isnan(x), np.isnan(y), err_msg=column)
    scale = np.nanmax(np.abs(y)) if np.isfinite(y).any() else 0.0
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-6 * scale, err_msg=column)
