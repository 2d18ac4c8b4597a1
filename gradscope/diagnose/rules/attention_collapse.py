"""Attention that looks at a single position, whatever the input.

What it finds
An entropy of the attention weights, the mean over heads, under 5 % of the largest possible (log of the
number of positions that have any weight), over several recorded steps; while the loss hardly falls, a single
head's is a note. It is measured at attention modules, at softmax modules, and at layers that attention by
functions feeds, fused or not; of a run without that column it is bounded from the mean square of a softmax
module's outputs (Rényi's entropy of order 2). Attention that has no gradient, is recomputed (activation
checkpointing) or compiled is not checked.

Why it hurts
Softmax is saturated there: queries and keys get next to no gradient, and training turns unstable.

What it is not
A few sharp heads in a network that trains well; masks that leave one position.

Remedies
Normalised queries and keys, a lower learning rate, warm-up, pre-LN.

Evidence
entropy (share of the largest possible, worst layer), lowest_head (the same of its sharpest head),
loss_improvement.

References
Zhai et al. 2023.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from gradscope.diagnose.architecture import own_code_before
from gradscope.diagnose.outcome import Outcome, outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import Stretch, log, longest_stretch, median, require_steps
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, LayerInfo, Run
from gradscope.settings import Settings

NAME = "attention-collapse"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find attention whose entropy has fallen to next to nothing."""
    softmaxes = [layer for layer in run.layers if _weighs_positions(layer)]
    inside = [layer.name for layer in run.layers if layer.role == "attention" or _attends_inside(layer)]
    if not softmaxes and not inside:
        return None
    table = _entropies(run, softmaxes, inside).dropna(axis="columns", how="all")
    require(
        table.shape[1],
        "no attention shows its weights (it has no gradient, is recomputed in the backward pass or compiled)",
    )
    require_steps(run, settings.patience)
    loss = outcome(run, settings)
    held = _collapsed(table, run, settings)
    if held:
        return _finding(run, table, held, loss)
    held = _collapsed(_lowest(run), run, settings) if loss.progress in ("slow", "stuck") else {}
    return _finding(run, table, held, loss, of_a_head=True) if held else None


def _collapsed(table: pd.DataFrame, run: Run, settings: Settings) -> dict[str, Stretch]:
    """Return the layers whose entropy is next to nothing, and since when."""
    stretches = {
        str(name): longest_stretch(table[name].to_numpy() < settings.entropy_share, run, settings.patience)
        for name in table.columns
    }
    return {name: stretch for name, stretch in stretches.items() if stretch is not None and stretch.ongoing}


def _finding(
    run: Run, table: pd.DataFrame, held: dict[str, Stretch], loss: Outcome, of_a_head: bool = False
) -> Finding:
    layers = sorted(held, key=lambda name: (held[name].first_row, run.layer(name).depth))
    start = held[layers[0]]
    entropy, head = (
        median(values[layers[0]].to_numpy()[start.rows]) if layers[0] in values else math.nan
        for values in (table, _lowest(run))
    )
    return Finding(
        NAME,
        "note" if of_a_head else severity(loss),
        f"The attention at {listed(layers)} {'has a head that looks' if of_a_head else 'looks'} at one "
        f"position only: the entropy of its weights is {head if of_a_head else entropy:.1%} of the largest.",
        tuple(dict.fromkeys(_place(run, name) for name in layers)),
        (),
        start.first_step,
        max(stretch.last_step for stretch in held.values()),
        "The scores have grown so large that softmax picks one position and passes no gradient.",
        present(entropy=entropy, lowest_head=head, loss_improvement=loss.improvement),
    )


def _place(run: Run, name: str) -> str:
    """Return the module that attends: for attention by functions, the one whose own code calls them."""
    layer = run.layer(name)
    return own_code_before(run, layer) or name if _attends_inside(layer) else name


def _lowest(run: Run) -> pd.DataFrame:
    """Return the entropy of each attention's sharpest head."""
    return run.layer_table("attention_entropy_lowest").dropna(axis="columns", how="all")


def _weighs_positions(layer: LayerInfo) -> bool:
    """Say whether a module is the softmax over products of queries and keys."""
    products = ("BmmBackward", "MmBackward", "MatmulBackward")
    positions = _positions(layer)
    return (
        layer.activation == "softmax"
        and positions > 1
        and len(layer.output_shape or ()) > 2
        and any(function.startswith(products) for function in layer.functions)
    )


def _attends_inside(layer: LayerInfo) -> bool:
    """Say whether between a layer and those that feed it attention is computed by functions."""
    softmax = any(name.startswith(("SoftmaxBackward", "SafeSoftmaxBackward")) for name in layer.functions)
    products = any(name.startswith(("BmmBackward", "MatmulBackward")) for name in layer.functions)
    return (softmax and products) or any("ScaledDotProduct" in name for name in layer.functions)


def _positions(layer: LayerInfo) -> int:
    axis = int(layer.options.get("dim") or -1)
    shape = layer.output_shape or ()
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def _entropies(run: Run, softmaxes: list[LayerInfo], inside: list[str]) -> pd.DataFrame:
    """Return each attention's entropy as a share of the largest, a lower bound of it for softmax modules."""
    table = run.layer_table("attention_entropy").copy()
    sizes = run.layer_table("activation_rms")
    weighing = {*inside, *(layer.name for layer in softmaxes)}
    for layer in softmaxes:
        measured = table[layer.name].to_numpy() if layer.name in table.columns else None
        positions = _positions(layer)
        concentration = positions * sizes[layer.name].to_numpy() ** 2  # sum of squared weights
        bound = -log(np.minimum(concentration, 1.0)) / math.log(positions)
        table[layer.name] = bound if measured is None else np.where(np.isnan(measured), bound, measured)
    return table[[name for name in table.columns if name in weighing]]
