"""Remedies of the output and the loss: what the loss expects of the last layer."""

from __future__ import annotations

from gradscope.prescribe.case import Case
from gradscope.prescribe.paste import block, some
from gradscope.prescribe.scaling import is_regression
from gradscope.records import LayerInfo, Remedy

_SOFTMAX = ("softmax", "log_softmax", "softmin")


def output_activations(case: Case) -> list[LayerInfo]:
    """Return the activations between the output layers and the loss."""
    return list(
        {
            behind.name: behind for name in case.outputs if (behind := case.activation_behind.get(name))
        }.values()
    )


def drop_output_activation(case: Case) -> Remedy | None:
    """Take away an output activation that the loss applies itself, or that keeps the targets out of reach."""
    found = output_activations(case)
    if not found or (found[0].activation == "sigmoid" and _takes(case, "BinaryCrossEntropyBackward")):
        return None
    kind = found[0].activation or "activation"
    names = [layer.name for layer in found]
    modules = [layer.name for layer in found if layer.role == "activation"]
    why = (
        f"The loss takes raw scores and applies its own softmax or sigmoid; with {kind} before it the "
        "gradient is "
        "squashed twice."
        if not is_regression(case)
        else f"{kind} bounds the output, so targets outside its range can't be reached; a regression ends "
        "linear."
    )
    code = (
        block(
            "import torch",
            "",
            f"for name in {modules!r}:",
            '    parent, _, child = name.rpartition(".")',
            "    setattr(model.get_submodule(parent), child, torch.nn.Identity())",
        )
        if modules
        else f"# in forward(): return what {some(names)} gives, without {kind}"
    )
    action = {"do": "replace-activation", "to": "identity", "layers": modules} if modules else {}
    return Remedy(
        "loss",
        f"Take {kind} away from the output",
        why,
        code,
        "Slope between loss and output layer → 1; outputs unbounded.",
        action,
    )


def use_logits(case: Case) -> Remedy | None:
    """Use a loss that takes raw scores and is exact for sure ones."""
    if is_regression(case) and not _single_softmax(case):
        return None
    single = all((case.units(case.run.layer(name)) or 0) == 1 for name in case.outputs)
    if case.outputs and single:
        return Remedy(
            "loss",
            "Use BCEWithLogitsLoss on the single output",
            "Softmax over one unit is always 1, and its gradient always 0; a single score needs a sigmoid, "
            "which this "
            "loss applies itself, without rounding sure answers to log(0).",
            block(
                "import torch",
                "",
                "loss_function = torch.nn.BCEWithLogitsLoss()  # on raw scores; targets 0. and 1. of the "
                "same shape",
            ),
            "Gradient of the score: probability − target, never exactly 0 while wrong.",
        )
    return Remedy(
        "loss",
        "Use cross-entropy on raw scores",
        "CrossEntropyLoss combines log-softmax and likelihood in one exact step: no log(0) for sure "
        "answers, and a "
        "gradient of probability − target at every output.",
        block(
            "import torch",
            "",
            "loss_function = torch.nn.CrossEntropyLoss()  # on raw scores of shape (N, classes); targets: "
            "class indices",
        ),
        "Initial loss ≈ ln(classes); gradient at the output between −1 and 1.",
    )


def match_shapes(case: Case) -> Remedy | None:
    """Bring predictions and targets to one shape, where broadcasting compares each with every other."""
    shapes = case.run.info.loss.get("shapes", ())
    if not is_regression(case) and not shapes:
        return None
    different = len({str(shape) for shape in shapes}) > 1
    told = " and ".join(str(shape) for shape in shapes) if different else "(N, 1) and (N,)"
    return Remedy(
        "loss",
        "Give predictions and targets the same shape",
        f"Shapes {told} broadcast to (N, N): the loss then compares every prediction with every target, and "
        "the "
        "best answer is the mean.",
        block(
            "predictions = model(inputs)",
            "targets = targets.reshape(predictions.shape)  # fails, as it should, if the sizes differ",
        ),
        "The loss averages N differences instead of N².",
    )


def robust_loss(case: Case) -> Remedy | None:
    """Use Huber's loss, whose gradient outliers can't raise."""
    if not is_regression(case):
        return None
    return Remedy(
        "loss",
        "Use Huber's loss instead of the squared error",
        "The squared error's gradient grows with the error, so a few far targets set the size of the whole "
        "step; "
        "Huber's stays at 1 beyond delta (Huber 1964).",
        block(
            "import torch",
            "",
            "loss_function = torch.nn.HuberLoss(delta=1.0)  # with standardised targets",
        ),
        "Gradient at the output at most 1 a sample.",
    )


def _takes(case: Case, function: str) -> bool:
    return any(str(name).startswith(function) for name in case.run.info.loss.get("functions", ()))


def _single_softmax(case: Case) -> bool:
    return any(layer.activation in _SOFTMAX for layer in output_activations(case))
