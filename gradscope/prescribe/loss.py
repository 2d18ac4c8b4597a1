"""Remedies of the output and the loss: what the loss expects of the last layer."""

from __future__ import annotations

from gradscope.prescribe.case import Case
from gradscope.prescribe.optimizer import with_fitting_steps
from gradscope.prescribe.paste import block
from gradscope.prescribe.scaling import is_regression, scale_inputs, scale_targets
from gradscope.prescribe.together import together
from gradscope.records import LayerInfo, Remedy

_SOFTMAX = ("softmax", "softmin")
_BY_FUNCTION = {"SoftmaxBackward0": "softmax", "SigmoidBackward0": "sigmoid", "TanhBackward0": "tanh"}
# Codes of output-mismatch's evidence
_BROADCAST, _OUT_OF_RANGE, _TURNED = 5.0, 6.0, 7.0
_FAR = 10.0  # size of targets from which the inputs are taken to be unscaled as well


def output_modules(case: Case) -> list[LayerInfo]:
    """Return the activation modules between the output layers and the loss."""
    behind = [case.activation_behind.get(name) for name in sorted(case.outputs)]
    blamed = case.finding.layers if case.finding.rule == "output-mismatch" else ()
    layers = [*(layer for layer in behind if layer is not None), *map(case.run.layer, blamed)]
    return list({layer.name: layer for layer in layers if layer.role == "activation"}.values())


def output_activation(case: Case) -> str | None:
    """Return the activation at the output, be it a module or a call."""
    for name in sorted(case.outputs):
        if name in case.activation_behind:
            return case.activation_behind[name].activation
    for layer in output_modules(case):
        return layer.activation
    functions = [str(name) for name in case.run.info.loss.get("functions", ())]
    return next((_BY_FUNCTION[name] for name in functions if name in _BY_FUNCTION), None)


def use_single_score(case: Case) -> Remedy | None:
    """Put a sigmoid in the loss for a softmax over a single unit."""
    widths = {case.units(case.run.layer(name)) for name in case.outputs}
    told = case.number("mismatch") == 1.0
    if not told and not (widths == {1} and output_activation(case) in _SOFTMAX):
        return None
    modules = [layer.name for layer in output_modules(case)]
    if is_regression(case):
        return _drop_single_softmax(case, modules)
    if _takes_probabilities(case) and modules:
        return Remedy(
            "loss",
            "Put a sigmoid for the softmax over the single output",
            "A softmax over one unit is always 1, and its gradient always 0; the sigmoid makes a "
            "probability of a single score, and the loss stays as it is.",
            block("import torch", "", _exchanged(modules, "Sigmoid")),
            "Gradient of the score 0 → that of its probability.",
            {"do": "replace-activation", "to": "sigmoid", "layers": modules},
        )
    return Remedy(
        "loss",
        "Take the softmax off the single output and use BCEWithLogitsLoss",
        "A softmax over one unit is always 1, and its gradient always 0; a single score needs a sigmoid, "
        "which "
        "this loss applies itself, without rounding sure answers to log(0).",
        block(
            "import torch",
            "",
            _without(modules),
            "loss_function = torch.nn.BCEWithLogitsLoss()  # on raw scores; targets 0. and 1., same shape",
        ),
        "Gradient of the score 0 → probability − target.",
        _drop(modules),
    )


def _drop_single_softmax(case: Case, modules: list[str]) -> Remedy:
    remedy = Remedy(
        "loss",
        "Take the softmax off the single output",
        "A softmax over one unit is always 1, and its gradient always 0; a regression ends linear.",
        block("import torch", "", _without(modules)),
        "Gradient of the output 0 → that of its error.",
        _drop(modules),
    )
    return (with_fitting_steps(case, remedy) if remedy.action else None) or remedy


def use_probabilities(case: Case) -> Remedy | None:
    """Put a sigmoid for another activation in front of a loss that compares probabilities one by one."""
    modules = [layer.name for layer in output_modules(case)]
    kind = output_activation(case)
    if not modules or kind in (None, "sigmoid") or not _takes_probabilities(case):
        return None
    return Remedy(
        "loss",
        f"Put a sigmoid for {kind} at the output",
        f"The loss compares each output with a probability, 0 to 1 and whatever the others are; {kind} gives "
        "something else.",
        block("import torch", "", _exchanged(modules, "Sigmoid")),
        "Every output in 0 to 1, free of the others.",
        {"do": "replace-activation", "to": "sigmoid", "layers": modules},
    )


def drop_output_activation(case: Case) -> Remedy | None:
    """Take away an output activation that the loss applies itself, or that keeps the targets out of reach."""
    kind = output_activation(case)
    if kind is None or case.number("mismatch") == _BROADCAST:
        return None
    modules = [layer.name for layer in output_modules(case)]
    why = (
        f"{kind} bounds the output, so targets outside its range can't be reached; a regression ends linear."
        if is_regression(case)
        else f"The loss takes raw scores; {kind} before it squashes the gradient and bounds what can be said."
    )
    return Remedy(
        "loss",
        f"Take {kind} away from the output",
        why,
        block("import torch", "", _without(modules))
        if modules
        else f"# in forward() or in the training step: give the loss the raw scores, without {kind}",
        "Slope between loss and output layer → 1; outputs unbounded.",
        _drop(modules),
    )


def drop_saturated_output(case: Case) -> Remedy | None:
    """Take away the activation of the output where training drove it into saturation: it bounds too much."""
    modules = {layer.name for layer in output_modules(case)}
    blamed = set(case.finding.layers)
    if not blamed or not blamed <= modules or case.number("saturated_at_start"):
        return None
    return drop_output_activation(case)


def free_output(case: Case) -> Remedy | None:
    """Take a bounded output's activation away and standardise what it could not reach."""
    freed, scaled = drop_output_activation(case), scale_targets(case)
    if case.number("mismatch") != _OUT_OF_RANGE or (case.number("target_rms") or 0.0) < _FAR:
        return None
    if freed is None or scaled is None or not freed.action:
        return None
    inputs = scale_inputs(case)
    return together(freed, scaled, inputs) if inputs else together(freed, scaled)


def turn_sign(case: Case) -> Remedy | None:
    """Turn the sign of a loss that falls without end."""
    if case.number("mismatch") != _TURNED:
        return None
    return Remedy(
        "code",
        "Turn the sign of the loss",
        "The optimizer minimises: with a minus before the error it makes the error as large as it can, "
        "and the loss falls without end.",
        block(
            "loss = loss_function(model(inputs), targets)  # no minus before it, and the prediction first",
            "loss.backward()",
        ),
        "The loss falls towards 0 and stays above it.",
    )


def _takes_probabilities(case: Case) -> bool:
    functions = [str(name) for name in case.run.info.loss.get("functions", ())]
    return any(name.startswith("BinaryCrossEntropyBackward") for name in functions)


def use_logits(case: Case) -> Remedy | None:
    """Use a loss that takes raw scores and is exact for sure ones."""
    if is_regression(case):
        return None
    single = bool(case.outputs) and {case.units(case.run.layer(name)) for name in case.outputs} == {1}
    loss = "BCEWithLogitsLoss" if single else "CrossEntropyLoss"
    takes = "targets 0. and 1., same shape" if single else "scores (N, classes), targets: class indices (N,)"
    return Remedy(
        "loss",
        f"Use {loss} on raw scores",
        f"{loss} takes {'sigmoid' if single else 'log-softmax'} and likelihood in one exact step: no log(0) "
        "for "
        "sure answers, and a gradient of probability − target at every output.",
        block("import torch", "", f"loss_function = torch.nn.{loss}()  # {takes}"),
        "Initial loss ≈ ln 2 = 0.69." if single else "Initial loss ≈ ln(number of classes).",
    )


def match_shapes(case: Case) -> Remedy | None:
    """Bring predictions and targets to one shape, where broadcasting compares each with every other."""
    shapes = case.run.info.loss.get("shapes", ())
    told = case.number("mismatch")
    if told != _BROADCAST and (told is not None or not is_regression(case)):
        return None
    different = len({str(shape) for shape in shapes}) > 1
    named = " and ".join(str(tuple(shape)) for shape in shapes) if different else "(N, 1) and (N,)"
    return Remedy(
        "loss",
        "Give predictions and targets the same shape",
        f"Shapes {named} broadcast to (N, N): the loss then compares every prediction with every target, and "
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


def _without(modules: list[str]) -> list[str]:
    """Return the lines that replace modules by the identity."""
    if not modules:
        return ["# in forward() or in the training step: give the loss the raw scores"]
    return _exchanged(modules, "Identity")


def _exchanged(modules: list[str], kind: str) -> list[str]:
    """Return the lines that put modules of torch.nn for others."""
    return [
        f"for name in {modules!r}:",
        '    parent, _, child = name.rpartition(".")',
        f"    setattr(model.get_submodule(parent), child, torch.nn.{kind}())",
    ]


def _drop(modules: list[str]) -> dict[str, object]:
    return {"do": "replace-activation", "to": "identity", "layers": modules} if modules else {}
