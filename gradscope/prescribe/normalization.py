"""Remedies of normalisation: batch, layer and group norm where each of them can work."""

from __future__ import annotations

import math
from dataclasses import replace

from gradscope.prescribe.activation import leak
from gradscope.prescribe.case import Case
from gradscope.prescribe.gains import gain_with
from gradscope.prescribe.initialization import expect_gain, gain_before
from gradscope.prescribe.paste import block, figure, name_list, some, through
from gradscope.prescribe.together import together
from gradscope.records import LayerInfo, Remedy

TITLES = {"batch": "BatchNorm", "layer": "LayerNorm", "group": "GroupNorm"}
# ReLU behind BatchNorm grows the gradient 1.21-fold a layer: 46-fold through 20 (Yang et al. 2019).
DEEPEST_BATCH_NORM = 20
_SMALLEST_BATCH = 8
_TOO_FEW = 2  # values: of one the normalised is 0, of two their order
_FADED, _GROWN = 1e-2, 1e2


def normalize(case: Case) -> Remedy | None:
    """Insert the normalisation that suits this network before each hidden activation."""
    norm = choose(case)
    return _insert(case, norm) if norm is not None else None


def normalize_anywhere(case: Case) -> Remedy | None:
    """Insert the norm that needs no batch wherever one fits, so that no layer stops the others."""
    remedy = _insert(case, "layer")
    return None if remedy is None else replace(remedy, action={"do": "normalize", "norm": "layer"})


def _insert(case: Case, norm: str) -> Remedy | None:
    layers = _normalizable(case)
    if not layers:
        return None
    names = [layer.name for layer in layers]
    action: dict[str, object] = {"do": "normalize", "norm": norm, "layers": names}
    after = gain_with(norm, case.activation)
    return Remedy(
        "normalization",
        f"Insert {TITLES[norm]} before each hidden activation",
        _why(case, norm, after),
        _code(case, layers, norm, action),
        expect_gain(case, gain_before(case), after),
        action,
    )


def normalize_if_saturated_later(case: Case) -> Remedy | None:
    """Insert normalisation where units saturated during training, not where they started saturated."""
    return normalize(case) if case.number("saturated_at_start") == 0 else None


def choose(case: Case) -> str | None:
    """Return "batch", "layer" or "group" by architecture, batch, depth and the gain through all layers."""
    for norm in _candidates(case):
        gain = gain_with(norm, case.activation)
        if gain is None or case.skips or _FADED < gain**case.depth < _GROWN:
            return norm
    return None


def replace_degenerate(case: Case) -> Remedy | None:
    """Put a norm that doesn't need other samples for a BatchNorm that has too few."""
    blamed = [layer for layer in case.norms if layer.name in case.finding.layers] or list(case.norms)
    layers = [layer for layer in blamed if layer.kind.startswith(("BatchNorm", "SyncBatchNorm"))]
    if not layers:
        return None
    names = [layer.name for layer in layers]
    return Remedy(
        "normalization",
        "Replace BatchNorm by GroupNorm, which needs no batch",
        f"{some(names)} divides by a deviation over {figure(_samples(case, layers[0]))} values a channel, "
        "or over "
        "values that don't differ; GroupNorm takes it over each sample's own channels (Wu & He 2018).",
        block(
            "import math",
            "",
            "import torch",
            "",
            f"for name in {name_list(names)}:",
            '    parent, _, child = name.rpartition(".")',
            "    channels = model.get_submodule(name).num_features",
            "    norm = torch.nn.GroupNorm(math.gcd(channels, 32) if channels > 32 else 1, channels)",
            "    setattr(model.get_submodule(parent), child, norm)",
        ),
        "Output variance → 1 for every sample, at any batch size, the same in training and evaluation.",
        {"do": "replace-norm", "norm": "group", "layers": names},
    )


def remove_degenerate(case: Case) -> Remedy | None:
    """Take away a norm over one or two values: what it puts out no longer depends on them."""
    blamed = [layer for layer in case.norms if layer.name in case.finding.layers] or list(case.norms)
    names = [layer.name for layer in blamed if _together(case, layer) <= _TOO_FEW]
    if not names:
        return None
    remedy = Remedy(
        "normalization",
        f"Take {some(names)} away",
        "Of a single value the normalised is 0 whatever it is, of two it is their order only; what follows "
        "sees nothing else of the input.",
        block(
            "import torch",
            "",
            f"for name in {name_list(names)}:",
            '    parent, _, child = name.rpartition(".")',
            "    setattr(model.get_submodule(parent), child, torch.nn.Identity())",
        ),
        "Slope from input to output 0 → 1.",
        {"do": "replace-norm", "norm": "none", "layers": names},
    )
    leaking = leak(case)  # a layer of one or two rectified units is dead as often as not
    return together(remedy, leaking) if leaking else remedy


def _together(case: Case, layer: LayerInfo) -> float:
    """Return how many values of one sample a layer normalises together, infinity where that is not known."""
    shape = layer.output_shape or ()
    if len(shape) < 2:
        return math.inf
    if layer.kind == "GroupNorm":
        return math.prod(shape[1:]) / float(layer.options.get("num_groups", 1))
    if layer.kind.startswith("InstanceNorm"):
        return float(math.prod(shape[2:]))
    if layer.kind in ("LayerNorm", "RMSNorm"):
        sizes = [item.size for item in case.run.parameters if item.name in layer.parameters]
        return float(max(sizes, default=shape[-1]))
    return math.inf


def raise_norm_epsilon(case: Case) -> Remedy | None:
    """Raise the epsilon of normalisations whose input hardly varies."""
    blamed = [layer for layer in case.norms if layer.name in case.finding.layers] or list(case.norms)
    if not blamed:
        return None
    old = max((float(layer.options.get("eps") or 1e-5) for layer in blamed), default=1e-5)
    names = [layer.name for layer in blamed]
    return Remedy(
        "normalization",
        f"Raise the normalisations' epsilon from {figure(old)} to {figure(old * 100)}",
        f"Where the input of {some(names)} doesn't vary, dividing by its deviation blows noise and gradient "
        "up "
        f"by as much as 1 / sqrt(eps) = {figure(old**-0.5)}.",
        block(
            f"for name in {name_list(names)}:",
            f"    model.get_submodule(name).eps = {figure(old * 100)}",
        ),
        f"Largest amplification {figure(old**-0.5)} → {figure((old * 100) ** -0.5)}.",
        {"do": "set-epsilon", "eps": old * 100, "layers": names},
    )


def normalize_queries(case: Case) -> Remedy | None:
    """Bound the attention logits by normalising what enters attention."""
    heads = [
        layer for layer in case.run.layers if layer.role == "attention" and layer.kind == "MultiheadAttention"
    ]
    blamed = [layer for layer in heads if layer.name in case.finding.layers] or heads
    if not blamed:
        return None
    names = [layer.name for layer in blamed]
    return Remedy(
        "normalization",
        "Normalise the spectrum of the query, key and value weights",
        "Attention collapses onto single tokens when the logits grow, and they grow with the largest "
        "singular "
        "value of the projections; dividing it out bounds them (sigma-Reparam, Zhai et al. 2023).",
        block(
            "import torch",
            "",
            f"for name in {name_list(names)}:",
            "    attention = model.get_submodule(name)",
            '    for key in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):',
            "        if getattr(attention, key, None) is not None:",
            "            torch.nn.utils.parametrizations.spectral_norm(attention, key)",
        ),
        "Largest singular value of the projections → 1.00; attention entropy stays away from 0.",
    )


def _candidates(case: Case) -> list[str]:
    if case.attention:
        return ["layer"]
    batch = case.fact("batch_size")
    small = isinstance(batch, int) and batch < _SMALLEST_BATCH
    other = "group" if case.convolutional else "layer"
    sequences = any(layer.role == "linear" and len(layer.output_shape or ()) > 2 for layer in case.hidden)
    small = small or sequences  # BatchNorm1d would take the steps of a sequence for its channels
    if small or (case.depth > DEEPEST_BATCH_NORM and not case.skips):
        return [other]
    return ["batch", other]


def _normalizable(case: Case) -> list[LayerInfo]:
    """Return hidden layers in front of an activation that have no normalisation yet."""
    normalized = {name for norm in case.norms for name in norm.inputs}
    untold = not any(layer.inputs for layer in case.run.layers)
    if case.norms and (untold or case.attention):  # a transformer has its norms between its blocks
        return []
    return [
        layer
        for layer in case.hidden
        if case.activation_of(layer)
        and layer.name not in normalized
        and not layer.name.startswith("parametri")
    ]


def _why(case: Case, norm: str, gain: float | None) -> str:
    over = {"batch": "the batch", "layer": "the units of a sample", "group": "groups of a sample's channels"}
    why = (
        f"Dividing by the deviation over {over[norm]} sets each layer's scale anew, whatever the weights do."
    )
    if gain is None:
        return why
    if norm == "batch":
        effect = f"{through(gain, case.depth)} through {case.depth} layers"
        return f"{why} At {case.depth} layers its own growth, {gain:.2f} a layer, stays bearable ({effect})."
    if case.depth > DEEPEST_BATCH_NORM and not case.skips and not case.attention:
        return f"{why} BatchNorm would grow the gradient by {_batch(case)} here (Yang et al. 2019)."
    return why


def _batch(case: Case) -> str:
    gain = gain_with("batch", case.activation) or 1.211
    return through(gain, case.depth) + "-fold"


def _samples(case: Case, layer: LayerInfo) -> float:
    shape = layer.output_shape or ()
    count = 1
    for axis, extent in enumerate(shape):
        count *= 1 if axis == layer.unit_axis else extent
    return float(count)


def _code(case: Case, layers: list[LayerInfo], norm: str, action: dict[str, object]) -> str:
    behind = [case.activation_behind[layer.name] for layer in layers]
    if any(item.role != "activation" for item in behind) or len({item.name for item in behind}) < len(behind):
        return block(
            "from gradscope.prescribe import surgery",
            "",
            "# The activations are called inside forward(): add the norms there, or let gradscope do it in "
            "a copy:",
            f"model = surgery.apply({action!r}, model)",
        )
    groups: dict[str, list[str]] = {}
    for layer, item in zip(layers, behind, strict=True):
        groups.setdefault(_constructor(case, layer, norm), []).append(item.name)
    lines = ["import torch"]
    for constructor, names in groups.items():
        lines += [
            "",
            f"for name in {name_list(names)}:",
            '    parent, _, child = name.rpartition(".")',
            f"    block = torch.nn.Sequential({constructor}, model.get_submodule(name))",
            "    setattr(model.get_submodule(parent), child, block)",
        ]
    return "\n".join(lines)


def _constructor(case: Case, layer: LayerInfo, norm: str) -> str:
    units = case.units(layer) or 1
    if norm == "layer" and layer.role != "convolution":
        return f"torch.nn.LayerNorm({units})"
    if norm != "batch":
        return f"torch.nn.GroupNorm({groups_of(units)}, {units})"
    axes = len(layer.output_shape or ()) - 2 if layer.role == "convolution" else 1
    return f"torch.nn.BatchNorm{min(max(axes, 1), 3)}d({units})"


def groups_of(channels: int) -> int:
    """Return a number of groups that divides the channels: 32 if it does, else fewer, 4 channels at least."""
    return max(
        (count for count in (32, 16, 8, 4, 2) if channels % count == 0 and channels // count >= 4), default=1
    )
