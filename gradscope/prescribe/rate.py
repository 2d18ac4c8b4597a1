"""Remedies of the learning rate: a figure from the measured updates, and warm-up."""

from __future__ import annotations

from gradscope.prescribe.case import Case
from gradscope.prescribe.clipping import blown_up
from gradscope.prescribe.paste import block, figure, rounded
from gradscope.records import Remedy

# |update| / |weight| of a network that learns steadily; usual band 1e-4 to 1e-2.
TARGET = 3e-3
_LOW_ENOUGH = 1e-3  # a rate whose updates are this small is not what ails
_SMALLEST_CUT, _FALLBACK_CUT, _LARGEST_CUT = 3.0, 10.0, 1e4
_WARMUP_SHARE = 0.1
_OF_THE_RATE = ("learning-rate-too-high", "loss-divergence", "non-finite", "dead-units")


def lower_if_killed(case: Case) -> Remedy | None:
    """Lower the rate where units died during training, not where they started dead."""
    return None if case.number("dead_at_start") else lower(case)


def lower_if_saturated_later(case: Case) -> Remedy | None:
    """Lower the rate where units saturated during training, not where they started saturated."""
    return lower(case) if case.number("saturated_at_start") == 0 else None


def lower_if_blown_up(case: Case) -> Remedy | None:
    """Lower the rate where gradients or steps were out of proportion before the end."""
    return lower(case) if blown_up(case) else None


def lower(case: Case) -> Remedy | None:
    """Lower the rate so that a step changes the weights by about 0.3 %."""
    ratio = case.number("update_ratio") or case.update_ratio
    if not case.lr or (case.finding.rule not in _OF_THE_RATE and ratio is not None and ratio <= _LOW_ENOUGH):
        return None
    told = case.number("suggested_factor")
    cut = 1 / told if told else ratio / TARGET if ratio else _FALLBACK_CUT
    if cut < _SMALLEST_CUT:
        cut = _FALLBACK_CUT
    rate = rounded(case.lr / min(cut, _LARGEST_CUT))
    measured = (
        f"A step changes the weights by {figure(ratio)} of their size in the median; networks that learn "
        "steadily "
        f"change by about {figure(TARGET)}."
        if ratio
        else "No update could be measured, so a tenth of the rate is the first to try."
    )
    after = ratio * rate / case.lr if ratio else None
    return Remedy(
        "learning-rate",
        f"Lower the learning rate from {figure(case.lr)} to {figure(rate)}",
        measured,
        rate_code(case, rate),
        f"Update ratio {figure(ratio)} → {figure(after)}."
        if ratio and after
        else "Updates ten times smaller.",
        {"do": "train", "rate": rate},
    )


def higher(case: Case) -> Remedy | None:
    """Raise the rate so that a step changes the weights by about 0.3 %."""
    if not case.lr:
        return None
    ratio = case.number("update_ratio") or case.update_ratio
    told = case.number("suggested_factor") or (TARGET / ratio if ratio else _FALLBACK_CUT)
    factor = min(max(told, _SMALLEST_CUT), _LARGEST_CUT)
    rate = rounded(case.lr * factor)
    measured = (
        f"A step changes the weights by only {figure(ratio)} of their size" if ratio else "Updates are tiny"
    )
    return Remedy(
        "learning-rate",
        f"Raise the learning rate from {figure(case.lr)} to {figure(rate)}",
        f"{measured}; about {figure(TARGET)} is usual.",
        rate_code(case, rate),
        f"Update ratio {figure(ratio)} → {figure(ratio * rate / case.lr)}."
        if ratio
        else "Updates ten times larger.",
        {"do": "train", "rate": rate},
    )


def warm_up(case: Case) -> Remedy | None:
    """Let the rate rise linearly over the first steps."""
    steps = warmup_steps(case)
    adam = "adam" in case.optimizer.lower()
    why = (
        "Adam's estimate of the gradient's size rests on few samples at first, so its first steps are the "
        "most "
        "erratic; 2 / (1 − beta2) steps of warm-up are enough (Ma & Yarats 2021)."
        if adam
        else "The first steps, from random weights, see the steepest loss; a rate that rises slowly "
        "crosses it "
        "without being thrown out (Goyal et al. 2017)."
    )
    return Remedy(
        "warmup",
        f"Warm the learning rate up over {steps} steps",
        why,
        block(
            "import torch",
            "",
            "# call warmup.step() after each optimizer.step()"
            if not case.trainer
            else '# in configure_optimizers: return [optimizer], [{"scheduler": warmup, "interval": "step"}]',
            "warmup = torch.optim.lr_scheduler.LinearLR(",
            f"    optimizer, start_factor={figure(1 / steps)}, total_iters={steps}",
            ")",
        ),
        f"First step {figure(1 / steps)} of the full rate; full rate from step {steps} on.",
        {"do": "train", "warmup_steps": steps},
    )


def warmup_steps(case: Case) -> int:
    """Return 2 / (1 − beta2) steps, but at most a tenth of the training."""
    groups = case.run.info.optimizers[0].groups if case.run.info.optimizers else ()
    betas = groups[0].get("betas") if groups else None
    wanted = 2 / (1 - betas[1]) if isinstance(betas, (list, tuple)) and betas[1] < 1 else 1000.0
    planned = case.fact("max_steps")
    total = planned if isinstance(planned, int) and planned > 0 else case.last_step + 1
    return int(max(rounded(max(min(wanted, _WARMUP_SHARE * total), 10.0)), 10))


def rate_code(case: Case, rate: float) -> str:
    """Return code that sets the rate of an optimizer that exists, before any scheduler is made from it."""
    rates = {group.get("lr") for optimizer in case.run.info.optimizers for group in optimizer.groups}
    where = "# in configure_optimizers, where the optimizer is made" if case.trainer else "# where it is made"
    if len(rates) > 1 and case.lr:
        return block(
            f"{where}; the ratio between the groups is kept",
            "for group in optimizer.param_groups:",
            f'    group["lr"] *= {figure(rate / case.lr)}',
        )
    return block(
        f"{where}, or by its lr argument",
        "for group in optimizer.param_groups:",
        f'    group["lr"] = {figure(rate)}',
    )
