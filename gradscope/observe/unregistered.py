"""Find tensors with a gradient where torch doesn't look for parameters: in plain lists and dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.observe.parameters import updated_by
from gradscope.observe.wrappers import named_modules

_REGISTERED = ("_parameters", "_modules", "_buffers")


def unregistered(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Return by name a model's tensors with a gradient that neither it nor an optimizer lists."""
    known = {id(parameter) for parameter in model.parameters()}
    for optimizer in optimizers:
        known.update(map(id, updated_by(optimizer)))
    found: dict[str, Tensor] = {}
    for name, tensor in _held(model):
        if id(tensor) not in known and tensor.is_leaf and tensor.requires_grad and tensor.grad is not None:
            known.add(id(tensor))
            found[name] = tensor
    return found


def holder(model: nn.Module, name: str) -> str:
    """Return the attribute that holds such a tensor, by its module's name and its own: "encoder.layers"."""
    parts, known = name.split("."), {layer for layer, _ in named_modules(model)}
    owner = max(count for count in range(len(parts)) if ".".join(parts[:count]) in known or not count)
    return ".".join(parts[: owner + 1])


def _held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for layer, module in named_modules(model):
        for name, value in vars(module).items():
            if name not in _REGISTERED:
                yield from _inside(f"{layer}.{name}".lstrip("."), value)


def _inside(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a value: its own, those of a module, or those of what a plain container holds."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        yield from value.named_parameters(name)
    elif isinstance(value, (list, tuple, dict)):
        for key, item in _items(value):
            if isinstance(item, (Tensor, nn.Module, list, tuple)):
                yield from _inside(f"{name}.{key}", item)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else enumerate(value)
