"""An output that doesn't fit the loss function, by its activation, its shape or its range.

What it finds
A softmax over one unit, or before a binary cross-entropy of several labels; softmax or sigmoid applied twice
(before a loss that applies it itself); a
rectifier before a cross-entropy, or at the end of a regression where it holds back most of the error; a
negative log-likelihood of something that is no logarithm; a squared error of shapes that broadcast, (N,)
against (N, 1): of its size and its gradient, which no longer fit; a bounded output that misses a target by
more than its range; a loss with the wrong sign; targets of a scale far from 1.

Why it hurts
The loss cannot become small whatever the network learns, or its gradient is zero.

What it is not
A bounded or rectified output that suits its targets; a log-likelihood of densities, which may be negative.

Remedies
Code: the output or loss that fits, with the lines to change; scaled targets.

Evidence
mismatch (1 one-unit softmax, 2 activation applied twice, 3 rectified output, 4 no logarithm, 5 broadcast
shapes, 6 range too small, 7 sign, 8 targets' scale, 9 rectified regression, 10 softmax of several labels,
11 at its bound for every sample), final_loss, target_rms, loss_improvement.

References
torch documentation of the loss functions; Goodfellow et al. 2016, section 6.2.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import dropwhile, pairwise, takewhile, zip_longest

import numpy as np

from gradscope.diagnose import theory
from gradscope.diagnose.architecture import (
    RESHAPING,
    feeds_output,
    operations,
    producers,
    unshaped,
    watched_outputs,
)
from gradscope.diagnose.outcome import Outcome, outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import column, log, median, require_steps, steps_of
from gradscope.diagnose.squared_error import HIDING, SquaredError, squared_error
from gradscope.diagnose.wording import present
from gradscope.records import Finding, LayerInfo, Run
from gradscope.settings import Settings

NAME = "output-mismatch"
RANGE = {"sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0), "hardtanh": (-1.0, 1.0)}
COMPARISONS = ("MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
RECTIFIED = ("relu", "relu6")
ERRORS = ("MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "Abs", "Pow", "BinaryCrossEntropy")
# Share that is left of the factor c in loss = c mean(r²), constant unless the loss isn't what it seems,
# and its typical relative change from one recorded step to the next.
LOST_SCALE, WOBBLE = 0.5, 0.05
PINNED = 0.02  # share of a bounded output's range within which it lies at its bound
HELD_BACK = 0.5  # share of the squared error at the output that a rectifier lets not through
# Activations as the loss's graph names them.
SHOWN = {"Softmax": "softmax", "Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu"}
# Functions that a loss consists of, and those that may stand between it and the output it judges.
LOSSES = (*ERRORS, "NllLoss", "NllLoss2D", "LogSoftmax", "CrossEntropyLoss", "BinaryCrossEntropyWithLogits")
GUARDS = ("Clamp", "Log", "Sub", "Rsub")
SIMPLE = {"Clamp", "Log", "Mean", "Sum", "Neg", "Sub", "Rsub", "Div", "Mul"}
Mismatch = tuple[int, str, str]


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find an output that does not fit its loss."""
    require_steps(run, 1)
    functions = operations(run.info.loss.get("functions", ()))
    require(functions, "the loss function was not recorded")
    outputs = watched_outputs(run)
    loss = outcome(run, settings)
    squared = squared_error(run)
    found = _mismatch(run, functions, outputs, loss.final)
    if found is None and squared is not None:
        found = _residuals(run, squared, loss, settings)
    if found is None and loss.progress != "trains":
        found = _pinned(run, outputs, settings) or _unfit_function(run, functions, outputs, settings)
    if found is None:
        return None
    number, message, cause = found
    always = (
        (number == 5 and "Expand" not in functions)
        or number == 7
        or (number == 1 and loss.progress != "trains")
    )
    return Finding(
        NAME,
        "critical" if always else severity(loss),
        message,
        tuple(unshaped(run, layer).name for layer in outputs[:1]),
        (),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        cause,
        present(
            mismatch=number,
            final_loss=loss.final,
            target_rms=_target_rms(run, squared) if squared else math.nan,
            loss_improvement=loss.improvement,
        ),
    )


def _mismatch(run: Run, functions: list[str], outputs: list[LayerInfo], final: float) -> Mismatch | None:
    name = outputs[0].name if outputs else "the output"
    activations = _activations(run, functions, outputs)
    width = outputs[0].output_shape[-1] if outputs and outputs[0].output_shape else 0
    text = " ".join(functions)
    if "softmax" in activations and width == 1:
        return (
            1,
            f"{name} applies softmax to a single unit.",
            "That is always 1, so the loss cannot depend on the weights.",
        )
    if final < 0 and _never_negative(functions):
        return (
            7,
            f"The loss has the wrong sign: it is an error of {name}, and negative.",
            "Minimising it makes the error as large as possible.",
        )
    shapes = _broadcast(run.info.loss.get("shapes", ()))
    if shapes and any(loss in text for loss in ("Mse", "L1", "SmoothL1", "Huber", "Sub", "Pow", "Abs")):
        return (
            5,
            f"The loss compares shapes {shapes[0]} and {shapes[1]}.",
            "They broadcast: each output is compared with every target.",
        )
    if functions[0] in COMPARISONS and functions[1:2] == ["Expand"]:
        return (
            5,
            f"The loss stretches {name} to the shape of the targets.",
            "They broadcast: each output is compared with every target.",
        )
    twice = _applied_twice(functions, activations)
    if twice:
        return (
            2,
            f"{twice} is applied to {name} before a loss that applies it itself.",
            "It squeezes the outputs, so the loss can't come near zero.",
        )
    logarithm = any("Log" in part for part in [*functions, *(layer.kind for layer in outputs)])
    logarithm |= any(_may_be_logarithm(run, layer) for layer in outputs)
    if "NllLoss" in text and not logarithm:
        return (
            4,
            f"The negative log-likelihood of {name} is taken without a logarithm.",
            "The loss expects log-probabilities.",
        )
    if "softmax" in activations and functions[0] == "BinaryCrossEntropy":
        return (
            10,
            f"{name} applies softmax before a binary cross-entropy.",
            "Its outputs share a sum of 1, but each label is judged on its own: no two can be sure at once.",
        )
    if activations & set(RECTIFIED) and ("NllLoss" in text or "CrossEntropy" in text):
        return (
            3,
            f"The output {name} is rectified before a cross-entropy.",
            "Where it is zero, no gradient passes, and no negative score is possible.",
        )
    return None


def _may_be_logarithm(run: Run, layer: LayerInfo) -> bool:
    """Say whether a module of the user's own, whose inside is unknown, may give log-probabilities."""
    largest = run.layer_table("activation_max")[layer.name].to_numpy()
    return layer.role == "other" and not (largest > 0).any()


def _activations(run: Run, functions: list[str], outputs: list[LayerInfo]) -> set[str]:
    """Return the activations between the last weights and the loss, if one output goes to it directly.

    Elsewhere, as in a mixture of experts or behind pooling by attention, a softmax may be a gate.
    """
    own = [index for index, name in enumerate(functions) if name in LOSSES]
    behind = [name for name in functions[own[-1] + 1 if own else 0 :] if name not in RESHAPING]
    behind = list(dropwhile(lambda name: name in GUARDS, behind))
    if len(outputs) != 1 or not set(behind[1:] if behind[:1] and behind[0] in SHOWN else behind) <= SIMPLE:
        return set()
    found = [layer.activation for layer in run.layers if feeds_output(run, layer)]
    found += [outputs[0].activation, SHOWN.get(behind[0]) if behind else None]
    return {name for name in found if name}


def _applied_twice(functions: list[str], activations: set[str]) -> str:
    if "softmax" in activations and ("LogSoftmax" in functions or "CrossEntropyLoss" in functions):
        return "Softmax"
    logits = any(name.endswith("WithLogits") for name in functions)
    return "Sigmoid" if "sigmoid" in activations and logits else ""


def _broadcast(shapes: Sequence[Sequence[int]]) -> tuple[Sequence[int], Sequence[int]] | None:
    """Return the first two shapes that hold the same number of entries and yet broadcast to more."""
    known = [tuple(shape) for shape in shapes if shape is not None]
    for first, second in pairwise(known):
        if len(first) != len(second) and math.prod(first) == math.prod(second) > 1:
            aligned = zip_longest(reversed(first), reversed(second), fillvalue=1)
            if math.prod(max(pair) for pair in aligned) > math.prod(first):
                return first, second
    return None


def _never_negative(functions: list[str]) -> bool:
    """Say whether a loss is an error that can't be negative, but for a factor."""
    outer = list(takewhile(lambda name: name in ("Neg", "Mul", "Div", "Mean", "Sum"), functions))
    first = functions[len(outer)] if len(outer) < len(functions) else ""
    reduced = [index for index, name in enumerate(outer) if name in ("Mean", "Sum")]
    if reduced and {"Mul", "Neg"} & set(outer[reduced[0] :]):
        return False  # each sample's error has a weight of its own, which may be negative
    if first == "NllLoss":
        return "LogSoftmax" in functions
    return first in ERRORS


def _residuals(run: Run, squared: SquaredError, loss: Outcome, settings: Settings) -> Mismatch | None:
    """Judge a squared error by what its gradient tells of the targets."""
    name = squared.layer.name
    last = unshaped(run, squared.layer)
    activation = last.activation
    tail = _tail(run, settings)
    began, ended = median(squared.scale[:3]), median(squared.scale[tail])
    wobble = median(np.abs(np.diff(log(squared.scale))))
    if ended < LOST_SCALE * began or wobble > WOBBLE:
        return (
            5,
            f"The error of {name} doesn't shrink with its gradient: shapes broadcast in the loss.",
            f"Loss / gradient² should stay the same in training; it changed {began / ended:.3g}-fold, and by "
            f"{wobble:.0%} from step to step: each output is compared with every target.",
        )
    low, high = RANGE.get(activation or "", (-math.inf, math.inf))
    missed = median(squared.largest[tail])
    if missed > 1.01 * (high - low):
        return (
            6,
            f"{name} can only give {low:g} to {high:g}, the targets lie outside.",
            f"It misses one by {missed:.3g}, which is impossible if they lay inside.",
        )
    if _cuts_off(run, last, tail) and _held_back(run, last, tail) > HELD_BACK:
        return (
            9,
            f"{last.name} at the output holds back most of the error.",
            "Where it gives 0 no gradient passes, and no target beyond can be reached.",
        )
    size = median(squared.size[tail])
    if squared.hidden and HIDING * size < settings.input_low:
        return (
            8,
            f"The targets are far smaller than what {name} gives, {size:.2g}: they don't show in its error.",
            f"A network starts with outputs near 1 and moves them by small steps; {loss.text}.",
        )
    scale = _target_rms(run, squared)
    if not settings.input_low < scale < settings.input_high and median(squared.size[tail]) > 0.5 * scale:
        return (
            8,
            f"The targets' root mean square is about {scale:.3g}, not 1, which {name} is far from reaching.",
            f"A network starts with outputs near 1 and moves them by small steps; {loss.text}.",
        )
    return None


def _pinned(run: Run, outputs: list[LayerInfo], settings: Settings) -> Mismatch | None:
    """Find a bounded output that lies at one of its bounds, while the loss still pushes it beyond."""
    if len(outputs) != 1 or outputs[0].activation not in ("sigmoid", "tanh", "hardtanh"):
        return None
    layer, tail = outputs[0], _tail(run, settings)
    low, high = RANGE[str(layer.activation)]
    mean, deviation, pushed = (
        run.layer_table(name)[layer.name].to_numpy()
        for name in ("activation_mean", "activation_std", "signal_rms")
    )
    level, near = median(mean[tail]), PINNED * (high - low)
    still = median(pushed[tail]) > median(pushed[: settings.patience]) / 2
    if not (still and median(deviation[tail]) < near and not low + near < level < high - near):
        return None
    return (
        11,
        f"{layer.name} can only give {low:g} to {high:g}, and gives {level:.3g} for every sample.",
        "The loss goes on pushing it as hard as at the start: what it wants lies beyond.",
    )


def _unfit_function(
    run: Run, functions: list[str], outputs: list[LayerInfo], settings: Settings
) -> Mismatch | None:
    """Find a function at the output, of no module, that doesn't suit the targets of a mean squared error."""
    plain = [name for name in functions if name not in RESHAPING]
    activation = SHOWN.get(plain[1], "") if len(plain) > 1 and plain[0] == "MseLoss" else ""
    if len(outputs) != 1 or activation not in ("relu", "sigmoid", "tanh"):
        return None
    if activation == "relu":
        return _rectifying_function(run, outputs[0], settings)
    name, (low, high) = outputs[0].name, RANGE[activation]
    size = float(run.layer_table("activation_rms")[name].iloc[0])
    first, most = float(column(run, "loss")[0]), (high - low) / 2 + theory.largest_slope(activation) * size
    if int(steps_of(run)[0]) > 0 or not first > 1.2 * most**2:
        return None
    return (
        6,
        f"Behind {name} a {activation} can only give {low:g} to {high:g}, the targets lie outside.",
        f"Outputs from the middle of that range miss them by {math.sqrt(first):.3g} in the square mean.",
    )


def _rectifying_function(run: Run, layer: LayerInfo, settings: Settings) -> Mismatch | None:
    """Find a rectifier behind the last layer that lets little of a mean squared error through.

    The error's gradient at N outputs is 2 / N times the residuals, so that what arrives behind the function
    is N² mean(g²) / (4 loss) of their squares.
    """
    count, signal = (run.layer_table(f"signal_{kind}")[layer.name].to_numpy() for kind in ("count", "rms"))
    passed = median(((count * signal) ** 2 / (4 * column(run, "loss")))[_tail(run, settings)])
    if not passed < 1 - HELD_BACK:
        return None
    return (
        9,
        f"The rectifier behind {layer.name}, at the output, holds back most of the error.",
        f"Only {passed:.0%} of its square passes back: where the output is 0, no gradient does.",
    )


def _tail(run: Run, settings: Settings) -> slice:
    """Return the rows of a run's end."""
    return slice(-max(settings.patience, len(run.steps) // 10), None)


def _cuts_off(run: Run, layer: LayerInfo, rows: slice) -> bool:
    """Say whether a layer sets outputs to zero: a rectifier, or a function of the user's own that does it."""
    if layer.activation in RECTIFIED:
        return True
    zeros = run.layer_table("activation_zero_fraction")
    before = [median(zeros[source.name].to_numpy()[rows]) for source in producers(run, layer)]
    own = median(zeros[layer.name].to_numpy()[rows])
    return layer.role == "other" and not layer.parameters and len(before) == 1 and own > 0.5 > before[0]


def _held_back(run: Run, layer: LayerInfo, rows: slice) -> float:
    """Return the share of the squared signal at a rectifier that doesn't reach the layer before it."""
    signal = run.layer_table("signal_rms")
    before = [signal[source.name].to_numpy()[rows] for source in producers(run, layer)]
    if len(before) != 1:
        return 0.0
    return 1 - median((before[0] / signal[layer.name].to_numpy()[rows]) ** 2)


def _target_rms(run: Run, squared: SquaredError) -> float:
    """Estimate the targets' root mean square from the first residuals, when the output knows nothing."""
    output = float(run.layer_table("activation_rms")[squared.layer.name].iloc[0])
    square = float(squared.size[0]) ** 2 - output**2
    return math.sqrt(square) if square > output**2 and int(steps_of(run)[0]) == 0 else math.nan
