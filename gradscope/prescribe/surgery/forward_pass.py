"""Read and rewrite what a module's own forward() does, one level deep, with torch.fx."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import fx, nn

from gradscope.errors import SurgeryRefused

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class RewrittenForward:
    """A module's forward() as edited code; copied and pickled with its module, whose keys stay as they are.

    A graph module in the module's place would drop its class, its methods and its unused parameters.
    """

    graph: fx.Graph | None  # None once it was pickled: then it can run, but not be edited

    def __init__(self, owner: nn.Module, graph: fx.Graph) -> None:
        """Generate the code of `graph` for `owner`."""
        code = graph.python_code("self")
        self.owner, self.graph = owner, graph
        self.source, self.names = code.src, dict(code.globals)
        self._compile()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the rewritten forward pass."""
        return self._function(self.owner, *args, **kwargs)

    def _compile(self) -> None:
        names = dict(self.names)
        exec(compile(self.source, f"<forward of {type(self.owner).__name__}, rewritten>", "exec"), names)
        self._function = names["forward"]

    def __deepcopy__(self, memo: dict[int, Any]) -> RewrittenForward:
        new = RewrittenForward.__new__(RewrittenForward)
        memo[id(self)] = new
        new.__setstate__({**self.__getstate__(), "owner": copy.deepcopy(self.owner, memo)})
        new.graph = copy.deepcopy(self.graph)
        return new

    def __getstate__(self) -> dict[str, Any]:
        modules = {name: item.__name__ for name, item in self.names.items() if isinstance(item, ModuleType)}
        values = {name: item for name, item in self.names.items() if name not in modules}
        return {"owner": self.owner, "source": self.source, "modules": modules, "values": values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.owner, self.source, self.graph = state["owner"], state["source"], None
        modules = {name: importlib.import_module(path) for name, path in state["modules"].items()}
        self.names = {**state["values"], **modules}
        self._compile()


class _OneLevel(fx.Tracer):
    """Traces a module's own forward(); its children are called, not entered."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Treat every child as a leaf."""
        return True


def trace(owner: nn.Module) -> fx.Graph:
    """Return a graph of a module's own forward(), which may be edited; SurgeryRefused says why there is none.

    Arguments that default to None or a bool are taken as that, and the rewritten code checks it. Code that
    takes another way in training than in evaluation is refused, but for the `training` argument of functions.
    """
    present = owner.__dict__.get("forward")
    if isinstance(present, RewrittenForward) and present.graph is not None:
        return copy.deepcopy(present.graph)
    if present is not None:
        raise SurgeryRefused(
            f"forward() of {type(owner).__name__} was replaced already; start from a fresh model"
        )
    if type(owner).__module__.startswith("torch.") and not isinstance(owner, nn.Sequential):
        raise SurgeryRefused(f"{type(owner).__name__} is torch's own; put a module of yours in its place")
    mode = {module: module.training for module in owner.modules()}
    try:
        owner.train()
        graph = _traced(owner)
        owner.eval()
        if str(graph) != str(_traced(owner)):
            raise SurgeryRefused(f"forward() of {where(owner)} differs between training and evaluation")
    finally:
        for module, training in mode.items():
            module.training = training
    return graph


def rewrite(owner: nn.Module, graph: fx.Graph) -> None:
    """Let a module run an edited graph from now on."""
    graph.lint()
    try:
        owner.forward = RewrittenForward(owner, graph)
    except SyntaxError as error:
        raise SurgeryRefused(
            f"a module name of {where(owner)} can't stand in code: {error.text!r}"
        ) from error


def where(owner: nn.Module) -> str:
    """Return a module's class with the file and line of its forward(), as far as they are known."""
    forward = type(owner).forward
    try:
        line = inspect.getsourcelines(forward)[1]
        return f"{type(owner).__name__} ({inspect.getsourcefile(forward)}:{line})"
    except (OSError, TypeError):
        return type(owner).__name__


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module whose forward() calls the one of this name, and what it calls it there."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        owner = model.get_submodule(".".join(parts[:cut]))
        if not isinstance(owner, CONTAINERS):
            return owner, ".".join(parts[cut:])
    return model, name


def owners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module of the user's own that has children or is the model itself, with its name."""
    for name, module in model.named_modules():
        foreign = type(module).__module__.startswith("torch.") and not isinstance(module, nn.Sequential)
        if not isinstance(module, CONTAINERS) and not foreign:
            yield name, module


def _traced(owner: nn.Module) -> fx.Graph:
    optional = {
        name: argument.default
        for name, argument in inspect.signature(type(owner).forward).parameters.items()
        if argument.default is None or isinstance(argument.default, bool)
    }
    try:
        graph = _OneLevel().trace(owner, concrete_args=optional or None)
    except Exception as error:
        raise SurgeryRefused(
            f"torch.fx can't follow forward() of {where(owner)}: {_first_sentence(error)}; edit it by hand"
        ) from error
    for node in list(graph.nodes):
        _follow_training_mode(graph, node)
    return graph


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".")


def _follow_training_mode(graph: fx.Graph, node: fx.Node) -> None:
    """Let a function's `training` argument follow the module; tracing has made a constant of it."""
    if node.op != "call_function":
        return
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return
    if isinstance(bound.arguments.get("training"), bool):
        with graph.inserting_before(node):
            mode = graph.create_node("get_attr", "training")
        bound.arguments["training"] = mode
        node.args, node.kwargs = tuple(bound.args), dict(bound.kwargs)
