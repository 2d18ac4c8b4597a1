"""See into compiled models: an operation that stays in the compiled graph and shows a tensor to a probe.

torch.compile traces forward hooks into its graph, where a probe's own Python would break it in pieces. What
is traced instead is one opaque operation for each output and one for each gradient. At run time they hand the
real tensors to what the probe reports to, as without compilation.
"""

from __future__ import annotations

import weakref
from itertools import count
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_running_backward: Any = getattr(torch._C, "_current_graph_task_id", lambda: -1)


class Observer(Protocol):
    """What a window reports to: the same as probes do."""

    recording: bool
    spent: float
    compiled: bool

    def called(self, index: int, module: nn.Module, output: Any) -> None:
        """Note a forward call of layer `index`, not a recomputation."""

    def output(self, index: int, tensor: Tensor) -> None:
        """Take a tensor that layer `index` returned."""

    def signal(self, index: int, gradient: Tensor) -> None:
        """Take the gradient with respect to such a tensor."""

    def failed(self, error: Exception) -> None:
        """Note that observing failed."""


class Window:
    """Where a compiled graph shows a layer's outputs and gradients; it knows the window by a number.

    The number is in a tensor, an input of the graph: a constant would have every training compile anew.
    turn: a tensor that each look says it changes, so that compilers neither drop looks nor reorder them.
    """

    __slots__ = ("__weakref__", "_index", "_module", "_observer", "number", "turn")

    def __init__(self, index: int, module: nn.Module, observer: Observer, turn: Tensor) -> None:
        self._index, self._module, self._observer = index, weakref.ref(module), observer
        number = next(_numbers)
        self.number, self.turn = torch.tensor([number]), turn
        _windows[number] = self

    def traced(self, tensor: Tensor, first: bool) -> None:
        """Put looks at an output and its gradient into the graph that is being traced."""
        torch.ops.gradscope.look(tensor.detach(), self.turn, self.number, 1 if first else 0)
        if tensor.requires_grad:
            tensor.register_hook(self.traced_gradient)

    def traced_gradient(self, gradient: Tensor) -> None:
        """Put a look at a gradient into the backward graph that is being traced."""
        torch.ops.gradscope.look(gradient.detach(), self.turn, self.number, -1)

    def show(self, tensor: Tensor, kind: int) -> None:
        """Report a tensor: -1 a gradient, 1 the first output of a call, 0 a further one."""
        observer, module = self._observer, self._module()
        if not observer.recording:
            return
        started = perf_counter()
        observer.compiled = True
        try:
            if kind < 0:
                observer.signal(self._index, tensor)
            elif _running_backward() == -1 and module is not None:  # else it is a recomputation
                if kind:
                    observer.called(self._index, module, tensor)
                observer.output(self._index, tensor)
        except Exception as error:
            observer.failed(error)
        observer.spent += perf_counter() - started


_numbers = count()
_windows: weakref.WeakValueDictionary[int, Window] = weakref.WeakValueDictionary()


def look(tensor: Tensor, turn: Tensor, number: Tensor, kind: int) -> None:
    """Show a tensor through a window, which may be gone by now."""
    window = _windows.get(int(number))
    if window is not None:
        window.show(tensor, kind)


def _as_operation() -> bool:
    """Make `look` an operation of torch's, where torch knows how (2.4 and later); return whether it is.

    It says that it changes `turn`, but leaves it alone: autograd may have kept it for a backward pass.
    """
    if not hasattr(torch.library, "register_fake"):
        return False
    name = "gradscope::look"
    torch.library.define(name, "(Tensor tensor, Tensor(a!) turn, Tensor number, int kind) -> ()")
    torch.library.impl(name, "CompositeExplicitAutograd", look)
    torch.library.register_fake(name, _look_at_nothing)
    return True


def _look_at_nothing(tensor: Tensor, turn: Tensor, number: Tensor, kind: int) -> None:
    return None


AVAILABLE = _as_operation()
