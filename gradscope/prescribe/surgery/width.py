"""Widen a chain of layers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gradscope.errors import SurgeryRefused
from gradscope.prescribe.surgery.structure import executed, units_of, weighted

Weighted = nn.Linear | _ConvNd


def widen(model: nn.Module, action: Mapping[str, Any], batch: Any) -> None:
    """Multiply the units of all hidden layers of a chain by a whole factor, in place.

    Weights are drawn anew with the mean and spread that each layer has, the spread corrected for the new
    fan-in, so that the gain per layer stays what it was.
    """
    factor = action["factor"]
    if not isinstance(factor, int) or factor < 2:
        raise SurgeryRefused(f"widening by {factor!r} makes no sense; give a whole number of at least 2")
    layers = weighted(model)
    _refuse_unsuited(model, layers)
    ratios = [_ratio(*pair) for pair in pairwise(layers.items())]
    chain = list(layers.values())
    norms = _norms_between(model, list(layers))
    for (before, after), ratio in zip(pairwise(chain), ratios, strict=True):
        _grow_inputs(after, units_of(before) * factor * ratio)
        _grow_outputs(before, units_of(before) * factor)
    for norm in norms:
        _grow_norm(norm, factor)


def _refuse_unsuited(model: nn.Module, layers: Mapping[str, Weighted]) -> None:
    if len(layers) < 2:
        raise SurgeryRefused("the model has no hidden layer to widen")
    known = (*layers.values(), *_norms(model))
    allowed = {id(parameter) for layer in known for parameter in layer.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in allowed:
            raise SurgeryRefused(
                f"{name} has a shape that follows from the width; widen the model where it is built"
            )
    for name, layer in layers.items():
        if "weight" not in layer._parameters:
            raise SurgeryRefused(f"the weight of {name} is computed; widen the model where it is built")
    shared = [layer for layer in layers.values() if getattr(layer, "groups", 1) != 1]
    if shared or any(isinstance(layer, _ConvTransposeNd) for layer in layers.values()):
        raise SurgeryRefused(
            "grouped and transposed convolutions can't be widened; do it where they are built"
        )


def _ratio(before: tuple[str, Weighted], after: tuple[str, Weighted]) -> int:
    """Return how many inputs each unit of the layer before feeds: 1, or the pixels that are flattened."""
    units, inputs = units_of(before[1]), _inputs(after[1])
    if inputs % units or (inputs != units and not isinstance(before[1], _ConvNd)):
        raise SurgeryRefused(
            f"{after[0]} takes {inputs} inputs, {before[0]} gives {units}: not a chain; widen it where it "
            "is built"
        )
    return inputs // units


def _inputs(layer: Weighted) -> int:
    return layer.in_channels if isinstance(layer, _ConvNd) else layer.in_features


def _norms(model: nn.Module) -> list[nn.Module]:
    return [
        module for module in model.modules() if isinstance(module, (_BatchNorm, nn.LayerNorm, nn.GroupNorm))
    ]


def _norms_between(model: nn.Module, names: list[str]) -> list[nn.Module]:
    """Return the norms that come after the first weighted layer and before the last."""
    order = executed(model)
    first, last = order.index(names[0]), order.index(names[-1])
    between = {id(module): module for module in map(model.get_submodule, order[first:last])}.values()
    return [module for module in between if isinstance(module, (_BatchNorm, nn.LayerNorm, nn.GroupNorm))]


def _redrawn(old: Tensor, shape: tuple[int, ...], spread: float = 1.0) -> nn.Parameter:
    mean, std = old.detach().mean(), old.detach().std() * spread if old.numel() > 1 else torch.zeros(())
    new = torch.randn(shape, device=old.device, dtype=old.dtype) * std.to(old.device) + mean
    return nn.Parameter(new.to(old.dtype), requires_grad=old.requires_grad)


def _grow_inputs(layer: Weighted, inputs: int) -> None:
    old = layer.weight
    layer.weight = _redrawn(old, (old.shape[0], inputs, *old.shape[2:]), (old.shape[1] / inputs) ** 0.5)
    if isinstance(layer, _ConvNd):
        layer.in_channels = inputs
    else:
        layer.in_features = inputs


def _grow_outputs(layer: Weighted, outputs: int) -> None:
    layer.weight = _redrawn(layer.weight, (outputs, *layer.weight.shape[1:]))
    if layer.bias is not None:
        layer.bias = _redrawn(layer.bias, (outputs,))
    if isinstance(layer, _ConvNd):
        layer.out_channels = outputs
    else:
        layer.out_features = outputs


def _grow_norm(norm: nn.Module, factor: int) -> None:
    """Repeat a norm's gains and running statistics for the new units."""
    for name, parameter in list(norm.named_parameters(recurse=False)):
        setattr(norm, name, nn.Parameter(parameter.detach().repeat(factor), parameter.requires_grad))
    for name, buffer in list(norm.named_buffers(recurse=False)):
        setattr(norm, name, buffer.repeat(factor) if buffer.dim() else buffer)
    for name in ("num_features", "num_channels"):
        if hasattr(norm, name):
            setattr(norm, name, getattr(norm, name) * factor)
    if isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (norm.normalized_shape[0] * factor,)
