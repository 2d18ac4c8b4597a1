"""Probes: hooks on the watched modules and on their outputs."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from gradscope.observe.compiled import AVAILABLE, Window

# Of these only the first tensor is the output; the rest repeats it (states) or is of another kind (weights).
FIRST_ONLY: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)

# A tensor of at most this many entries is copied or held; that is cheaper than the calls that summarise it.
SMALL = 16384
# So many tensors are held at most, until the step ends; further ones are copied and summarised in between.
MOST_HELD = 1024

_running_backward: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", lambda: -1)


class Observer(Protocol):
    """What probes report to."""

    spent: float
    recording: bool
    compiled: bool

    def called(self, index: int, module: nn.Module, output: Any) -> None:
        """Note a forward call of layer `index`, not a recomputation."""

    def output(self, index: int, tensor: Tensor) -> None:
        """Take a tensor that layer `index` returned."""

    def signal(self, index: int, gradient: Tensor) -> None:
        """Take the gradient with respect to such a tensor."""

    def failed(self, error: Exception) -> None:
        """Note that observing failed."""


class Probe:
    """The forward hook of one watched module.

    Copies and pickles of the module get a hook that does nothing: a copy must not record into the
    original's run, nor need gradscope to be loaded.

    Once a module is known to return one small tensor that nothing changes in place, its outputs and signals
    are only `held` until the step's end: a list append each, without a copy and without Python in the
    backward pass. The version of a tensor counts its changes in place, so that a change shows.
    """

    __slots__ = (
        "_first_only",
        "_hooks",
        "_index",
        "_observer",
        "held",
        "overwritten",
        "quick",
        "signals",
        "window",
    )

    def __init__(self, index: int, observer: Observer, first_only: bool, window: Window) -> None:
        self._index, self._observer, self._first_only, self.window = index, observer, first_only, window
        self.quick = self.overwritten = False
        self.held: list[tuple[int, Tensor, int]] = []
        self.signals: list[Tensor | None] = []
        # Further hooks on the tensor are numbered from 0.
        self._hooks = ((-1, self.signals.append),)

    def hold_in(self, held: list[tuple[int, Tensor, int]]) -> None:
        """Put (index, output, version) of outputs that are only held into this list."""
        self.held = held

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """Read the module's output, and ask for the gradient with respect to it."""
        if is_compiling() and AVAILABLE:
            self._trace(output)
            return
        if self.quick and type(output) is Tensor and 0 < output.numel() <= SMALL:
            node = output.grad_fn
            if (
                node is not None
                and output._backward_hooks is None
                and len(self.held) < MOST_HELD
                and _running_backward() == -1
            ):
                if self._observer.recording:
                    self._hold(output, node)
                return
        self._read(module, output)

    def _trace(self, output: Any) -> None:
        """Do in a compiled graph what `_read` does; which of two graphs runs depends on `recording`."""
        if self._observer.recording:
            tensors = [output] if isinstance(output, Tensor) else traceable_tensors(output)
            for place, tensor in enumerate(tensors[:1] if self._first_only else tensors):
                self.window.traced(tensor, place == 0)

    def _hold(self, output: Tensor, node: Any) -> None:
        """Hold an output; do what register_hook does but make a handle, as nothing removes the hook."""
        try:
            alias = output.detach()
            self.held.append((self._index, alias, alias._version))
            output._backward_hooks = OrderedDict(self._hooks)
            node._register_hook_dict(output)
        except Exception as error:
            self._observer.failed(error)

    def _read(self, module: nn.Module, output: Any) -> None:
        started = perf_counter()
        observer = self._observer
        try:
            # Inside a backward pass a forward is a recomputation by activation checkpointing: counted
            # already, but it may be the one that the gradient flows through.
            first = _running_backward() == -1
            if first:
                observer.called(self._index, module, output)
            for tensor in (output,) if type(output) is Tensor else self._outputs(output):
                if first:
                    observer.output(self._index, tensor)
                if tensor.requires_grad:
                    tensor.register_hook(self.signal)
        except Exception as error:
            observer.failed(error)
        observer.spent += perf_counter() - started

    def signal(self, gradient: Tensor | None) -> None:
        """Read the gradient with respect to an output; returning None leaves it as it is."""
        if gradient is None:
            return
        started = perf_counter()
        observer = self._observer
        try:
            observer.signal(self._index, gradient)
        except Exception as error:
            observer.failed(error)
        observer.spent += perf_counter() - started

    def _outputs(self, output: Any) -> list[Tensor]:
        found = list(tensors_in(output))
        return found[:1] if self._first_only else found

    def __reduce__(self) -> tuple[Any, ...]:
        # nullcontext's exit takes any three arguments, returns None, and exists wherever Python does.
        return getattr, (nullcontext(), "__exit__")


class Probes:
    """The probes on a model's modules; attached only while steps are recorded, as calling one costs.

    torch runs a TransformerEncoderLayer in evaluation mode by another kernel, unless something in it has a
    hook. Such a layer is left alone, and `delicate` says that probes must not stay on between steps.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module], observer: Observer) -> None:
        self._modules = tuple(modules.values())
        turn = torch.zeros(1)
        self._probes = tuple(
            Probe(index, observer, isinstance(module, FIRST_ONLY), Window(index, module, observer, turn))
            for index, module in enumerate(self._modules)
        )
        self.held: list[tuple[int, Tensor, int]] = []
        for probe in self._probes:
            probe.hold_in(self.held)
        self._handles: list[Any] = []
        self._fused = {
            id(inner): layer
            for layer in model.modules()
            if isinstance(layer, nn.TransformerEncoderLayer)
            for inner in layer.modules()
        }
        self.delicate = bool(self._fused)

    @property
    def attached(self) -> bool:
        """Return whether the probes are on the modules."""
        return bool(self._handles)

    def watchable(self) -> list[tuple[int, nn.Module]]:
        """Return the modules that a hook does not change the computation of, with their indices."""
        if not self.delicate:
            return list(enumerate(self._modules))
        return [
            (index, module)
            for index, module in enumerate(self._modules)
            if (layer := self._fused.get(id(module))) is None or layer.training
        ]

    def trust(self, indices: Iterable[int]) -> None:
        """Let the probes of modules hold instead of copying: nothing changed the outputs in place so far."""
        for index in indices:
            self._probes[index].quick = not self._probes[index].overwritten

    def distrust(self, indices: Iterable[int]) -> None:
        """Let the probes of modules copy for ever: an output was changed in place."""
        for index in indices:
            self._probes[index].quick, self._probes[index].overwritten = False, True

    def take(self) -> tuple[list[tuple[int, Tensor, int]], list[tuple[int, Tensor]]]:
        """Return the outputs and signals that were held, by index of their module, and let go of them."""
        held = self.held.copy()
        self.held.clear()
        signals = []
        for index, probe in enumerate(self._probes):
            if probe.signals:
                signals.extend([(index, signal) for signal in probe.signals if signal is not None])
                probe.signals.clear()
        return held, signals

    def attach(self) -> None:
        """Put every probe on its module."""
        if not self._handles:
            self._handles = [
                module.register_forward_hook(self._probes[index]) for index, module in self.watchable()
            ]

    def detach(self) -> None:
        """Take every probe off its module."""
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()
        if handles:
            self.take()


def traceable_tensors(output: Any) -> list[Tensor]:
    """Return what `tensors_in` yields, by means that torch.compile can trace."""
    if isinstance(output, Tensor):
        return [output]
    values: list[Any] = []
    if isinstance(output, dict):
        values = list(output.values())
    elif isinstance(output, (tuple, list)):
        values = list(output)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        values = [getattr(output, item.name, None) for item in dataclasses.fields(output)]
    found: list[Tensor] = []
    for value in values:
        found += traceable_tensors(value)
    return found


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for item in dataclasses.fields(output):
            yield from tensors_in(getattr(output, item.name, None))
