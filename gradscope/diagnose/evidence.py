"""The figures that support a verdict: what was looked at, and what is normal."""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose import profile
from gradscope.diagnose.architecture import places
from gradscope.diagnose.outcome import outcome
from gradscope.diagnose.rule import Undecided
from gradscope.diagnose.series import log, median
from gradscope.diagnose.updates import update_ratios
from gradscope.records import Evidence, Run
from gradscope.settings import Settings


def evidence(run: Run, settings: Settings) -> tuple[Evidence, ...]:
    """Return what is known of: gradient gain, live units, saturation, updates, and the loss."""
    if not len(run.steps):
        return ()
    found = (_gain(run, settings), _live(run, settings), _updates(run), _loss(run, settings))
    return tuple(item for item in found if item is not None)


def _gain(run: Run, settings: Settings) -> Evidence | None:
    try:
        items = max(profile.deep_networks(run, settings), key=len)
    except Undecided:
        return None
    trend = profile.gradient_profile(run, items).trend
    if not np.isfinite(trend).any():
        return None
    gain = math.exp(-median(trend))
    depth = float(np.ptp(places(items)))
    low, high = settings.vanishing_ratio ** (1 / depth), settings.exploding_ratio ** (1 / depth)
    return Evidence(
        "gradient gain per layer",
        gain,
        f"{low:.2f} to {high:.2f}",
        f"The gradient changes {gain:.3g}-fold a layer towards the input, over {depth + 1:.0f} layers.",
    )


def _live(run: Run, settings: Settings) -> Evidence | None:
    dead = run.layer_table("activation_dead_unit_fraction").dropna(axis="columns", how="all").to_numpy()
    if not dead.size:
        return None
    live = 1 - median(dead[-settings.fewest_steps :])
    return Evidence(
        "live units",
        live,
        f"above {1 - settings.dead_share:.0%}",
        f"{live:.0%} of the rectified units are active.",
    )


def _updates(run: Run) -> Evidence | None:
    ratios = update_ratios(run)[1]
    if not np.isfinite(ratios).any():
        return None
    level = math.exp(median(log(ratios))) if (ratios > 0).any() else 0.0
    return Evidence(
        "update / weight",
        level,
        "1e-4 to 1e-2",
        f"A step changes the typical weight by {level:.1e} of its size.",
    )


def _loss(run: Run, settings: Settings) -> Evidence | None:
    loss = outcome(run, settings)
    if not math.isfinite(loss.improvement):
        return None
    return Evidence(
        "loss improvement",
        loss.improvement,
        f"above {settings.stuck_share:.0%}",
        f"The loss went from {loss.initial:.3g} to {loss.final:.3g}.",
    )
