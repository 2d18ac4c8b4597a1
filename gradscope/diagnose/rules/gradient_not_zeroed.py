"""Gradients that pile up over steps because nobody sets them to zero.

What it finds
Weight gradients that grow from step to step, by a factor of five and more, while the gradient signal at
the layers' outputs, which is fresh in every step, does not; or that grow steadily, without the signal's
scatter.

Why it hurts
Each step follows the sum of all gradients so far: old directions never fade, and the step grows without
bound.

What it is not
A network that trains well: its gradients become more alike as it does. Gradient accumulation over
micro-batches: it starts afresh with every step.

Remedies
Code: optimizer.zero_grad() before each backward pass.

Evidence
growth (of gradient / signal from the first recorded steps to the last dense ones), monotony (rank
correlation with the step), weights_affected (share).

References
torch documentation, zero_grad.
"""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose.architecture import names, weight_layers, weights
from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import Array, log, median, require_steps, steps_of
from gradscope.diagnose.wording import present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "gradient-not-zeroed"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find gradients that grow with the steps while the signal they come from does not."""
    require_steps(run, settings.fewest_steps)
    # The gradient of a recurrent weight also grows as the states become correlated through time.
    items = tuple(item for item in weight_layers(run) if item.layer.role != "recurrent")
    require(items, "no weight layer but recurrent ones was recorded")
    early = slice(0, min(len(run.steps), settings.dense_steps))
    gradient = run.parameter_table("gradient_norm")[list(weights(items))].to_numpy()[early]
    signal = run.layer_table("signal_rms")[list(names(items))].to_numpy()[early]
    piled = log(gradient) - log(signal)
    known = np.isfinite(piled).sum(axis=0) >= settings.fewest_steps
    require(known.any(), "no layer has both its weight's gradient and its output's signal recorded")
    growth = np.array([_growth(column) for column in piled.T[known]])
    monotony = np.array([_monotony(column) for column in piled.T[known]])
    smooth = np.array(
        [
            _smooth(sums, fresh)
            for sums, fresh in zip(log(gradient).T[known], log(signal).T[known], strict=True)
        ]
    )
    rising = np.array([_monotony(column) for column in log(gradient).T[known]])
    affected = (growth > math.log(settings.pile_up_ratio)) & (monotony > settings.pile_up_monotony)
    affected |= smooth & (rising > settings.pile_up_monotony)
    loss = outcome(run, settings)
    if np.mean(affected) < settings.pile_up_share or loss.progress == "trains":
        return None
    factor = math.exp(median(growth[affected]))
    return Finding(
        NAME,
        severity(loss),
        f"The weights' gradients pile up: over {piled.shape[0]} recorded steps they grow "
        f"{factor:.3g}-fold beside the "
        "signal they come from, without its scatter.",
        (),
        (),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        "Each backward pass adds to the gradients of the steps before: they are not set to zero "
        "between steps.",
        present(growth=factor, monotony=median(monotony), weights_affected=float(np.mean(affected))),
    )


def _growth(values: Array) -> float:
    known = values[np.isfinite(values)]
    third = max(1, len(known) // 4)
    return median(known[-third:]) - median(known[:2])


def _smooth(sums: Array, fresh: Array) -> bool:
    """Say whether a gradient scatters far less from step to step than the signal it comes from."""
    return median(np.abs(np.diff(sums))) < min(0.1, median(np.abs(np.diff(fresh))) / 3)


def _monotony(values: Array) -> float:
    """Return Spearman's rank correlation with time."""
    known = values[np.isfinite(values)]
    ranks = np.argsort(np.argsort(known))
    return float(np.corrcoef(ranks, np.arange(len(known)))[0, 1]) if len(known) > 2 else 0.0
