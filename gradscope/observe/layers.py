"""Which modules are watched, and what is known of them from their constructors."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.loss import _Loss

from gradscope.observe.activations import name_of_module
from gradscope.observe.wrappers import class_of, named_children, named_modules, unwrapped
from gradscope.records import LayerInfo

# Watched as a whole: the parts of attention are called as functions, so their own hooks never fire.
WHOLE: tuple[type[nn.Module], ...] = (nn.MultiheadAttention,)

# Containers that never run a forward of their own, and losses: those are read from the loss's graph.
_NO_LAYERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, _Loss)

_ROLES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear, nn.Bilinear), "linear"),
    ((_ConvNd,), "convolution"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent"),
    ((nn.MultiheadAttention,), "attention"),
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
    ((_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm), "normalization"),
    ((_DropoutNd,), "dropout"),
    (
        (nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle, nn.Fold, nn.Unfold),
        "shape",
    ),
    ((nn.Upsample, nn.ChannelShuffle), "shape"),
)
_OPTIONS = (
    "negative_slope",
    "alpha",
    "beta",
    "threshold",
    "value",
    "lambd",
    "min_val",
    "max_val",
    "approximate",
    "inplace",
    "p",
    "eps",
    "momentum",
    "affine",
    "elementwise_affine",
    "track_running_stats",
    "nonlinearity",
    "mode",
    "num_layers",
    "hidden_size",
    "input_size",
    "bidirectional",
    "batch_first",
    "dropout",
    "proj_size",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "num_groups",
    "num_heads",
    "embed_dim",
    "num_embeddings",
    "embedding_dim",
    "padding_idx",
    "sparse",
    "num_features",
    "num_channels",
    "in_features",
    "out_features",
    "in_channels",
    "out_channels",
    "start_dim",
    "dim",
)


def watched_modules(model: nn.Module, patterns: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Return the modules to watch by qualified name: every leaf, or those that match a pattern.

    A module without children is a leaf; so is attention. Without patterns all leaves are watched; with them,
    the modules whose name matches one, leaf or not. Containers that never run a forward of their own
    (ModuleList, ModuleDict) and loss and metric modules outside the patterns stay out. So do scripted and
    traced modules: they take no hooks.
    """
    if patterns:
        return {
            name: module
            for name, module in named_modules(model)
            if name and any(fnmatchcase(name, pattern) for pattern in patterns) and not is_scripted(module)
        }
    chosen: dict[str, nn.Module] = {}
    _walk(unwrapped(model), "", chosen, set())
    return chosen


def _walk(module: nn.Module, name: str, chosen: dict[str, nn.Module], seen: set[int]) -> None:
    if id(module) in seen or is_scripted(module):
        return
    seen.add(id(module))
    children = [(key, child) for key, child in named_children(module) if not _is_parametrization(key)]
    if isinstance(module, WHOLE) or not children:
        if not isinstance(module, _NO_LAYERS) and not type(module).__module__.startswith("torchmetrics"):
            chosen[name] = module
        return
    for key, child in children:
        _walk(child, f"{name}.{key}" if name else key, chosen, seen)


def is_scripted(module: nn.Module) -> bool:
    """Say whether torch.jit runs a module."""
    return isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction))


def _is_parametrization(key: str) -> bool:
    """Weight norm and the like hang a ModuleDict of this name on a layer that is a leaf otherwise."""
    return key == "parametrizations"


def describe_layer(name: str, module: nn.Module, parameters: tuple[str, ...]) -> LayerInfo:
    """Return what the constructor tells of a module; the rest is seen when it runs."""
    fan_in, fan_out = _fans(module)
    return LayerInfo(
        name=name,
        kind=class_of(module).__name__,
        role=role_of(module),
        parameters=parameters,
        activation=name_of_module(module),
        fan_in=fan_in,
        fan_out=fan_out,
        options=_options(module),
    )


def role_of(module: nn.Module) -> str:
    """Return the role of a module among those that LayerInfo names."""
    if name_of_module(module):
        return "activation"
    for kinds, role in _ROLES:
        if isinstance(module, kinds):
            return role
    name = class_of(module).__name__
    if "Pool" in name:
        return "pooling"
    if "Norm" in name:
        return "normalization"
    if "Pad" in name:
        return "shape"
    if "Attention" in name:
        return "attention"
    return "linear" if name in ("Conv1D", "NonDynamicallyQuantizableLinear") else "other"


def _fans(module: nn.Module) -> tuple[int | None, int | None]:
    if isinstance(module, _ConvNd):
        field, groups = 1, module.groups
        for extent in module.kernel_size:
            field *= extent
        return field * module.in_channels // groups, field * module.out_channels // groups
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Bilinear):
        return module.in1_features * module.in2_features, module.out_features
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return module.input_size, module.hidden_size
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim, module.embed_dim
    return None, None


def _options(module: nn.Module) -> dict[str, str | int | float | bool]:
    options: dict[str, str | int | float | bool] = {}
    for name in _OPTIONS:
        value = module.__dict__.get(name)
        if isinstance(value, (bool, int, float, str)):
            options[name] = value
        elif isinstance(value, tuple) and value and all(isinstance(item, int) for item in value):
            options[name] = value[0] if len(set(value)) == 1 else "x".join(map(str, value))
    if "bias" in module._parameters:
        options["bias"] = module._parameters["bias"] is not None
    return options


def unit_axis_of(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """Return the axis of an output's shape that counts units; None where it can't be said from the module."""
    rank = len(shape)
    if isinstance(module, (_ConvNd, _ConvTransposeNd)):
        return rank - len(module.kernel_size) - 1
    if isinstance(module, (_NormBase, nn.GroupNorm)):
        return 1 if rank > 1 else None
    if isinstance(
        module, (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
    ):
        return rank - 1
    return None


def usual_unit_axis(shape: tuple[int, ...]) -> int:
    """Return the axis that counts units by custom: channels of images, the last axis of all else."""
    return 1 if len(shape) in (4, 5) else len(shape) - 1
