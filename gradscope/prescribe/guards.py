"""Remedies that guard operations: kept finite at the edge of their domain, and given a slope on steps."""

from __future__ import annotations

import numpy as np

from gradscope.prescribe.case import Case
from gradscope.prescribe.clipping import blown_up
from gradscope.prescribe.paste import block, some
from gradscope.prescribe.together import together
from gradscope.records import LayerInfo, Remedy

_OVERFLOWING = 1e6  # size of an activation from which a few operations more may overflow
_AT_ONCE = 2  # nothing has grown by training yet
_KNOWN = ("linear", "convolution", "recurrent", "normalization", "attention", "embedding")


def keep_finite_if_not_grown(case: Case) -> Remedy | None:
    """Guard operations first of all where NaN came out of numbers of a usual size."""
    grown = case.finding.first_step > _AT_ONCE and blown_up(case)
    return None if grown or _overflowing(case) else keep_finite(case)


def keep_finite(case: Case) -> Remedy:
    """Keep roots, logarithms, powers and quotients off the points at which they are infinite."""
    where = f" in or behind {some(case.finding.layers)}" if case.finding.layers else " in the loss"
    return Remedy(
        "code",
        "Keep roots, logarithms and quotients off zero",
        f"NaN came out of numbers of a usual size{where}: of log(0), a root at 0, whose slope is infinite, a "
        "quotient of 0 by 0, or a softmax over scores that are all minus infinity.",
        block(
            "from gradscope.prescribe import surgery",
            "",
            "# Write x.clamp(min=1e-6).log(), x.clamp(min=1e-8).sqrt() and the like where it happens,",
            "# or let gradscope do so to all such operations, in training and wherever the model is used:",
            "with surgery.Guarded():",
            "    loss = loss_function(model(inputs), targets)",
        ),
        "No operation at the edge of its domain; values inside it stay as they are.",
        {"do": "train", "keep_finite": True},
    )


def fill_missing(case: Case) -> Remedy | None:
    """Put the mean of each feature for what is missing where torch's own first layer makes NaN of it."""
    layer = _breaking_its_input(case)
    if layer is None or layer.role not in _KNOWN:
        return None
    return Remedy(
        "input-scaling",
        "Put the mean of each feature for inputs that are not finite",
        f"{layer.name} makes NaN of its input with weights that are finite, so the input itself holds NaN or "
        "infinity: one missing value turns every weight into NaN within a step.",
        block(
            "import torch",
            "",
            "# inputs: the training data, samples first; use the same means for validation data",
            "finite = inputs.where(inputs.isfinite(), torch.nan)",
            "inputs = torch.where(inputs.isfinite(), inputs, finite.nanmean(dim=0).nan_to_num(0.0))",
        ),
        "Every input finite; a filled one says nothing about its sample.",
        {"do": "train", "fill_missing": True},
    )


def fill_missing_and_keep_finite(case: Case) -> Remedy | None:
    """Do both, as what reaches torch's own first layer may have been computed before it."""
    filled = fill_missing(case)
    return together(filled, keep_finite(case)) if filled is not None else None


def pass_steps(case: Case) -> Remedy | None:
    """Let gradients pass rounding, signs and comparisons where they are exactly zero without a dead layer."""
    return Remedy(
        "code",
        "Let gradients pass rounding, signs and comparisons straight through",
        "The gradient is exactly zero although nothing is dead: a rounding, a sign or a comparison has slope "
        "0 everywhere. The straight-through estimator takes it for 1 (Bengio et al. 2013).",
        block(
            "from gradscope.prescribe import surgery",
            "",
            "# Write soft + (hard - soft).detach() where it happens,",
            "# or let gradscope do so to every such operation:",
            "with surgery.Guarded(finite=False, slopes=True):",
            "    loss = loss_function(model(inputs), targets)",
        ),
        "Gradient before the step 0 → that behind it.",
        {"do": "train", "pass_steps": True},
    )


def _breaking_its_input(case: Case) -> LayerInfo | None:
    """Return the layer that data reach first if it makes NaN of them although its own weights are finite."""
    run, finding = case.run, case.finding
    layer = next((item for item in run.layers if item.name in finding.layers[:1]), None)
    if layer is None or layer.inputs or layer.depth > 0:
        return None
    broken = run.parameter_table("weight_nonfinite")
    own = [name for name in layer.parameters if name in broken.columns]
    before = broken.loc[broken.index <= finding.first_step, own]
    return None if (before.fillna(0) > 0).any().any() else layer


def _overflowing(case: Case) -> bool:
    """Say whether outputs were near overflow up to the step of the first value that was not finite."""
    for statistic in ("activation_max", "activation_min"):
        table = case.run.layer_table(statistic)
        values = np.abs(table.loc[table.index <= case.finding.first_step].to_numpy(dtype=float))
        if (values[np.isfinite(values)] > _OVERFLOWING).any():
            return True
    return False
