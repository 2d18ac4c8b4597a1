"""Updates so small, relative to the weights, that training hardly moves.

What it finds
The typical weight changes by less than 3e-5 of its size in a step all through the run, in the last layers
too, and the loss does not improve much. Or a run has ended in which the loss is stuck and all steps together
could change the typical weight by no more than 30 % of its size (10 % where the loss falls a little, 1 %
where it needn't fall, as in adversarial training).

Why it hurts
Training would take many times the steps it needs.

What it is not
Warm-up, a schedule's end, a network that is trained already, a gradient that vanishes (then the last
layers still move).

Remedies
A higher learning rate (with a figure), Adam instead of SGD.

Evidence
update_ratio (median over weights and steps), total_change (its sum over all steps), largest_change (that of
the layer that moves most, under Adam and its kin), lr, suggested_factor,
loss_improvement.

References
Bengio 2012; Smith 2017 for the range test.
"""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose.outcome import outcome
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import Array, median, require_steps, steps_of
from gradscope.diagnose.updates import learning_rate, update_ratios
from gradscope.diagnose.wording import present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "learning-rate-too-low"
HEALTHY_RATIO = 3e-3
FEWEST_STEPS = 64  # a shorter run has not had the steps to get anywhere
# Sum over all steps of update / weight below which a network is practically still the one it started as.
MOVED = {"stuck": 0.3, "slow": 0.1, "unknown": 0.01}


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find updates that are too small for a loss that could improve."""
    require_steps(run, settings.fewest_steps)
    items, ratios = update_ratios(run)
    require(np.isfinite(ratios).any(), "no weight's update was recorded")
    loss = outcome(run, settings)
    level = median(ratios)
    highest = float(np.nanmax([median(ratios[:, index]) for index in range(len(items))]))
    moved = _moved(run, ratios)
    total, largest = median(moved), float(np.nanmax(moved))
    rate, steps = learning_rate(run), int(steps_of(run)[-1]) + 1
    if loss.progress == "trains" or not total > 0:
        return None
    tiny = level < settings.update_ratio_low and highest < 10 * settings.update_ratio_low
    ended = run.info.status != "running" and steps >= FEWEST_STEPS
    still = ended and max(total, largest / 10) < MOVED[loss.progress]
    require(still or loss.progress != "unknown", "whether the loss improves can't be judged")
    if not (tiny or still):
        return None
    return Finding(
        NAME,
        "warning",
        f"A step changes the typical weight by only {level:.1e} of its size, at a learning rate of "
        f"{rate:.3g}; "
        f"{loss.text}.",
        (),
        (),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"Updates of 1e-4 to 1e-2 of a weight's size are usual; over {steps} steps these sum to "
        f"{total:.2g} at most.",
        present(
            update_ratio=level,
            total_change=total,
            # Under plain gradient descent a gradient that fades also shrinks the steps.
            largest_change=largest if _normalizes(run) else math.nan,
            lr=rate,
            suggested_factor=max(1.0, HEALTHY_RATIO / level) if level > 0 else math.nan,
            loss_improvement=loss.improvement,
        ),
    )


def _moved(run: Run, ratios: Array) -> Array:
    """Return each weight's |update| / |weight| summed over all steps; a recorded step stands for those up to
    the next one."""
    spans = np.diff(np.append(steps_of(run), steps_of(run)[-1] + 1))
    known = np.isfinite(ratios).any(axis=0)
    return np.where(known, np.nansum(ratios * spans[:, None], axis=0), np.nan)


def _normalizes(run: Run) -> bool:
    """Say whether the optimizer makes steps whose size doesn't depend on the gradient's."""
    kinds = ("Ada", "NAdam", "RAdam", "RMSprop", "Rprop", "Lion")
    return bool(run.info.optimizers) and all(item.kind.startswith(kinds) for item in run.info.optimizers)
