"""See through what distributed training and compilation put around a model: its users' names and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from gradscope.records import storable

# FSDP, torch.compile and activation checkpointing each keep what they wrap under a name of its own.
_KEYS = ("_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")
_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module itself, without wrappers around it."""
    while True:
        inner = _inside(module)
        if inner is None:
            return module
        module = inner


def _inside(module: nn.Module) -> nn.Module | None:
    if isinstance(module, _PARALLEL):
        wrapped: nn.Module = module.module
        return wrapped
    return next((module._modules[key] for key in _KEYS if key in module._modules), None)


def named_children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return a module's children, without wrappers around them, by names that can be stored."""
    return [(storable(name), unwrapped(child)) for name, child in module.named_children()]


def named_modules(model: nn.Module, repeated: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under the name it would have without wrappers; the model itself as "".

    repeated: yield a module that has several names under each of them.
    """
    seen: set[int] = set()
    waiting = [("", unwrapped(model))]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen and not repeated:
            continue
        seen.add(id(module))
        yield name, module
        below = [(f"{name}.{key}" if name else key, child) for key, child in named_children(module)]
        waiting += reversed(below)


def compiled_modules(model: nn.Module) -> set[int]:
    """Return the ids of the modules that run as part of a compiled one, as far as the model shows it."""
    return {
        id(inner)
        for module in model.modules()
        if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for inner in module.modules()
    }


def class_of(module: nn.Module) -> type:
    """Return the class that the user knows; fully_shard puts one of its own in front."""
    kind = type(module)
    sharded = any(base.__name__ == "FSDPModule" for base in kind.__bases__)
    return kind.__bases__[-1] if sharded else kind


def whole_shapes(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """Return, by the id of each parameter that FSDP flattened and cut, the shape of the whole of it."""
    shapes: dict[int, tuple[int, ...]] = {}
    for module in model.modules():
        flat = getattr(getattr(module, "_handle", None), "flat_param", None)
        if flat is None:
            continue
        shapes[id(flat)] = (int(flat._unpadded_unsharded_size.numel()),)
        for parameter, shape in zip(flat._params or (), flat._shapes, strict=False):
            shapes[id(parameter)] = tuple(shape)
    return shapes


def hides_parameters(model: nn.Module) -> bool:
    """Return whether FSDP shows flat parameters in place of the model's own."""
    return any(
        getattr(module, "_handle", None) is not None and not module._use_orig_params
        for module in model.modules()
    )


def averaged_over(model: nn.Module) -> int:
    """Return over how many ranks' losses the gradients are averaged: 1 where nothing does it."""
    return next((size for module in model.modules() if (size := _ranks_of(module))), 1)


def _ranks_of(module: Any) -> int:
    """Return over how many ranks a module averages its gradients, 0 if it isn't data parallel."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return int(module.process_group.size())
    if getattr(module, "_handle", None) is not None:
        between = getattr(module, "_inter_node_pg", None)
        return int(module.process_group.size()) * (int(between.size()) if between is not None else 1)
    state = getattr(module, "_get_fsdp_state", None)
    return _mesh_size(state()) if state is not None else 0


def _mesh_size(state: Any) -> int:
    """Return how many ranks a fully sharded module is spread and copied over; 0 without parameters."""
    group = getattr(state, "_fsdp_param_group", None)
    mesh = getattr(getattr(group, "mesh_info", None), "mesh", None)
    return int(mesh.size()) if mesh is not None else 0
