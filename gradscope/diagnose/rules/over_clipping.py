"""Gradient clipping at a limit far below the usual gradient, so that it sets every step's length.

What it finds
Clipping in at least nine of ten recorded steps, to less than a tenth of the gradient, with updates that
are too small for the loss to improve.

Why it hurts
The step no longer depends on the gradient's size: a learning rate that is tiny in disguise.

What it is not
Clipping under Adam and its kin, whose updates don't depend on the gradient's scale; clipping of rare
spikes.

Remedies
A limit at the 50th to 90th percentile of this run's norms.

Evidence
clipped_share, clip_coefficient (median), clip_value, norm_p50, norm_p90, update_ratio, loss_improvement.

References
Pascanu et al. 2013.
"""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import column, median, require_steps, steps_of
from gradscope.diagnose.updates import update_ratios
from gradscope.diagnose.wording import present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "over-clipping"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find clipping that acts on nearly every step and leaves too little."""
    require_steps(run, settings.patience)
    coefficient, norms = column(run, "clip_coefficient"), column(run, "grad_norm")
    known = np.isfinite(coefficient) & np.isfinite(norms)
    require(known.any(), "the gradient norms before and after clipping were not recorded")
    clipped = float(np.mean(coefficient[known] < 0.999))
    left, level = median(coefficient[known]), median(update_ratios(run)[1])
    loss = outcome(run, settings)
    small = left < settings.clip_coefficient and level < settings.clip_update_ratio
    if clipped < settings.clipped_share or not small or loss.progress == "trains":
        return None
    limit = run.info.training.get("clip_value")
    middle, high = (float(np.percentile(norms[known], share)) for share in (50, 90))
    return Finding(
        NAME,
        severity(loss),
        f"Clipping shortens the gradient in {clipped:.0%} of the steps, to {left:.2g} of its norm.",
        (),
        (),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"The norm is usually {middle:.3g}; after clipping a step changes the typical weight by "
        f"{level:.1e} of its "
        f"size, and {loss.text}.",
        present(
            clipped_share=clipped,
            clip_coefficient=left,
            clip_value=float(limit) if limit is not None else math.nan,
            norm_p50=middle,
            norm_p90=high,
            update_ratio=level,
            loss_improvement=loss.improvement,
        ),
    )
