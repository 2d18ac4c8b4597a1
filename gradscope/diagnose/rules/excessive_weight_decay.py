"""Weight decay that outweighs the gradient, so that the weights shrink instead of learning.

What it finds
Decay's part of the update above 80 % for most weights (for decoupled decay: lr × decay / update ratio;
else decay × |weight| against |gradient|), while the weights shrink and the loss does not improve much.

Why it hurts
The network is pulled to zero faster than the data can pull it anywhere.

What it is not
Regularisation of a network that trains well; decay late in training, when gradients are small.

Remedies
Less weight decay (with a figure), AdamW in place of Adam with L2.

Evidence
decay_share (median over weights), weight_decay, suggested_weight_decay, norm_change (final / initial
weight norm), loss_improvement.

References
Loshchilov and Hutter 2019.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.outcome import outcome, prevails, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import Array, column, longest_stretch, median, require_steps
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, ParameterInfo, Run
from gradscope.settings import Settings

NAME = "excessive-weight-decay"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find weight decay that dominates the updates of most weights."""
    decays = _decays(run)
    require(run.info.optimizers, "no optimizer was recorded")
    decayed = [
        item
        for item in run.parameters
        if item.trained and item.role in ("weight", "embedding") and decays.get(item.name, 0) > 0
    ]
    if not decayed:
        return None
    require_steps(run, settings.patience)
    shares = np.stack([_share(run, item, decays[item.name]) for item in decayed], axis=1)
    require(np.isfinite(shares).any(), "neither updates nor gradients of the decayed weights were recorded")
    typical = np.array([median(row) for row in shares])
    stretch = longest_stretch(typical > settings.decay_share, run, settings.patience)
    loss = outcome(run, settings)
    change = _norm_change(run, decayed)
    if stretch is None or loss.progress == "trains" or change > settings.decay_shrinkage:
        return None
    share, decay = median(typical[stretch.rows]), max(decays[item.name] for item in decayed)
    return Finding(
        NAME,
        severity(loss, prevails(stretch, run, settings)),
        f"Weight decay of {decay:.3g} makes up {share:.0%} of the updates of "
        f"{listed([item.name for item in decayed])}.",
        tuple(dict.fromkeys(item.layer for item in decayed)),
        tuple(item.name for item in decayed),
        stretch.first_step,
        stretch.last_step,
        f"The weights shrank to {change:.2g} of their initial norm; {loss.text}.",
        present(
            decay_share=share,
            weight_decay=decay,
            suggested_weight_decay=decay * 0.1 * (1 - share) / max(share, 1e-12),
            norm_change=change,
            loss_improvement=loss.improvement,
        ),
    )


def _decays(run: Run) -> dict[str, float]:
    return {
        str(name): float(group.get("weight_decay") or 0.0)
        for optimizer in run.info.optimizers
        for group in optimizer.groups
        for name in group.get("parameters", ())
    }


def _share(run: Run, item: ParameterInfo, decay: float) -> Array:
    """Return decay's share of a weight's update at each recorded step."""
    number = int((item.group or "0").split(".")[0])
    kind = run.info.optimizers[min(number, len(run.info.optimizers) - 1)].kind
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind.endswith("W"):
            ratio = run.parameter_table("update_ratio")[item.name].to_numpy()
            return np.asarray(np.minimum(1.0, column(run, "lr") * decay / ratio))
        pull = decay * run.parameter_table("weight_norm")[item.name].to_numpy()
        return np.asarray(pull / (pull + run.parameter_table("gradient_norm")[item.name].to_numpy()))


def _norm_change(run: Run, items: list[ParameterInfo]) -> float:
    norms = run.parameter_table("weight_norm")[[item.name for item in items]].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        return median(norms[-1] / norms[0])
