"""Adam's epsilon is as large as the gradients, so Adam no longer normalises them.

What it finds
Weights in which more than 10 % of the entries have a second moment whose root is under ten epsilon, over
several recorded steps, in a network that does not train well.

Why it hurts
Their steps shrink with the gradient, as plain gradient descent's would, at Adam's small learning rate.

What it is not
Entries without any gradient (dead inputs, embedding rows); a network that is done training.

Remedies
A smaller epsilon, a larger loss scale; first the reason that gradients are so small.

Evidence
epsilon_fraction (median of the affected weights), affected_weights, eps, loss_improvement.

References
Kingma and Ba 2015; Molybog et al. 2023.
"""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import longest_stretch, median, require_steps
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "epsilon-floor"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find weights whose second moments lie near Adam's epsilon."""
    items = [item for item in run.parameters if item.trained and item.role == "weight"]
    shares = run.parameter_table("epsilon_fraction")[[item.name for item in items]]
    zeros = run.parameter_table("gradient_zero_fraction")[[item.name for item in items]]
    require(shares.notna().to_numpy().any(), "no optimizer with an epsilon (Adam and its kin) was recorded")
    require_steps(run, settings.patience)
    stretches = {}
    for item in items:
        # Entries that have no gradient at all are under any epsilon.
        excess = shares[item.name].to_numpy() - np.nan_to_num(zeros[item.name].to_numpy())
        stretch = longest_stretch(excess > settings.epsilon_share, run, settings.patience)
        if stretch is not None and stretch.ongoing:
            stretches[item.name] = stretch
    loss = outcome(run, settings)
    if 2 * len(stretches) < len(items) or loss.progress in ("trains", "unknown"):
        return None
    names = list(stretches)
    share = median(shares[names].to_numpy()[-settings.patience :])
    eps = [
        float(group["eps"])
        for optimizer in run.info.optimizers
        for group in optimizer.groups
        if "eps" in group
    ]
    return Finding(
        NAME,
        severity(loss) if share > 0.5 else "warning",
        f"In {listed(names)} {share:.0%} of the entries have gradients near Adam's epsilon.",
        tuple(dict.fromkeys(item.layer for item in items if item.name in stretches)),
        tuple(names),
        min(stretch.first_step for stretch in stretches.values()),
        max(stretch.last_step for stretch in stretches.values()),
        "Their steps shrink with the gradient instead of being normalised.",
        present(
            epsilon_fraction=share,
            affected_weights=len(names),
            eps=eps[0] if eps else math.nan,
            loss_improvement=loss.improvement,
        ),
    )
