"""Remedies of gradient clipping, with limits taken from the run's own gradient norms."""

from __future__ import annotations

import numpy as np

from gradscope.prescribe.case import Case
from gradscope.prescribe.paste import block, figure
from gradscope.records import Remedy

_WINDOW = 50
_BLOWN_UP = 100.0
# The largest update of plain SGD that a limit may allow, as a share of the weights' norm.
_LARGEST_STEP = 1e-2


def clip(case: Case) -> Remedy | None:
    """Clip the gradient's norm at what was usual in this run, where that bounds the steps.

    An optimizer that divides by the gradient's size doesn't feel a limit on norms that are steadily large.
    """
    limit = limit_from(case)
    if limit is None or (case.adaptive and not case.recurrent and not spiky(case)):
        return None
    old = case.fact("clip_value")
    if isinstance(old, (int, float)) and 0 < old <= limit:
        return None
    norms = case.grad_norms
    return Remedy(
        "clipping",
        f"Clip the gradient norm at {figure(limit)}",
        f"The gradient norm was {figure(float(np.median(norms)))} in the middle and up to "
        f"{figure(float(norms.max()))}; {_source(case, limit)} (Pascanu et al. 2013).",
        clip_code(case, limit),
        f"Largest gradient norm {figure(float(norms.max()))} → {figure(limit)}; directions are kept.",
        {"do": "train", "clipping": {"algorithm": "norm", "limit": limit}},
    )


def clip_at_one(case: Case) -> Remedy:
    """Clip the gradient norm at 1, the limit that most who train with Adam take."""
    return Remedy(
        "clipping",
        "Clip the gradient norm at 1",
        "A limit keeps single batches from throwing what was learned away, and costs Adam nothing elsewhere.",
        clip_code(case, 1.0),
        "Largest gradient norm → 1; directions are kept.",
        {"do": "train", "clipping": {"algorithm": "norm", "limit": 1.0}},
    )


def clip_spikes(case: Case) -> Remedy | None:
    """Clip first of all where a recurrence's gradient comes in bursts, which no initialisation prevents."""
    return clip(case) if case.recurrent and spiky(case) else None


def clip_if_blown_up(case: Case) -> Remedy | None:
    """Clip where gradients or steps were out of proportion before the end."""
    return clip(case) if blown_up(case) else None


def blown_up(case: Case) -> bool:
    """Say whether gradients grew 100-fold, or steps were larger than 3 % of the weights, before the end."""
    norms = case.grad_norms
    grown = len(norms) > 1 and float(norms[-5:].max()) > _BLOWN_UP * float(np.median(norms[:5]))
    steep = case.peak_update_ratio is not None and case.peak_update_ratio > case.settings.update_ratio_high
    large = len(norms) > 0 and float(norms[-1]) > _BLOWN_UP * (case.weight_norm or np.inf)
    return grown or steep or large


def clip_adaptively(case: Case) -> Remedy | None:
    """Clip each unit's gradient to a share of its weights, where no single limit fits all layers."""
    if not case.weights:
        return None
    return Remedy(
        "clipping",
        "Clip each unit's gradient to 1 % of its weights' norm",
        "A single limit for the whole network is set by the layers with the largest gradients; a limit for "
        "each "
        "unit, relative to its own weights, isn't (adaptive gradient clipping, Brock et al. 2021).",
        block(
            "import torch",
            "",
            "with torch.no_grad():  # after loss.backward(), before optimizer.step()",
            "    for parameter in model.parameters():",
            "        if parameter.grad is None or parameter.dim() < 2:",
            "            continue",
            "        weight = parameter.flatten(1).norm(dim=1).clamp(min=1e-3)",
            "        gradient = parameter.grad.flatten(1).norm(dim=1)",
            "        scale = (0.01 * weight / gradient.clamp(min=1e-12)).clamp(max=1.0)",
            "        parameter.grad.mul_(scale.view(-1, *[1] * (parameter.dim() - 1)))",
        ),
        "|gradient| / |weight| of every unit at most 0.01.",
        {"do": "train", "clipping": {"algorithm": "adaptive", "limit": 0.01}},
    )


def loosen(case: Case) -> Remedy | None:
    """Raise a limit that cuts nearly every step to the 90th percentile of the norms."""
    norms = non_spikes(case)
    told = case.number("norm_p90")
    if not len(norms) and told is None:
        return stop_clipping(case)
    limit = _two_digits(told or float(np.percentile(norms, 90)))
    old = case.number("clip_value") or case.fact("clip_value")
    before = f" from {figure(old)}" if isinstance(old, (int, float)) else ""
    return Remedy(
        "clipping",
        f"Raise the clipping limit{before} to {figure(limit)}",
        f"The limit cuts nearly every step, so it acts as a smaller learning rate; {figure(limit)} is the "
        "90th "
        "percentile of this run's own norms and cuts only the outliers.",
        clip_code(case, limit),
        "Share of clipped steps → about 0.10.",
        {"do": "train", "clipping": {"algorithm": "norm", "limit": limit}},
    )


def stop_clipping(case: Case) -> Remedy | None:
    """Take the clipping away where the norms show no spikes."""
    norms = case.grad_norms
    if spiky(case):
        return None
    code = (
        f"{case.trainer}\n\ntrainer = pl.Trainer(gradient_clip_val=None)"
        if case.trainer
        else "# delete the call of torch.nn.utils.clip_grad_norm_ or clip_grad_value_"
    )
    seen = (
        f"No spike among {len(norms)} recorded norms: the largest is {figure(float(norms.max()))}, the "
        f"median {figure(float(np.median(norms)))}."
        if len(norms)
        else "A limit that cuts nearly every step is a smaller learning rate by another name."
    )
    return Remedy(
        "clipping",
        "Do without clipping",
        seen,
        code,
        "Share of clipped steps → 0.",
        {"do": "train", "clipping": {"algorithm": "none"}},
    )


def clip_code(case: Case, limit: float) -> str:
    """Return the Trainer's argument, or the call in a loop of one's own."""
    if case.trainer:
        return block(
            case.trainer,
            "",
            f'trainer = pl.Trainer(gradient_clip_val={figure(limit)}, gradient_clip_algorithm="norm")',
        )
    return block(
        "import torch",
        "",
        "# after loss.backward(), before optimizer.step()",
        f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={figure(limit)})",
    )


def spiky(case: Case) -> bool:
    """Say whether some norms stand out of those before them."""
    return len(non_spikes(case)) < len(case.grad_norms)


def limit_from(case: Case) -> float | None:
    """Return a limit: a percentile of the usual norms, lower where plain SGD would still step too far.

    The 90th percentile keeps what is usual; the median, where what is usual is itself too large.
    """
    norms = non_spikes(case)
    if not len(norms):
        return None
    usual_is_ill = case.finding.rule == "exploding-gradient" and not spiky(case)
    limit = float(np.percentile(norms, 50 if usual_is_ill else 90))
    bound = bearable(case)
    return _two_digits(min(limit, bound) if bound else limit)


def bearable(case: Case) -> float | None:
    """Return the norm at which a step of plain SGD moves the weights by 1 %; None for other optimizers."""
    if case.adaptive or not case.lr or not case.weight_norm:
        return None
    momentum = case.option("momentum") or 0.0
    return _LARGEST_STEP * case.weight_norm * (1 - min(momentum, 0.99)) / case.lr


def non_spikes(case: Case) -> np.ndarray:
    """Return the norms that aren't above spike_ratio times the median of those before them."""
    norms = case.grad_norms
    usual = [
        norm
        for place, norm in enumerate(norms)
        if norm <= case.settings.spike_ratio * np.median(norms[max(0, place - _WINDOW) : place + 1])
    ]
    return np.array(usual)


def _source(case: Case, limit: float) -> str:
    bound = bearable(case)
    if bound is not None and limit <= 1.05 * bound:
        return f"at {figure(limit)} a step of SGD moves the weights by 1 % at most"
    share = float((case.grad_norms <= limit * 1.05).mean())
    effect = "only outliers are cut" if share > 0.8 else "the usual step becomes smaller"
    return f"{100 * share:.0f} % of the recorded norms lie below {figure(limit)}, so {effect}"


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
