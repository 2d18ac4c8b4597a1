"""Remedies of numerical precision."""

from __future__ import annotations

from gradscope.prescribe.case import Case
from gradscope.prescribe.paste import block
from gradscope.records import Remedy


def is_half(case: Case) -> bool:
    """Say whether training runs in 16 bits."""
    return "16" in str(case.fact("precision") or "") or any(
        item.dtype.removeprefix("torch.") in ("float16", "bfloat16") for item in case.run.parameters
    )


def use_bfloat16(case: Case) -> Remedy | None:
    """Use bfloat16, which has float32's range, for float16."""
    precision = str(case.fact("precision") or "")
    already = any("bfloat16" in item.dtype for item in case.run.parameters)
    if "bf16" in precision or already or not is_half(case):
        return None
    code = (
        block(case.trainer, "", 'trainer = pl.Trainer(precision="bf16-mixed")')
        if case.trainer
        else block(
            "import torch",
            "",
            "device = next(model.parameters()).device.type",
            "with torch.autocast(device, dtype=torch.bfloat16):  # around forward and loss; no GradScaler "
            "needed",
            "    loss = loss_function(model(inputs), targets)",
        )
    )
    return Remedy(
        "precision",
        "Use bfloat16 instead of float16",
        "float16 ends at 65,504 above and at 6e-8 below; bfloat16 has float32's range with fewer digits "
        "(Kalamkar et al. 2019).",
        code,
        "Smallest gradient 6e-8 → 1e-38, largest value 6.6e4 → 3e38.",
        {"do": "train", "precision": "bf16-mixed"},
    )


def scale_loss(case: Case) -> Remedy | None:
    """Scale the loss so that small gradients survive float16."""
    bfloat16 = any("bfloat16" in item.dtype for item in case.run.parameters)
    if case.trainer or not is_half(case) or bfloat16 or "bf16" in str(case.fact("precision")):
        return None
    return Remedy(
        "precision",
        "Scale the loss",
        "Gradients below 6e-8 become 0 in float16; multiplied by 2^16 before the backward pass and divided "
        "after it, "
        "they survive (Micikevicius et al. 2018).",
        block(
            "import torch",
            "",
            "scaler = torch.amp.GradScaler(next(model.parameters()).device.type)  # once, before training",
            "scaler.scale(loss).backward()",
            "scaler.unscale_(optimizer)  # before clipping",
            "scaler.step(optimizer)",
            "scaler.update()",
        ),
        "Smallest gradient that survives 6e-8 → 9e-13.",
        {"do": "train", "precision": "16-mixed"},
    )


def widen_half(case: Case) -> Remedy | None:
    """Train in float32 where weights themselves are of float16, which ends at 65,504 and at 6e-8."""
    half = any(item.dtype.removeprefix("torch.") == "float16" for item in case.run.parameters)
    return use_float32(case) if half else None


def use_float32(case: Case) -> Remedy | None:
    """Train in float32."""
    code = (
        block(case.trainer, "", 'trainer = pl.Trainer(precision="32-true")')
        if case.trainer
        else "model = model.float()  # and no torch.autocast around forward"
    )
    return Remedy(
        "precision",
        "Train in float32, to see whether precision is the cause",
        "The slow but safe test: if the finding disappears in float32, 16 bits were too few.",
        code,
        "Relative rounding error 5e-4 (float16) or 4e-3 (bfloat16) → 6e-8.",
        {"do": "train", "precision": "32-true"},
    )
