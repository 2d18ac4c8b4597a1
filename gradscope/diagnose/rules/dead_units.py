"""Rectified units that are active for no sample, and so neither pass signal nor learn.

What it finds
A layer in which more than half of the units were never active during the last ten recorded steps, and
stayed so. A layer that is dead altogether counts at once: it blocks all learning below it.

Why it hurts
A dead unit's gradient is exactly zero, so it stays dead; the network is narrower than it was built.

What it is not
Zeros in activations: half of a healthy ReLU's outputs are zero. Some units are dead in every deep
rectifier network (0.1 to 0.3 at width 32). A network that trains well with dead units gets a note.

Remedies
A lower learning rate where a step killed them, He initialisation, LeakyReLU or GELU, normalisation,
width.

Evidence
dead_fraction (of the worst layer), dead_layers, dead_at_start, update_ratio_before, loss_improvement.

References
Maas et al. 2013; He et al. 2015; Lu et al. 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gradscope.diagnose.architecture import producers, skips, weight_layers
from gradscope.diagnose.outcome import outcome, severity
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import Stretch, longest_stretch, median, require_steps
from gradscope.diagnose.wording import listed, present
from gradscope.records import Finding, Run
from gradscope.settings import Settings

NAME = "dead-units"


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find rectifier layers most of whose units are never active."""
    table = run.layer_table("activation_dead_unit_fraction").dropna(axis="columns", how="all")
    require(table.shape[1], "no rectifier's units were recorded")
    require_steps(run, settings.patience)
    shares = table.to_numpy()
    stretches = {
        str(name): longest_stretch(shares[:, index] > settings.dead_share, run, settings.patience)
        for index, name in enumerate(table.columns)
    }
    dying = {
        name: stretch
        for name, stretch in stretches.items()
        if stretch is not None and stretch.ongoing and not _behind_zero_weights(run, name)
    }
    if not dying:
        return None
    start = min(dying, key=lambda name: (dying[name].first_row, run.layer(name).depth))
    first = dying[start]
    worst = {name: float(np.nanmedian(table[name].to_numpy()[item.rows])) for name, item in dying.items()}
    layers = sorted(_origins(run, dying, worst), key=lambda name: (name != start, run.layer(name).depth))
    before = _update_before(run, first.first_row)
    loss = outcome(run, settings)
    at_start = first.first_row <= 1
    return Finding(
        NAME,
        severity(loss),
        f"In {listed(layers)} {worst[start]:.0%} of the units of {start} are never active, for any sample.",
        tuple(layers),
        tuple(weight for name in layers for weight in _sources(run, name)),
        first.first_step,
        max(item.last_step for item in dying.values()),
        _cause(at_start, before, first.first_step),
        present(
            dead_fraction=max(worst.values()),
            dead_layers=len(dying),
            dead_at_start=float(at_start),
            update_ratio_before=before,
            loss_improvement=loss.improvement,
        ),
    )


def _origins(run: Run, dying: Mapping[str, Stretch], worst: Mapping[str, float]) -> list[str]:
    """Return the layers that didn't die because one before them was dead altogether, or gives only zeros."""
    fed = [name for name in dying if _fed(run, name, dying[name].rows)]
    silent = [run.layer(name).depth for name in dying if worst[name] == 1 and not skips(run)]
    return [name for name in fed or dying if not any(depth < run.layer(name).depth for depth in silent)]


def _fed(run: Run, name: str, rows: slice) -> bool:
    """Say whether a layer takes anything but zeros."""
    sizes = run.layer_table("activation_rms")
    sources = producers(run, run.layer(name))
    return not sources or any(median(sizes[item.name].to_numpy()[rows]) != 0 for item in sources)


def _behind_zero_weights(run: Run, name: str) -> bool:
    """Say whether a layer is silent because weights before it started at zero, which is another ailment."""
    depth = run.layer(name).depth
    before = [item.weight for item in weight_layers(run) if item.layer.depth <= depth]
    zero = {weight.name for weight in before if weight.initial.get("absmax") == 0}
    return bool(zero) and (not skips(run) or bool(zero.intersection(_sources(run, name))))


def _sources(run: Run, name: str) -> tuple[str, ...]:
    """Return the weights whose output a layer rectifies."""
    return tuple(
        weight for source in producers(run, run.layer(name)) for weight in _weights(run, source.name)
    )


def _weights(run: Run, layer: str) -> tuple[str, ...]:
    return tuple(name for name in run.layer(layer).parameters if run.parameter(name).role == "weight")


def _update_before(run: Run, row: int) -> float:
    """Return the largest median update ratio among the five recorded steps before the death."""
    ratios = run.parameter_table("update_ratio").to_numpy()[max(0, row - 5) : row + 1]
    return max((median(step) for step in ratios), default=math.nan)


def _cause(at_start: bool, before: float, step: int) -> str:
    if at_start:
        return (
            "They are dead from the first step on: the initialisation or the scale of the data puts "
            "them there."
        )
    return (
        f"They die around step {step}, when an update changed the typical weight by {before:.2g} of its size."
    )
