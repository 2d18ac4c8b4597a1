"""The loss rises instead of falling, and ends far above where it was.

What it finds
A final loss (median of the last recorded steps) of more than twice the initial one, or one that rose from
its lowest level by as much, far beyond the scatter between steps.

Why it hurts
What was learned is lost.

What it is not
Noise, spikes that heal, and losses that needn't fall: those of adversarial or reinforcement learning.

Remedies
A lower learning rate, clipping, warm-up; look at the causes listed with it.

Evidence
initial_loss, best_loss, final_loss, loss_noise, loss_improvement.

References
Goodfellow et al. 2016, chapter 8.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.outcome import outcome
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import column, require_steps, steps_of
from gradscope.diagnose.wording import present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "loss-divergence"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find a loss that ends far above its start or its best."""
    require_steps(run, settings.fewest_steps)
    loss = outcome(run, settings)
    require(
        np.isfinite(loss.final) and len(run.info.optimizers) <= 1,
        "the loss needn't fall here or wasn't recorded",
    )
    reference = max(abs(loss.initial), abs(loss.best))
    rise = loss.final - loss.best
    if (
        rise < (settings.divergence_ratio - 1) * reference
        or rise < 6 * loss.noise
        or loss.final <= loss.initial
    ):
        return None
    losses = column(run, "loss")
    above = losses > loss.best + rise / 2
    calm = np.flatnonzero(~above)
    first = int(calm[-1]) + 1 if len(calm) and calm[-1] + 1 < len(losses) else int(np.flatnonzero(above)[0])
    return Finding(
        NAME,
        "critical",
        f"The loss rises from {loss.best:.3g} to {loss.final:.3g}.",
        (),
        (),
        int(steps_of(run)[first]),
        int(steps_of(run)[-1]),
        f"It began at {loss.initial:.3g}; neighbouring steps differ by {loss.noise:.2g}.",
        present(
            initial_loss=loss.initial,
            best_loss=loss.best,
            final_loss=loss.final,
            loss_noise=loss.noise,
            loss_improvement=loss.improvement,
        ),
    )
