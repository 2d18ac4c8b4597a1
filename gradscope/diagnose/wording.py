"""Sentences that several rules share, and figures fit to be kept as evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscope.diagnose import architecture, profile
from gradscope.diagnose.architecture import WeightLayer
from gradscope.records import Run
from gradscope.settings import Settings

NO_USUAL_VARIANCE = 6.0  # a critical variance above this is in nobody's use: sigmoid's is 103


def present(**figures: float) -> dict[str, float]:
    """Return the figures that are known, as plain floats."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return names as text, the first few of many."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def explain_gain(run: Run, items: tuple[WeightLayer, ...], gain: float, settings: Settings) -> str:
    """Say whether initialisation and activation account for the gradient's gain a layer."""
    predicted = profile.predicted_gain(run, items)
    if not math.isfinite(predicted):
        reason = architecture.beyond_theory(run, items) or "the activations between the layers are not known"
        return f"No prediction to compare with: {reason}. {explain_initialization(run, items)}"
    if abs(math.log(gain / predicted)) > settings.gain_agreement:
        return (
            f"Initialisation and activation predict a gain of {predicted:.2f} a layer, {gain:.2f} is "
            "measured: "
            "something besides them is at work, such as saturated or dead units."
        )
    return (
        f"{explain_initialization(run, items)} This predicts a gain of {predicted:.2f} a layer; "
        f"{gain:.2f} is measured."
    )


def explain_initialization(run: Run, items: tuple[WeightLayer, ...]) -> str:
    """Name the initialisation and the activation, with the critical variance."""
    sigma, activation = profile.typical_sigma_w2(items), profile.main_activation(run, items)
    normalization = profile.main_normalization(run, items)
    if normalization:
        return f"{normalization} stands before {activation or 'the activation'} in layers without skips."
    if not math.isfinite(sigma):
        return ""
    critical = profile.initialization_evidence(run, items).get("critical_sigma_w2", math.nan)
    where = f"with {activation}" if activation not in ("", "identity") else "without activation"
    if critical > NO_USUAL_VARIANCE:
        return (
            f"The initial weights have fan-in × variance = {sigma:.3g}; at any usual one {activation} fades "
            "the gradient."
        )
    text = f"The initial weights have fan-in × variance = {sigma:.3g} {where}"
    return (
        f"{text}; {critical:.3g} would keep the gradient's size." if math.isfinite(critical) else f"{text}."
    )
