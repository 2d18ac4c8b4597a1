"""What is known of the parameters and optimizers before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradscope.observe.layers import role_of
from gradscope.observe.wrappers import named_modules, whole_shapes
from gradscope.records import OptimizerInfo, ParameterInfo, storable

# Spread and moments of the initial values are taken from so many entries at most.
INSPECTED = 1 << 22


def updated_by(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters that an optimizer updates, all its groups' in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def named_parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, tuple[str, ...]]]:
    """Return every parameter once, by its first name, and the further names of tied ones."""
    first: dict[int, str] = {}
    unique: dict[str, nn.Parameter] = {}
    aliases: dict[str, tuple[str, ...]] = {}
    for name, parameter in _every_parameter(model):
        known = first.setdefault(id(parameter), name)
        if known == name:
            unique[name] = parameter
        else:
            aliases[known] = (*aliases.get(known, ()), name)
    return unique, aliases


def _every_parameter(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for layer, module in named_modules(model, repeated=True):
        for own, parameter in module._parameters.items():
            if parameter is not None:
                own = storable(own)
                yield f"{layer}.{own}" if layer else own, parameter


def describe_parameters(
    model: nn.Module, optimizers: Sequence[Optimizer], limit: int
) -> tuple[ParameterInfo, ...]:
    """Return a description of every parameter; `limit` is the number of entries whose update is measured."""
    modules, whole = dict(named_modules(model)), whole_shapes(model)
    unique, aliases = named_parameters(model)
    groups = {
        id(parameter): f"{number}.{index}"
        for number, optimizer in enumerate(optimizers)
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    described = []
    for name, parameter in unique.items():
        layer, own = _owner(name, modules)
        shape = () if is_lazy(parameter) else whole.get(id(parameter), tuple(parameter.shape))
        described.append(
            ParameterInfo(
                name=name,
                layer=layer,
                role=_role(modules.get(layer), own, len(shape), is_lazy(parameter)),
                shape=shape,
                dtype=str(parameter.dtype).removeprefix("torch."),
                trained=parameter.requires_grad,
                aliases=aliases.get(name, ()),
                group=groups.get(id(parameter)),
                sampled=min(limit, math.prod(shape)),
                initial=_initial(parameter),
            )
        )
    return tuple(described)


def _owner(name: str, modules: dict[str, nn.Module]) -> tuple[str, str]:
    """Split a parameter's name into the layer that it is reported under and its name there."""
    layer, _, own = name.rpartition(".")
    if ".parametrizations." in f".{layer}.":
        layer, _, own = f".{layer}".partition(".parametrizations.")
        return layer.removeprefix("."), own
    parent = layer.rpartition(".")[0]
    if isinstance(modules.get(parent), nn.MultiheadAttention):
        return parent, own
    return layer, own


def _role(module: nn.Module | None, own: str, axes: int, lazy: bool) -> str:
    role = role_of(module) if module is not None else "other"
    if role == "embedding":
        return "embedding"
    if "bias" in own:
        return "bias"
    if role == "normalization":
        return "gain"
    if lazy:
        return "weight" if own == "weight" else "other"
    return "weight" if axes >= 2 else "other"


@torch.no_grad()
def _initial(parameter: Tensor) -> dict[str, float]:
    """Return mean, std, largest magnitude and spread over units of a parameter's values."""
    if is_lazy(parameter) or not parameter.numel() or not parameter.dtype.is_floating_point:
        return {}
    values = local_part(parameter.detach())
    if values.device.type == "meta" or not values.numel():
        return {}
    rows = values.reshape(values.shape[0], -1) if values.dim() > 1 else values.reshape(-1, 1)
    rows = rows[:: max(1, values.numel() // INSPECTED)].double()
    statistics = {
        "mean": float(rows.mean()),
        "std": float(rows.std(correction=0)),
        "absmax": float(rows.abs().max()),
    }
    if values.dim() > 1:
        statistics["unit_spread"] = _unit_spread(rows)
    return statistics


def _unit_spread(rows: Tensor) -> float:
    """Return how much the rows differ: rms distance from their mean row over the rms of all entries."""
    scale = float(rows.square().mean().sqrt())
    return float((rows - rows.mean(0)).square().mean().sqrt()) / scale if scale else 0.0


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a distributed tensor, any other tensor as it is."""
    spread: Any = tensor
    return spread.to_local() if is_sharded(tensor) else tensor


def unnested(tensor: Tensor) -> Tensor:
    """Return the entries of a nested tensor's parts side by side, any other tensor as it is."""
    return tensor.detach().values() if tensor.is_nested else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is spread over ranks, and holds this rank's shard inside."""
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "to_local")


@torch.no_grad()
def mean_of_shard(parameter: Tensor) -> Tensor:
    """Return the mean of this rank's shard: (), float64; from all ranks' the spread of the whole follows."""
    values = local_part(parameter.detach())
    return (torch.view_as_real(values) if values.dtype.is_complex else values).double().mean()


def describe_optimizers(optimizers: Iterable[Optimizer], names: dict[int, str]) -> tuple[OptimizerInfo, ...]:
    """Return each optimizer's class and options; `names` gives parameters' names by id."""
    return tuple(
        OptimizerInfo(
            type(optimizer).__name__,
            tuple(_group(group, names) for group in optimizer.param_groups),
        )
        for optimizer in optimizers
    )


def _group(group: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    options = {name: _plain(value) for name, value in group.items() if name != "params"}
    options = {name: value for name, value in options.items() if value is not None}
    return {**options, "parameters": [names[id(item)] for item in group["params"] if id(item) in names]}


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold, None if there is none."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return None
