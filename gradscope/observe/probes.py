"""Probes: hooks on the watched modules and on their outputs."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.compiler import is_compiling

from gradscope.observe.compiled import AVAILABLE, Window

# Of these only the first tensor is the output; the rest repeats it (states) or is of another kind (weights).
FIRST_ONLY: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)

_running_backward: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", lambda: -1)


# Inside of torch.func's transformations (vmap, grad) tensors are shells around those that hold the entries.
_is_transformed: Callable[[Tensor], bool]
_inside: Callable[[Tensor], Tensor]
_OutsideOfTransforms: Any
try:
    from torch._C import _DisableFuncTorch as _OutsideOfTransforms
    from torch._C._functorch import get_unwrapped as _inside
    from torch._C._functorch import is_functorch_wrapped_tensor as _is_transformed
except ImportError:
    _is_transformed, _inside, _OutsideOfTransforms = (
        (lambda tensor: False),
        (lambda tensor: tensor),
        nullcontext,
    )


def _untransformed(tensor: Tensor) -> Tensor:
    while _is_transformed(tensor):
        tensor = _inside(tensor)
    return tensor


class Observer(Protocol):
    """What probes report to."""

    recording: bool
    spent: float
    compiled: bool
    model: nn.Module

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
    """

    __slots__ = ("_first_only", "_hooks", "_index", "_observer", "window")

    def __init__(self, index: int, observer: Observer, first_only: bool, window: Window) -> None:
        self._index, self._observer, self._first_only, self.window = index, observer, first_only, window
        self._hooks = ((-1, self.signal),)  # further hooks on the tensor are numbered from 0

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """Read the module's output, and ask for the gradient with respect to it."""
        if is_compiling() and AVAILABLE:
            self._trace(output)
        else:
            self._read(module, output)

    def _trace(self, output: Any) -> None:
        """Do in a compiled graph what `_read` does; which of two graphs runs depends on `recording`."""
        if self._observer.recording:
            tensors = [output] if isinstance(output, Tensor) else traceable_tensors(output)
            for place, tensor in enumerate(tensors[:1] if self._first_only else tensors):
                self.window.traced(tensor, place == 0)

    def _read(self, module: nn.Module, output: Any) -> None:
        observer = self._observer
        # What runs without gradients in evaluation mode is a validation between steps.
        if not observer.recording or not (is_grad_enabled() or observer.model.training):
            return
        started = perf_counter()
        try:
            # Inside a backward pass a forward is a recomputation by activation checkpointing: counted
            # already, but it may be the one that the gradient flows through.
            first = _running_backward() == -1
            if type(output) is Tensor and not _is_transformed(output):
                if first:
                    observer.called(self._index, module, output)
                    observer.output(self._index, output)
                if output.requires_grad:
                    self._ask(output)
            else:
                self._read_any(module, output, first)
        except Exception as error:
            observer.failed(error)
        observer.spent += perf_counter() - started

    def _read_any(self, module: nn.Module, output: Any, first: bool) -> None:
        """Read an output of any kind."""
        tensors = self._outputs(output)
        if tensors and _is_transformed(tensors[0]):
            with _OutsideOfTransforms():
                tensors = [_untransformed(tensor) for tensor in tensors]
                self._report(module, tensors, tensors, first)
        else:
            self._report(module, output, tensors, first)

    def _report(self, module: nn.Module, output: Any, tensors: Sequence[Tensor], first: bool) -> None:
        if first:
            self._observer.called(self._index, module, output)
        for tensor in tensors:
            if first:
                self._observer.output(self._index, tensor)
            if tensor.requires_grad:
                self._ask(tensor)

    def _ask(self, output: Tensor) -> None:
        """Ask for the gradient with respect to an output.

        As register_hook does, but without the handle that costs most of its time: nothing removes the hook.
        """
        node = output.grad_fn
        if output._backward_hooks is None and type(output) is Tensor and node is not None:
            output._backward_hooks = OrderedDict(self._hooks)
            node._register_hook_dict(output)
        else:
            output.register_hook(self.signal)

    def signal(self, gradient: Tensor | None) -> None:
        """Read the gradient with respect to an output; returning None leaves it as it is."""
        observer = self._observer
        if gradient is None or not observer.recording:
            return
        started = perf_counter()
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
        self._keys: list[int | None] = [None] * len(self._modules)
        self._attached: list[tuple[int, nn.Module]] = []
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
        return bool(self._attached)

    def watchable(self) -> list[tuple[int, nn.Module]]:
        """Return the modules that a hook does not change the computation of, with their indices."""
        if not self.delicate:
            return list(enumerate(self._modules))
        return [
            (index, module)
            for index, module in enumerate(self._modules)
            if (layer := self._fused.get(id(module))) is None or layer.training
        ]

    def attach(self) -> None:
        """Put every probe on its module.

        The first time as anyone does, then back under its key: to register 100 hooks anew takes 0.1 ms.
        """
        if self._attached:
            return
        self._attached = self.watchable()
        for index, module in self._attached:
            key, probe = self._keys[index], self._probes[index]
            if key is None:
                self._keys[index] = module.register_forward_hook(probe).id
            else:
                module._forward_hooks[key] = probe

    def detach(self) -> None:
        """Take every probe off its module."""
        attached, self._attached = self._attached, []
        for index, module in attached:
            module._forward_hooks.pop(self._keys[index], None)  # type: ignore[arg-type]


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
