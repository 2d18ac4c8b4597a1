"""Gradients that pile up over steps because nobody sets them to zero.

What it finds
A gradient that is larger, in several recorded steps, than one backward pass can make it from the signal that
was recorded at the layer's output: at most signal rms × entries / sqrt(units) for a bias, and the product of
the norms of signal and input for a linear layer's weight (Cauchy and Schwarz).

Why it hurts
Each step follows the sum of all gradients so far: old directions never fade, and the step grows without
bound.

What it is not
A network that trains well: it gets a note. Gradient accumulation over micro-batches: it starts afresh with
every step, and all its backward passes are recorded.

Remedies
Code: optimizer.zero_grad() before each backward pass.

Evidence
excess (largest gradient / the largest that one step can give), layers_affected (share of those that could be
checked), loss_improvement.

References
torch documentation, zero_grad.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.architecture import passes_as_is, producers
from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import Array, require_steps, steps_of
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, LayerInfo, ParameterInfo, Run
from gradscope.settings import Settings

NAME = "gradient-not-zeroed"
SUMMED = ("linear", "convolution", "normalization")  # their bias is added to each sample or place


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find gradients that no single backward pass can have made."""
    require_steps(run, settings.fewest_steps)
    excesses = {item.name: values for layer in run.layers for item, values in _excesses(run, layer)}
    known = {name: values for name, values in excesses.items() if np.isfinite(values).any()}
    require(known, "no layer has both its output's signal and its bias's or weight's gradient recorded")
    above = {name: values > settings.pile_up_ratio for name, values in known.items()}
    affected = [name for name, rows in above.items() if int(rows.sum()) >= settings.patience]
    if not affected:
        return None
    loss = outcome(run, settings)
    excess = max(float(np.nanmax(known[name])) for name in affected)
    return Finding(
        NAME,
        severity(loss),
        f"The gradient of {listed(affected)} is up to {excess:.3g} times the largest that one step can give.",
        (),
        tuple(affected),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        "Each backward pass adds to the gradients of the steps before: they are not set to zero between "
        "steps.",
        present(
            excess=excess,
            layers_affected=len(affected) / len(known),
            loss_improvement=loss.improvement,
        ),
    )


def _excesses(run: Run, layer: LayerInfo) -> list[tuple[ParameterInfo, Array]]:
    """Return a layer's parameters with gradient / largest possible gradient at each recorded step."""
    if layer.role not in SUMMED:
        return []
    gradients = run.parameter_table("gradient_norm")
    count = run.layer_table("signal_count")[layer.name].to_numpy()
    signal = run.layer_table("signal_rms")[layer.name].to_numpy()
    found = []
    for item in (run.parameter(name) for name in layer.parameters):
        largest = np.full(len(count), np.nan)
        if item.role == "bias" and item.trained:
            largest = signal * count / np.sqrt(item.size)
        elif item.role == "weight" and item.trained and layer.role == "linear":
            largest = signal * np.sqrt(count) * _input_norm(run, layer, count)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = gradients[item.name].to_numpy() / largest
        found.append((item, np.where(largest > 0, values, np.nan)))
    return found


def _input_norm(run: Run, layer: LayerInfo, count: Array) -> Array:
    """Return the norm of a linear layer's input where it is another layer's output as it is, else NaN."""
    sources = producers(run, layer)
    if len(sources) != 1 or sources[0].calls != 1 or layer.calls != 1 or not passes_as_is(sources[0], layer):
        return np.full(len(count), np.nan)
    size = run.layer_table("activation_rms")[sources[0].name].to_numpy()
    entries = run.layer_table("activation_count")[sources[0].name].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        same_rows = entries * (layer.fan_out or 0) == count * (layer.fan_in or 0)
        return np.where(same_rows, size * np.sqrt(entries), np.nan)
