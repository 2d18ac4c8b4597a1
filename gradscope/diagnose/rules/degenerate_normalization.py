"""A normalisation over so few or such equal values that its output no longer depends on them.

What it finds
A BatchNorm over at most two values a channel, a LayerNorm over one or two features, or any normalisation
whose output hardly varies (under a tenth of its gain) over several recorded steps.

Why it hurts
Over one value the output is a constant, over two it is only their order; what comes before cannot be
learned from.

What it is not
A zero-initialised gain, as in residual branches.

Remedies
A larger batch, LayerNorm or GroupNorm in place of BatchNorm, a normalisation over more features.

Evidence
values (number that are normalised together, where known), output_std, loss_improvement.

References
Ioffe and Szegedy 2015; Wu and He 2018.
"""

from __future__ import annotations

import math

from gradscope.diagnose.architecture import producers
from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.series import Stretch, longest_stretch, median, require_steps, steps_of
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, LayerInfo, Run
from gradscope.settings import Settings

NAME = "degenerate-normalization"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find normalisations that leave nothing of their input."""
    layers = [layer for layer in run.layers if layer.role == "normalization"]
    if not layers:
        return None
    require_steps(run, settings.patience)
    few = [layer for layer in layers if _values(run, layer) <= 2]
    stretches = {layer.name: _flat(run, layer, settings) for layer in layers if layer not in few}
    flat = [layer for layer in layers if stretches.get(layer.name) and _fed(run, layer)]
    found = few + flat[: 0 if few else 1]  # what comes after a constant is constant too
    if not found:
        return None
    loss, first = outcome(run, settings), int(steps_of(run)[0])
    start = min(found, key=lambda layer: layer.depth)
    number, spread = _values(run, start), median(run.layer_table("activation_std")[start.name].to_numpy())
    return Finding(
        NAME,
        severity(loss),
        f"{listed([layer.name for layer in found])} normalises {number:.0f} values together."
        if start in few
        else f"The output of {listed([layer.name for layer in found])} hardly varies.",
        tuple(layer.name for layer in sorted(found, key=lambda layer: layer.depth)),
        (),
        min((item.first_step for item in stretches.values() if item and not few), default=first),
        int(steps_of(run)[-1]),
        "Of one value the normalised is always zero, of two it is their order only."
        if start in few
        else f"Its standard deviation is {spread:.2g}: its input is constant, or far smaller than its "
        "epsilon.",
        present(values=number, output_std=spread, loss_improvement=loss.improvement),
    )


def _fed(run: Run, layer: LayerInfo) -> bool:
    """Say whether a layer takes anything but zeros."""
    sizes = run.layer_table("activation_rms")
    sources = producers(run, layer)
    return not sources or any(median(sizes[item.name].to_numpy()) != 0 for item in sources)


def _values(run: Run, layer: LayerInfo) -> float:
    """Return how many values are normalised together, infinity where that is not known."""
    shape = layer.output_shape
    if not shape or len(shape) < 2:
        return math.inf
    if layer.kind.startswith(("BatchNorm", "SyncBatchNorm")):
        return math.prod(shape) / shape[1]
    if layer.kind.startswith("InstanceNorm"):
        return float(math.prod(shape[2:]))
    if layer.kind == "GroupNorm" and layer.options.get("num_groups"):
        return math.prod(shape[1:]) / float(layer.options["num_groups"])
    if layer.kind in ("LayerNorm", "RMSNorm"):
        return float(max([run.parameter(name).size for name in layer.parameters], default=shape[-1]))
    return math.inf


def _flat(run: Run, layer: LayerInfo, settings: Settings) -> Stretch | None:
    gains = [run.parameter(name) for name in layer.parameters if run.parameter(name).role == "gain"]
    level = run.parameter_table("weight_rms")[gains[0].name].to_numpy() if gains else 1.0
    spread = run.layer_table("activation_std")[layer.name].to_numpy()
    by_design = bool(gains) and abs(float(gains[0].initial.get("mean", 1.0))) < 0.01
    stretch = longest_stretch(spread < settings.flat_share * level, run, settings.patience)
    return stretch if not by_design and stretch is not None and stretch.ongoing else None
