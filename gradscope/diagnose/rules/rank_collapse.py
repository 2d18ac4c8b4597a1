"""Outputs that are nearly the same for every token or sample.

What it finds
The layer from which on the outputs' rows (tokens of a sample, or samples of a batch) have a mean cosine above
0.999 with one another, at under 1 % of the first layer's distance from 1, while the loss hardly falls. Or
outputs that draw together to less than a fifth, while the loss falls with them and only with them.

Why it hurts
The network can no longer tell its inputs apart, and the gradient of what would tell them apart vanishes.

What it is not
Offsets: a positive activation such as a sigmoid's has a large cosine anyway; inputs that are alike from the
start; layers that see one token; a deep network whose rows are alike while it learns (a note, if it is slow).

Remedies
Residual connections, normalisation, a critical initialisation.

Evidence
cosine (deepest layer affected), cosine_first, between_samples (of outputs that draw together),
loss_improvement.

References
Dong et al. 2021; Daneshmand et al. 2020.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.architecture import unshaped, watched_outputs
from gradscope.diagnose.outcome import Outcome, between_samples, only_shrinks, outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import longest_stretch, median, require_steps, steps_of
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "rank-collapse"

# A collapse leaves less than this of the first layer's distance from 1.
_LEFT = 0.01
# A network whose loss fell by more than this learns in spite of it: measured, 0.74 where rows' cosine is 1
# but for rounding in a network that works, at most 0.45 in those that don't.
_LEARNS = 0.6


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find layers whose outputs no longer differ between samples."""
    table = run.layer_table("activation_cosine").dropna(axis="columns", how="all")
    require(table.shape[1], "how much outputs differ between samples was not recorded")
    require_steps(run, settings.patience)
    loss = outcome(run, settings)
    if loss.progress in ("trains", "unknown"):
        return None
    if only_shrinks(run):
        return _drawn_together(run, loss)
    first = median(table.iloc[:, 0].to_numpy())
    limit = max(settings.cosine_share, 1 - _LEFT * (1 - first))
    held = {}
    for name in table.columns:
        if (run.layer(str(name)).output_shape or (0,))[-1] == 1:
            continue  # the cosine of single numbers is 1 or -1
        stretch = longest_stretch(table[name].to_numpy() > limit, run, settings.patience)
        if stretch is not None and stretch.ongoing and run.layer(str(name)).activation != "softmax":
            held[str(name)] = stretch
    if not held:
        return None
    layers = sorted(held, key=lambda name: run.layer(name).depth)
    cosine = median(table[layers[-1]].to_numpy())
    learns = np.isfinite(loss.improvement) and loss.improvement > _LEARNS
    return Finding(
        NAME,
        "note" if learns else severity(loss),
        f"From {layers[0]} on the outputs are nearly the same for every row: {listed(layers)}.",
        (layers[0],),
        (),
        min(stretch.first_step for stretch in held.values()),
        max(stretch.last_step for stretch in held.values()),
        f"The mean cosine between rows rises from {first:.2f} to {cosine:.4f} over depth.",
        present(cosine=cosine, cosine_first=first, loss_improvement=loss.improvement),
    )


def _drawn_together(run: Run, loss: Outcome) -> Finding:
    output = watched_outputs(run)[0]
    deviation, layer = between_samples(run, output), unshaped(run, output).name
    return Finding(
        NAME,
        severity(loss),
        f"The outputs of {layer} draw together: they differ by {deviation[-1]:.2g} between samples, at "
        f"first by {deviation[0]:.2g}.",
        (layer,),
        (),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"The loss falls in proportion, from {loss.initial:.3g} to {loss.final:.3g}, and for no other "
        "reason: nothing in it keeps the outputs apart.",
        present(between_samples=float(deviation[-1]), loss_improvement=loss.improvement),
    )
