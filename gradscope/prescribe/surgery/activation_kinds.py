"""Activations by their canonical names: as modules, as functions and as tensor methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "rrelu": nn.RReLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "logsigmoid": nn.LogSigmoid,
    "hardsigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
    "hardshrink": nn.Hardshrink,
    "softshrink": nn.Softshrink,
    "threshold": nn.Threshold,
    "softmax": nn.Softmax,
    "log_softmax": nn.LogSoftmax,
    "identity": nn.Identity,
}
# Not activations of torch's, but used as such; they grow until they overflow.
GROWING = ("exp", "expm1", "square", "pow", "sinh", "cosh")
# Only replaced where they are named: they end a network or weigh attention.
NORMALISING = ("softmax", "log_softmax")

_BY_CLASS = {kind: name for name, kind in MODULES.items()}
METHODS: dict[str, str] = {
    f"{name}{suffix}": name for name in (*MODULES, *GROWING) for suffix in ("", "_") if name != "identity"
}
FUNCTIONS: dict[Callable[..., Any], str] = {
    getattr(place, method): name
    for method, name in METHODS.items()
    for place in (functional, torch)
    if hasattr(place, method)
}


def kind_of_module(module: nn.Module) -> str | None:
    """Return the canonical name of what an activation module computes, None if it is no activation."""
    return next((_BY_CLASS[kind] for kind in type(module).__mro__ if kind in _BY_CLASS), None)


def build(name: str) -> nn.Module:
    """Return a new activation module with torch's usual options; KeyError for an unknown name."""
    return nn.LeakyReLU(0.01) if name == "leaky_relu" else MODULES[name]()


def as_function(name: str) -> Callable[..., Any]:
    """Return the activation as a function of one tensor; KeyError for an unknown name."""
    if name not in MODULES:
        raise KeyError(name)
    return getattr(torch if name in ("tanh", "sigmoid") else functional, name)  # type: ignore[no-any-return]
