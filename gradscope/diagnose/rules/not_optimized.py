"""Parameters that ask to be trained but that no optimizer holds.

What it finds
Parameters with requires_grad that are in no optimizer's groups, of layers that ran. Tensors with a gradient
that the model holds in a plain list or dictionary, where torch doesn't find them. Or, where the loss does not
improve much, frozen layers that make up most of the network and were never trained: their biases are all
exactly zero, or their weights still lie between the bounds of torch's default initialisation.

Why it hurts
Their gradients are computed and thrown away; they stay as initialised. Often a layer that was added after
the optimizer was built, or a list of layers that is no ModuleList.

What it is not
Frozen parameters that were trained before, or whose layers are the smaller part. If the
network trains well without them it may be meant so: a note.

Remedies
Code: hand them to the optimizer, or freeze them.

Evidence
parameters_left_out, share_left_out (of the trained entries), loss_improvement.

References
torch documentation, optimizers.
"""

from __future__ import annotations

from gradscope.diagnose.architecture import WEIGHTED
from gradscope.diagnose.outcome import outcome
from gradscope.diagnose.rule import require
from gradscope.diagnose.series import require_steps, steps_of
from gradscope.diagnose.wording import listed, present
from gradscope.records import Event, Finding, LayerInfo, ParameterInfo, Run
from gradscope.settings import Settings

NAME = "not-optimized"
# Largest weight / bound of torch's default initialisation, 1 / sqrt(fan-in): of many drawn weights one is
# next to it, and none beyond; any training moves some beyond.
DRAWN = (0.97, 1.0001)
MOST = 0.5  # share of all entries


def detect(run: Run, settings: Settings) -> Finding | None:
    """Find trained parameters in no optimizer group."""
    require_steps(run, 1)
    hidden = next((event for event in run.events if event.kind == "unregistered"), None)
    if hidden is not None:
        return _unregistered(run, hidden, settings)
    trained = [item for item in run.parameters if item.trained]
    require(trained and run.info.optimizers, "no optimizer or nothing to train was recorded")
    ran = {layer.name for layer in run.layers}
    left = [item for item in trained if item.group is None and item.layer in ran]
    if not left:
        return _frozen_as_drawn(run, settings)
    share = sum(item.size for item in left) / sum(item.size for item in trained)
    loss = outcome(run, settings)
    return Finding(
        NAME,
        "note" if loss.progress == "trains" else "warning",
        f"No optimizer holds {listed([item.name for item in left])}, which ask to be trained.",
        tuple(dict.fromkeys(item.layer for item in left)),
        tuple(item.name for item in left),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"{_percent(share)} of the weights that could be trained stay as they were initialised.",
        present(parameters_left_out=len(left), share_left_out=share, loss_improvement=loss.improvement),
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share > 0.01 else f"{share:.2%}"


def _frozen_as_drawn(run: Run, settings: Settings) -> Finding | None:
    """Find frozen layers that were never trained and make up most of a network that doesn't learn much."""
    layers = [layer for layer in run.layers if layer.role in WEIGHTED and _as_drawn(run, layer)]
    frozen = [item for item in run.parameters if item.layer in {layer.name for layer in layers}]
    share = sum(item.size for item in frozen) / sum(item.size for item in run.parameters)
    loss = outcome(run, settings)
    if share <= MOST or loss.progress not in ("slow", "stuck"):
        return None
    return Finding(
        NAME,
        "warning",
        f"{listed([layer.name for layer in layers])} are frozen, and were never trained.",
        tuple(layer.name for layer in layers),
        tuple(item.name for item in frozen),
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"{_percent(share)} of the weights keep the values that were drawn for them; {loss.text}.",
        present(parameters_left_out=len(frozen), share_left_out=share, loss_improvement=loss.improvement),
    )


def _as_drawn(run: Run, layer: LayerInfo) -> bool:
    """Say whether nothing of a layer is trained, and its values when watching began were an initialiser's."""
    own = [run.parameter(name) for name in layer.parameters]
    weights = [item for item in own if item.role == "weight"]
    if any(item.trained for item in own) or len(weights) != 1 or not layer.fan_in or _copied(run, weights[0]):
        return False
    biases = [item for item in own if item.role == "bias"]
    untouched = bool(biases) and all(item.initial.get("absmax") == 0 for item in biases)
    low, high = DRAWN
    return untouched or low < weights[0].initial.get("absmax", 0.0) * layer.fan_in**0.5 < high


def _copied(run: Run, weight: ParameterInfo) -> bool:
    """Say whether a frozen weight changes all the same, as the slow copy of another network's."""
    norms = run.parameter_table("weight_norm")[weight.name].dropna()
    return len(norms) > 1 and norms.iloc[0] != norms.iloc[-1]


def _unregistered(run: Run, event: Event, settings: Settings) -> Finding:
    """Describe tensors that get a gradient, but that nobody can hand to an optimizer by the model's list."""
    names = tuple(str(name) for name in event.data.get("parameters", ()))
    entries = int(event.data.get("entries", 0))
    share = entries / max(1, entries + sum(item.size for item in run.parameters if item.trained))
    loss = outcome(run, settings)
    return Finding(
        NAME,
        "note" if loss.progress == "trains" else "warning",
        f"No optimizer holds {listed(names)}, which the model doesn't register.",
        tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in names)),
        names,
        int(steps_of(run)[0]),
        int(steps_of(run)[-1]),
        f"{_percent(share)} of the entries that get a gradient stay as they were initialised: torch finds no "
        "parameters in a plain list or dictionary; use ModuleList, ModuleDict or ParameterList.",
        present(parameters_left_out=len(names), share_left_out=share, loss_improvement=loss.improvement),
    )
