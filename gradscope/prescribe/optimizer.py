"""Remedies of the optimizer: another one, its epsilon, its weight decay, the parameters it was not given."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gradscope.prescribe.case import Case
from gradscope.prescribe.paste import block, figure, joined, name_list, rounded, some
from gradscope.prescribe.rate import FIRST_STEP_OF_ADAM, rate_code
from gradscope.records import Remedy

_ADAM_RATE = 1e-3
_FAR_OFF = 8.0
_FIRST_STEP_IN_TIME = 3e-2  # a recurrence without gates takes each step once for every step of time
_LOWEST_RATE, _HIGHEST_RATE = 1e-4, 1e-2
_DECAY_OF_ADAM = 0.01
_LONGEST_MOMENTUM = 0.99  # 0.9 is usual; beyond it a step goes on for hundreds of steps
_SHORTEST_SECOND_MOMENT = 0.9  # 0.999 is usual; below it the gradient's size is that of a few batches
SEARCHED = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_DECAY = {"AdamW": 0.01}
_USUAL_DECAY = 1e-4
_LEAST_DECAY = 1e-5  # less is none at all
_FLOOR_SHARE = 1e-2
_SMALLEST_EPSILON = 1e-15
_USUAL_EPSILON = 1e-8  # torch's


def use_adam(case: Case) -> Remedy | None:
    """Put Adam for an optimizer whose step follows the gradient's size."""
    if case.adaptive or not case.optimizer:
        return None
    rate = adam_rate(case)
    return Remedy(
        "optimizer",
        f"Use AdamW at {figure(rate)} instead of {case.optimizer}",
        f"{case.optimizer}'s step is proportional to the gradient, so layers whose gradients differ can't "
        "share a "
        "rate; Adam divides each weight's step by its own gradient's size (Kingma & Ba 2015).",
        adam_code(rate),
        f"Update of each weight about {figure(rate)} a step, whatever its gradient's size.",
        adam_action(rate),
    )


def use_adam_for_sequences(case: Case) -> Remedy | None:
    """Put Adam first of all where plain SGD trains attention or a recurrence, which suit it badly."""
    return use_adam(case) if case.attention or case.recurrent else None


def use_adam_for_plain_sgd(case: Case) -> Remedy | None:
    """Put Adam first of all for SGD without momentum, whose one rate must suit every layer's gradient.

    benchmarks/remedies taught it: the right rate of plain SGD is missed by more, and more often.
    """
    return use_adam(case) if case.optimizer == "SGD" and not case.option("momentum") else None


def with_fitting_steps(case: Case, remedy: Remedy | None, weight_size: float | None = None) -> Remedy | None:
    """Return a remedy that changes the model together with the steps that suit the changed model.

    Plain SGD becomes AdamW, as a rate that an ailing network survived is wrong for a healthy one; a rate that
    is off by far is set. weight_size: root mean square of the weights afterwards, by default the run's. None
    where there is nothing to change.
    """
    if remedy is None or not case.optimizer:
        return None
    rate = adam_rate(case, weight_size)
    if not case.adaptive:
        told = f"use AdamW at {figure(rate)} instead of {case.optimizer}"
        why = (
            f"A rate that {case.optimizer} survives now suits no healthy layers; Adam "
            "finds the size of each weight's step itself (Kingma & Ba 2015)."
        )
        code, action = adam_code(rate), adam_action(rate)
    elif "Adam" in case.optimizer and case.lr and not 1 / _FAR_OFF < case.lr / rate < _FAR_OFF:
        told = f"set the learning rate from {figure(case.lr)} to {figure(rate)}"
        why = f"Weights of the new size want steps of about {figure(rate)}."
        code, action = rate_code(case, rate), {"do": "train", "rate": rate}
    else:
        return None
    return replace(
        remedy,
        title=f"{remedy.title}, and {told}",
        why=f"{remedy.why} {why}",
        code=joined(remedy.code, code),
        action={"do": "all", "actions": [dict(remedy.action), action]},
    )


def adam_rate(case: Case, weight_size: float | None = None) -> float:
    """Return the rate at which Adam's first step changes weights of this size by about 6 %.

    That step is the rate itself for every entry; weight_size: root mean square, by default the run's.
    """
    size = weight_size or case.weight_size
    if not size:
        return _ADAM_RATE
    ungated = any(layer.kind in ("RNN", "RNNCell") for layer in case.recurrent)
    in_time = ungated or any(map(case.is_repeated, case.weighted))
    step = _FIRST_STEP_IN_TIME if in_time else FIRST_STEP_OF_ADAM
    return rounded(min(max(step * size, _LOWEST_RATE), _HIGHEST_RATE))


def search_rate(case: Case) -> Remedy | None:
    """Put AdamW at the rate that a short training at each of several finds to be the best."""
    if len(case.run.info.optimizers) != 1:
        return None  # no one loss tells which rates of several optimizers suit each other
    grid = "[" + ", ".join(map(figure, SEARCHED)) + "]"
    return Remedy(
        "optimizer",
        "Use AdamW at the rate that a short search finds",
        "What a rate does is seen within a few steps; no figure that is derived from one step fits every "
        "network. Trying costs about as much as one more training.",
        block(
            "import copy",
            "",
            "import torch",
            "",
            "",
            "def final_loss(rate, steps=50):",
            "    tried = copy.deepcopy(model)",
            "    stepper = torch.optim.AdamW(tried.parameters(), lr=rate)",
            "    for _ in range(steps):  # the next batch each time, the same ones for every rate",
            "        stepper.zero_grad()",
            "        trial = loss_function(tried(inputs), targets)",
            "        trial.backward()",
            "        stepper.step()",
            '    return trial.item() if torch.isfinite(trial) else float("inf")',
            "",
            "",
            f"rate = min({grid}, key=final_loss)",
            "optimizer = torch.optim.AdamW("
            f"model.parameters(), lr=rate, weight_decay={figure(_DECAY_OF_ADAM)})",
        ),
        f"The best of {len(SEARCHED)} rates between {figure(SEARCHED[0])} and {figure(SEARCHED[-1])}.",
        {"do": "train", "optimizer": "AdamW", "weight_decay": _DECAY_OF_ADAM, "search": list(SEARCHED)},
    )


def search_rate_if_memory_is_odd(case: Case) -> Remedy | None:
    """Put another optimizer first of all where the memory of this one fits no rate."""
    momentum, betas = case.option("momentum"), case.options_of_optimizer.get("betas")
    long = momentum is not None and momentum > _LONGEST_MOMENTUM
    short = isinstance(betas, (list, tuple)) and float(betas[1]) < _SHORTEST_SECOND_MOMENT
    return search_rate(case) if long or short else None


def adam_code(rate: float) -> str:
    """Return the code that makes AdamW."""
    return block(
        "import torch",
        "",
        "optimizer = torch.optim.AdamW("
        f"model.parameters(), lr={figure(rate)}, weight_decay={figure(_DECAY_OF_ADAM)})",
    )


def adam_action(rate: float) -> dict[str, object]:
    """Return the machine's form of AdamW."""
    return {"do": "train", "optimizer": "AdamW", "rate": rate, "weight_decay": _DECAY_OF_ADAM}


def use_sgd(case: Case) -> Remedy | None:
    """Put SGD with momentum, which has no floor and no normalisation to lose."""
    if not case.adaptive:
        return None
    return Remedy(
        "optimizer",
        f"Use SGD with momentum instead of {case.optimizer}",
        f"{case.optimizer} divides by an estimate of the gradient's size, and that estimate has broken down.",
        "import torch\n\noptimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, "
        "nesterov=True)",
        "No division by an estimate; the update is proportional to the gradient.",
        {"do": "train", "optimizer": "SGD", "rate": 0.01, "options": {"momentum": 0.9, "nesterov": True}},
    )


def lower_epsilon(case: Case) -> Remedy | None:
    """Lower Adam's epsilon below the gradients' size."""
    old = case.number("eps") or case.option("eps") or 1e-8
    kind = case.optimizer if case.adaptive else "Adam"
    table = case.run.parameter_table("second_moment_rms").to_numpy()
    sizes = np.sqrt(table[np.isfinite(table) & (table > 0)])
    size = float(np.percentile(sizes, 10)) if len(sizes) else None
    wanted = min(_FLOOR_SHARE * size if size else old * 1e-4, _USUAL_EPSILON)
    epsilon = max(10.0 ** math.floor(math.log10(min(wanted, old / 10))), _SMALLEST_EPSILON)
    if epsilon >= old:
        return None
    seen = f"gradients of size {figure(size)}" if size else "gradients of this size"
    rate = _rate_without_floor(case)
    return Remedy(
        "optimizer",
        f"Lower {kind}'s epsilon from {figure(old)} to {figure(epsilon)}"
        + (f" and raise its rate to {figure(rate)}" if rate else ""),
        f"Epsilon is added to the root of the second moment; beside {seen} it is what the step is divided "
        "by, "
        f"and {kind} becomes SGD with a tiny rate."
        + (
            f" Without that floor its rate of {figure(case.lr)} would be too low." if rate and case.lr else ""
        ),
        block(
            "for group in optimizer.param_groups:",
            f'    group["eps"] = {figure(epsilon)}',
            [f'    group["lr"] = {figure(rate)}'] if rate else [],
        ),
        f"Share of weights at the floor → about 0; epsilon {figure(epsilon / size) if size else '1e-4'} of "
        "the "
        "gradients' size.",
        {"do": "train", "options": {"eps": epsilon}} | ({"rate": rate} if rate else {}),
    )


def _rate_without_floor(case: Case) -> float | None:
    """Return a usual rate where the given one would move weights by less than a tenth of the usual share."""
    if not (case.adaptive and case.lr and case.weight_size):
        return None
    return adam_rate(case) if case.lr < 0.1 * FIRST_STEP_OF_ADAM * case.weight_size else None


def decay_less(case: Case) -> Remedy | None:
    """Lower weight decay to a usual figure."""
    old = case.number("weight_decay") or case.option("weight_decay")
    usual = _DECAY.get(case.optimizer, _USUAL_DECAY)
    wanted = min(max(case.number("suggested_weight_decay") or usual, _LEAST_DECAY), usual)
    new = rounded(min(wanted, old / 10)) if old else 0.0
    shown = f" from {figure(old)}" if old else ""
    pull = (
        f"Each step takes lr × decay = {figure(old * case.lr)} of every weight away"
        if old and case.lr
        else ("Weight decay takes more of the weights away than the gradient gives back")
    )
    return Remedy(
        "weight-decay",
        f"Lower weight decay{shown} to {figure(new)}",
        f"{pull}; the loss can't hold the weights against that.",
        block("for group in optimizer.param_groups:", f'    group["weight_decay"] = {figure(new)}'),
        f"Shrinkage a step {figure(old * case.lr)} → {figure(new * case.lr)}."
        if old and case.lr
        else "Weights keep their norm.",
        {"do": "train", "weight_decay": new},
    )


def decay_weights_only(case: Case) -> Remedy | None:
    """Decay weight matrices only, decoupled from the gradient."""
    lr = case.lr or _ADAM_RATE
    decay = min(case.option("weight_decay") or _DECAY["AdamW"], _DECAY["AdamW"])
    return Remedy(
        "weight-decay",
        "Decay weight matrices only, with AdamW",
        "Biases and normalisation gains have nothing to gain from decay, and Adam with L2 decays weights "
        "with small "
        "gradients most; AdamW decays all alike (Loshchilov & Hutter 2019).",
        block(
            "import torch",
            "",
            "matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]",
            "others = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]",
            "optimizer = torch.optim.AdamW(",
            f'    [{{"params": matrices, "weight_decay": {figure(decay)}}}, '
            '{"params": others, "weight_decay": 0.0}],',
            f"    lr={figure(lr if case.adaptive else _ADAM_RATE)},",
            ")",
        ),
        f"Shrinkage a step: matrices lr × {figure(decay)}, all else 0.",
        {
            "do": "train",
            "optimizer": "AdamW",
            "weight_decay": decay,
            "rate": lr if case.adaptive else _ADAM_RATE,
        },
    )


def register(case: Case) -> Remedy | None:
    """Hold parameters in what torch looks into."""
    event = next((event for event in case.run.events if event.kind == "unregistered"), None)
    holders = [str(name) for name in event.data.get("holders", ())] if event else []
    if not holders:
        return None
    names = list(case.finding.parameters)
    held = {holder: [name for name in names if f"{name}.".startswith(f"{holder}.")] for holder in holders}
    return Remedy(
        "code",
        f"Register {some(holders)} with the model",
        "torch looks for parameters in modules, ModuleList, ModuleDict, ParameterList and ParameterDict, not "
        "in plain lists, dictionaries and tensors. Better still, write it so where the model is made.",
        block(
            *(_wrapped(holder, names) for holder, names in held.items()),
            "known = {id(p) for group in optimizer.param_groups for p in group['params']}",
            'optimizer.add_param_group({"params": [p for p in model.parameters() if id(p) not in known]})',
        ),
        f"{some(names)} learn, and are saved with the model.",
    )


def _wrapped(holder: str, names: list[str]) -> str:
    """Return the line that registers what an attribute holds: a tensor, or a list or dictionary."""
    inside = names[0][len(holder) + 1 :].split(".") if names and names[0] != holder else []
    if not inside:
        return f"model.{holder} = torch.nn.Parameter(model.{holder}.detach())"
    kind = ("Module" if len(inside) > 1 else "Parameter") + ("List" if inside[0].isdigit() else "Dict")
    return f"model.{holder} = torch.nn.{kind}(model.{holder})"


def optimize_all(case: Case) -> Remedy | None:
    """Give the optimizer the parameters that it was not given."""
    if any(event.kind == "unregistered" for event in case.run.events):
        return None  # the model doesn't list them, either
    blamed = list(case.finding.parameters)
    missing = blamed or [item.name for item in case.run.parameters if item.trained and item.group is None]
    if not missing:
        return _optimize_whole_model(case)
    return Remedy(
        "code",
        f"Give the optimizer {'the parameter' if len(missing) == 1 else 'the parameters'} {some(missing)}",
        f"{len(missing)} trainable {'parameter is' if len(missing) == 1 else 'parameters are'} in no "
        "parameter "
        "group, so nothing ever updates them. Usual cause: the optimizer was made before the layer was, or "
        "from "
        "a part of the model.",
        block(
            f"names = {name_list(missing)}",
            "known = {id(p) for group in optimizer.param_groups for p in group['params']}",
            "forgotten = [model.get_parameter(name) for name in names]",
            'optimizer.add_param_group({"params": [p for p in forgotten if id(p) not in known]})',
        ),
        f"Update ratio of {some(missing)} 0 → that of the others"
        + (f", {figure(case.update_ratio)}." if case.update_ratio else "."),
        {"do": "train", "all_parameters": True},
    )


def _optimize_whole_model(case: Case) -> Remedy:
    return Remedy(
        "code",
        "Give the optimizer every trainable parameter",
        "Some trainable parameters are in no parameter group, so nothing ever updates them. Usual cause: the "
        "optimizer was made before a layer was, or from a part of the model.",
        block(
            "known = {id(p) for group in optimizer.param_groups for p in group['params']}",
            "forgotten = [p for p in model.parameters() if p.requires_grad and id(p) not in known]",
            "if forgotten:",
            '    optimizer.add_param_group({"params": forgotten})',
        ),
        "Every trainable parameter moves.",
        {"do": "train", "all_parameters": True},
    )


def freeze(case: Case) -> Remedy | None:
    """Freeze what is not to be trained."""
    names = list(case.finding.parameters)
    if not names or any(event.kind == "unregistered" for event in case.run.events):
        return None
    return Remedy(
        "code",
        f"Freeze {some(names)}, if that is what you want",
        "A parameter that needs no training should say so: it then costs neither memory for a gradient nor "
        "doubt.",
        block(
            f"for name in {name_list(names)}:",
            "    model.get_parameter(name).requires_grad_(False)",
        ),
        f"{len(names)} fewer trainable parameters; training itself does not change.",
        {"do": "freeze", "parameters": names},
    )
