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

from gradscope.diagnose.backward_signal import find, finding
from gradscope.diagnose.outcome import outcome
from gradscope.diagnose.series import require_steps
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "vanishing-gradient"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find a network whose gradient fades towards the input."""
    require_steps(run, settings.patience)
    loss = outcome(run, settings)
    trend = find(run, loss, settings, grows=False)
    if trend is None:
        return None
    first, last = trend.items[0].layer.name, trend.items[-1].layer.name
    gain = trend.ratio ** (1 / max(1, trend.span))
    message = (
        f"The gradient shrinks to {gain:.2g} of itself at each layer towards the input: {first} gets "
        f"{trend.ratio:.1e} of what {last} gets."
    )
    return finding(NAME, run, trend, loss, message, settings)
