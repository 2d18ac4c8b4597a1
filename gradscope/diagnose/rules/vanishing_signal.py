"""The forward signal fades with depth until the output no longer depends on the input.

What it finds
The root mean square of the weight layers' outputs falls with depth by a factor of 1000 or more, over
several recorded steps. Or a module of the user's own, without weights, makes zeros of the data from the
start.

Why it hurts
The last layers see next to nothing but their biases, and every weight's gradient carries the small
factor.

What it is not
A small but steady signal: that is a unit of measure. A network behind normalisation layers does not fade.

Remedies
An initialisation that keeps the variance for this activation, normalisation, residual connections.

Evidence
gain_per_layer (forward), predicted_gain (forward), ratio_last_to_first, sigma_w2, critical_sigma_w2,
depth, loss_improvement.

References
Glorot and Bengio 2010; He et al. 2015; Poole et al. 2016.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.architecture import producers
from gradscope.diagnose.forward_signal import judge
from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.series import steps_of
from gradscope.diagnose.wording import present
from gradscope.records import Finding, LayerInfo, Run
from gradscope.settings import Settings

NAME = "vanishing-signal"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find a network whose activations fade with depth, or end in a module that gives only zeros."""
    end = _end(run, settings)
    if end is None:
        return judge(NAME, run, settings, grows=False)
    loss = outcome(run, settings)
    return Finding(
        NAME,
        severity(loss),
        f"{end.name} gives nothing but zeros.",
        (end.name,),
        (),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"It has no weights that could be to blame: its own computation ({end.kind}) takes the signal away.",
        present(ratio_last_to_first=0.0, loss_improvement=loss.improvement),
    )


def _end(run: Run, settings: Settings) -> LayerInfo | None:
    """Return a module of the user's own that turns the data into zeros before any weight has seen them."""
    sizes = run.layer_table("activation_rms")
    if len(run.steps) < settings.patience:
        return None
    for layer in run.layers:
        size = sizes[layer.name].to_numpy()
        own = layer.role == "other" and not layer.parameters and not producers(run, layer)
        if own and np.isfinite(size).any() and np.nanmax(size) == 0:
            return layer
    return None
