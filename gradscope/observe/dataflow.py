"""Read from the autograd graph of one step which layers feed which, and through which functions."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from gradscope.observe.activations import name_of_function
from gradscope.observe.probes import Probe, tensors_in

# A walk that has seen so many nodes gives up: the graph belongs to something that isn't layers.
LONGEST_WALK = 20_000
# Scaling the loss (for accumulation, or by the loss scaler) is no part of the loss function.
_SCALINGS = ("MulBackward0", "DivBackward0")


@dataclass
class Path:
    """What lies between a tensor and the nearest watched outputs behind it.

    layers: indices, nearest first; functions: names, the last applied first; activated: activation functions
    applied directly to a layer's output, by layer.
    """

    layers: list[int] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    activated: dict[int, str] = field(default_factory=dict)


class Dataflow:
    """Holds graph nodes of one step; nodes are dropped, and with them the graph, by `release`."""

    def __init__(self) -> None:
        self.produced: dict[Any, list[int]] = {}
        self.paths: dict[int, Path] = {}
        self.loss: dict[str, Any] = {}
        self._handles: list[Any] = []
        self._sources: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # outputs outside of the graph

    def attach(self, modules: Iterable[tuple[int, nn.Module]]) -> None:
        """Look at each module's arguments before it runs: an in-place module changes them."""
        self._handles = [
            module.register_forward_pre_hook(_Arrival(self, index), with_kwargs=True)
            for index, module in modules
        ]

    def arrived(self, index: int, arguments: Any) -> None:
        """Walk back from the arguments of layer `index`, at its first call."""
        if index in self.paths:
            return
        path = self.paths[index] = Path()
        for tensor in tensors_in(arguments):
            if tensor.grad_fn is not None:
                self._walk(tensor.grad_fn, path)
            else:
                source, layer = self._sources.get(id(tensor), (None, -1))
                if source is not None and source() is tensor and layer not in path.layers:
                    path.layers.append(layer)

    def returned(self, index: int, output: Any) -> None:
        """Note which graph node made the output of layer `index`."""
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                self.produced.setdefault(tensor.grad_fn, []).append(index)
            else:
                self._sources[id(tensor)] = weakref.ref(tensor), index

    def minimised(self, loss: Tensor) -> None:
        """Walk back from the loss, before its backward pass where shapes are wanted."""
        node = loss.grad_fn
        while node is not None and node.name() in _SCALINGS and node not in self.produced:
            behind = [fn for fn, _ in node.next_functions if fn is not None]
            if len(behind) != 1:
                break
            node = behind[0]
        if node is None:
            return
        path = Path()
        self._walk(node, path)
        self.loss = {
            "functions": tuple(path.functions),
            "inputs": tuple(path.layers),
            "shapes": _shapes(node),
        }
        self.paths[-1] = path

    def _walk(self, start: Any, path: Path) -> None:
        """Collect layers and functions breadth first, from a node inclusive to watched outputs."""
        seen, queue = {start}, [(start, "")]
        for node, after in queue:
            made_by = self.produced.get(node)
            if made_by is not None:
                layer = made_by[-1]
                if layer not in path.layers:
                    path.layers.append(layer)
                if after:
                    path.activated.setdefault(layer, after)
                continue
            name = node.name()
            if name != "torch::autograd::AccumulateGrad":
                path.functions.append(name)
            activation = name_of_function(node) or ""
            for behind, _ in node.next_functions:
                if behind is not None and behind not in seen and len(seen) < LONGEST_WALK:
                    seen.add(behind)
                    queue.append((behind, activation))

    def activations(self) -> dict[int, str]:
        """Return the functional activation applied to each layer's output, where there is one."""
        found: dict[int, str] = {}
        for path in self.paths.values():
            found.update(path.activated)
        return found

    def release(self) -> None:
        """Take the hooks off and let go of the graph."""
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()
        self.produced = {}


class _Arrival(Probe):
    """The forward pre-hook of one watched module."""

    __slots__ = ("_dataflow",)

    def __init__(self, dataflow: Dataflow, index: int) -> None:
        self._dataflow, self._index = dataflow, index

    def __call__(self, module: nn.Module, arguments: Any, options: Any) -> None:
        if is_compiling():
            return  # a graph that is being traced has no autograd nodes yet
        try:
            self._dataflow.arrived(self._index, (arguments, options))
        except Exception:
            self._dataflow.paths.pop(self._index, None)


def _shapes(node: Any) -> tuple[tuple[int, ...], ...]:
    """Return the sizes of what a loss function compared, where its node kept them."""
    shapes = []
    for name in ("_saved_self", "_saved_target"):
        try:
            value = getattr(node, name)
        except (AttributeError, RuntimeError):
            continue
        if isinstance(value, Tensor):
            shapes.append(tuple(value.shape))
    return tuple(shapes)
