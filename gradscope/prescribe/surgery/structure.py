"""Questions about a model's structure: its weighted layers and what their outputs go through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from gradscope.errors import SurgeryRefused
from gradscope.prescribe.surgery.activation_kinds import FUNCTIONS, METHODS, kind_of_module
from gradscope.prescribe.surgery.forward_pass import CONTAINERS, owner_of, trace

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass
class Level:
    """The graph of one module's own forward(), with the module's name in the model."""

    name: str
    owner: nn.Module
    graph: fx.Graph

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls."""
        return self.owner.get_submodule(str(node.target)) if node.op == "call_module" else None

    def activation(self, node: fx.Node) -> str | None:
        """Return the canonical name of the activation that a node computes."""
        module = self.module(node)
        if module is not None:
            kind = kind_of_module(module)
            return None if kind == "identity" else kind
        if node.op == "call_function":
            return FUNCTIONS.get(node.target)  # type: ignore[arg-type]
        return METHODS.get(str(node.target)) if node.op == "call_method" else None


@dataclass
class Behind:
    """What follows a layer's output: normalised or not, and the node of the activation."""

    level: Level
    layer: fx.Node
    activation: fx.Node
    normalized: bool


def executed(model: nn.Module) -> list[str]:
    """Return the names of all modules in the order in which forward() first calls them, callers first.

    What can't be followed, and what is never called, comes in the order in which it was registered.
    """
    return list(dict.fromkeys([*_calls(model, ""), *(name for name, _ in model.named_modules())]))


def _calls(module: nn.Module, name: str) -> Iterator[str]:
    yield name
    prefix = f"{name}." if name else ""
    for child in _called_children(module):
        yield from _calls(module.get_submodule(child), f"{prefix}{child}")


def _called_children(module: nn.Module) -> list[str]:
    """Return the names of what a module calls, in order; in order of registration if that can't be told."""
    registered = [name for name, _ in module.named_children()]
    own_code = not isinstance(module, (nn.Sequential, *CONTAINERS)) and registered
    if not own_code or type(module).__module__.startswith("torch."):
        return registered
    try:
        called = [str(node.target) for node in trace(module).nodes if node.op == "call_module"]
    except SurgeryRefused:
        return registered
    return list(dict.fromkeys([*called, *registered]))


def weighted(model: nn.Module) -> dict[str, nn.Linear | _ConvNd]:
    """Return the linear and convolution layers by name, in order of execution, without attention's own."""
    inside = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, (nn.MultiheadAttention, *RECURRENT))
    )
    modules = dict(model.named_modules())
    return {
        name: modules[name]
        for name in executed(model)
        if isinstance(modules.get(name), (nn.Linear, _ConvNd)) and not name.startswith(inside or ("\0",))
    }


def hidden(model: nn.Module) -> list[str]:
    """Return the weighted layers but the last, which gives the output."""
    return list(weighted(model))[:-1]


def units_of(layer: nn.Module) -> int:
    """Return how many units or channels a layer has."""
    return layer.out_channels if isinstance(layer, _ConvNd) else int(layer.out_features)  # type: ignore[arg-type]


class Levels:
    """The levels of a model, each traced once, however many layers it holds."""

    def __init__(self, model: nn.Module) -> None:
        """Trace nothing yet."""
        self.reason: SurgeryRefused | None = None  # why the first level that can't be traced can't be
        self._model = model
        self._known: dict[int, Level | SurgeryRefused] = {}

    def of(self, name: str) -> tuple[Level, str]:
        """Return the level that calls a module, and the module's name there; may raise SurgeryRefused."""
        owner, short = owner_of(self._model, name)
        return self.at(owner, name[: len(name) - len(short)].rstrip(".")), short

    def at(self, owner: nn.Module, name: str) -> Level:
        """Return the level of a module; may raise SurgeryRefused."""
        if id(owner) not in self._known:
            try:
                self._known[id(owner)] = Level(name, owner, trace(owner))
            except SurgeryRefused as reason:
                self._known[id(owner)] = reason
        known = self._known[id(owner)]
        if isinstance(known, SurgeryRefused):
            raise known
        return known

    def behind_if_seen(self, name: str) -> Behind | None:
        """Return what follows a weighted layer; None also where its level can't be traced, see `reason`."""
        try:
            return self.behind(name)
        except SurgeryRefused as reason:
            self.reason = self.reason or reason
            return None

    def behind(self, name: str) -> Behind | None:
        """Return what follows a weighted layer in its level; None if no activation does, or several things.

        Raises SurgeryRefused where the level can't be traced.
        """
        level, short = self.of(name)
        calls = [node for node in level.graph.nodes if node.op == "call_module" and node.target == short]
        if len(calls) != 1:
            return None
        current, normalized = calls[0], False
        while len(current.users) == 1:
            current = next(iter(current.users))
            if level.activation(current):
                return Behind(level, calls[0], current, normalized)
            module = level.module(current)
            if isinstance(module, NORMS):
                normalized = True
            elif not isinstance(module, (_DropoutNd, nn.Identity)):
                return None
        return None
