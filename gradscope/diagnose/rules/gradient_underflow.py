"""Half-precision gradients or updates that round to zero.

What it finds
In 16-bit training: weights more than 5 % of whose gradient entries are exactly zero although the signal
is not, and whose typical gradient is near the smallest half-precision number; or bfloat16 weights that do
not move although their gradient is not zero.

Why it hurts
The small gradients, often most of them, are lost; bfloat16 weights cannot take steps under 2^-9 of their
size.

What it is not
Zeros that come from rectifiers, embeddings that don't occur, or dead units: they are zero at any
precision.

Remedies
Loss scaling (16-mixed), bf16-mixed, weights kept in 32 bits.

Evidence
zero_fraction (median of the affected weights), gradient_rms, affected_weights, loss_improvement.

References
Micikevicius et al. 2018.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import column, median, mostly, require_steps, steps_of
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, ParameterInfo, Run
from gradscope.settings import Settings

NAME = "gradient-underflow"
SMALLEST_HALF = 6e-8  # the smallest subnormal of float16
BFLOAT16_STEP = 2.0**-9  # half the distance between neighbouring bfloat16 numbers, relative


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find gradients or updates that 16-bit numbers cannot hold."""
    require_steps(run, settings.patience)
    precision = str(run.info.training.get("precision", ""))
    items = [item for item in run.parameters if item.trained and item.role == "weight"]
    half = [item for item in items if item.dtype == "float16" or precision.startswith("16")]
    brain = [item for item in items if item.dtype == "bfloat16"]
    require(precision or half or brain, "the precision of the training is not known")
    affected = [item for item in half if _underflows(run, item, settings)]
    affected += [item for item in brain if _stands_still(run, item)]
    if not affected:
        return None
    names = [item.name for item in affected]
    zero = median(run.parameter_table("gradient_zero_fraction")[names].to_numpy())
    size = median(run.parameter_table("gradient_rms")[names].to_numpy())
    loss = outcome(run, settings)
    return Finding(
        NAME,
        severity(loss),
        f"Gradients or updates of {listed(names)} are too small for 16-bit numbers.",
        tuple(dict.fromkeys(item.layer for item in affected)),
        tuple(names),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"Their gradient's root mean square is {size:.1e}, and {zero:.0%} of its entries are zero.",
        present(
            zero_fraction=zero,
            gradient_rms=size,
            affected_weights=len(affected),
            loss_improvement=loss.improvement,
        ),
    )


def _underflows(run: Run, item: ParameterInfo, settings: Settings) -> bool:
    zero = run.parameter_table("gradient_zero_fraction")[item.name].to_numpy()
    scale = np.nan_to_num(column(run, "amp_scale"), nan=1.0)
    size = run.parameter_table("gradient_rms")[item.name].to_numpy() * scale
    with np.errstate(invalid="ignore"):
        return mostly((zero > settings.underflow_share) & (zero < 1) & (size < 10 * SMALLEST_HALF), 0.5)


def _stands_still(run: Run, item: ParameterInfo) -> bool:
    """Say whether a weight hardly moves although it has a gradient."""
    moved = run.parameter_table("update_ratio")[item.name].to_numpy()
    gradient = run.parameter_table("gradient_norm")[item.name].to_numpy()
    rate = column(run, "lr")
    live = (gradient > 0) & (rate > 0) & np.isfinite(moved)
    return bool(live.any()) and median(moved[live]) < BFLOAT16_STEP / 20
