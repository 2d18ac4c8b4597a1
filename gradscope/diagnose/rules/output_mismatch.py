"""An output that doesn't fit the loss function, by its activation, its shape or its range.

What it finds
A softmax over one unit; softmax or sigmoid applied twice (before a loss that applies it itself); a
rectifier before a cross-entropy; a negative log-likelihood of something that is no logarithm; a squared
error of shapes that broadcast, (N,) against (N, 1); a bounded output whose squared error is larger than
its range allows.

Why it hurts
The loss cannot become small whatever the network learns, or its gradient is zero.

What it is not
A bounded output that suits its targets.

Remedies
Code: the output or loss that fits, with the lines to change; scaled targets.

Evidence
mismatch (1 one-unit softmax, 2 activation applied twice, 3 rectified output, 4 no logarithm, 5 broadcast
shapes, 6 range too small), final_loss, loss_improvement.

References
torch documentation of the loss functions; Goodfellow et al. 2016, section 6.2.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from gradscope.diagnose.architecture import feeds_output, output_layers
from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import require_steps, steps_of
from gradscope.diagnose.wording import present
from gradscope.records import Finding, LayerInfo, Run
from gradscope.settings import Settings

NAME = "output-mismatch"
RANGE = {"sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0), "hardtanh": (-1.0, 1.0)}
RECTIFIED = ("relu", "relu6")
Mismatch = tuple[int, str, str]


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find an output that does not fit its loss."""
    require_steps(run, 1)
    functions = [str(name) for name in run.info.loss.get("functions", ())]
    require(functions, "the loss function was not recorded")
    outputs = [run.layer(name) for name in output_layers(run) if name in {layer.name for layer in run.layers}]
    loss = outcome(run, settings)
    found = _mismatch(run, functions, outputs, loss.final)
    if found is None:
        return None
    number, message, cause = found
    always = number in (1, 5)
    return Finding(
        NAME,
        "critical" if always and loss.progress != "trains" else severity(loss),
        message,
        tuple(layer.name for layer in outputs[:1]),
        (),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        cause,
        present(mismatch=number, final_loss=loss.final, loss_improvement=loss.improvement),
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
    shapes = _broadcast(run.info.loss.get("shapes", ()))
    if shapes and any(loss in text for loss in ("Mse", "L1", "SmoothL1", "Huber", "Sub", "Pow", "Abs")):
        return (
            5,
            f"The loss compares shapes {shapes[0]} and {shapes[1]}.",
            "They broadcast: each output is compared with every target.",
        )
    twice = _applied_twice(functions, activations)
    if twice:
        return (
            2,
            f"{twice} is applied to {name} before a loss that applies it itself.",
            "It squeezes the outputs, so the loss can't come near zero.",
        )
    if "NllLoss" in text and not any(
        "Log" in function for function in functions if "NllLoss" not in function
    ):
        return (
            4,
            f"The negative log-likelihood of {name} is taken without a logarithm.",
            "The loss expects log-probabilities.",
        )
    if activations & set(RECTIFIED) and ("NllLoss" in text or "CrossEntropy" in text):
        return (
            3,
            f"The output {name} is rectified before a cross-entropy.",
            "Where it is zero, no gradient passes, and no negative score is possible.",
        )
    return _range(name, text, activations, final)


def _activations(run: Run, functions: list[str], outputs: list[LayerInfo]) -> set[str]:
    """Return the activations between the last weights and the loss."""
    found = {layer.activation for layer in outputs if layer.activation}
    found |= {layer.activation for layer in run.layers if layer.activation and feeds_output(run, layer)}
    named = {"SoftmaxBackward0": "softmax", "SigmoidBackward0": "sigmoid", "TanhBackward0": "tanh"}
    found |= {named[function] for function in functions if function in named}
    return {name for name in found if name}


def _applied_twice(functions: list[str], activations: set[str]) -> str:
    text = " ".join(functions)
    if "softmax" in activations and ("LogSoftmax" in text or "CrossEntropyLoss" in text):
        return "Softmax"
    return "Sigmoid" if "sigmoid" in activations and "WithLogits" in text else ""


def _broadcast(shapes: Sequence[Sequence[int]]) -> tuple[Sequence[int], Sequence[int]] | None:
    """Return the first two shapes that differ although they hold the same numbers of entries or broadcast."""
    known = [tuple(shape) for shape in shapes if shape is not None]
    for first, second in pairwise(known):
        if first != second and len(first) != len(second) and math.prod(first) == math.prod(second) > 1:
            return first, second
    return None


def _range(name: str, text: str, activations: set[str], final: float) -> Mismatch | None:
    """Judge a squared error: targets within a bounded output's range bound it too."""
    bounded = [activation for activation in activations if activation in RANGE]
    if "MseLoss" not in text or not bounded or not math.isfinite(final):
        return None
    low, high = RANGE[bounded[0]]
    if final <= (high - low) ** 2:
        return None
    return (
        6,
        f"{name} can only give {low:g} to {high:g}, the targets lie outside.",
        (f"A mean squared error of {final:.3g} is impossible if they lay inside."),
    )
