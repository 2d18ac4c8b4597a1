"""Trained parameters that get no gradient at all: the loss was computed without them.

What it finds
Parameters that an optimizer holds whose gradient is None in every recorded step.

Why it hurts
They stay as they were initialised; if the layer was meant to learn, something cuts it off: detach(),
no_grad, .item(), numpy, or a branch that is never called.

What it is not
A bias that the loss is indifferent to, while its layer's weight has a gradient: that of an output of which
only derivatives count, or one that a difference cancels. Frozen parameters; a network that trains well
without (a note); parameters that are used in some steps only (experts, alternating losses).

Remedies
Code: let the loss depend on them, or leave them out of the optimizer.

Evidence
missing_parameters, missing_share (of the trained entries), ran (1 if the layer ran forward).

References
torch documentation, autograd mechanics.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import require_steps, steps_of
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "missing-gradient"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find trained parameters whose gradient was None throughout."""
    table = run.parameter_table("gradient_missing")
    trained = [item for item in run.parameters if item.trained]
    known = [item for item in trained if table[item.name].notna().any()]
    require(known, "it was not recorded which gradients were missing")
    require_steps(run, min(3, settings.patience))
    always = [item for item in known if np.nanmin(table[item.name].to_numpy()) == 1]
    if not always:
        return None
    ran = {layer.name for layer in run.layers}
    reached = {item.layer for item in known if item.role != "bias"} - {
        item.layer for item in always if item.role != "bias"
    }
    cut = [item for item in always if item.layer in ran]
    cut = [item for item in cut if item.role != "bias" or item.layer not in reached]
    named = cut or always
    share = sum(item.size for item in always) / max(1, sum(item.size for item in trained))
    harm = severity(outcome(run, settings))
    layers = tuple(dict.fromkeys(item.layer for item in named))
    return Finding(
        NAME,
        harm if cut else "note",
        f"{listed([item.name for item in named])} got no gradient in any recorded step.",
        layers,
        tuple(item.name for item in named),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"{layers[0]} ran forward, but the loss's graph doesn't lead back to it: it was detached or "
        "its output not used."
        if cut
        else f"{layers[0]} never ran while training."
        if layers[0] not in ran
        else f"The loss depends on {layers[0]}, but not on its bias.",
        present(missing_parameters=len(always), missing_share=share, ran=float(bool(cut))),
    )
