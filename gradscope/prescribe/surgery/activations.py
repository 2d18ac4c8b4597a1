"""Replace activations: modules, functions called in forward(), and functions kept as attributes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from gradscope.errors import SurgeryRefused
from gradscope.prescribe.surgery.activation_kinds import (
    FUNCTIONS,
    METHODS,
    MODULES,
    NORMALISING,
    as_function,
    build,
    kind_of_module,
)
from gradscope.prescribe.surgery.forward_pass import owners, rewrite
from gradscope.prescribe.surgery.structure import Level, Levels, executed, weighted


def replace_activations(model: nn.Module, action: Mapping[str, Any], batch: Any) -> None:
    """Put the activation `to` for those named in `from`, or for all hidden ones, in place."""
    to = action["to"]
    if to not in MODULES:
        raise SurgeryRefused(f"unknown activation {to!r}; known are {', '.join(MODULES)}")
    if action.get("layers"):
        _replace_modules(model, action["layers"], to)
        return
    wanted = tuple(action.get("from", ()))
    found = _replace_modules(model, _hidden_modules(model, wanted, to), to)
    found += _replace_attributes(model, wanted, to)
    found += _replace_calls(model, wanted, to)
    if not found:
        raise SurgeryRefused(
            f"the model has no hidden activation to replace{' of ' + ', '.join(wanted) if wanted else ''}"
        )


def _replace_modules(model: nn.Module, names: list[str], to: str) -> int:
    """Replace modules by name; one that has several names is replaced under each, by one new module."""
    aliases: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        aliases.setdefault(id(module), []).append(name)
    for name in names:
        try:
            old = model.get_submodule(name)
        except AttributeError:
            raise SurgeryRefused(f"the model has no module {name!r}") from None
        if kind_of_module(old) == to:
            continue
        if not name:
            raise SurgeryRefused("the model is itself the activation; nothing holds it")
        if isinstance(old, nn.RNN):
            _bound_recurrence(name, old, to)
            continue
        if kind_of_module(old) is None and not _own_activation(old):
            raise SurgeryRefused(f"{name} is a {type(old).__name__}, not an activation")
        new = build(to).train(old.training)
        like = next(model.parameters(), None)
        if like is not None:
            new.to(like.device, like.dtype if like.dtype.is_floating_point else None)
        for alias in aliases[id(old)]:
            parent, _, child = alias.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
    return len(names)


def _own_activation(module: nn.Module) -> bool:
    """Say whether a module may be an activation of the user's own: not torch's, and nothing in it."""
    empty = not any(True for _ in module.parameters()) and not any(True for _ in module.children())
    return empty and not type(module).__module__.startswith("torch.")


def _bound_recurrence(name: str, layer: nn.RNN, to: str) -> None:
    """Change the nonlinearity of one of torch's recurrences, in place."""
    if to not in ("tanh", "relu"):
        raise SurgeryRefused(f"{name} is a recurrence of torch's, which knows tanh and relu only")
    layer.nonlinearity, layer.mode = to, f"RNN_{to.upper()}"


def _suits(kind: str | None, wanted: tuple[str, ...], to: str) -> bool:
    if kind is None or kind == to or kind == "identity":
        return False
    return kind in wanted if wanted else kind not in NORMALISING


def _hidden_modules(model: nn.Module, wanted: tuple[str, ...], to: str) -> list[str]:
    """Return the activation modules that come before the last weighted layer and gate nothing."""
    order = {name: place for place, name in enumerate(executed(model))}
    last = max((order[name] for name in weighted(model)), default=-1)
    levels = Levels(model)
    found: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name and _suits(kind_of_module(module), wanted, to) and not _is_gate(levels, name):
            before_output = order.get(name, last) < last
            if before_output:
                found.setdefault(id(module), name)
    return list(found.values())


def _is_gate(levels: Levels, name: str) -> bool:
    try:
        level, short = levels.of(name)
    except SurgeryRefused:
        return False
    return any(
        _gates(node) for node in level.graph.nodes if node.op == "call_module" and node.target == short
    )


def _gates(node: fx.Node) -> bool:
    """Say whether an activation's output multiplies something: it is a gate, and needs its bounds."""
    return any(
        getattr(user.target, "__name__", str(user.target))
        in ("mul", "imul", "mul_", "multiply", "matmul", "bmm")
        for user in node.users
    )


def _reaches_weights(level: Level, node: fx.Node) -> bool:
    seen, queue = {node}, [node]
    while queue:
        for user in queue.pop().users:
            module = level.module(user)
            if module is not None and any(True for _ in module.parameters()):
                return True
            if user not in seen:
                seen.add(user)
                queue.append(user)
    return False


def _replace_attributes(model: nn.Module, wanted: tuple[str, ...], to: str) -> int:
    """Replace functions that a module keeps as an attribute, as nn.TransformerEncoderLayer does."""
    found = 0
    for module in model.modules():
        for name, value in list(module.__dict__.items()):
            if callable(value) and _suits(_function_kind(value), wanted, to):
                setattr(module, name, as_function(to))
                found += 1
                if hasattr(module, "activation_relu_or_gelu"):  # chooses a fused kernel, which ignores ours
                    setattr(module, "activation_relu_or_gelu", 0)  # noqa: B010
    return found


def _function_kind(value: Callable[..., Any]) -> str | None:
    try:
        return FUNCTIONS.get(value)
    except TypeError:
        return None


def _replace_calls(model: nn.Module, wanted: tuple[str, ...], to: str) -> int:
    """Rewrite every forward() that calls such an activation as a function."""
    last = next(reversed(weighted(model)), None)
    ends = set()
    if last is not None:
        parts = last.split(".")
        ends = {id(model.get_submodule(".".join(parts[:cut]))) for cut in range(len(parts))}
    levels, found = Levels(model), 0
    for name, owner in owners(model):
        if isinstance(owner, nn.Sequential) or not _mentions(owner, wanted, to):
            continue
        try:
            level = levels.at(owner, name)
        except SurgeryRefused as reason:
            old = " or ".join(wanted) or "the activation"
            raise SurgeryRefused(f"{reason}; write {_call_of(to)} there for {old}") from None
        calls = [
            node
            for node in level.graph.nodes
            if node.op in ("call_function", "call_method")
            and _suits(level.activation(node), wanted, to)
            and not _gates(node)
            and (id(owner) not in ends or _reaches_weights(level, node))
        ]
        for node in calls:
            _replace_call(level.graph, node, to)
        if calls:
            rewrite(owner, level.graph)
        found += len(calls)
    return found


def _replace_call(graph: fx.Graph, node: fx.Node, to: str) -> None:
    with graph.inserting_before(node):
        new = node.args[0] if to == "identity" else graph.call_function(as_function(to), (node.args[0],))
    node.replace_all_uses_with(new)  # type: ignore[arg-type]
    graph.erase_node(node)


def _call_of(to: str) -> str:
    if to == "identity":
        return "x"
    return f"torch.{to}(x)" if to in ("tanh", "sigmoid") else f"torch.nn.functional.{to}(x)"


def _mentions(owner: nn.Module, wanted: tuple[str, ...], to: str) -> bool:
    """Say whether the code of a module's class names such an activation at all."""
    if "forward" in owner.__dict__:
        return True
    for kind in type(owner).__mro__:
        if kind.__module__.split(".")[0] in ("torch", "pytorch_lightning", "lightning", "builtins"):
            continue
        for function in vars(kind).values():
            code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
            names = code.co_names if code else ()
            if any(_suits(METHODS.get(name), wanted, to) for name in names):
                return True
    return False
