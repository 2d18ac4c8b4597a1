"""The gradient fades on its way from the loss to the first layers, which therefore hardly learn.

What it finds
rho = |gradient| |weight| of each weight falls towards the input by a factor of 1000 or more, beyond what
chance does in a network of this width, over several recorded steps. The measured gain per layer is
compared with the one that the measured weights and the activation predict. In a recurrent network that
does not learn although its updates are of usual size: a predicted loss of a factor of 1000 or more over
the sequence.

Why it hurts
The first layers stay as random as they were initialised, and what they throw away no later layer can
bring back.

What it is not
A small gradient everywhere: that is a converged network or a small loss. Zeros come from dead units or
from code, see zero-gradient. A network that trains well in spite of it gets a note.

Remedies
An initialisation at the critical point of the activation, another activation, normalisation, residual
connections; a gated or orthogonal recurrence.

Evidence
gain_per_layer (of the gradient signal, towards the input), predicted_gain, rho_gain, ratio_first_to_last
(of rho), sigma_w2, critical_sigma_w2, depth, loss_improvement; through time: predicted_gain,
predicted_ratio, time_steps.

References
Hochreiter 1991; Glorot and Bengio 2010; Poole et al. 2016; Schoenholz et al. 2017; Hanin 2018.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnose import profile
from gradscope.diagnose.backward_signal import find, finding
from gradscope.diagnose.outcome import Outcome, outcome, severity
from gradscope.diagnose.recurrence import recurrences
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import median, require_steps, steps_of
from gradscope.diagnose.updates import update_ratios
from gradscope.diagnose.wording import present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "vanishing-gradient"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find a network whose gradient fades towards the input, or towards the beginning of a sequence."""
    require_steps(run, settings.patience)
    loss = outcome(run, settings)
    through_time = _through_time(run, loss, settings)
    if through_time is not None:
        return through_time
    deep = profile.has_depth(run, settings)
    require(deep or recurrences(run), f"no network of at least {settings.shallowest} weight layers in a row")
    trend = find(run, loss, settings, grows=False) if deep else None
    if trend is None:
        return None
    first, last = trend.items[0].layer.name, trend.items[-1].layer.name
    gain = trend.ratio ** (1 / max(1, trend.span))
    message = (
        f"The gradient shrinks to {gain:.2g} of itself at each layer towards the input: {first} gets "
        f"{trend.ratio:.1e} of what {last} gets."
    )
    return finding(NAME, run, trend, loss, message, settings)


def _through_time(run: Run, loss: Outcome, settings: Settings) -> Finding | None:
    """Find a recurrence that forgets, in a run that is stuck although its steps have a usual size."""
    ratios = update_ratios(run)[1]
    typical = np.array([median(row) for row in ratios]) if ratios.size else np.array([np.nan])
    usual = median(typical) > settings.update_ratio_low and not np.nanmax(typical) > settings.update_burst
    forgetful = [item for item in recurrences(run) if item.total < settings.vanishing_ratio]
    if loss.progress != "stuck" or not usual or not forgetful:
        return None
    item = min(forgetful, key=lambda item: item.total)
    reason = (
        f"A gate without bias is half open, which leaves {item.gain:.2f} of the gradient at each step"
        if item.gated
        else f"Its recurrent weights and states predict a gain of {item.gain:.2f} at each step"
    )
    return Finding(
        NAME,
        severity(loss),
        f"The gradient of {item.layer.name} fades over the {item.steps} steps of a sequence: "
        f"{item.total:.1e} of it "
        "reaches the first.",
        (item.layer.name,),
        (item.weight.name,),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"{reason}; {loss.text}, with updates of usual size.",
        present(
            predicted_gain=item.gain,
            predicted_ratio=item.total,
            time_steps=item.steps,
            loss_improvement=loss.improvement,
        ),
    )
