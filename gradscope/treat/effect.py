"""How much a remedy helped: paired differences over seeds, with their confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom.
# fmt: off
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on
_TAIL_SHARE = 0.1
WORST = -1.0


def final_loss(losses: Sequence[float]) -> float:
    """Return the mean loss of the last tenth of the steps, NaN if there is none or one isn't finite."""
    tail = losses[-max(1, round(_TAIL_SHARE * len(losses))) :]
    return mean(tail) if tail and all(map(math.isfinite, tail)) else math.nan


def improvement(initial: float, final: float) -> float:
    """Return the share of the initial loss that training removed, in [-1, 1]; -1 where the loss isn't finite.

    1 is a loss of 0, 0 no change, below 0 a loss that rose.
    """
    if not math.isfinite(final):
        return WORST
    if not math.isfinite(initial) or initial == 0:
        return 0.0
    return min(1.0, max(WORST, (initial - final) / abs(initial)))


def paired_interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, lower and upper end of Student's 95 % interval of paired differences (Student 1908).

    One difference has no interval: its ends are infinite; none at all gives NaN.
    """
    if not differences:
        return math.nan, math.nan, math.nan
    centre = mean(differences)
    if len(differences) == 1:
        return centre, -math.inf, math.inf
    freedom = len(differences) - 1
    # Beyond the table: the first terms of its expansion about the normal distribution's 1.96.
    t = _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.37 / freedom
    reach = t * stdev(differences) / math.sqrt(len(differences))
    return centre, centre - reach, centre + reach
