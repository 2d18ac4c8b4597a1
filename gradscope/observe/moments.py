"""What an optimizer remembers of the gradients: first and second moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# What optimizers call them; of several names the first that is there counts.
FIRST, SECOND = ("exp_avg", "momentum_buffer"), ("exp_avg_sq", "square_avg")
STEP, LARGEST = "step", "max_exp_avg_sq"


@dataclass(frozen=True)
class Moments:
    """An optimizer's moments, by place of the parameter.

    first: momentum; second: of the squares; floors: what is small for Adam's denominator; largest: AMSGrad's
    denominators, where they are not the second moments.
    """

    first: dict[int, Tensor]
    second: dict[int, Tensor]
    largest: dict[int, Tensor]
    floors: dict[int, float]


def moments_of(parameters: Sequence[Tensor], optimizer: Optimizer) -> Moments:
    """Return what an optimizer keeps for parameters; sums of squares (Adagrad) are left out."""
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    states = {  # looking a tensor up would hash it
        place: state
        for parameter, state in optimizer.state.items()
        if (place := places.get(id(parameter))) is not None
    }
    kinds = set().union(*states.values())

    def kept(*names: str) -> dict[int, Any]:
        name = name_among(names, kinds)
        if name is None:
            return {}
        return {place: item for place, state in states.items() if (item := state.get(name)) is not None}

    first, second = kept(*FIRST), kept(*SECOND)
    steps = {place: step for place, step in kept(STEP).items() if place in second}
    floors = _floors(steps, places, optimizer)
    largest = {place: square for place, square in kept(LARGEST).items() if place in floors}
    return Moments(first, second, largest, floors)


def name_among(names: Sequence[str], kinds: Set[str]) -> str | None:
    """Return the first of some names that is there, None if none is."""
    return next((name for name in names if name in kinds), None)


def _floors(steps: Mapping[int, Any], places: Mapping[int, int], optimizer: Optimizer) -> dict[int, float]:
    floors: dict[int, float] = {}
    for group in optimizer.param_groups:
        denominator = denominator_of(group)
        if denominator is not None:
            here = [place for item in group["params"] if (place := places.get(id(item), -1)) in steps]
            numbers = _numbers([steps[place] for place in here])
            floors.update(zip(here, floors_at(numbers, *denominator), strict=False))
    return floors


def denominator_of(group: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return beta2 and eps of a group's denominator, None if it is none of Adam's."""
    if len(group.get("betas", ())) != 2 or "eps" not in group:
        return None
    return float(group["betas"][1]), float(group["eps"])


def floors_at(steps: Sequence[float], decay: float, eps: float) -> list[float]:
    """Return at each of these steps t the second moment v below which sqrt(v / (1 - beta2^t)) < 10 eps."""
    limit = (10.0 * eps) ** 2
    known = {step: limit * (1.0 - decay**step) for step in set(steps)}
    return [known[step] for step in steps]


def _numbers(steps: Sequence[Any]) -> list[float]:
    """Return step counts as numbers; none of them where reading one would wait for a device."""
    if any(isinstance(step, Tensor) and not step.is_cpu for step in steps):
        return []
    return [step.item() if isinstance(step, Tensor) else float(step) for step in steps]
