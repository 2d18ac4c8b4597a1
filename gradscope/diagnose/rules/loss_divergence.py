"""The loss rises far above where it was, or falls without any bound.

What it finds
A final loss (median of the last recorded steps) of more than twice the initial one, or one that rose from
its lowest level by as much, far beyond the scatter between steps. Or a loss below zero that falls ever
faster, to more than ten times what it was, with outputs that grow as much: it has no minimum.

Why it hurts
What was learned is lost; or what is learned is only to be large.

What it is not
Noise, spikes that heal, and losses that needn't fall: those of adversarial or reinforcement learning; a
log-likelihood of densities, which may be negative.

Remedies
A lower learning rate, clipping, warm-up; look at the causes listed with it. The sign and the weights of the
loss's terms where it has no minimum.

Evidence
initial_loss, best_loss, final_loss, loss_noise, loss_improvement; unbounded (1 if it falls without bound).

References
Goodfellow et al. 2016, chapter 8.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.architecture import output_layers
from gradscope.diagnose.outcome import Outcome, outcome
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import Array, column, median, require_steps, steps_of
from gradscope.diagnose.wording import present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "loss-divergence"
GROWTH = 10  # times which a loss without a minimum, and the outputs with it, grow in a run


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find a loss that ends far above its start or its best."""
    require_steps(run, settings.fewest_steps)
    loss = outcome(run, settings)
    require(
        np.isfinite(loss.final) and len(run.info.optimizers) <= 1,
        "the loss needn't fall here or wasn't recorded",
    )
    if _falls_without_bound(run, loss):
        return _unbounded(run, loss)
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


def _falls_without_bound(run: Run, loss: Outcome) -> bool:
    """Say whether a negative loss falls faster and faster, together with outputs that grow and grow."""
    losses = column(run, "loss")
    losses = losses[np.isfinite(losses)]
    if not loss.final < -GROWTH * abs(loss.initial) or loss.initial - loss.final < 6 * loss.noise:
        return False
    halfway = _halfway(losses)
    sizes = run.layer_table("activation_rms")
    outputs = [sizes[name].to_numpy() for name in output_layers(run) if name in sizes]
    return halfway - loss.final > loss.initial - halfway and any(map(_grows_faster, outputs))


def _grows_faster(size: Array) -> bool:
    """Say whether an output grows many times over, and more so in the second half of a run."""
    start, halfway, end = median(size[:5]), _halfway(size), median(size[-5:])
    return end > GROWTH * start and end - halfway > halfway - start


def _halfway(values: Array) -> float:
    """Return the median of the five values in the middle."""
    return median(values[max(0, len(values) // 2 - 2) :][:5])


def _unbounded(run: Run, loss: Outcome) -> Finding:
    return Finding(
        NAME,
        "critical",
        f"The loss falls without bound, from {loss.initial:.3g} to {loss.final:.3g}, ever faster.",
        (),
        (),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        "It has no minimum: a term has the wrong sign or a weight outside its range, so outputs only grow.",
        present(initial_loss=loss.initial, final_loss=loss.final, loss_noise=loss.noise, unbounded=1.0),
    )
