"""The gradient fades on its way from the loss to the first layers, which therefore hardly learn.

What it finds
rho = |gradient| |weight| of each weight falls towards the input by a factor of 1000 or more, beyond what
chance does in a network of this width, over several recorded steps. The measured gain per layer is compared
with the one that the measured weights and the activation predict.

Why it hurts
The first layers stay as random as they were initialised, and what they throw away no later layer can bring
back.

What it is not
A small gradient everywhere: that is a converged network or a small loss. Zeros come from dead units or from
code, see zero-gradient. A network that trains well in spite of it gets a note.

Remedies
An initialisation at the critical point of the activation, another activation, normalisation, residual
connections.

Evidence
gain_per_layer (of the gradient signal, towards the input), predicted_gain, rho_gain, ratio_first_to_last (of
rho), sigma_w2, critical_sigma_w2, depth, loss_improvement.

References
Hochreiter 1991; Glorot and Bengio 2010; Poole et al. 2016; Schoenholz et al. 2017; Hanin 2018.
"""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose import architecture, profile
from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.series import require_steps, typical
from gradscope.diagnose.wording import explain_gain, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "vanishing-gradient"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find a network whose gradient fades towards the input."""
    require_steps(run, settings.patience)
    for items in profile.deep_networks(run, settings):
        found = _judge(run, items, settings)
        if found is not None:
            return found
    return None


def _judge(run: Run, items: tuple[architecture.WeightLayer, ...], settings: Settings) -> Finding | None:
    rho = profile.gradient_profile(run, items)
    limit = profile.allowance(items, settings.vanishing_ratio, settings)
    stretch = profile.lasting_trend(run, rho, limit, settings)
    if stretch is None:
        return None
    signal = profile.signal_profile(run, items)
    gain = 1.0 / profile.gain(signal.trend, stretch)
    rho_gain = 1.0 / profile.gain(rho.trend, stretch)
    levels = typical(rho.values, stretch.rows)
    starved = [
        item
        for item, level in zip(items, levels, strict=True)
        if not level > np.nanmax(levels) - abs(math.log(settings.vanishing_ratio))
    ] or [items[0]]
    loss = outcome(run, settings)
    ratio = math.exp(-float(np.nanmedian(rho.rise[stretch.rows])))
    return Finding(
        NAME,
        severity(loss, stretch.ongoing),
        f"The gradient shrinks to {rho_gain:.2g} of itself at each layer towards the input: {items[0].layer.name}"
        f" gets {ratio:.1e} of what {items[-1].layer.name} gets.",
        architecture.names(starved),
        architecture.weights(starved),
        stretch.first_step,
        stretch.last_step,
        explain_gain(run, items, gain, settings),
        present(
            gain_per_layer=gain,
            predicted_gain=profile.predicted_gain(run, items),
            rho_gain=rho_gain,
            ratio_first_to_last=ratio,
            **profile.initialization_evidence(run, items),
            loss_improvement=loss.improvement,
        ),
    )
