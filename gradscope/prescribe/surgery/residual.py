"""Add residual connections around layers that keep the shape of their input."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gradscope.errors import SurgeryRefused
from gradscope.prescribe.surgery.forward_pass import rewrite
from gradscope.prescribe.surgery.structure import Behind, Levels, hidden, weighted


def add_residuals(model: nn.Module, action: Mapping[str, Any], batch: Any) -> None:
    """Add each layer's input to its activated output, the branch scaled by 1/sqrt(number), in place."""
    layers = weighted(model)
    asked = action.get("layers")
    attention = {name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    levels = Levels(model)
    sites: list[Behind] = []
    for name in asked or hidden(model):
        if name in attention:
            sites.append(_around_attention(levels, name))
            continue
        if name not in layers:
            raise SurgeryRefused(f"{name!r} is no linear, convolution or attention layer of the model")
        look = levels.behind if asked else levels.behind_if_seen
        behind = look(name) if keeps_shape(layers[name]) else None
        if behind is not None and not _joined(behind):
            sites.append(behind)
        elif asked:
            raise SurgeryRefused(f"{name} {_why_not(layers[name])}; no skip fits around it")
    if not sites:
        raise levels.reason or SurgeryRefused(
            "no hidden layer keeps the shape of its input; no skip fits without a projection"
        )
    scale = float(action.get("scale") or len(sites) ** -0.5)
    for site in sites:
        _add(site, scale)
    for owner, graph in {
        id(site.level.owner): (site.level.owner, site.level.graph) for site in sites
    }.values():
        rewrite(owner, graph)


def _around_attention(levels: Levels, name: str) -> Behind:
    """Return the place of a skip from an attention layer's query to its output, the first it returns."""
    level, short = levels.of(name)
    calls = [node for node in level.graph.nodes if node.op == "call_module" and node.target == short]
    outputs = [
        user
        for call in calls
        for user in call.users
        if user.target is operator.getitem and user.args[1] == 0 and not any(map(_adds, user.users))
    ]
    if len(calls) != 1 or len(outputs) != 1 or not calls[0].args:
        raise SurgeryRefused(f"{name} is bypassed already, or called in another way; no skip fits around it")
    return Behind(level, calls[0], outputs[0], normalized=False)


def keeps_shape(layer: nn.Module) -> bool:
    """Say whether a layer's output has its input's shape."""
    if isinstance(layer, nn.Linear):
        return layer.in_features == layer.out_features
    if not isinstance(layer, _ConvNd) or isinstance(layer, _ConvTransposeNd):
        return False
    if isinstance(layer.padding, str):
        same = layer.padding == "same"
    else:
        reach = zip(layer.kernel_size, layer.padding, layer.dilation, strict=True)
        same = all(dilation * (kernel - 1) == 2 * padding for kernel, padding, dilation in reach)
    return layer.in_channels == layer.out_channels and all(step == 1 for step in layer.stride) and same


def _joined(site: Behind) -> bool:
    """Say whether the activation's output is added to something already."""
    return any(_adds(user) for user in site.activation.users)


def _adds(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", str(node.target)) in ("add", "iadd", "add_")


def _why_not(layer: nn.Module) -> str:
    return (
        "has no activation of its own, or is bypassed already" if keeps_shape(layer) else "changes the shape"
    )


def _add(site: Behind, scale: float) -> None:
    graph, node = site.level.graph, site.activation
    users = list(node.users)
    with graph.inserting_after(node):
        branch = graph.call_function(operator.mul, (node, scale))
    with graph.inserting_after(branch):
        joined = graph.call_function(operator.add, (site.layer.args[0], branch))
    for user in users:
        user.replace_input_with(node, joined)
