"""Gradients that are exactly zero, so that weights cannot learn at all.

What it finds
Trained weights whose gradient is exactly zero in at least 80 % of the recorded steps, and the layer where
it is lost: the first whose output is zero, or else, coming from the loss, where the signal ends. Also, where
the loss is stuck, inner weights of which more than 95 % of the entries have a gradient of exactly zero.

Why it hurts
These weights don't move, whatever the learning rate.

What it is not
A missing gradient (None, see missing-gradient), a gradient that underflowed on its way
(vanishing-gradient), a bias before a normalisation, a zero-initialised branch in its first steps,
embedding rows that don't occur, a minority of weights in a network that trains well.

Remedies
Depend on what is zero: the output's activation (a softmax over one unit), an all-dead layer, zero
weights, an operation without a derivative.

Evidence
zero_share (of the trained weights, or of the entries of the one named), zero_steps (share of the steps in
which whole weights had none), loss_improvement.

References
Lu et al. 2019.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.architecture import producers, skips, weight_layers
from gradscope.diagnose.outcome import outcome
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import median, require_steps, steps_of
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, LayerInfo, ParameterInfo, Run
from gradscope.settings import Settings

NAME = "zero-gradient"
LASTING = 0.8
IDLE = 0.95  # share of a weight's entries


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find trained weights whose gradient is exactly zero."""
    table = run.parameter_table("gradient_norm")
    weights = [item for item in run.parameters if item.trained and item.role in ("weight", "embedding")]
    known = [item for item in weights if table[item.name].notna().any()]
    require(known, "no weight's gradient was recorded")
    require_steps(run, min(3, settings.patience))
    values = table[[item.name for item in known]].to_numpy()
    shares = np.array([_zero_share(values[:, index]) for index in range(len(known))])
    zero = [item for item, share in zip(known, shares, strict=True) if share >= LASTING]
    if not zero:
        return _nearly_all(run, known, settings)
    rows = np.flatnonzero((table[[item.name for item in zero]].to_numpy() == 0).any(axis=1))
    share = len(zero) / len(known)
    loss = outcome(run, settings)
    blocked, why = _where(run, zero)
    layers = [item.layer for item in zero]
    empty = tuple(layer.name for layer in _empty(run, zero))
    since_start = bool(rows[0] <= 1)
    useless = share <= 0.5 and not (since_start and _all_first(run, zero))
    if useless and (loss.progress == "trains" or (loss.progress == "slow" and not since_start)):
        return None  # they learned while they had a gradient, or aren't needed
    severe = share > 0.5 or loss.progress == "stuck"
    return Finding(
        NAME,
        "critical" if severe else "warning",
        f"The gradient of {len(zero)} of {len(known)} weights is exactly zero ({listed(layers)}).",
        empty or ((blocked.name,) if blocked else tuple(dict.fromkeys(layers))),
        tuple(item.name for item in zero),
        int(steps_of(run)[rows[0]]),
        int(steps_of(run)[rows[-1]]),
        why,
        present(zero_share=share, zero_steps=float(np.median(shares)), loss_improvement=loss.improvement),
    )


def _nearly_all(run: Run, weights: list[ParameterInfo], settings: Settings) -> Finding | None:
    """Find weights nearly all of whose entries have no gradient, in a run that is stuck.

    Rare inputs leave entries of the first weights without one, and dead units have a rule of their own.
    """
    loss = outcome(run, settings)
    first = {item.weight.name for item in weight_layers(run) if item.place == 0}
    table = run.parameter_table("gradient_zero_fraction")
    rows = slice(-max(settings.patience, len(run.steps) // 2), None)
    shares = {item.name: median(table[item.name].to_numpy()[rows]) for item in weights}
    idle = [item for item in weights if shares[item.name] > IDLE and item.name not in first]
    idle = [item for item in idle if item.role == "weight"]
    dead = run.layer_table("activation_dead_unit_fraction").to_numpy()[rows]
    if loss.progress != "stuck" or not idle or (np.nan_to_num(dead) > 0.5).any():
        return None
    return Finding(
        NAME,
        "critical",
        f"{shares[idle[0].name]:.1%} of the entries of {idle[0].name} get a gradient of exactly zero.",
        tuple(dict.fromkeys(item.layer for item in idle)),
        tuple(item.name for item in idle),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"What {idle[0].layer} gives hardly matters to the loss: it is multiplied by zeros, or not used.",
        present(zero_share=shares[idle[0].name], loss_improvement=loss.improvement),
    )


def _all_first(run: Run, zero: list[ParameterInfo]) -> bool:
    """Say whether all weights that take the input are among them, so that nothing is learned of it there."""
    names = {item.name for item in zero}
    first = [item.weight.name for item in weight_layers(run) if item.place == 0]
    return bool(first) and names.issuperset(first)


def _zero_share(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.mean(known == 0)) if len(known) else 0.0


def _where(run: Run, zero: list[ParameterInfo]) -> tuple[LayerInfo | None, str]:
    """Return the layer at which the gradient is lost, seen from the loss, and the reason in words."""
    silent = _silent(run) or next(iter(_empty(run, zero)), None)
    if silent is not None:
        return silent, _silence(run, silent)
    table = run.layer_table("signal_rms")
    above: LayerInfo | None = None
    for layer in reversed(run.layers):
        signal = median(table[layer.name].to_numpy())
        if signal > 0:
            above = layer
        elif signal == 0:
            return _reason(run, layer, above)
    return (
        None,
        "The gradient that reaches the layers' outputs is not zero, but their weights' own is: their "
        "inputs are zero.",
    )


def _silent(run: Run) -> LayerInfo | None:
    """Return the first layer all of whose outputs are zero, although what it takes is not."""
    if skips(run):  # a silent branch blocks nothing
        return None
    sizes = run.layer_table("activation_rms")
    silent = {layer.name for layer in run.layers if median(sizes[layer.name].to_numpy()) == 0}
    return next(
        (
            layer
            for layer in run.layers
            if layer.name in silent and not any(item.name in silent for item in producers(run, layer))
        ),
        None,
    )


def _silence(run: Run, layer: LayerInfo) -> str:
    why = (
        ": all its weights started at zero"
        if _starts_empty(run, layer)
        else ", so nothing passes back through it"
    )
    return f"Every output of {layer.name} is zero{why}."


def _starts_empty(run: Run, layer: LayerInfo) -> bool:
    """Say whether all weights of a layer started at zero."""
    items = [run.parameter(name) for name in layer.parameters]
    weights = [item for item in items if item.role in ("weight", "embedding")]
    return bool(weights) and all(item.initial.get("absmax") == 0 for item in weights)


def _empty(run: Run, zero: list[ParameterInfo]) -> list[LayerInfo]:
    """Return the layers without any gradient that give only zeros since their weights started there."""
    names = {item.layer for item in zero}
    return [layer for layer in run.layers if layer.name in names and _starts_empty(run, layer)]


def _reason(run: Run, layer: LayerInfo, above: LayerInfo | None) -> tuple[LayerInfo, str]:
    if above is None:
        width = layer.output_shape[-1] if layer.output_shape else 0
        functions = " ".join(str(name) for name in run.info.loss.get("functions", ()))
        if width == 1 and "Softmax" in functions + layer.kind:
            return (
                layer,
                "A softmax over a single unit is always 1, so the loss does not depend on any weight.",
            )
        return (
            layer,
            f"The loss passes no gradient even to the last layer, {layer.name}: it does not depend on "
            "the output.",
        )
    dead = median(run.layer_table("activation_zero_fraction")[above.name].to_numpy())
    if dead == 1:
        return above, f"Every output of {above.name} is zero, so nothing passes back through it."
    return (
        above,
        f"{above.name} receives a gradient and passes none on to {layer.name}: its weights or its "
        "slope are zero.",
    )
