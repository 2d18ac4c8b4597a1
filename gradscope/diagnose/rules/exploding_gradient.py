"""The gradient grows on its way from the loss to the first layers, or in bursts that wreck training.

What it finds
rho = |gradient| |weight| of each weight grows towards the input by a factor of 1000 or more, beyond what
chance does in a network of this width, over several recorded steps; or the gradient of a recurrent layer
is that much larger than the others' or comes in bursts above ten times its running median.

Why it hurts
No learning rate fits: one that the first layers bear is far too small for the last. A burst undoes in a
step what many steps have learned.

What it is not
A large gradient everywhere: that is the loss's scale. Rare spikes that the loss survives are not
reported.

Remedies
Gradient clipping at a norm from this run, an initialisation at the critical point, residual connections
around BatchNorm layers, an orthogonal or gated recurrence.

Evidence
gain_per_layer, predicted_gain, rho_gain, ratio_first_to_last, sigma_w2, critical_sigma_w2, depth,
median_grad_norm, max_grad_norm, spike_share, loss_improvement.

References
Bengio et al. 1994; Pascanu et al. 2013; Hanin 2018; Yang et al. 2019.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gradscope.diagnose import architecture, profile
from gradscope.diagnose.backward_signal import find, finding
from gradscope.diagnose.outcome import broken, lasting, outcome, severity
from gradscope.diagnose.recurrence import recurrences
from gradscope.diagnose.series import column, log, longest_stretch, median, require_steps
from gradscope.diagnose.wording import present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "exploding-gradient"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find a network whose gradient grows towards the input, through time, or in bursts."""
    require_steps(run, settings.patience)
    found = _recurrent(run, settings)
    if found is not None:
        return found
    if any(layer.role == "recurrent" for layer in run.layers) and not profile.has_depth(run, settings):
        return None
    loss = outcome(run, settings)
    trend = find(run, loss, settings, grows=True)
    if trend is None:
        return None
    first, last = trend.items[0].layer.name, trend.items[-1].layer.name
    gain = trend.ratio ** (1 / max(1, trend.span))
    message = (
        f"The gradient grows {gain:.3g}-fold at each layer towards the input: {first} gets "
        f"{trend.ratio:.1e} times "
        f"what {last} gets."
    )
    found = finding(NAME, run, trend, loss, message, settings)
    return replace(found, evidence={**found.evidence, **_norms(run, settings)})


def _recurrent(run: Run, settings: Settings) -> Finding | None:
    """Find gradients that explode through time: over the other layers', or in bursts."""
    items = architecture.weight_layers(run)
    looped = {item.layer.name for item in recurrences(run)}
    recurrent = [item for item in items if item.layer.role == "recurrent" or item.layer.name in looped]
    if not recurrent:
        return None
    loss = outcome(run, settings)
    if loss.progress == "trains":
        return None
    values = profile.gradient_profile(run, items).values
    inside = [index for index, item in enumerate(items) if item in recurrent]
    outside = [index for index, item in enumerate(items) if item not in recurrent]
    excess = _excess(values, inside, outside)
    bursts = _bursts(run, settings)
    # Of layers in a loop the others' gradients say little: they may lie before it, where a gradient vanished.
    own = any(item.layer.role == "recurrent" for item in recurrent)
    large = (excess >= math.log(settings.exploding_ratio)) & own
    hopeless = broken(run) or loss.progress == "stuck"
    large |= hopeless & _predicted(run, settings) & np.isfinite(column(run, "loss"))
    stretch = longest_stretch(large, run, lasting(run, settings))
    if stretch is None and (not own or np.nansum(bursts) < settings.patience):
        return None
    rows = np.flatnonzero(bursts if stretch is None else large)
    steps = run.steps["step"].to_numpy()[rows]
    name = recurrent[0].layer.name
    ratio = math.exp(median(excess[rows]))
    norms = _norms(run, settings)
    return Finding(
        NAME,
        severity(loss),
        f"The gradient of the recurrent layer {name} explodes through time{_peak(norms)}.",
        architecture.names(recurrent),
        architecture.weights(recurrent),
        int(steps[0]),
        int(steps[-1]),
        f"Going back through the sequence multiplies the gradient at each time step; in {len(rows)} recorded "
        f"steps it was out of proportion{_beside_others(ratio)}.",
        present(ratio_first_to_last=ratio, **norms, loss_improvement=loss.improvement),
    )


def _predicted(run: Run, settings: Settings) -> bool:
    """Say whether theory predicts that a recurrence explodes over the steps of its sequence."""
    return any(item.total > settings.exploding_ratio for item in recurrences(run) if not item.gated)


def _excess(values: np.ndarray, inside: list[int], outside: list[int]) -> np.ndarray:
    if not outside:
        return np.full(len(values), np.nan)
    return np.array([np.max(row[inside]) - median(row[outside]) for row in values])


def _bursts(run: Run, settings: Settings) -> np.ndarray:
    """Return in which recorded steps the gradient norm was far above the median of the ten before it."""
    norms = log(column(run, "grad_norm"))
    before = [median(norms[max(0, row - 10) : row]) for row in range(len(norms))]
    with np.errstate(invalid="ignore"):
        return np.asarray(norms - np.array(before) > math.log(settings.spike_ratio))


def _peak(norms: dict[str, float]) -> str:
    if not norms.get("median_grad_norm"):
        return ""
    return f": its largest norm is {norms['max_grad_norm'] / norms['median_grad_norm']:.3g} times the median"


def _beside_others(ratio: float) -> str:
    return f" ({ratio:.3g} times the other layers')" if math.isfinite(ratio) else ""


def _norms(run: Run, settings: Settings) -> dict[str, float]:
    norms = column(run, "grad_norm")
    finite = norms[np.isfinite(norms)]
    if not len(finite):
        return {}
    middle = float(np.median(finite))
    return {
        "median_grad_norm": middle,
        "max_grad_norm": float(finite.max()),
        "spike_share": float(np.mean(finite > settings.spike_ratio * middle)),
    }
