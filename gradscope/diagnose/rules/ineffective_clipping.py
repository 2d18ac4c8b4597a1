"""Gradient clipping that is asked for and does not happen.

What it finds
A gradient norm above the limit after clipping, in several recorded steps.

Why it hurts
The protection is not there: clipping ran before the backward pass, on other parameters, or on scaled
gradients.

What it is not
A limit that is never reached; clipping by value, which does not bound the norm.

Remedies
Code: clip after backward (and after unscaling), right before the optimizer's step.

Evidence
clip_value, clipped_norm_median, clipped_norm_max, steps_above.

References
Pascanu et al. 2013.
"""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose.rule import require
from gradscope.diagnose.series import column, require_steps, steps_of
from gradscope.diagnose.wording import present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "ineffective-clipping"
TOLERANCE = 1.05


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find gradients that are still above the limit after clipping."""
    require_steps(run, 1)
    limit = float(run.info.training.get("clip_value") or 0.0)
    if not limit or str(run.info.training.get("clip_algorithm") or "norm") != "norm":
        require(limit or "clip_value" in run.info.training, "whether gradients are clipped is not known")
        return None
    norms = column(run, "clipped_grad_norm")
    require(np.isfinite(norms).any(), "the gradient norm after clipping was not recorded")
    # Each optimizer's gradients are clipped on their own.
    allowed = limit * math.sqrt(max(1, len(run.info.optimizers))) * TOLERANCE
    rows = np.flatnonzero(norms > allowed)
    if len(rows) < min(settings.patience, len(norms)):
        return None
    middle, largest = float(np.median(norms[rows])), float(np.nanmax(norms[rows]))
    return Finding(
        NAME,
        "warning",
        f"Gradients are to be clipped at {limit:.3g}, but reach the optimizer with norms up to "
        f"{largest:.3g}.",
        (),
        (),
        int(steps_of(run)[rows[0]]),
        int(steps_of(run)[rows[-1]]),
        f"In {len(rows)} of {len(norms)} recorded steps the clipped norm was above the limit.",
        present(
            clip_value=limit, clipped_norm_median=middle, clipped_norm_max=largest, steps_above=len(rows)
        ),
    )
