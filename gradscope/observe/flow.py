"""Observe what flows through the layers in a recorded step: outputs forward, signals backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.columns import LAYER_COLUMNS
from gradscope.observe.activations import INPUT_LIMITS, RECTIFIERS, limits_of_module, name_of_module
from gradscope.observe.attention import Entropies, attends, attention_rows, may_attend
from gradscope.observe.dataflow import Dataflow
from gradscope.observe.host_layers import HostCollector
from gradscope.observe.layers import describe_layer, unit_axis_of, usual_unit_axis
from gradscope.observe.parameters import local_part, unnested
from gradscope.observe.probes import tensors_in
from gradscope.observe.reading import OUTPUT, SIGNAL, Measured, Reading
from gradscope.observe.staging import Collector
from gradscope.observe.units import DeadUnits
from gradscope.observe.wrappers import class_of
from gradscope.records import LayerInfo
from gradscope.summarise import MAGNITUDES, OUTPUTS, merge_calls
from gradscope.summarise.ledger import Live

COLUMN = {column.name: index for index, column in enumerate(LAYER_COLUMNS)}
_UNKNOWN_IF_BROKEN = [COLUMN["activation_saturated_fraction"], COLUMN["activation_cosine"]]


@dataclass(frozen=True)
class LayerStep:
    """All that was measured of the layers in one step: still on the device, but for calls and live units."""

    calls: NDArray[np.float64]
    measured: list[Measured]
    live: Live
    entropies: list[tuple[list[int], Tensor]]

    def tensors(self) -> list[Tensor]:
        """Return the tensors to bring to the host."""
        measured = [tensor for item in self.measured for tensor in item.tensors()]
        return measured + [shares for _, shares in self.entropies]


class Flow:
    """What the probes report to: the layers' calls, outputs and signals of the step being recorded."""

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        layers: Sequence[LayerInfo],
        dead_window: int,
        failed: Callable[[Exception], None],
    ) -> None:
        self.model, self.failed = model, failed
        self.recording, self.compiled, self.spent = False, False, 0.0
        self.layers = list(layers)
        self.dataflow: Dataflow | None = None
        self._host, self._collector = HostCollector(len(self.layers)), Collector()
        self._readings = [_reading_of(module) for module in modules.values()]
        for index, reading in enumerate(self._readings):
            self._host.read_as(index, reading)
        self._units = DeadUnits(dead_window)
        self._entropies = Entropies()
        self._attending = {index for index, module in enumerate(modules.values()) if may_attend(module)}
        self._order: list[int] = []
        self._ran = np.zeros(len(self.layers), np.bool_)
        self._settled = [False] * len(self.layers)  # of what was called before and is no attention
        self.news = True
        self._calls = [0] * len(self.layers)

    # Reported by the probes

    def called(self, index: int, module: nn.Module, output: Any) -> None:
        """Note a forward call of layer `index`, not a recomputation."""
        self._calls[index] += 1
        if self.dataflow is None and self._settled[index]:
            return
        if self.layers[index].depth < 0:
            self._first_call(index, module, output)
        if self.dataflow is not None:
            self.dataflow.returned(index, output)
            path = self.dataflow.paths.get(index)
            if path is not None and attends(path.functions):
                self._attending.add(index)
                self._settled[index] = False
        if index in self._attending:
            rows = attention_rows(module, output)
            if rows is not None:
                self._entropies.add(index, rows)

    def output(self, index: int, tensor: Tensor) -> None:
        """Take a tensor that layer `index` returned."""
        tensor = unnested(tensor)
        if self._host.add_output(index, tensor):
            return
        part = local_part(tensor.detach())
        if self._host.add_output(index, part):
            return
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            self._collector.add(self._readings[index], index, part)

    def signal(self, index: int, gradient: Tensor) -> None:
        """Take the gradient of the loss with respect to such a tensor."""
        gradient = unnested(gradient)
        if not self._host.add_signal(index, gradient):
            part = local_part(gradient.detach())
            if not self._host.add_signal(index, part):
                self._collector.add(SIGNAL, index, part)

    def _first_call(self, index: int, module: nn.Module, output: Any) -> None:
        layer = self.layers[index]
        if layer.kind != class_of(module).__name__:  # a lazy module has become what it stood for
            layer = describe_layer(layer.name, module, layer.parameters)
        tensor = next(tensors_in(output), None)
        shape = tuple(unnested(tensor).shape) if tensor is not None else None
        axis = self._unit_axis(module, shape) if shape else None
        self.layers[index] = replace(
            layer,
            depth=len(self._order),
            output_shape=shape,
            unit_axis=axis,
            not_observable="",
        )
        self._order.append(index)
        self._ran[index], self._settled[index] = True, index not in self._attending
        self.news = True
        reading = self._readings[index]
        if shape and len(shape) > 2 and axis == len(shape) - 1:
            reading = reading._replace(rows="tokens")
        if self.layers[index].activation in RECTIFIERS and axis is not None:
            reading = reading._replace(unit_axis=axis)
        self._read_as(index, reading)

    def _read_as(self, index: int, reading: Reading) -> None:
        self._readings[index] = reading
        self._host.read_as(index, reading)

    def _unit_axis(self, module: nn.Module, shape: tuple[int, ...]) -> int | None:
        """Return the axis that counts units: the module's own, else that of the layer which ran before."""
        own = unit_axis_of(module, shape)
        if own is not None or len(shape) < 2:
            return own
        if self._order:
            before = self.layers[self._order[-1]]
            if before.output_shape is not None and len(before.output_shape) == len(shape):
                return before.unit_axis
        return usual_unit_axis(shape)

    # For the recorder

    def forget(self) -> None:
        """Forget what was seen so far."""
        self.spent = 0.0
        self._host.forget()
        self._collector.take()
        self._entropies.forget()
        self._calls = [0] * len(self.layers)

    def take(self) -> LayerStep:
        """Return what the step measured, and forget it."""
        calls = np.array(self._calls, np.float64)
        if self.news:
            self.layers = [
                replace(layer, calls=layer.calls or count)
                for layer, count in zip(self.layers, self._calls, strict=True)
            ]
        self._calls = [0] * len(self.layers)
        measured, live = self._host.take()
        return LayerStep(calls, measured + self._collector.take(), live, self._entropies.take())

    def learn(self, dataflow: Dataflow) -> None:
        """Take from one step's graph which layers feed which, and which activations modules don't show."""
        activations = dataflow.activations()
        names = [layer.name for layer in self.layers]
        for index, layer in enumerate(self.layers):
            path = dataflow.paths.get(index)
            if path is not None:
                inputs = tuple(names[source] for source in path.layers)
                layer = replace(layer, inputs=inputs, functions=tuple(path.functions))
            if layer.activation is None and index in activations:
                layer = replace(layer, activation=activations[index])
                self._read_as(index, _reading_before(layer)._replace(rows=self._readings[index].rows))
            self.layers[index] = layer

    def named(self, loss: Mapping[str, Any]) -> dict[str, Any]:
        """Return the facts of the loss's graph with layers by name."""
        return {**loss, "inputs": tuple(self.layers[index].name for index in loss.get("inputs", ()))}

    def table(self, step: LayerStep, arrays: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """Return the step's table (layers, LAYER_COLUMNS) from its tensors on the host."""
        table = np.full((len(self.layers), len(LAYER_COLUMNS)), np.nan)
        table[:, COLUMN["calls"]] = np.where(self._ran, step.calls, np.nan)
        parts = _unpack(step, arrays)
        _fill(table, "activation", OUTPUTS, [part for part in parts if not part.item.signal])
        _fill(table, "signal", MAGNITUDES, [part for part in parts if part.item.signal])
        broken = np.flatnonzero(table[:, COLUMN["activation_nonfinite"]] > 0)
        table[broken[:, None], _UNKNOWN_IF_BROKEN] = np.nan
        self._add_entropies(table, step.entropies, arrays[len(arrays) - len(step.entropies) :])
        self._count_dead(table, parts, step.live)
        return table

    def _add_entropies(
        self, table: NDArray[np.float64], entropies: Sequence[tuple[list[int], Tensor]], arrays: Sequence[Any]
    ) -> None:
        """Add each layer's mean entropy, and its sharpest head's lowest, over its calls that had one."""
        by_layer: dict[int, list[NDArray[np.float64]]] = {}
        for (owners, _), array in zip(entropies, arrays, strict=True):
            for owner, values in zip(owners, array, strict=True):
                if not np.isnan(values[0]):
                    by_layer.setdefault(owner, []).append(values)
        for owner, several in by_layer.items():
            mean, lowest = np.array(several, np.float64).T
            table[owner, COLUMN["attention_entropy"]] = mean.mean()
            table[owner, COLUMN["attention_entropy_lowest"]] = lowest.min()

    def _count_dead(self, table: NDArray[np.float64], parts: Sequence[_Part], live: Live) -> None:
        staged = [part for part in parts if part.live is not None]
        if staged:
            live = _joined(live, staged)
        if len(live.layers):
            table[live.layers, COLUMN["activation_dead_unit_fraction"]] = self._units.shares(live)


def _joined(live: Live, parts: Sequence[_Part]) -> Live:
    """Return what is live together with what was staged; of several calls, what any of them shows."""
    units = np.split(live.active, np.cumsum(live.sizes)[:-1]) if len(live.sizes) else []
    by_layer = dict(zip(live.layers.tolist(), units, strict=True))
    for part in parts:
        for owner, active in zip(part.item.owners.tolist(), part.live, strict=True):
            others = by_layer.get(owner)
            alike = others is not None and others.shape == active.shape
            by_layer[owner] = others | active if alike else active
    sizes = np.array([len(active) for active in by_layer.values()])
    return Live(np.array(list(by_layer)), sizes, np.concatenate(list(by_layer.values())))


@dataclass(frozen=True)
class _Part:
    item: Measured
    table: NDArray[np.float64]
    live: Any


def _unpack(step: LayerStep, arrays: Sequence[NDArray[Any]]) -> list[_Part]:
    following = iter(arrays)
    return [
        _Part(item, next(following), next(following) if item.live is not None else None)
        for item in step.measured
    ]


def _fill(table: NDArray[np.float64], kind: str, names: tuple[str, ...], parts: Sequence[_Part]) -> None:
    """Fill the columns of one kind, outputs or signals, each layer's calls merged."""
    if parts:
        owners = np.concatenate([part.item.owners for part in parts])
        counts = np.concatenate([part.item.entries for part in parts])
        values = np.concatenate([part.table for part in parts], 1)
        merged, total = merge_calls(names, values, counts, owners, len(table))
        table[:, [COLUMN[f"{kind}_{name}"] for name in names]] = merged.T
        table[:, COLUMN[f"{kind}_count"]] = np.where(total > 0, total, np.nan)


def _reading_of(module: nn.Module) -> Reading:
    return OUTPUT._replace(limits=limits_of_module(module)) if name_of_module(module) else OUTPUT


def _reading_before(layer: LayerInfo) -> Reading:
    """Return how to read a layer whose output goes into a functional activation."""
    axis = layer.unit_axis if layer.activation in RECTIFIERS else None
    return Reading(limits=INPUT_LIMITS.get(layer.activation or ""), unit_axis=axis)
