"""Judge how the gradient changes over depth: the part that two rules share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradscope.diagnose import architecture, profile
from gradscope.diagnose.architecture import WeightLayer
from gradscope.diagnose.outcome import Outcome, prevails, severity
from gradscope.diagnose.profile import Profile
from gradscope.diagnose.series import Stretch, median, steps_of, typical
from gradscope.diagnose.wording import explain_gain, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

SCRAMBLED = 0.5  # |update| / |weight| at which little is left of a weight


@dataclass(frozen=True)
class Trend:
    """A gradient that changes over depth: what shows it, when, and by which factors towards the input."""

    items: tuple[WeightLayer, ...]
    shown: Profile
    stretch: Stretch
    gain: float
    rho_gain: float
    ratio: float

    @property
    def span(self) -> float:
        """Return over how many layers the factors apply."""
        return float(np.ptp(architecture.places(self.items)))


def find(run: Run, loss: Outcome, settings: Settings, grows: bool) -> Trend | None:
    """Return the first network whose gradient grows (or fades) towards the input by more than allowed.

    Without biases, weights that are too small or too large throughout change the forward signal and the
    gradient by the same factors, and rho, their product, not at all. So where training does not go well, the
    gradient signal alone counts too.
    """
    ratio = settings.exploding_ratio if grows else settings.vanishing_ratio
    for items in profile.deep_networks(run, settings):
        limit = profile.allowance(items, ratio, settings) * (-1 if grows else 1)
        rho, signal = profile.gradient_profile(run, items), profile.signal_profile(run, items)
        for shown in (rho,) if loss.progress == "trains" else (rho, signal):
            stretch = profile.lasting_trend(run, shown, limit, settings)
            if stretch is None and grows and loss.progress != "trains":
                stretch = _first_shock(run, shown, limit)
            if stretch is not None:
                gains = [1.0 / profile.gain(shape.trend, stretch) for shape in (signal, rho)]
                total = math.exp(-float(np.nanmedian(shown.rise[stretch.rows])))
                return Trend(items, shown, stretch, gains[0], gains[1], total)
    return None


def _first_shock(run: Run, shown: Profile, limit: float) -> Stretch | None:
    """Return the first recorded steps if the gradient explodes there and scrambles the first weights.

    Batch normalisation grows the gradient with depth, and heals that by growing the weights, at the price of
    what they were: its gradient is the smaller the larger the weights (Yang et al. 2019).
    """
    third = max(1, len(shown.items) // 3)
    weights = list(architecture.weights(shown.items[:third]))
    moved = [median(row) for row in run.parameter_table("update_ratio")[weights].to_numpy()[:3]]
    if not shown.rise[0] <= limit or not max(moved) > SCRAMBLED:
        return None
    rows = np.flatnonzero(shown.rise <= limit / 2)
    last = int(rows[-1]) if len(rows) else 0
    steps = steps_of(run)
    return Stretch(0, last, int(steps[0]), int(steps[last]), True)


def finding(rule: str, run: Run, trend: Trend, loss: Outcome, message: str, settings: Settings) -> Finding:
    """Describe a trend as the finding of a rule."""
    worst = _worst(trend)
    return Finding(
        rule,
        severity(loss, prevails(trend.stretch, run, settings)),
        message,
        architecture.names(worst),
        architecture.weights(worst),
        trend.stretch.first_step,
        trend.stretch.last_step,
        explain_gain(run, trend.items, trend.gain, settings),
        present(
            gain_per_layer=trend.gain,
            predicted_gain=profile.predicted_gain(run, trend.items),
            rho_gain=trend.rho_gain,
            ratio_first_to_last=trend.ratio,
            **profile.initialization_evidence(run, trend.items),
            loss_improvement=loss.improvement,
        ),
    )


def _worst(trend: Trend) -> list[WeightLayer]:
    """Return the layers on the far side of the profile's middle, the worst first."""
    levels = typical(trend.shown.values, trend.stretch.rows)
    middle = (np.nanmax(levels) + np.nanmin(levels)) / 2
    far = levels > middle if trend.ratio > 1 else ~(levels > middle)
    return [item for item, affected in zip(trend.items, far, strict=True) if affected]
