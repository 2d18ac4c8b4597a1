"""Remedies of the learning rate: a figure from the measured updates, and warm-up."""

from __future__ import annotations

from gradscope.prescribe.case import Case
from gradscope.prescribe.clipping import blown_up
from gradscope.prescribe.paste import block, figure, rounded
from gradscope.records import Remedy

# |update| / |weight| of the first step of networks that learn quickly, whatever their width: of plain SGD,
# and of Adam, whose later steps are smaller than its first. Measured by benchmarks/remedies.
FIRST_STEP, FIRST_STEP_OF_ADAM = 3e-2, 6e-2
# Rates that people use: what leads beyond them was measured in a network that had blown up or faded.
_RATES, _RATES_OF_ADAM = (1e-5, 1.0), (1e-5, 1e-2)
_FAR_TOO_HIGH = 0.5  # of the weights, in one step
_LOW_ENOUGH = 1e-3  # a rate whose updates are this small is not what ails
_SMALLEST_CHANGE, _FALLBACK_CHANGE = 3.0, 10.0
_NEIGHBOUR = 5.0
_WARMUP_SHARE = 0.1
_COARSE = 2.0**-9  # what half of bfloat16's spacing is, relative to a weight
_OF_THE_RATE = ("learning-rate-too-high", "loss-divergence", "non-finite", "dead-units")


def lower_if_killed(case: Case) -> Remedy | None:
    """Lower the rate where units died during training, not where they started dead."""
    return None if case.number("dead_at_start") else lower(case)


def lower_if_far_too_high(case: Case) -> Remedy | None:
    """Lower first of all a rate of Adam's whose first step alone already takes most of the weights' place."""
    if case.first_update is None or not case.adaptive or not case.lr:
        return None
    ratio = case.first_update[0] * case.lr / case.first_update[1]
    return lower(case) if ratio > _FAR_TOO_HIGH else None


def lower_if_saturated_later(case: Case) -> Remedy | None:
    """Lower the rate where units saturated during training, not where they started saturated."""
    return lower(case) if case.number("saturated_at_start") == 0 else None


def lower_if_blown_up(case: Case) -> Remedy | None:
    """Lower the rate where gradients or steps were out of proportion before the end."""
    return lower(case) if blown_up(case) else None


def lower(case: Case) -> Remedy | None:
    """Lower the rate until the first step changes the weights by a few per cent."""
    ratio = case.number("update_ratio") or case.update_ratio
    if not case.lr or (case.finding.rule not in _OF_THE_RATE and ratio is not None and ratio <= _LOW_ENOUGH):
        return None
    return _changed(case, case.lr, 1 / _factor(case, case.lr, down=True))


def higher(case: Case) -> Remedy | None:
    """Raise the rate until the first step changes the weights by a few per cent."""
    return _changed(case, case.lr, _factor(case, case.lr, down=False)) if case.lr else None


def lower_further(case: Case) -> Remedy | None:
    """Lower the rate to a fifth of that, as no share fits every network."""
    if lower(case) is None or not case.lr:
        return None
    return _changed(case, case.lr, 1 / (_NEIGHBOUR * _factor(case, case.lr, down=True)))


def higher_less(case: Case) -> Remedy | None:
    """Raise the rate to a fifth of that, as no share fits every network."""
    factor = _factor(case, case.lr, down=False) / _NEIGHBOUR if case.lr else 0.0
    return _changed(case, case.lr, factor) if case.lr and factor > _SMALLEST_CHANGE else None


def higher_if_rounded_away(case: Case) -> Remedy | None:
    """Raise the rate where 16-bit weights are too coarse for the updates."""
    small = case.first_update is not None and case.first_update[0] < _COARSE
    half = any("bfloat16" in item.dtype for item in case.weights)
    return higher(case) if small and half else None


def fitting_rate(case: Case) -> float | None:
    """Return the rate at which the first step changes the weights by a few per cent, None if unmeasured.

    It stays within the rates that people use.
    """
    if case.first_update is None:
        return None
    ratio, rate = case.first_update
    return usable(case, first_step(case) * rate / ratio)


def first_step(case: Case) -> float:
    """Return the share of the weights by which the first step of this optimizer should change them."""
    return FIRST_STEP_OF_ADAM if case.adaptive else FIRST_STEP


def usable(case: Case, rate: float) -> float:
    """Return the nearest rate that people use with this optimizer."""
    like_adam = any(word in case.optimizer.lower() for word in ("adam", "rms", "lion"))
    low, high = _RATES_OF_ADAM if like_adam and "adamax" not in case.optimizer.lower() else _RATES
    return min(max(rate, low), high)


def _factor(case: Case, rate: float, down: bool) -> float:
    """Return by what to divide or multiply the rate."""
    fitting = fitting_rate(case)
    told = case.number("suggested_factor")
    if fitting:
        factor = rate / fitting if down else fitting / rate
    elif told:
        wanted = usable(case, rate * told)
        factor = rate / wanted if down else wanted / rate
    else:
        factor = _FALLBACK_CHANGE
    if factor < _SMALLEST_CHANGE:
        factor = _FALLBACK_CHANGE if down else _SMALLEST_CHANGE
    return factor


def _changed(case: Case, before: float, factor: float) -> Remedy:
    rate = rounded(before * factor)
    what = "Lower" if factor < 1 else "Raise"
    if case.first_update is None:
        times = figure(max(factor, 1 / factor))
        why = f"No update could be measured, so a factor of {times} is the first to try."
        expected = f"Updates {times} times {'smaller' if factor < 1 else 'larger'}."
    else:
        ratio = case.first_update[0] * before / case.first_update[1]
        why = (
            f"At {figure(before)} the first step changes the weights by {figure(ratio)} of their size; in "
            f"networks that learn it is about {figure(first_step(case))}."
        )
        expected = f"First update {figure(ratio)} → {figure(ratio * rate / before)} of the weights."
    return Remedy(
        "learning-rate",
        f"{what} the learning rate from {figure(before)} to {figure(rate)}",
        why,
        rate_code(case, rate),
        expected,
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
