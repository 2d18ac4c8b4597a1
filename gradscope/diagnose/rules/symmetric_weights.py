"""Units of a layer that were initialised alike, so they learn alike and count as one.

What it finds
A hidden layer whose units' initial weights are all equal (constant initialisation), or two layers in a row
whose weights all start at zero, in a network that does not train well.

Why it hurts
Equal units get equal gradients and stay equal: a layer of any width is worth one unit. Of two layers at zero
each waits for the other: the gradient of a product of zeros is zero.

What it is not
A single layer at zero, as at the end of a residual branch, in a low-rank adapter, or at the output: it
starts there by design and parts with the first update.

Remedies
Random initialisation: He for rectifiers, Xavier for tanh and sigmoid.

Evidence
symmetric_layers, initial_value (the worst layer's mean), loss_improvement.

References
Goodfellow et al. 2016, section 8.4.
"""

from __future__ import annotations

from gradscope.diagnose.architecture import (
    PASSED_THROUGH,
    WeightLayer,
    consumers,
    feeds_output,
    joined_after,
    names,
    weight_layers,
    weights,
)
from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import require_steps, steps_of
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "symmetric-weights"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find hidden layers whose units started out equal."""
    require_steps(run, 1)
    items = [item for item in weight_layers(run) if item.weight.shape[0] > 1]
    known = [item for item in items if "unit_spread" in item.weight.initial]
    require(known, "no layer's initial weights are known unit by unit")
    equal = [item for item in known if _symmetric(run, item, settings)] or _zeros_in_a_row(run, known)
    loss = outcome(run, settings)
    if not equal or loss.progress == "trains":
        return None
    value = float(equal[0].weight.initial.get("mean", 0.0))
    return Finding(
        NAME,
        severity(loss),
        f"All units of {listed(names(equal))} started with the same weights.",
        names(equal),
        weights(equal),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"Every row of {equal[0].weight.name} was the same (mean {value:.3g}), so its "
        f"{equal[0].weight.shape[0]} units get the same gradient and stay one."
        if equal[0].weight.initial.get("absmax") != 0
        else "Weights that start at zero pass no gradient to weights before them, and get none from zeros.",
        present(symmetric_layers=len(equal), initial_value=value, loss_improvement=loss.improvement),
    )


def _zeros_in_a_row(run: Run, items: list[WeightLayer]) -> list[WeightLayer]:
    """Return the layers that start at zero and take what another such layer gives, and those others."""
    zero = {item.layer.name: item for item in items if item.weight.initial.get("absmax") == 0}
    pairs = [(name, after) for name in zero for after in zero if after in _next_weights(run, name)]
    return [item for name, item in zero.items() if any(name in pair for pair in pairs)]


def _next_weights(run: Run, name: str) -> set[str]:
    """Return the layers next after one that aren't activations and the like."""
    found: set[str] = set()
    for layer in consumers(run, name):
        passes = layer.role in ("activation", *PASSED_THROUGH) and layer.depth > run.layer(name).depth
        found |= _next_weights(run, layer.name) if passes else {layer.name}
    return found


def _symmetric(run: Run, item: WeightLayer, settings: Settings) -> bool:
    # Weights that are all zero pass no gradient at first: another ailment, or a branch that starts at zero.
    zero = item.weight.initial.get("absmax") == 0
    alike = not zero and float(item.weight.initial["unit_spread"]) < settings.symmetric_spread
    return alike and not feeds_output(run, item.layer) and not joined_after(run, item.layer)
