"""A finding with what the run shows of the network: the questions that decide which remedy fits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median

import numpy as np

from gradscope.records import Finding, LayerInfo, ParameterInfo, Run
from gradscope.settings import Settings

_TRANSPARENT = ("normalization", "dropout", "shape", "pooling")
_WEIGHTED = ("linear", "convolution")
_RECURRENCE = 4  # calls of one layer in a step
_NOT_HIDDEN = ("softmax", "log_softmax", "softmin", "glu")


@dataclass(frozen=True)
class Case:
    """One finding of one run."""

    finding: Finding
    run: Run
    settings: Settings

    # The network

    @cached_property
    def weighted(self) -> tuple[LayerInfo, ...]:
        """Linear and convolution layers in execution order."""
        return tuple(layer for layer in self.run.layers if layer.role in _WEIGHTED)

    @cached_property
    def outputs(self) -> frozenset[str]:
        """Names of the weighted layers behind which no other weighted layer comes before the loss."""
        if not self.weighted:
            return frozenset()
        told = {str(name) for name in self.run.info.loss.get("inputs", ())}
        names = {layer.name for layer in self.weighted}
        return frozenset(told & names or {self.weighted[-1].name})

    @cached_property
    def hidden(self) -> tuple[LayerInfo, ...]:
        """Weighted layers that aren't outputs."""
        return tuple(layer for layer in self.weighted if layer.name not in self.outputs)

    @cached_property
    def depth(self) -> int:
        """How many weighted layers the signal passes."""
        return len(self.weighted)

    @cached_property
    def width(self) -> float:
        """Median number of units of the hidden layers; infinity if unknown."""
        widths = [count for layer in self.hidden if (count := self.units(layer))]
        return float(median(widths)) if widths else math.inf

    def units(self, layer: LayerInfo) -> int | None:
        """Return how many units or channels a layer has."""
        if layer.output_shape and layer.unit_axis is not None:
            return layer.output_shape[layer.unit_axis]
        return layer.fan_out

    @cached_property
    def _followers(self) -> dict[str, list[LayerInfo]]:
        layers = self.run.layers
        if any(layer.inputs for layer in layers):
            return {layer.name: [other for other in layers if layer.name in other.inputs] for layer in layers}
        return {layer.name: [after] for layer, after in pairwise(layers)}

    @cached_property
    def activation_behind(self) -> dict[str, LayerInfo]:
        """For each weighted layer, the activation layer its output goes through, or itself if functional."""
        found: dict[str, LayerInfo] = {}
        for layer in self.weighted:
            current: LayerInfo | None = layer
            while current is not None and current.activation is None:
                later = [
                    other for other in self._followers.get(current.name, []) if other.depth > current.depth
                ]
                step = min(later, key=lambda other: other.depth, default=None)
                current = step if step and step.role in (*_TRANSPARENT, "activation") else None
            if current is not None:
                found[layer.name] = current
        return found

    def activation_of(self, layer: LayerInfo) -> str | None:
        """Return the activation that a weighted layer's output goes through, None if there is none."""
        behind = self.activation_behind.get(layer.name)
        return behind.activation if behind else None

    @cached_property
    def activation(self) -> str | None:
        """The most frequent activation between the hidden layers; of all layers if that can't be told."""
        of_hidden = [self.activation_of(layer) for layer in self.hidden]
        seen = [name for name in of_hidden if name] or [
            layer.activation for layer in self.run.layers if layer.activation
        ]
        counts = Counter(name for name in seen if name not in _NOT_HIDDEN)
        return counts.most_common(1)[0][0] if counts else None

    @cached_property
    def activation_layers(self) -> tuple[LayerInfo, ...]:
        """The activation modules behind hidden layers."""
        hidden = {
            self.activation_behind[layer.name].name for layer in self.hidden if self.activation_of(layer)
        }
        at_output = {
            self.activation_behind[name].name for name in self.outputs if name in self.activation_behind
        }
        return tuple(
            layer
            for layer in self.run.layers
            if layer.name in hidden - at_output and layer.role == "activation"
        )

    @cached_property
    def functional(self) -> tuple[LayerInfo, ...]:
        """Hidden layers whose activation is a call in forward(), not a module."""
        return tuple(layer for layer in self.hidden if layer.activation)

    @cached_property
    def skips(self) -> bool:
        """Whether outputs of several layers are added up somewhere: residual connections."""
        return any(
            len(layer.inputs) > 1 and any(name.startswith("AddBackward") for name in layer.functions)
            for layer in self.run.layers
        )

    @cached_property
    def norms(self) -> tuple[LayerInfo, ...]:
        """Normalisation layers."""
        return tuple(layer for layer in self.run.layers if layer.role == "normalization")

    @cached_property
    def recurrent(self) -> tuple[LayerInfo, ...]:
        """Recurrent layers."""
        return tuple(layer for layer in self.run.layers if layer.role == "recurrent")

    @cached_property
    def attention(self) -> bool:
        """Whether the network attends."""
        return any(
            layer.role == "attention" or "ttention" in layer.kind or "attn" in layer.name
            for layer in self.run.layers
        )

    @cached_property
    def convolutional(self) -> bool:
        """Whether most hidden layers are convolutions."""
        return sum(layer.role == "convolution" for layer in self.hidden) > len(self.hidden) / 2

    # The training

    def fact(self, name: str) -> object:
        """Return a fact of the training's set-up, None if unknown."""
        return self.run.info.training.get(name)

    def number(self, name: str) -> float | None:
        """Return a figure of the finding's evidence if it is there and finite."""
        value = self.finding.evidence.get(name)
        return float(value) if value is not None and math.isfinite(value) else None

    @cached_property
    def trainer(self) -> str:
        """The import of the package whose Trainer runs the optimisation, "" if no Trainer does."""
        versions = {name.replace("-", "_") for name in self.run.info.versions}
        known = {"lightning", "pytorch_lightning"} & versions
        told = self.fact("max_epochs") is not None or self.fact("automatic_optimization") is not None
        if not (known or told) or self.fact("automatic_optimization") is False:
            return ""
        return (
            "import lightning.pytorch as pl" if known == {"lightning"} else "import pytorch_lightning as pl"
        )

    @cached_property
    def lr(self) -> float | None:
        """Largest recorded learning rate of the first group, so that warm-up and decay don't hide it."""
        rates = _finite(self.run.steps["lr"].to_numpy()) if "lr" in self.run.steps else np.array([])
        return float(rates.max()) if len(rates) and rates.max() > 0 else None

    @cached_property
    def optimizer(self) -> str:
        """Class name of the first optimizer, "" if unknown."""
        return self.run.info.optimizers[0].kind if self.run.info.optimizers else ""

    @cached_property
    def adaptive(self) -> bool:
        """Whether the optimizer divides by the gradient's size, so that a step doesn't depend on it."""
        return any(word in self.optimizer.lower() for word in ("adam", "rms", "adagrad", "lion", "adadelta"))

    @cached_property
    def options_of_optimizer(self) -> Mapping[str, object]:
        """The options of the optimizer's first group, empty if unknown."""
        groups = self.run.info.optimizers[0].groups if self.run.info.optimizers else ()
        return groups[0] if groups else {}

    def option(self, name: str) -> float | None:
        """Return a numeric option of the optimizer's first group, None if unknown."""
        value = self.options_of_optimizer.get(name)
        return float(value) if isinstance(value, (int, float)) else None

    @cached_property
    def weights(self) -> tuple[ParameterInfo, ...]:
        """Trained weights; embeddings where there are no others."""
        trained = [item for item in self.run.parameters if item.trained]
        return tuple(
            [item for item in trained if item.role == "weight"]
            or [item for item in trained if item.role == "embedding"]
        )

    @cached_property
    def update_ratio(self) -> float | None:
        """Median over weights and recorded steps of |update| / |weight|, None if nothing moved."""
        table = self.run.parameter_table("update_ratio")
        names = [item.name for item in self.weights if item.name in table.columns]
        values = _finite(table[names].to_numpy())
        values = values[values > 0]
        return float(np.median(values)) if len(values) else None

    @cached_property
    def first_update(self) -> tuple[float, float] | None:
        """Median over weights of |update| / |weight| at the first step with an update, and that step's rate.

        Nothing has blown up or faded yet at that step, so it tells what a rate does to this network.
        """
        if "lr" not in self.run.steps:
            return None
        table = self.run.parameter_table("update_ratio")
        names = [item.name for item in self.weights if item.name in table.columns]
        rates = dict(zip(self.run.steps["step"], self.run.steps["lr"], strict=True))
        for step, row in table[names].iterrows():
            moved = _finite(row.to_numpy())
            moved, rate = moved[moved > 0], float(rates.get(step, math.nan))
            if len(moved) and rate > 0:
                return float(np.median(moved)), rate
        return None

    @cached_property
    def weight_size(self) -> float | None:
        """Median over weights of their initial root mean square, None if unknown."""
        table = self.run.parameter_table("weight_rms")
        names = [item.name for item in self.weights if item.name in table.columns]
        values = _finite(table[names].iloc[0].to_numpy()) if len(table) else np.array([])
        values = values[values > 0]
        return float(np.median(values)) if len(values) else None

    def is_repeated(self, layer: LayerInfo) -> bool:
        """Say whether a step calls a layer so often that it is a recurrence written by hand."""
        return layer.calls >= _RECURRENCE

    @cached_property
    def peak_update_ratio(self) -> float | None:
        """Largest median over weights of |update| / |weight|, None if nothing moved."""
        table = self.run.parameter_table("update_ratio")
        names = [item.name for item in self.weights if item.name in table.columns]
        rows = table[names].median(axis=1)
        values = _finite(rows.to_numpy())
        return float(values.max()) if len(values) else None

    @cached_property
    def grad_norms(self) -> np.ndarray:
        """Finite, non-zero gradient norms before clipping, in order."""
        norms = (
            _finite(self.run.steps["grad_norm"].to_numpy()) if "grad_norm" in self.run.steps else np.array([])
        )
        return norms[norms > 0]

    @cached_property
    def weight_norm(self) -> float | None:
        """Norm of all weights together at the first recorded step."""
        norms = self.run.parameter_table("weight_norm").to_numpy()
        first = _finite(norms[0]) if len(norms) else np.array([])
        return float(np.sqrt((first**2).sum())) if len(first) else None

    @cached_property
    def last_step(self) -> int:
        """The last recorded step, 0 if there is none."""
        return int(self.run.steps["step"].max()) if len(self.run.steps) else 0

    @cached_property
    def first_loss(self) -> float | None:
        """First finite loss, None if there is none."""
        losses = _finite(self.run.steps["loss"].to_numpy()) if "loss" in self.run.steps else np.array([])
        return float(losses[0]) if len(losses) else None

    @cached_property
    def least_loss(self) -> float | None:
        """Smallest finite loss, None if there is none."""
        losses = _finite(self.run.steps["loss"].to_numpy()) if "loss" in self.run.steps else np.array([])
        return float(losses.min()) if len(losses) else None

    @cached_property
    def gain(self) -> float | None:
        """The gradient's gain per layer, measured or else predicted, None if the finding doesn't tell."""
        return self.number("gain_per_layer") or self.number("predicted_gain")


def _finite(values: np.ndarray) -> np.ndarray:
    numbers: np.ndarray = np.asarray(values, dtype=np.float64)
    finite: np.ndarray = numbers[np.isfinite(numbers)]
    return finite
