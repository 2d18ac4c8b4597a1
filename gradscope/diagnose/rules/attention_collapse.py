"""Attention that looks at a single position, whatever the input.

What it finds
An entropy of the attention weights under 5 % of the largest possible (log of the number of positions),
over several recorded steps.

Why it hurts
Softmax is saturated there: queries and keys get next to no gradient, and training turns unstable.

What it is not
A few sharp heads in a network that trains well; masks that leave one position.

Remedies
Normalised queries and keys, a lower learning rate, warm-up, pre-LN.

Evidence
entropy (share of the largest possible, worst layer), loss_improvement.

References
Zhai et al. 2023.
"""

from __future__ import annotations

from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import longest_stretch, median, require_steps
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "attention-collapse"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find attention whose entropy has fallen to next to nothing."""
    if not any(layer.role == "attention" for layer in run.layers):
        return None
    table = run.layer_table("attention_entropy").dropna(axis="columns", how="all")
    require(table.shape[1], "the attention weights' entropy was not recorded")
    require_steps(run, settings.patience)
    stretches = {
        str(name): longest_stretch(table[name].to_numpy() < settings.entropy_share, run, settings.patience)
        for name in table.columns
    }
    held = {name: stretch for name, stretch in stretches.items() if stretch is not None and stretch.ongoing}
    if not held:
        return None
    layers = sorted(held, key=lambda name: (held[name].first_row, run.layer(name).depth))
    start = held[layers[0]]
    entropy = median(table[layers[0]].to_numpy()[start.rows])
    loss = outcome(run, settings)
    return Finding(
        NAME,
        severity(loss),
        f"The attention of {listed(layers)} looks at one position only: its entropy is {entropy:.1%} "
        "of the largest.",
        tuple(layers),
        (),
        start.first_step,
        max(stretch.last_step for stretch in held.values()),
        "The scores have grown so large that softmax picks one position and passes no gradient.",
        present(entropy=entropy, loss_improvement=loss.improvement),
    )
