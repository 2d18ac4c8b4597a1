"""The forward signal grows with depth out of all proportion.

What it finds
The root mean square of the weight layers' outputs grows with depth by a factor of 1000 or more, over
several recorded steps.

Why it hurts
The outputs start far beyond what the loss expects, bounded activations saturate, and numbers soon
overflow.

What it is not
Large inputs: they are large from the first layer on, see unscaled-input.

Remedies
An initialisation that keeps the variance for this activation, normalisation.

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

NAME = "exploding-signal"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find a network whose activations grow with depth."""
    return judge(NAME, run, settings, grows=True)
