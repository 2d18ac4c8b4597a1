"""Insert, replace and adjust normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from gradscope.errors import SurgeryRefused
from gradscope.prescribe.normalization import groups_of
from gradscope.prescribe.surgery.forward_pass import rewrite
from gradscope.prescribe.surgery.structure import (
    NORMS,
    RECURRENT,
    Behind,
    Level,
    Levels,
    hidden,
    units_of,
    weighted,
)

_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def normalize(model: nn.Module, action: Mapping[str, Any], batch: Any) -> None:
    """Insert a normalisation before the activation of each hidden layer that has none, in place."""
    layers = weighted(model)
    asked = action.get("layers")
    levels = Levels(model)
    sites: dict[str, Behind] = {}
    for name in asked or hidden(model):
        _refuse_unsuited(model, layers, name)
        behind = levels.behind(name) if asked else levels.behind_if_seen(name)
        if behind is not None and not behind.normalized:
            sites[name] = behind
        elif asked and behind is None:
            raise SurgeryRefused(f"{name} has no activation of its own behind it; insert the norm by hand")
    if not sites:
        raise levels.reason or SurgeryRefused(
            "no hidden layer has an activation without a normalisation before it"
        )
    edited: dict[int, Level] = {}
    for name, site in sites.items():
        norm = build_norm(action["norm"], layers[name])
        if not _wrap(site, norm):
            _insert(site, norm)
            edited[id(site.level.owner)] = site.level
    for level in edited.values():
        rewrite(level.owner, level.graph)


def build_norm(norm: str, layer: nn.Linear | _ConvNd) -> nn.Module:
    """Return a normalisation of a layer's output: of its units, its device and its dtype."""
    units = units_of(layer)
    if norm == "batch":
        axes = len(layer.kernel_size) if isinstance(layer, _ConvNd) else 1
        built: nn.Module = _BATCH_NORMS[axes](units)
    elif norm == "layer":
        built = nn.GroupNorm(1, units) if isinstance(layer, _ConvNd) else nn.LayerNorm(units)
    elif norm == "group":
        built = nn.GroupNorm(groups_of(units), units)
    else:
        raise SurgeryRefused(f"unknown normalisation {norm!r}; known are batch, layer, group")
    return built.to(layer.weight.device, layer.weight.dtype).train(layer.training)


def replace_norms(model: nn.Module, action: Mapping[str, Any], batch: Any) -> None:
    """Put GroupNorm, or another norm that needs no batch, for BatchNorm layers, or nothing for any norm."""
    names = action.get("layers") or [
        name for name, module in model.named_modules() if isinstance(module, _BatchNorm)
    ]
    if not names:
        raise SurgeryRefused("the model has no BatchNorm to replace")
    for name in names:
        old = _module(model, name)
        parent, _, child = name.rpartition(".")
        if action["norm"] == "none" and isinstance(old, NORMS):
            _refuse_torchs_own(model, parent)
            setattr(model.get_submodule(parent), child, nn.Identity().train(old.training))
            continue
        if not isinstance(old, _BatchNorm):
            raise SurgeryRefused(f"{name} is a {type(old).__name__}, not a BatchNorm")
        groups = 1 if action["norm"] == "layer" else groups_of(old.num_features)
        new = nn.GroupNorm(groups, old.num_features, old.eps, old.affine)
        if old.affine:
            new.load_state_dict({key: old.state_dict()[key] for key in ("weight", "bias")})
            new.to(old.weight.device, old.weight.dtype)
        setattr(model.get_submodule(parent), child, new.train(old.training))


def _refuse_torchs_own(model: nn.Module, parent: str) -> None:
    owner = model.get_submodule(parent)
    if type(owner).__module__.startswith("torch.nn.modules.transformer"):
        raise SurgeryRefused(f"{parent} is a {type(owner).__name__} of torch's, which needs its norms")


def set_epsilon(model: nn.Module, action: Mapping[str, Any], batch: Any) -> None:
    """Set the epsilon of normalisations, in place."""
    names = action.get("layers") or [
        name for name, module in model.named_modules() if isinstance(module, NORMS)
    ]
    if not names:
        raise SurgeryRefused("the model has no normalisation")
    for name in names:
        module = _module(model, name)
        if not hasattr(module, "eps"):
            raise SurgeryRefused(f"{name} is a {type(module).__name__}, which has no epsilon")
        setattr(module, "eps", float(action["eps"]))  # noqa: B010


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise SurgeryRefused(f"the model has no module {name!r}") from None


def _refuse_unsuited(model: nn.Module, layers: Mapping[str, nn.Module], name: str) -> None:
    module = _module(model, name)
    if isinstance(module, RECURRENT):
        raise SurgeryRefused(f"{name} is recurrent: statistics would mix time steps; clip gradients instead")
    if name not in layers:
        raise SurgeryRefused(
            f"{name} is a {type(module).__name__}; norms go behind linear and convolution layers"
        )
    if name == list(layers)[-1]:
        raise SurgeryRefused(
            f"{name} gives the output; a norm there would take away what it has learned to say"
        )


def _wrap(site: Behind, norm: nn.Module) -> bool:
    """Put norm and activation into one module, if it stands in a Sequential and has no weights to rename."""
    owner, name = site.level.owner, str(site.activation.target)
    if not isinstance(owner, nn.Sequential) or owner.get_submodule(name).state_dict():
        return False
    setattr(owner, name, nn.Sequential(norm, owner.get_submodule(name)).train(owner.training))
    return True


def _insert(site: Behind, norm: nn.Module) -> None:
    """Let forward() call the norm in front of the activation."""
    owner, node = site.level.owner, site.activation
    name = f"{str(site.layer.target).replace('.', '_')}_norm"
    while hasattr(owner, name):
        name += "_"
    owner.add_module(name, norm)
    before = node.args[0]
    with site.level.graph.inserting_before(node):
        normalized = site.level.graph.call_module(name, (before,))
    node.replace_input_with(before, normalized)  # type: ignore[arg-type]
