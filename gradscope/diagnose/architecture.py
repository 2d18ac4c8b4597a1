"""Questions about the graph of layers: which weights lie behind one another, what follows a layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gradscope.records import LayerInfo, ParameterInfo, Run

PASSED_THROUGH = ("normalization", "dropout", "shape", "pooling")
RESHAPING = ("Squeeze", "Unsqueeze", "View", "UnsafeView", "Reshape", "Expand", "T", "Transpose", "Permute")
WEIGHTED = ("linear", "convolution", "recurrent", "attention")


@dataclass(frozen=True, eq=False)
class WeightLayer:
    """A layer with a trained weight: its place counts the weight layers on the longest way to it."""

    layer: LayerInfo
    weight: ParameterInfo
    place: int


def weight_layers(run: Run) -> tuple[WeightLayer, ...]:
    """Return every layer with a trained weight matrix or kernel, in execution order."""
    places = _places(run)
    found = []
    for layer in run.layers:
        weight = main_weight(run, layer)
        if weight is not None and layer.role in WEIGHTED:
            found.append(WeightLayer(layer, weight, places[layer.name]))
    return tuple(found)


def main_weight(run: Run, layer: LayerInfo) -> ParameterInfo | None:
    """Return the largest trained weight of a layer, None if it has none."""
    names = {parameter.name: parameter for parameter in run.parameters}
    own = [names[name] for name in layer.parameters if name in names]
    weights = [parameter for parameter in own if parameter.role == "weight" and parameter.trained]
    return max(weights, key=lambda parameter: parameter.size, default=None)


def networks(run: Run) -> tuple[tuple[WeightLayer, ...], ...]:
    """Split the weight layers into those that one optimizer trains together, each in execution order."""
    groups: dict[str, list[WeightLayer]] = {}
    for item in weight_layers(run):
        optimizer = (item.weight.group or "0").split(".")[0]
        groups.setdefault(optimizer, []).append(item)
    return tuple(tuple(items) for items in groups.values())


def connected(run: Run) -> bool:
    """Say whether it was recorded how the layers are connected, not only in which order they ran."""
    return any(layer.inputs for layer in run.layers)


def consumers(run: Run, name: str) -> list[LayerInfo]:
    """Return the layers that take a layer's output; the one that ran next, where connections aren't known."""
    if connected(run):
        again = _reuses(run)
        return [layer for layer in run.layers if name in layer.inputs or (name, layer.name) in again]
    depth = run.layer(name).depth
    return [layer for layer in run.layers if layer.depth == depth + 1]


def producers(run: Run, layer: LayerInfo) -> list[LayerInfo]:
    """Return the layers whose outputs a layer takes; the one that ran before, if connections aren't known."""
    if connected(run):
        again = _reuses(run)
        return [item for item in run.layers if item.name in layer.inputs or (item.name, layer.name) in again]
    return [item for item in run.layers if item.depth == layer.depth - 1]


def _reuses(run: Run) -> dict[tuple[str, str], list[str]]:
    """Return where a module without weights is called again: (what it takes, the module) -> who takes that.

    Of such a module, as an activation that all layers share, only the first call's input is known. What ran
    just before a layer that takes its output is what it was called on.
    """
    again = {
        layer.name
        for layer in run.layers
        if layer.calls > 1 and not layer.parameters and layer.role in ("activation", *PASSED_THROUGH)
    }
    found: dict[tuple[str, str], list[str]] = {}
    before: LayerInfo | None = None
    for layer in run.layers:
        for shared in again.intersection(layer.inputs):
            if before is not None and before.calls == 1 and before.name not in run.layer(shared).inputs:
                found.setdefault((before.name, shared), []).append(layer.name)
        before = before if layer.name in again else layer
    return found


def operations(functions: Iterable[object]) -> list[str]:
    """Return the names of autograd functions without their "Backward0" or "Backward1"."""
    return [re.sub(r"Backward\d+$", "", str(name)) for name in functions]


def passes_as_is(source: LayerInfo, layer: LayerInfo) -> bool:
    """Say whether a layer takes another's output with nothing but a change of shape between them."""
    activated = source.activation is not None and source.role != "activation"
    return not activated and all(name in RESHAPING for name in operations(layer.functions))


def unshaped(run: Run, layer: LayerInfo) -> LayerInfo:
    """Return the layer whose output this one shows, perhaps in another shape."""
    while layer.activation is None and layer.role in PASSED_THROUGH and len(producers(run, layer)) == 1:
        layer = producers(run, layer)[0]
    return layer


def own_code_before(run: Run, layer: LayerInfo) -> str:
    """Return the module whose own code lies between a layer and the finite outputs that it takes, "" if none.

    Its parts are watched, what its code does with their outputs is not.
    """
    if not layer.functions or all(name in RESHAPING for name in operations(layer.functions)):
        return ""
    around = [parent for source in producers(run, layer) for parent in _parents(source.name)]
    around = [parent for parent in around if not layer.name.startswith(parent + ".")]
    calls_own_code = [name for name in around if name not in _sequences(run)]
    return max(calls_own_code, key=len, default="")


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _sequences(run: Run) -> set[str]:
    """Return the modules whose parts are numbered: a list or a sequence, which computes nothing itself."""
    return {layer.name.rpartition(".")[0] for layer in run.info.layers if layer.name.split(".")[-1].isdigit()}


def joined_after(run: Run, layer: LayerInfo) -> bool:
    """Say whether a layer's output is added to another layer's, as at a residual branch's end."""
    return any(len(set(item.inputs)) > 1 for item in consumers(run, layer.name)) or any(
        joined_after(run, item)
        for item in consumers(run, layer.name)
        if item.role in ("activation", *PASSED_THROUGH) and item.depth > layer.depth
    )


def activation_after(run: Run, layer: LayerInfo) -> str | None:
    """Return the activation that a layer's output goes through before the next weights.

    "identity" if the next weights take it as it is; None if it goes to the loss or can't be followed.
    """
    seen = {layer.name}
    current = layer
    while current.activation is None:
        following = [item for item in consumers(run, current.name) if item.name not in seen]
        if not following:
            return None
        current = min(following, key=lambda item: item.depth)
        seen.add(current.name)
        if current.role not in ("activation", *PASSED_THROUGH):
            return "identity" if current.role in WEIGHTED else None
    return current.activation


def normalized_after(run: Run, layer: LayerInfo) -> str:
    """Return the kind of the normalisation between a layer and the next weights, "" if there is none."""
    seen = {layer.name}
    current = layer
    while True:
        following = [item for item in consumers(run, current.name) if item.name not in seen]
        if not following:
            return ""
        current = min(following, key=lambda item: item.depth)
        seen.add(current.name)
        if current.role == "normalization":
            return current.kind
        if current.role not in ("activation", *PASSED_THROUGH):
            return ""


def output_layers(run: Run) -> tuple[str, ...]:
    """Return the layers that feed the loss, or those that nothing else takes, if the loss doesn't tell.

    A layer that feeds further weights too, as where a derivative of the network is in the loss, is inside.
    """
    told = tuple(str(name) for name in run.info.loss.get("inputs", ()))
    ran = {layer.name for layer in run.layers}
    told = tuple(name for name in told if name not in ran or not _weighted_after(run, run.layer(name)))
    if told:
        return told
    if not connected(run):
        return tuple(layer.name for layer in run.layers[-1:])
    taken = {name for layer in run.layers for name in layer.inputs}
    return tuple(layer.name for layer in run.layers if layer.name not in taken)


def watched_outputs(run: Run) -> list[LayerInfo]:
    """Return those of the output layers that ran while they were watched."""
    ran = {layer.name: layer for layer in run.layers}
    return [ran[name] for name in output_layers(run) if name in ran]


def _weighted_after(run: Run, layer: LayerInfo) -> bool:
    """Say whether further weights take a layer's output, as far as connections are known."""
    return connected(run) and any(
        item.role in WEIGHTED
        or (
            item.role in ("activation", *PASSED_THROUGH)
            and item.depth > layer.depth
            and _weighted_after(run, item)
        )
        for item in consumers(run, layer.name)
        if item.depth > layer.depth
    )


def feeds_output(run: Run, layer: LayerInfo) -> bool:
    """Say whether a layer's output reaches the loss without passing further weights."""
    outputs = set(output_layers(run))
    if layer.name in outputs:
        return True
    return any(
        item.role in ("activation", *PASSED_THROUGH) and item.depth > layer.depth and feeds_output(run, item)
        for item in consumers(run, layer.name)
    )


def skips(run: Run) -> bool:
    """Say whether the network adds or concatenates the outputs of different layers."""
    joins = ("AddBackward", "CatBackward", "SubBackward")
    return any(
        len(set(layer.inputs)) > 1 and any(function.startswith(joins) for function in layer.functions)
        for layer in run.layers
    )


def beyond_theory(run: Run, items: tuple[WeightLayer, ...]) -> str:
    """Return why mean-field theory does not apply to these layers, "" if it does."""
    if any(item.layer.role == "recurrent" for item in items):
        return "recurrent layers reuse their weights"
    if any(item.layer.role == "attention" for item in items):
        return "attention mixes positions"
    if skips(run):
        return "skip connections bypass layers"
    if not connected(run):
        return "the layers' order is known, not how they are connected"
    return ""


def names(items: tuple[WeightLayer, ...] | list[WeightLayer]) -> tuple[str, ...]:
    """Return the layers' names."""
    return tuple(item.layer.name for item in items)


def weights(items: tuple[WeightLayer, ...] | list[WeightLayer]) -> tuple[str, ...]:
    """Return the names of the layers' weights."""
    return tuple(item.weight.name for item in items)


def places(items: tuple[WeightLayer, ...]) -> np.ndarray:
    """Return the layers' places over depth."""
    return np.array([item.place for item in items], dtype=np.float64)


def _places(run: Run) -> dict[str, int]:
    """Return for each layer the number of weight layers on the longest way from the input to it."""
    linked = connected(run)
    through = {(shared, user): source for (source, shared), users in _reuses(run).items() for user in users}
    places: dict[str, int] = {}
    counted: dict[str, int] = {}  # the same, with the layer itself
    passed = 0
    for layer in run.layers:
        sources = [through.get((name, layer.name), name) for name in layer.inputs]
        before = [counted[name] for name in sources if name in counted]
        places[layer.name] = max(before, default=0) if linked else passed
        own = layer.role in WEIGHTED and bool(layer.parameters)
        passed += own
        counted[layer.name] = places[layer.name] + own
    return places
