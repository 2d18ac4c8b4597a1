"""Inputs far from the unit scale that initialisation and learning rate presuppose.

What it finds
A first layer whose output is so large (or small), given its initial weights, that its input must have a
root mean square above 10 (or under 0.01), in a network that does not train well. In a recurrent layer the
gradients of input and recurrent weights tell.

Why it hurts
The first layer's outputs saturate or dominate, and its gradient is larger than all others' by the same
factor.

What it is not
Inputs that a normalisation layer takes first, or embeddings alone; what a layer that runs again and again,
as in a loop over time, gave itself.

Remedies
Standardise the inputs with the training set's mean and standard deviation; a BatchNorm in front.

Evidence
input_rms (estimated at the first recorded steps), output_rms, sigma_w2 (not of a recurrent layer),
loss_improvement.

References
LeCun et al. 1998, Efficient BackProp.
"""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose.architecture import (
    WeightLayer,
    consumers,
    names,
    producers,
    unshaped,
    weight_layers,
    weights,
)
from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.recurrence import FEWEST_CALLS, recurrences
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import median, require_steps, steps_of
from gradscope.diagnose.wording import present
from gradscope.records import Finding, LayerInfo, Run
from gradscope.settings import Settings

NAME = "unscaled-input"
LITTLE = 0.05  # share of a squared output within which the bias's own share isn't known
ROUNDED = 1e-6  # a cosine is that much nearer to 1, or further from it
CARRIERS = ("shape", "dropout")  # what data may pass on their way to the first weights


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find first layers that are fed with inputs of another scale than 1."""
    require_steps(run, 1)
    first = [
        item
        for item in weight_layers(run)
        if item.place == 0 and item.layer.role in ("linear", "convolution", "recurrent")
    ]
    scales = {item: _input_rms(run, item, settings) for item in first if _takes_data(run, item)}
    judged = {item: scale for item, scale in scales.items() if math.isfinite(scale)}
    require(judged, "no layer that takes the input has known weights and outputs")
    off = [item for item, scale in judged.items() if not settings.input_low < scale < settings.input_high]
    loss = outcome(run, settings)
    if not off or loss.progress == "trains":
        return None
    scale = judged[off[0]]
    size = "large" if scale > 1 else "small"
    output = float(run.layer_table("activation_rms")[off[0].layer.name].iloc[0])
    return Finding(
        NAME,
        severity(loss),
        f"The inputs of {off[0].layer.name} are too {size}: their root mean square is about "
        f"{scale:.3g}, not 1.",
        names(off),
        weights(off),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        _cause(off[0], scale, output),
        present(
            input_rms=scale,
            output_rms=output,
            sigma_w2=math.nan if off[0].layer.role == "recurrent" else (output / scale) ** 2,
            loss_improvement=loss.improvement,
        ),
    )


def _takes_data(run: Run, item: WeightLayer) -> bool:
    """Say whether data reach a layer as they are, perhaps beside embeddings.

    A layer that runs again and again in a step, as in a loop over time, takes what it gave itself, unless
    what it gives is added to what another makes of the state.
    """
    sources = [unshaped(run, source) for source in producers(run, item.layer)]
    raw = all(source.role in (*CARRIERS, "embedding") and not source.parameters for source in sources)
    mixed = any(source.role == "embedding" for source in sources) and _wider(item, sources)
    looped = item.layer.role != "recurrent" and item.layer.calls >= FEWEST_CALLS
    return (raw or mixed) and (not looped or _beside_state(run, item.layer))


def _beside_state(run: Run, layer: LayerInfo) -> bool:
    """Say whether what a layer gives at each step is joined with what a square layer makes of the state."""
    joined = [run.layer(name) for item in consumers(run, layer.name) for name in item.inputs]
    square = [item for item in joined if item.fan_in and item.fan_in == item.fan_out]
    return layer not in square and any(item.calls == layer.calls for item in square)


def _wider(item: WeightLayer, sources: list[LayerInfo]) -> bool:
    """Say whether a layer takes more than what the layers before it give."""
    widths = [source.output_shape[-1] for source in sources if source.output_shape]
    return (item.layer.fan_in or 0) > sum(widths)


def _cause(item: WeightLayer, scale: float, output: float) -> str:
    if item.layer.role == "recurrent":
        return (
            f"The gradient of its input weights is {scale / output:.3g} times that of its recurrent weights, "
            f"whose inputs, the states, have a root mean square of {output:.2g}."
        )
    return (
        f"With its initial weights {item.layer.name} turns inputs of unit scale into outputs of about "
        f"{output / scale:.2g}; they are {output:.3g}."
    )


def _recurrent_input_rms(run: Run, item: WeightLayer, settings: Settings) -> float:
    """Estimate it from the gradients of the two weights: one signal, times the inputs or times the states."""
    inputs, states = (
        [name for name in item.layer.parameters if part in name] for part in ("weight_ih", "weight_hh")
    )
    known = next((found for found in recurrences(run) if found.layer.name == item.layer.name), None)
    # A gradient that explodes through time is largest at the first steps, whose states are still near zero.
    explodes = known is None or not (known.gated or known.total <= 1)
    sizes = run.layer_table("activation_rms")[item.layer.name].to_numpy()[: settings.patience]
    if not inputs or not states or explodes or not sizes[0] > 0:
        return math.nan
    gradients = run.parameter_table("gradient_rms").iloc[: settings.patience]
    with np.errstate(divide="ignore", invalid="ignore"):
        return median(sizes) * median(gradients[inputs[0]].to_numpy() / gradients[states[0]].to_numpy())


def _input_rms(run: Run, item: WeightLayer, settings: Settings) -> float:
    """Estimate the root mean square of a first layer's input from its first output and its weights."""
    if item.layer.role == "recurrent":
        return _recurrent_input_rms(run, item, settings)
    output = float(run.layer_table("activation_rms")[item.layer.name].iloc[0])
    initial = item.weight.initial
    deviation = math.hypot(float(initial.get("std", math.nan)), float(initial.get("mean", math.nan)))
    if not item.layer.fan_in or not deviation > 0 or int(steps_of(run)[0]) > 0:
        return math.nan
    bias = [
        run.parameter(name).initial for name in item.layer.parameters if run.parameter(name).role == "bias"
    ]
    offset = math.hypot(float(bias[0].get("std", 0.0)), float(bias[0].get("mean", 0.0))) if bias else 0.0
    signal = output**2 - offset**2
    if signal < LITTLE * output**2:  # nearly all of it is the bias, which is the same for every sample
        signal = output**2 * _apart(run, item.layer)
    return math.sqrt(signal / item.layer.fan_in) / deviation if signal > 0 else math.nan


def _apart(run: Run, layer: LayerInfo) -> float:
    """Return which share of a squared output differs from sample to sample, at most; NaN if unknown."""
    if len(layer.output_shape or ()) != 2 and layer.role != "convolution":
        return math.nan  # the cosine is of tokens
    return max(1 - float(run.layer_table("activation_cosine")[layer.name].iloc[0]), ROUNDED)
