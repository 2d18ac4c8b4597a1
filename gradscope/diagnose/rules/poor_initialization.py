"""The initial weights are far too small or too large for the layers' widths and activation.

What it finds
fan-in × variance of the initial weights more than ten times below or above the critical value for the
activation, in most layers, and together a hundred times, in a network without normalisation that does not
train well. Or an output layer more than ten times above 1 that makes the first loss more than twice that of a
constant guess, or, where a guess's loss is not known, more than a hundred times above 1.

Why it hurts
Each layer shrinks or blows up signal and gradient by the same factor, and depth raises it to a power.

What it is not
torch's default initialisation in a shallow network: it is too small for ReLU by a factor of six, which
few layers bear. A single layer such as Xavier's first one of a scalar input, whose factor the others don't
multiply. Normalised layers are indifferent to the scale of their weights; layers that skip
connections bypass multiply nothing.

Remedies
He initialisation for rectifiers, Xavier for tanh, LeCun for SELU, orthogonal for recurrences.

Evidence
sigma_w2 (median over layers), critical_sigma_w2, factor (sigma_w2 / critical_sigma_w2), layers_off,
depth, loss_improvement.

References
Glorot and Bengio 2010; He et al. 2015; Schoenholz et al. 2017.
"""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose import theory
from gradscope.diagnose.architecture import (
    WeightLayer,
    activation_after,
    feeds_output,
    names,
    normalized_after,
    skips,
    weight_layers,
    weights,
)
from gradscope.diagnose.outcome import Outcome, outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import Array, column, log, median, require_steps
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "poor-initialization"
TOGETHER = 100.0  # product of the layers' factors, that is a signal ten times too large or too small
LOUD = 2.0  # first loss / that of a constant guess; an untrained network's is 0.95 to 1.5
LARGEST_USUAL = 2.0  # He's; the critical variance of GELU (4) or sigmoid (103) is in nobody's use


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find initial weights that are far from the critical variance in most layers."""
    require_steps(run, 1)
    loss = outcome(run, settings)
    layers = weight_layers(run)
    # Skip connections bypass layers: no variance of theirs is critical.
    inner = {} if skips(run) else {item: _factor(run, item) for item in layers}
    inner = {item: factor for item, factor in inner.items() if math.isfinite(factor)}
    loud = {item: _loudness(run, item, loss) for item in layers if feeds_output(run, item.layer)}
    least = settings.sigma_w2_factor if math.isfinite(loss.chance) else TOGETHER
    loud = {item: factor for item, factor in loud.items() if factor > least}
    judged = inner | loud
    require(judged, "no layer's initial weights can be compared with theory")
    off = [*_off(inner, settings), *loud]
    if not off or loss.progress == "trains":
        return None
    factor = math.exp(median(log(np.array([judged[item] for item in off]))))
    sigma = median(_sigmas(off))
    size = "small" if factor < 1 else "large"
    return Finding(
        NAME,
        severity(loss),
        f"The initial weights of {listed(names(off))} have {_times(factor)} the variance that keeps "
        "the signal's "
        "size.",
        names(off),
        weights(off),
        int(run.steps["step"].iloc[0]),
        int(run.steps["step"].iloc[-1]),
        f"fan-in × variance is {sigma:.3g} where {sigma / factor:.3g} is critical: too {size} by a factor of "
        f"{max(factor, 1 / factor):.3g}, at each of {len(off)} layers.",
        present(
            sigma_w2=sigma,
            critical_sigma_w2=sigma / factor,
            factor=factor,
            layers_off=len(off),
            depth=len(layers),
            loss_improvement=loss.improvement,
        ),
    )


def _off(factors: dict[WeightLayer, float], settings: Settings) -> list[WeightLayer]:
    """Return the layers far from critical, if they are most and multiply to a factor that matters."""
    logs = {item: math.log(factor) for item, factor in factors.items()}
    off = [item for item, value in logs.items() if abs(value) > math.log(settings.sigma_w2_factor)]
    together = abs(sum(logs[item] for item in off))
    return off if 2 * len(off) >= len(factors) and together > math.log(TOGETHER) else []


def _factor(run: Run, item: WeightLayer) -> float:
    """Return sigma_w² / critical sigma_w² of a layer, NaN where theory doesn't say."""
    activation = activation_after(run, item.layer)
    deviation = float(item.weight.initial.get("std", math.nan))
    plain = item.layer.role in ("linear", "convolution") and not normalized_after(run, item.layer)
    if not plain or activation is None or not theory.known(activation) or not item.layer.fan_in:
        return math.nan
    critical = min(theory.critical_sigma_w2(activation), LARGEST_USUAL)
    # Weights that are all zero or all alike are another ailment's.
    return theory.sigma_w2(deviation, item.layer.fan_in) / critical if deviation > 0 else math.nan


def _loudness(run: Run, item: WeightLayer, loss: Outcome) -> float:
    """Return sigma_w² of an output layer unless its first loss is near that of a guess, else 0."""
    first = float(column(run, "loss")[0])
    quiet = int(run.steps["step"].iloc[0]) > 0 or first <= LOUD * loss.chance
    if quiet or not item.layer.fan_in or normalized_after(run, item.layer):
        return 0.0
    return theory.sigma_w2(float(item.weight.initial.get("std", 0.0)), item.layer.fan_in)


def _sigmas(items: list[WeightLayer]) -> Array:
    values = [theory.sigma_w2(float(item.weight.initial["std"]), item.layer.fan_in or 1) for item in items]
    return np.array(values)


def _times(factor: float) -> str:
    return f"{factor:.2g} times" if factor < 1 else f"{factor:.3g} times"
