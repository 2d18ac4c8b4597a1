"""The forward signal fades with depth until the output no longer depends on the input.

What it finds
The root mean square of the weight layers' outputs falls with depth by a factor of 1000 or more, over
several recorded steps.

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

from gradscope.diagnose.forward_signal import judge
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "vanishing-signal"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find a network whose activations fade with depth."""
    return judge(NAME, run, settings, grows=False)
