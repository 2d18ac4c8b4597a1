"""What an optimizer remembers of the gradients: first and second moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


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
        name = next((name for name in names if name in kinds), None)
        if name is None:
            return {}
        return {place: item for place, state in states.items() if (item := state.get(name)) is not None}

    first, second = kept("exp_avg", "momentum_buffer"), kept("exp_avg_sq", "square_avg")
    floors = _floors(kept("step") if second else {}, places, optimizer)
    floors = {place: floor for place, floor in floors.items() if place in second}
    largest = {place: square for place, square in kept("max_exp_avg_sq").items() if place in floors}
    return Moments(first, second, largest, floors)


def _floors(steps: Mapping[int, Any], places: Mapping[int, int], optimizer: Optimizer) -> dict[int, float]:
    """Return the second moment v below which sqrt(v / (1 - beta2^t)) < 10 eps; Adam's only."""
    floors: dict[int, float] = {}
    for group in optimizer.param_groups:
        if len(group.get("betas", ())) != 2 or "eps" not in group:
            continue
        here = [place for item in group["params"] if (place := places.get(id(item), -1)) in steps]
        numbers = _numbers([steps[place] for place in here])
        decay, limit = float(group["betas"][1]), (10.0 * float(group["eps"])) ** 2
        known = {number: limit * (1.0 - decay**number) for number in set(numbers)}
        floors.update({place: known[number] for place, number in zip(here, numbers, strict=False)})
    return floors


def _numbers(steps: Sequence[Any]) -> list[float]:
    """Return step counts as numbers; none of them where reading one would wait for a device."""
    if any(isinstance(step, Tensor) and not step.is_cpu for step in steps):
        return []
    return [step.item() if isinstance(step, Tensor) else float(step) for step in steps]
