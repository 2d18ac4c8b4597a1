"""What is watched: the layers, parameters and optimizers of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerInfo:
    """A watched module, as it is and as it ran.

    name: qualified module name; kind: class name; role: one of "linear", "convolution", "recurrent",
    "attention", "embedding", "activation", "normalization", "dropout", "pooling", "shape", "other".
    depth: place in the execution order of the first recorded step, -1 if it did not run.
    activation: canonical name ("relu", "tanh", ...) of what an activation module computes; for another
    layer, of the functional activation that is applied to its output, where the autograd graph shows one;
    else None. inputs: names of the watched layers whose outputs reach this one; functions: autograd
    functions on the way (so "AddBackward0" with two inputs is a skip connection). options: the numbers of
    its constructor that matter. output_shape: of its first call, batch included. unit_axis: the axis of
    output_shape that counts units. not_observable: why nothing is known of it, "" otherwise.
    """

    name: str
    kind: str
    role: str
    depth: int = -1
    calls: int = 0
    parameters: tuple[str, ...] = ()
    activation: str | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    output_shape: tuple[int, ...] | None = None
    unit_axis: int | None = None
    inputs: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    not_observable: str = ""


@dataclass(frozen=True)
class ParameterInfo:
    """A parameter of the model.

    role: "weight" (two or more axes), "bias", "gain" (of a normalisation), "embedding", "other".
    sampled: how many of its entries the update statistics cover. group: "optimizer.group" (such as "0.1"),
    None if no optimizer has it. initial: statistics of its values when watching began: "mean", "std",
    "absmax", and "unit_spread" (how much its output units differ: 0 when all rows are equal).
    """

    name: str
    layer: str
    role: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    trained: bool = True
    aliases: tuple[str, ...] = ()
    group: str | None = None
    sampled: int = 0
    initial: Mapping[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Return the number of entries."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True)
class OptimizerInfo:
    """An optimizer: its class name and, per parameter group, its options ("lr", "momentum", "betas", "eps",
    "weight_decay", ...) and under "parameters" the names of its parameters."""

    kind: str
    groups: tuple[Mapping[str, Any], ...] = ()
