"""Outputs that are nearly the same for every token or sample.

What it finds
An activation whose rows (tokens, samples) have a mean cosine above 0.95 with one another deep in the
network, where the first layers' have not, over several recorded steps.

Why it hurts
The network can no longer tell its inputs apart, and the gradient of what would tell them apart vanishes.

What it is not
Offsets: a positive activation such as a sigmoid's has a large cosine anyway; layers that see one token.

Remedies
Residual connections, normalisation, a critical initialisation.

Evidence
cosine (deepest layer affected), cosine_first, loss_improvement.

References
Dong et al. 2021; Daneshmand et al. 2020.
"""

from __future__ import annotations

from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import longest_stretch, median, require_steps
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "rank-collapse"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find layers whose outputs no longer differ between samples."""
    table = run.layer_table("activation_cosine").dropna(axis="columns", how="all")
    require(table.shape[1], "how much outputs differ between samples was not recorded")
    require_steps(run, settings.patience)
    first = median(table.iloc[:, 0].to_numpy())
    held = {}
    for name in table.columns:
        stretch = longest_stretch(table[name].to_numpy() > settings.cosine_share, run, settings.patience)
        if stretch is not None and stretch.ongoing and first < settings.cosine_share:
            held[str(name)] = stretch
    loss = outcome(run, settings)
    if not held or loss.progress == "trains":
        return None
    layers = sorted(held, key=lambda name: run.layer(name).depth)
    cosine = median(table[layers[-1]].to_numpy())
    return Finding(
        NAME,
        severity(loss),
        f"From {layers[0]} on the outputs are nearly the same for every sample: {listed(layers)}.",
        tuple(layers),
        (),
        min(stretch.first_step for stretch in held.values()),
        max(stretch.last_step for stretch in held.values()),
        f"The mean cosine between rows rises from {first:.2f} to {cosine:.2f} over depth.",
        present(cosine=cosine, cosine_first=first, loss_improvement=loss.improvement),
    )
