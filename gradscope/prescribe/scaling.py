"""Remedies of scale: standardise inputs and targets."""

from __future__ import annotations

from gradscope.prescribe.case import Case
from gradscope.prescribe.paste import block, figure
from gradscope.prescribe.rate import fitting_rate, higher
from gradscope.prescribe.together import together
from gradscope.records import Remedy

_SLOW = 3.0
_FAR = 100.0  # the squared error of targets in the tens
_ALIKE = 0.6  # mean cosine between rows behind the first layer: what they share outweighs what differs


def scale_inputs(case: Case) -> Remedy | None:
    """Standardise the inputs with mean and deviation of the training data."""
    if any(layer.role == "embedding" for layer in case.run.layers):
        return None
    seen = case.number("input_rms") or case.number("input_std") or case.number("input_absmax")
    told = f"Inputs have size {figure(seen)} here" if seen else "The scale of the inputs is not near 1"
    return Remedy(
        "input-scaling",
        "Standardise the inputs",
        f"{told}; every initialisation and usual learning rate assumes mean 0 and variance 1 (LeCun et al. "
        "1998).",
        block(
            "import torch",
            "",
            "# inputs: the training data, samples first; apply the same two figures to validation data",
            "mean = inputs.mean(dim=0, keepdim=True)",
            "deviation = inputs.std(dim=0, keepdim=True)",
            "inputs = (inputs - mean) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))",
        ),
        f"Size of an input {figure(seen)} → 1.00."
        if seen
        else "Mean of each feature → 0.00, variance → 1.00.",
        {"do": "train", "scale_inputs": True},
    )


def scale_targets(case: Case) -> Remedy | None:
    """Standardise the targets of a regression."""
    if not is_regression(case):
        return None
    first = case.first_loss
    told = f"The loss starts at {figure(first)}" if first else "The loss is far from 1 at the start"
    return Remedy(
        "target-scaling",
        "Standardise the targets",
        f"{told}: the gradient carries the targets' scale through the whole network. With standardised "
        "targets a "
        "constant guess has mean square error 1.",
        block(
            "# targets: the training data; predictions are turned back by `prediction * scale + centre`",
            "centre, scale = targets.mean(dim=0, keepdim=True), targets.std(dim=0, "
            "keepdim=True).clamp(min=1e-12)",
            "targets = (targets - centre) / scale",
        ),
        "Mean square error of a constant guess → 1.00.",
        {"do": "train", "scale_targets": True},
    )


def scale_both(case: Case) -> Remedy | None:
    """Standardise inputs and targets of a regression whose error stays far from 1 to the end."""
    inputs, targets = scale_inputs(case), scale_targets(case)
    far = case.least_loss is not None and case.least_loss > _FAR
    return together(inputs, targets) if inputs and targets and far else None


def scale_inputs_if_alike(case: Case) -> Remedy | None:
    """Standardise inputs whose rows are nearly the same already behind the first layer: their mean is far."""
    return scale_inputs(case) if (case.number("cosine_first") or 0.0) > _ALIKE else None


def scale_targets_faster(case: Case) -> Remedy | None:
    """Standardise the targets and raise the rate, where Adam's steps are too small as well."""
    scaled, faster = scale_targets(case), higher(case)
    fitting = fitting_rate(case)
    slow = case.lr is not None and fitting is not None and case.lr < fitting / _SLOW
    if scaled is None or faster is None or not (slow and case.adaptive):
        return None
    return together(scaled, faster)


def is_regression(case: Case) -> bool:
    """Say whether the loss compares numbers: squared, absolute, Huber."""
    functions = [str(name) for name in case.run.info.loss.get("functions", ())]
    return any(
        name.startswith(("MseLoss", "L1Loss", "SmoothL1", "Huber", "PowBack", "AbsBack"))
        for name in functions
    )
