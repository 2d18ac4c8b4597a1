"""Find a learning rate by a short training at each of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gradscope.treat.effect import final_loss

Attempt = Callable[[float, int], Sequence[float]]  # rate, steps -> the loss of each step

_SHARE = 0.15  # of the whole training, for each rate
_LEAST_STEPS = 20


def find_rate(rates: Sequence[float], steps: int, attempt: Attempt) -> float:
    """Return the rate at which a short training ends lowest; the lowest rate if none stays finite.

    steps: of the whole training. attempt: trains from the same start each time.
    """
    budget = min(max(round(_SHARE * steps), _LEAST_STEPS), steps)
    reached = {rate: final_loss(attempt(rate, budget)) for rate in rates}
    return min(sorted(rates), key=lambda rate: reached[rate] if math.isfinite(reached[rate]) else math.inf)
