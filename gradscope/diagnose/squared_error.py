"""What a squared error tells of the targets, which nobody records: from the loss and its gradient alone.

For a loss c mean(r²) over n outputs with residuals r, the gradient at the outputs is 2 c r / n. So its root
mean square s gives the residuals' (2 loss / (n s)), their largest, and c, which must not change in training.
The gradient of the output's bias gives the part of the residuals that all samples share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradscope.diagnose.architecture import RESHAPING, operations, unshaped
from gradscope.diagnose.series import Array, column, median, mostly
from gradscope.records import LayerInfo, Run

HIDING = 0.02  # relative difference between residuals and outputs under which targets don't show beside these
KNOWING = 1.5  # variance of the outputs / mean square of the residuals; at most 1 if independent
MEAN_OF_SQUARES = (("Mean", "Pow", "Sub"), ("Mean", "Pow", "Rsub"), ("Sum", "Pow", "Sub"))


@dataclass(frozen=True)
class SquaredError:
    """A loss that is a squared error of one layer's output; arrays have an entry a recorded step.

    size, largest: root mean square and largest magnitude of the residuals, in the targets' unit. scale: c.
    hidden: whether the residuals were as large as the outputs nearly all the time, so that the targets must
    be far smaller than these. shared: share of the squared residuals that is the same for all samples, NaN
    without an output bias.
    chance: the loss of the best constant guess, from the first step, when the output cannot know anything of
    the targets yet, or, if it varies too much then, from the last ones; NaN where that can't be told.
    """

    layer: LayerInfo
    size: Array
    largest: Array
    scale: Array
    hidden: bool
    shared: Array
    chance: float


def squared_error(run: Run) -> SquaredError | None:
    """Return what the loss tells of the residuals, None if it is no plain squared error."""
    functions = operations(run.info.loss.get("functions", ()))
    inputs = [str(name) for name in run.info.loss.get("inputs", ())]
    layers = {layer.name: layer for layer in run.layers}
    if not _is_squared_error(functions) or len(inputs) != 1 or inputs[0] not in layers:
        return None
    name = inputs[0]
    # The loss is one batch's, the signal that of all batches in a step.
    if np.isfinite(column(run, "amp_scale")).any() or (run.layer_table("calls")[name] > 1).any():
        return None
    loss, count = column(run, "loss"), run.layer_table("signal_count")[name].to_numpy()
    signal = run.layer_table("signal_rms")[name].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = np.where(signal > 0, 2 * loss / (count * signal), np.nan)
        largest = run.layer_table("signal_absmax")[name].to_numpy() / signal * size
        scale = loss / size**2
    shared = _shared(run, layers[name], count, signal)
    output = run.layer_table("activation_rms")[name].to_numpy()
    deviation = run.layer_table("activation_std")[name].to_numpy()
    # An output of 1/2 is as far from targets of 0 and 1 as it is large, but it doesn't vary.
    hidden = mostly((np.abs(size - output) < HIDING * output) & (deviation > output / 10))
    chance = (
        median((scale * np.abs(size**2 - output**2))[-max(5, len(loss) // 10) :])
        if hidden
        else _chance(run, layers[name], loss, scale, shared)
    )
    return SquaredError(layers[name], size, largest, scale, hidden, shared, chance)


def _is_squared_error(functions: list[str]) -> bool:
    """Say whether a loss is the squared error of an output that is at most reshaped on its way."""
    known = 1 if functions[:1] == ["MseLoss"] else 3 if tuple(functions[:3]) in MEAN_OF_SQUARES else 0
    return known > 0 and all(name in RESHAPING for name in functions[known:])


def _shared(run: Run, layer: LayerInfo, count: Array, signal: Array) -> Array:
    """Return mean² / mean square of the signal over samples, from the gradient of the output's bias."""
    layer = unshaped(run, layer)
    biases = [run.parameter(name) for name in layer.parameters if run.parameter(name).role == "bias"]
    if len(biases) != 1 or layer.role not in ("linear", "convolution"):
        return np.full(len(run.steps), np.nan)
    width = biases[0].size
    gradient = run.parameter_table("gradient_norm")[biases[0].name].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(signal > 0, gradient**2 * width / (count * signal) ** 2, np.nan)


def _chance(run: Run, layer: LayerInfo, loss: Array, scale: Array, shared: Array) -> float:
    """Return the variance of the targets times c: at first residuals and outputs differ by it, since they are
    independent; at last they add up to it, since residuals don't correlate with fitted outputs."""
    if not len(loss):
        return math.nan
    loss = np.where(np.isfinite(loss), loss, np.nan)
    centred = loss * (1 - np.minimum(1.0, shared))
    own = scale * run.layer_table("activation_std")[layer.name].to_numpy() ** 2
    # An output that varies more than its residuals knows the targets: it was trained before.
    # One that varies nearly as much as the targets is correlated with them by chance.
    if own[0] < centred[0] / 4 and int(run.steps["step"].iloc[0]) == 0:
        return float(centred[0] - own[0])
    if own[0] > KNOWING * loss[0]:
        return float(centred[0] + own[0])
    late = median((centred + own)[-max(5, len(loss) // 10) :])
    return min(late, float(centred[0]))  # a loss that rose tells nothing of the targets
