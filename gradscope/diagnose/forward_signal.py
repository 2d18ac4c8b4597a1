"""Judge how the forward signal changes over depth: the part that two rules share."""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose import architecture, profile, theory
from gradscope.diagnose.architecture import WeightLayer
from gradscope.diagnose.outcome import outcome, prevails, severity
from gradscope.diagnose.series import Stretch, require_steps, typical
from gradscope.diagnose.wording import explain_initialization, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings


def judge(rule: str, run: Run, settings: Settings, grows: bool) -> Finding | None:
    """Find a network whose activations grow (or fade) with depth by more than the allowed ratio."""
    require_steps(run, settings.patience)
    ratio = settings.exploding_ratio if grows else settings.vanishing_ratio
    for items in profile.deep_networks(run, settings):
        sizes = profile.activation_profile(run, items)
        limit = math.copysign(profile.allowance(items, ratio, settings), 1 if grows else -1)
        stretch = profile.lasting_trend(run, sizes, limit, settings)
        if stretch is not None:
            return _finding(rule, run, items, sizes, stretch, settings, grows)
    return None


def _finding(
    rule: str,
    run: Run,
    items: tuple[WeightLayer, ...],
    sizes: profile.Profile,
    stretch: Stretch,
    settings: Settings,
    grows: bool,
) -> Finding:
    gain = profile.gain(sizes.trend, stretch)
    ratio = math.exp(float(np.nanmedian(sizes.rise[stretch.rows])))
    loss = outcome(run, settings)
    where = _where(items, typical(sizes.values, stretch.rows), grows)
    verb = "grows to" if grows else "fades to"
    return Finding(
        rule,
        severity(loss, prevails(stretch, run, settings)),
        f"The signal {verb} {gain:.3g} times itself at each layer: at {items[-1].layer.name} it is "
        f"{ratio:.1e} "
        f"times what it is at {items[0].layer.name}.",
        architecture.names(where),
        architecture.weights(where),
        stretch.first_step,
        stretch.last_step,
        explain_initialization(run, items),
        present(
            gain_per_layer=gain,
            predicted_gain=_predicted(run, items),
            ratio_last_to_first=ratio,
            **profile.initialization_evidence(run, items),
            loss_improvement=loss.improvement,
        ),
    )


def _where(items: tuple[WeightLayer, ...], levels: np.ndarray, grows: bool) -> list[WeightLayer]:
    """Return the layers from the first on whose output is ten times larger (smaller) than the first's."""
    start = levels[np.isfinite(levels)][0]
    change = (levels - start) if grows else (start - levels)
    return [item for item, value in zip(items, change, strict=True) if value > math.log(10)] or [items[-1]]


def _predicted(run: Run, items: tuple[WeightLayer, ...]) -> float:
    """Return the forward gain that initialisation and activation predict at small or large signals."""
    activation, sigma = profile.main_activation(run, items), profile.typical_sigma_w2(items)
    if architecture.beyond_theory(run, items) or not theory.known(activation) or not math.isfinite(sigma):
        return math.nan
    return math.sqrt(sigma * theory.mean_square(activation, 1.0))
