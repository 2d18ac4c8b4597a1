"""Remedies in the training code: what to correct, and how to find the place."""

from __future__ import annotations

from gradscope.prescribe.case import Case
from gradscope.prescribe.paste import block, name_list, some
from gradscope.records import Remedy


def zero_gradients(case: Case) -> Remedy:
    """Clear gradients once a step."""
    return Remedy(
        "code",
        "Call optimizer.zero_grad() once a step",
        "backward() adds to the gradients that are there; without clearing, each step repeats all former "
        "batches.",
        block(
            "optimizer.zero_grad()",
            "loss = loss_function(model(inputs), targets)",
            "loss.backward()",
            "optimizer.step()",
        ),
        "The gradient is that of one batch; its norm stops growing with the step count.",
    )


def shrink_accumulation(case: Case) -> Remedy | None:
    """Divide the loss by the number of micro-batches where accumulation is meant."""
    micro = case.run.steps["micro_batches"].max() if "micro_batches" in case.run.steps else None
    if case.trainer:
        return None
    count = int(micro) if micro and micro > 1 else 4
    return Remedy(
        "code",
        "If accumulation is meant, divide the loss by the number of batches and clear after the step",
        "Gradients of several batches add up; the sum acts as a learning rate that many times larger.",
        block(
            f"batches_a_step = {count}",
            "for _ in range(batches_a_step):",
            "    (loss_function(model(inputs), targets) / batches_a_step).backward()",
            "optimizer.step()",
            "optimizer.zero_grad()",
        ),
        f"Gradient norm divided by {count}: that of the mean over the batches.",
    )


def find_missing_gradients(case: Case) -> Remedy:
    """Show which parameters get no gradient, and where the graph is cut."""
    names = list(case.finding.parameters)
    where = f" ({some(names)})" if names else ""
    return Remedy(
        "code",
        "Find where the graph is cut",
        f"Parameters without a gradient{where} do not reach the loss: their layer isn't called in "
        "forward(), or "
        "its output passes .detach(), .item(), .data, numpy, argmax or torch.no_grad() on the way.",
        block(
            "loss = loss_function(model(inputs), targets)",
            "loss.backward()",
            "for name, parameter in model.named_parameters():",
            "    if parameter.requires_grad and parameter.grad is None:",
            '        print("no gradient:", name)',
        ),
        "Nothing printed: every trainable parameter gets a gradient.",
    )


def find_zero_gradients(case: Case) -> Remedy:
    """Show at which layer the gradient becomes zero."""
    return Remedy(
        "code",
        "Find the layer at which the gradient becomes zero",
        "A gradient of exactly 0 has a cause at one place: a dead or saturated layer, a softmax over one "
        "unit, zero "
        "weights, a rounding or comparing operation.",
        block(
            "loss = loss_function(model(inputs), targets)",
            "loss.backward()",
            "for name, parameter in model.named_parameters():",
            "    if parameter.grad is not None:",
            '        print(f"{name}: {parameter.grad.norm():.3g}")',
        ),
        "The last layer printed with 0 is where to look; after the fix none is 0.",
    )


def find_nonfinite(case: Case) -> Remedy:
    """Stop at the operation that makes the first NaN."""
    layers = some(case.finding.layers)
    where = f"It first showed in {layers}" if layers else "It showed"
    code = (
        block(case.trainer, "", "trainer = pl.Trainer(detect_anomaly=True)  # slow: for the search only")
        if case.trainer
        else block(
            "import torch",
            "",
            "with torch.autograd.detect_anomaly():  # slow: for the search only",
            "    loss_function(model(inputs), targets).backward()",
        )
    )
    return Remedy(
        "code",
        "Stop at the operation that makes the first NaN",
        f"{where} at step {case.finding.first_step}; log(0), division by 0, sqrt at 0 and exp of large "
        "numbers are the "
        "usual ones, and anomaly detection names the line.",
        code,
        "An exception with the forward line, instead of NaN weights.",
    )


def check_data(case: Case) -> Remedy:
    """Reject batches with NaN or infinite values."""
    return Remedy(
        "code",
        "Check the batches for NaN and infinity",
        "A single missing value in the data turns every weight into NaN within one step.",
        block(
            "import torch",
            "",
            "assert torch.isfinite(inputs).all(), 'inputs hold NaN or infinity'",
            "assert torch.isfinite(targets.float()).all(), 'targets hold NaN or infinity'",
        ),
        "The first bad batch is named, or the data is cleared of suspicion.",
    )


def clip_at_the_right_place(case: Case) -> Remedy:
    """Clip between backward and step, after unscaling."""
    limit = case.number("clip_value") or case.fact("clip_value")
    value = limit if isinstance(limit, (int, float)) and limit > 0 else 1.0
    code = (
        block(
            case.trainer,
            "",
            f'trainer = pl.Trainer(gradient_clip_val={value:g}, gradient_clip_algorithm="norm")',
        )
        if case.trainer
        else block(
            "import torch",
            "",
            "optimizer.zero_grad()",
            "loss_function(model(inputs), targets).backward()",
            "# with a GradScaler: scaler.unscale_(optimizer) here, or the limit is compared with scaled "
            "gradients",
            f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={value:g})",
            "optimizer.step()",
        )
    )
    return Remedy(
        "code",
        "Clip the joint norm between backward() and step()",
        "The norm is above the limit when the optimizer reads it: clipping runs before backward(), after "
        "step(), on "
        "other parameters, before unscaling, or by value, which bounds entries and not the norm.",
        code,
        f"Norm that the optimizer sees ≤ {value:g} in every step.",
        {"do": "train", "clipping": {"algorithm": "norm", "limit": float(value)}},
    )


def unfreeze(case: Case) -> Remedy | None:
    """Let frozen parameters train."""
    frozen = [item.name for item in case.run.parameters if not item.trained]
    if not frozen:
        return None
    return Remedy(
        "code",
        f"Let {some(frozen)} train",
        f"{len(frozen)} parameters are frozen, and what comes before them in the graph may be cut off.",
        block(f"for name in {name_list(frozen)}:", "    model.get_parameter(name).requires_grad_(True)"),
        f"{len(frozen)} more parameters with a gradient.",
        {"do": "unfreeze", "parameters": frozen},
    )


def enlarge_batch(case: Case) -> Remedy:
    """Give batch statistics enough samples."""
    size = case.fact("batch_size")
    told = f"Batches hold {size} samples" if isinstance(size, int) else "Batches are too small, or alike"
    return Remedy(
        "code",
        "Use batches of 16 samples or more, shuffled",
        f"{told}; statistics over few samples are noise, and over equal samples a division by 0.",
        block(
            "import torch",
            "",
            "loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True, drop_last=True)",
        ),
        "Relative error of a batch's deviation 1 / sqrt(2 × 32) = 0.13.",
    )


def treat_cause(case: Case) -> Remedy:
    """Point to the finding that this one follows from."""
    cause = case.finding.caused_by or ""
    return Remedy(
        "code",
        f"Treat {cause} first",
        f"This follows from {cause}; its remedies stand there.",
        f"# see the remedies of {cause}",
        "Disappears with its cause.",
    )
