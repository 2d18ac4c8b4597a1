"""Updates so large, relative to the weights, that training jumps instead of descending.

What it finds
The loss does not improve, and the typical weight changes by more than a quarter of its size in a step, or by
more than 3 % to the run's end, or by more than 3 % in several steps while the loss jumps to twice its
start. Where the loss needn't fall, as in adversarial training: steps that change the typical weight by more
than its own size.

Why it hurts
The step overshoots every valley; units die or saturate, and the loss oscillates, stays at a plateau or
diverges.

What it is not
Large updates of a network that trains well, of single weights or zero-initialised parameters, or of a
warm-up's first steps; large updates under which the loss falls a little and never jumped.

Remedies
A lower learning rate (with a figure), warm-up, gradient clipping.

Evidence
update_ratio (median over weights and steps), peak_update_ratio, lr, suggested_factor (what to multiply
the rate with), loss_noise_ratio, loss_improvement.

References
Bengio 2012; Goyal et al. 2017 for warm-up.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.outcome import outcome
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import Array, column, median, require_steps, steps_of
from gradscope.diagnose.updates import learning_rate, update_ratios
from gradscope.diagnose.wording import present
from gradscope.records import Finding, ParameterInfo, Run
from gradscope.settings import Settings

NAME = "learning-rate-too-high"
HEALTHY_RATIO = 3e-3  # the middle of the 1e-3 to 1e-2 of networks that learn, on a logarithmic scale
FEWEST_ENTRIES = 4  # a single weight may be near zero, and any step large beside it
ERASED = 1.0  # |update| / |weight| of a step after which nothing of a weight is left
HEALTHY_PEAK = 0.02  # their first steps under Adam, when weights are as small as they were initialised


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find updates that are too large for a loss that does not improve."""
    require_steps(run, settings.patience)
    items, ratios = update_ratios(run)
    ratios = ratios * _share_of_usual(run, items)
    ratios = np.where([item.size >= FEWEST_ENTRIES for item in items], ratios, np.nan)
    require(np.isfinite(ratios).any(), "no weight's update was recorded, but of single weights")
    loss = outcome(run, settings)
    typical = np.array([median(row) for row in ratios])
    level, peak = median(typical), float(np.nanmax(typical))
    high = typical > settings.update_ratio_high
    erased = loss.progress == "unknown" and int((typical > ERASED).sum()) > 0
    require(erased or loss.progress != "unknown", "whether the loss improves can't be judged")
    burst, late = peak > settings.update_burst, median(typical[len(typical) // 2 :])
    losses = column(run, "loss")
    start = max(abs(loss.initial), abs(losses[0])) if np.isfinite(losses[0]) else abs(loss.initial)
    jumped = bool((losses > settings.divergence_ratio * start).any())
    lasts = high.sum() >= settings.patience and (jumped or late > settings.update_ratio_high)
    if loss.progress == "slow":
        lasts = lasts and jumped
    if loss.progress == "trains" or not (burst or lasts):
        return None
    rows = np.flatnonzero(high)
    worst = np.argsort(-np.nan_to_num([median(ratios[rows, index]) for index in range(len(items))]))
    rate = learning_rate(run)
    factor = HEALTHY_PEAK / peak if burst else HEALTHY_RATIO / level
    return Finding(
        NAME,
        "critical" if loss.progress == "stuck" else "warning",
        f"A step changes the typical weight by {max(level, median(typical[rows])):.2g} of its size, at "
        "a learning rate of "
        f"{rate:.3g}; {loss.text}.",
        tuple(dict.fromkeys(items[index].layer for index in worst[:5] if items[index].layer)),
        tuple(items[index].name for index in worst[:5]),
        int(steps_of(run)[rows[0]]),
        int(steps_of(run)[rows[-1]]),
        f"Updates of 1e-4 to 1e-2 of a weight's size are usual; these reached {peak:.2g}.",
        present(
            update_ratio=level,
            peak_update_ratio=peak,
            lr=rate,
            suggested_factor=min(1.0, factor),
            loss_noise_ratio=loss.noise / abs(loss.final) if loss.final else 0.0,
            loss_improvement=loss.improvement,
        ),
    )


def _share_of_usual(run: Run, items: list[ParameterInfo]) -> Array:
    """Return |weight| / usual |weight| where that is less than 1: no step erases a weight that is next to 0.

    A usual entry has the variance 1 / fan-in (LeCun et al. 1998).
    """
    norms = run.parameter_table("weight_norm")[[item.name for item in items]].to_numpy()
    fans = [max(1, item.size // item.shape[0]) if item.role == "weight" else 1 for item in items]
    usual = np.sqrt([item.size / fan for item, fan in zip(items, fans, strict=True)])
    return np.minimum(1.0, norms / usual)
