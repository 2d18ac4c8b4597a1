"""Bounded activations that work at their flat ends, where the derivative is next to zero.

What it finds
A tanh, sigmoid or similar layer inside the network in which more than half of the outputs have a
derivative under 5 % of the largest, over several recorded steps; or one at its end in which nine of ten have
from the first step to the last. Where the loss falls nevertheless, it must
also pass on less than a tenth of the gradient signal that it could.

Why it hurts
The gradient through such a unit is next to zero: what lies below hardly learns.

What it is not
A sure output: a sigmoid at the network's end that has come near 0 or 1 may just be right. Gates of recurrent
cells and attention may saturate. A network that trains well with it gets a note.

Remedies
Xavier initialisation, scaled inputs, normalisation before the activation, a lower learning rate, an
unbounded activation.

Evidence
saturated_fraction (of the first layer to saturate), first_fraction (at the first of these steps),
saturated_layers, saturated_at_start, expected_fraction (for pre-activations of variance 1),
preactivation_rms, passed_share (of the gradient signal, relative to the largest slope), loss_improvement.

References
Glorot and Bengio 2010.
"""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose import theory
from gradscope.diagnose.architecture import feeds_output, producers
from gradscope.diagnose.outcome import Outcome, outcome, prevails, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import Stretch, longest_stretch, median, require_steps
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "saturated-activation"
BORN = 0.9  # share of an untrained network's outputs at the flat ends that no chance puts there


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find bounded activations inside the network that are saturated for most inputs."""
    table = run.layer_table("activation_saturated_fraction").dropna(axis="columns", how="all")
    inside = [
        name
        for name in table.columns
        if not feeds_output(run, run.layer(name)) or _shut_at_birth(run, name, settings)
    ]
    require(inside, "no bounded activation inside the network was recorded")
    require_steps(run, settings.patience)
    stretches = {
        name: longest_stretch(table[name].to_numpy() > settings.saturated_share, run, settings.patience)
        for name in inside
    }
    held = {name: stretch for name, stretch in stretches.items() if stretch is not None}
    if not held:
        return None
    layers = sorted(held, key=lambda name: (held[name].first_row, run.layer(name).depth))
    start, first = layers[0], held[layers[0]]
    layers = [name for name in layers if held[name].first_row == first.first_row]  # the others follow
    share = float(np.nanmedian(table[start].to_numpy()[first.rows]))
    size = _preactivation(run, start, first.rows)
    loss = outcome(run, settings)
    activation = run.layer(start).activation or ""
    harm = severity(loss, any(_matters(run, name, stretch, loss, settings) for name, stretch in held.items()))
    shut = feeds_output(run, run.layer(start))
    return Finding(
        NAME,
        "warning" if shut and harm == "note" else harm,
        f"{share:.0%} of the outputs of {start} sit at the flat ends of {activation} ({listed(layers)}).",
        tuple(layers),
        (),
        first.first_step,
        max(stretch.last_step for stretch in held.values()),
        _cause(run, first.first_row, size),
        present(
            saturated_fraction=share,
            first_fraction=float(table[start].iloc[first.first_row]),
            saturated_layers=len(held),
            saturated_at_start=float(first.first_row <= 1),
            expected_fraction=theory.saturated_share(activation, 1.0)
            if theory.known(activation)
            else math.nan,
            preactivation_rms=size,
            passed_share=_passed(run, start, first.rows),
            loss_improvement=loss.improvement,
        ),
    )


def _shut_at_birth(run: Run, name: str, settings: Settings) -> bool:
    """Say whether an output was saturated when it knew nothing yet, still is, and passes no gradient."""
    shares = run.layer_table("activation_saturated_fraction")[name].to_numpy()
    shares = shares[np.isfinite(shares)]
    shut = len(shares) > 1 and min(shares[0], shares[-1]) > BORN
    return bool(shut) and _passed(run, name, slice(None)) < settings.passed_share


def _matters(run: Run, name: str, stretch: Stretch, loss: Outcome, settings: Settings) -> bool:
    """Say whether saturation lasted, and, if the loss falls all the same, whether it blocks the gradient."""
    if not prevails(stretch, run, settings):
        return False
    return loss.progress == "stuck" or _passed(run, name, stretch.rows) < settings.passed_share


def _passed(run: Run, name: str, rows: slice) -> float:
    """Return the signal before an activation as a share of what its largest slope would pass on."""
    signal = run.layer_table("signal_rms")
    before = [signal[source.name].to_numpy()[rows] for source in producers(run, run.layer(name))]
    activation = run.layer(name).activation or ""
    if len(before) != 1 or not theory.known(activation):
        return math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        return median(before[0] / signal[name].to_numpy()[rows]) / theory.largest_slope(activation)


def _preactivation(run: Run, name: str, rows: slice) -> float:
    table = run.layer_table("activation_rms")
    sizes = [median(table[source.name].to_numpy()[rows]) for source in producers(run, run.layer(name))]
    return max(sizes, default=math.nan)


def _cause(run: Run, row: int, size: float) -> str:
    when = "from the first step on" if row <= 1 else f"since step {int(run.steps['step'].iloc[row])}"
    large = f": its inputs have a root mean square of {size:.3g}" if math.isfinite(size) else ""
    why = (
        "the initial weights or the inputs are too large"
        if row <= 1
        else "updates made the weights too large"
    )
    return f"It is saturated {when}{large}; {why}."
