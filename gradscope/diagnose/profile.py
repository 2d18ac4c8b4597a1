"""How a quantity grows or shrinks over the depth of a network, measured and predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnose import theory
from gradscope.diagnose.architecture import (
    WeightLayer,
    activation_after,
    beyond_theory,
    networks,
    normalized_after,
    places,
)
from gradscope.diagnose.outcome import broken, lasting
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import Stretch, log, longest_stretch, median, slope, typical
from gradscope.records import Run
from gradscope.settings import Settings

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """The logarithm of a quantity, recorded steps down, layers across, and its trend over depth.

    trend: each step's least-squares slope a layer; rise: the slope times the network's depth, so exp(rise)
    is the ratio of the last layer to the first.
    """

    items: tuple[WeightLayer, ...]
    values: Array
    trend: Array
    rise: Array


def gradient_profile(run: Run, items: tuple[WeightLayer, ...]) -> Profile:
    """Return the profile of rho = |gradient| |weight|, which no rescaling of a layer changes."""
    names = [item.weight.name for item in items]
    gradient = run.parameter_table("gradient_norm")[names].to_numpy()
    weight = run.parameter_table("weight_norm")[names].to_numpy()
    return _profile(items, log(gradient * weight))


def signal_profile(run: Run, items: tuple[WeightLayer, ...]) -> Profile:
    """Return the profile of the gradient with respect to each weight layer's output."""
    names = [item.layer.name for item in items]
    return _profile(items, log(run.layer_table("signal_rms")[names].to_numpy()))


def activation_profile(run: Run, items: tuple[WeightLayer, ...]) -> Profile:
    """Return the profile of the root mean square of each weight layer's output."""
    names = [item.layer.name for item in items]
    return _profile(items, log(run.layer_table("activation_rms")[names].to_numpy()))


def _profile(items: tuple[WeightLayer, ...], values: Array) -> Profile:
    depths = places(items)
    trend = slope(depths, values)
    return Profile(items, values, trend, trend * (depths.max() - depths.min()))


def deep_networks(run: Run, settings: Settings) -> list[tuple[WeightLayer, ...]]:
    """Return the networks that are deep enough for a profile; Undecided if there is none."""
    deep = [items for items in networks(run) if len(set(places(items))) >= settings.shallowest]
    require(deep, f"no network of at least {settings.shallowest} weight layers in a row")
    return deep


def has_depth(run: Run, settings: Settings) -> bool:
    """Say whether a network is deep enough for a profile."""
    return any(len(set(places(items))) >= settings.shallowest for items in networks(run))


def allowance(items: tuple[WeightLayer, ...], ratio: float, settings: Settings) -> float:
    """Return by how much, in natural logarithms, a profile may change: a ratio, or more in narrow networks.

    Hanin (2018): in a healthy ReLU network log(|g_1|² / |g_L|²) scatters by sqrt(5 sum of 1 / width).
    """
    widths = [item.layer.fan_out or item.weight.shape[0] for item in items[:-1]]
    mean, deviation = theory.fluctuation([max(1, width) for width in widths])
    return max(abs(math.log(ratio)), (settings.fluctuation_deviations * deviation - mean) / 2)


def lasting_trend(run: Run, profile: Profile, limit: float, settings: Settings) -> Stretch | None:
    """Return where the profile rises (or, limit < 0, falls) by more than `limit` from first to last layer.

    The trend must also show in the layers themselves: the first third against the last, or, once it did,
    one of them has only zeros.
    """
    third = max(1, len(profile.items) // 3)
    with np.errstate(invalid="ignore"):
        ends = _row_median(profile.values[:, -third:]) - _row_median(profile.values[:, :third])
        sign = math.copysign(1.0, limit)
        steep = sign * profile.rise >= abs(limit)
        shown = steep & (sign * ends >= abs(limit) / 2)
        holds = shown | (steep & np.isnan(ends) & np.maximum.accumulate(shown))
    stretch = longest_stretch(holds, run, lasting(run, settings))
    if stretch is not None and broken(run) and stretch.first_row == 0:
        stretch = replace(stretch, ongoing=True)  # nothing came after it but NaN
    if stretch is not None and not np.isfinite(profile.rise[stretch.last_row + 1 :]).any():
        stretch = replace(stretch, ongoing=True)  # nor but gradients that are exactly zero
    return stretch


def _row_median(values: Array) -> Array:
    return np.array([median(row) for row in values])


def gain(trend: Array, stretch: Stretch) -> float:
    """Return the typical factor a layer, exp of the median trend over a stretch."""
    return math.exp(median(trend[stretch.rows]))


def predicted_gains(run: Run, items: tuple[WeightLayer, ...]) -> Array:
    """Return, for each layer, the factor by which theory has it multiply the gradient's root mean square.

    From the measured standard deviation of its weights, the measured size of the pre-activations below it
    and the activation between; NaN where that is not known.
    """
    deviations = typical(run.parameter_table("weight_std")[[item.weight.name for item in items]].to_numpy())
    sizes = typical(run.layer_table("activation_rms")[[item.layer.name for item in items]].to_numpy())
    gains = [math.nan]
    for below, item, deviation, size in zip(items, items[1:], deviations[1:], sizes, strict=False):
        gains.append(_predicted_gain(run, below, item, float(deviation), float(size)))
    return np.array(gains)


def _predicted_gain(run: Run, below: WeightLayer, item: WeightLayer, deviation: float, size: float) -> float:
    activation = activation_after(run, below.layer)
    normalization = normalized_after(run, below.layer)
    if not theory.known(activation) or activation is None or not item.layer.fan_in:
        return math.nan
    if normalization.startswith(("BatchNorm", "SyncBatchNorm", "LazyBatchNorm", "InstanceNorm")):
        return theory.batch_norm_gain(activation)
    if normalization:
        return theory.layer_norm_gain(activation)
    if not (math.isfinite(deviation) and math.isfinite(size)):
        return math.nan
    return math.sqrt(theory.chi(activation, theory.sigma_w2(deviation, item.layer.fan_in), round(size**2, 6)))


def predicted_gain(run: Run, items: tuple[WeightLayer, ...]) -> float:
    """Return the geometric mean of the predicted gains; NaN where theory does not apply."""
    if beyond_theory(run, items):
        return math.nan
    return math.exp(median(log(predicted_gains(run, items))))


def main_activation(run: Run, items: tuple[WeightLayer, ...]) -> str:
    """Return the activation that follows most of the layers, "" if none is known."""
    found = [activation_after(run, item.layer) for item in items[:-1]]
    named = [name for name in found if name and name != "identity"]
    return max(set(named), key=lambda name: (named.count(name), name), default="identity" if found else "")


def main_normalization(run: Run, items: tuple[WeightLayer, ...]) -> str:
    """Return the normalisation that follows at least half of the layers, "" if none does."""
    found = [normalized_after(run, item.layer) for item in items[:-1]]
    named = [name for name in found if name]
    return named[0] if named and 2 * len(named) >= len(found) else ""


def typical_sigma_w2(items: tuple[WeightLayer, ...]) -> float:
    """Return the median over layers of sigma_w² = fan-in × variance of the weights when watching began."""
    values = [
        theory.sigma_w2(float(item.weight.initial["std"]), item.layer.fan_in)
        for item in items
        if item.layer.fan_in and "std" in item.weight.initial
    ]
    return median(np.array(values)) if values else math.nan


def initialization_evidence(run: Run, items: tuple[WeightLayer, ...]) -> dict[str, float]:
    """Return sigma_w2 as initialised, critical_sigma_w2 of the activation, and depth in weight layers."""
    activation = main_activation(run, items)
    critical = theory.critical_sigma_w2(activation) if theory.known(activation) else math.nan
    return {
        "sigma_w2": typical_sigma_w2(items),
        "critical_sigma_w2": critical,
        "depth": float(len(set(places(items)))),
    }
