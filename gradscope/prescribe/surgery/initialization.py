"""Draw weights anew: He, Xavier, LeCun, orthogonal by each layer's own activation, or LSUV from a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gradscope.errors import SurgeryRefused
from gradscope.prescribe.gains import EMBEDDING_SPREAD, scheme_for
from gradscope.prescribe.surgery.running import run
from gradscope.prescribe.surgery.structure import NORMS, RECURRENT, Levels, weighted

_LEAST_VARIANCE, _MOST_PASSES, _TOLERANCE = 1e-12, 10, 0.05  # of LSUV, Mishkin & Matas 2016


def _he(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _lecun(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="linear")


def _orthogonal(weight: Tensor) -> None:
    drawn = torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    weight.copy_(nn.init.orthogonal_(drawn))  # its QR decomposition knows no 16-bit numbers


_USUAL = (1e-3, 3.0)  # deviation of an embedding's entries
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
SCHEMES: dict[str, Callable[[Tensor], object]] = {
    "he": _he,
    "lecun": _lecun,
    "xavier": nn.init.xavier_normal_,
    "orthogonal": _orthogonal,
}


def initialize(model: nn.Module, action: Mapping[str, Any], batch: Any) -> None:
    """Draw the weights of layers by a scheme and set their biases to zero, in place."""
    scheme = action["scheme"]
    layers = _layers(model, action.get("layers"))
    if action.get("everything"):
        layers |= _beside_layers(model)
    levels = Levels(model)
    for name, layer in layers.items():
        chosen = scheme.get(name, "own") if isinstance(scheme, Mapping) else scheme
        if isinstance(layer, RECURRENT):
            _initialize_recurrence(layer)
        elif isinstance(layer, EMBEDDINGS):
            _initialize_embedding(layer)
        elif isinstance(layer, nn.MultiheadAttention):
            _initialize_attention(layer)
        elif isinstance(layer, NORMS):
            layer.reset_parameters()  # type: ignore[operator]
        else:
            _draw(name, layer, "orthogonal" if chosen == "lsuv" else chosen, levels)
    if scheme == "lsuv":
        _scale_to_unit_variance(model, layers, batch)


def activation_behind(levels: Levels, name: str) -> str | None:
    """Return the activation that a layer's output goes through, None if there is none to be seen."""
    behind = levels.behind_if_seen(name)
    return behind.level.activation(behind.activation) if behind else None


def _layers(model: nn.Module, names: list[str] | None) -> dict[str, nn.Module]:
    recurrent = {name: module for name, module in model.named_modules() if isinstance(module, RECURRENT)}
    known: dict[str, nn.Module] = {**weighted(model), **recurrent}
    if not names:
        tied = _tied(model)
        chosen = {
            name: layer for name, layer in known.items() if id(layer._parameters.get("weight")) not in tied
        }
    else:
        known |= {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, (nn.MultiheadAttention, *EMBEDDINGS))
        }
        missing = [name for name in names if name not in known]
        if missing:
            raise SurgeryRefused(
                f"{missing[0]!r} is no linear, convolution, recurrent, attention or embedding layer"
            )
        chosen = {name: known[name] for name in names}
    if not chosen:
        raise SurgeryRefused("the model has no linear, convolution or recurrent layer to initialise")
    return chosen


def _beside_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return what else is born with weights: attention, norms, and embeddings of an unusual size."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        or (isinstance(module, NORMS) and hasattr(module, "reset_parameters"))
        or (
            isinstance(module, EMBEDDINGS) and not _USUAL[0] < float(module.weight.detach().std()) < _USUAL[1]
        )
    }


def _tied(model: nn.Module) -> set[int]:
    """Return the identities of the parameters that several modules share."""
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {identity for identity, count in holders.items() if count > 1}


def _draw(name: str, layer: nn.Module, scheme: str, levels: Levels) -> None:
    if scheme == "own":
        scheme = scheme_for(activation_behind(levels, name))
    if scheme not in SCHEMES:
        raise SurgeryRefused(f"unknown initialisation {scheme!r}; known are own, lsuv, {', '.join(SCHEMES)}")
    weight = layer._parameters.get("weight")
    if weight is None:
        raise SurgeryRefused(
            f"the weight of {name} is computed (weight norm or the like); set its own parameters"
        )
    if nn.parameter.is_lazy(weight):
        raise SurgeryRefused(f"{name} has no shape yet; run the model on a batch first")
    with torch.no_grad():
        SCHEMES[scheme](weight)
        bias = layer._parameters.get("bias")
        if bias is not None:
            bias.zero_()


def _initialize_recurrence(layer: nn.RNNBase | nn.RNNCellBase) -> None:
    """Make each gate's recurrent block orthogonal, and open the forget gates (Jozefowicz et al. 2015)."""
    gated = isinstance(layer, (nn.LSTM, nn.LSTMCell))
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "weight_hh" in name:
                for gate in parameter.split(layer.hidden_size):
                    _orthogonal(gate)
            elif "weight_ih" in name:
                nn.init.xavier_uniform_(parameter)
            elif "bias" in name:
                parameter.zero_()
                if gated and "bias_ih" in name:
                    quarter = parameter.shape[0] // 4
                    parameter[quarter : 2 * quarter] = 1.0


def _initialize_attention(layer: nn.MultiheadAttention) -> None:
    """Draw the projections to queries, keys and values as torch does (Glorot & Bengio 2010)."""
    with torch.no_grad():
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            weight = layer._parameters.get(name)
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        bias = layer._parameters.get("in_proj_bias")
        if bias is not None:
            bias.zero_()


def _initialize_embedding(layer: nn.Embedding | nn.EmbeddingBag) -> None:
    """Draw a table's rows, but leave the one that fills up at zero."""
    with torch.no_grad():
        layer.weight.normal_(0, EMBEDDING_SPREAD)
        if layer.padding_idx is not None:
            layer.weight[layer.padding_idx].zero_()


def _scale_to_unit_variance(model: nn.Module, layers: Mapping[str, nn.Module], batch: Any) -> None:
    """Scale each layer, in execution order, until its output has variance 1 on the batch (LSUV)."""
    if batch is None:
        raise SurgeryRefused("LSUV scales layers by what a batch gives; hand one in")
    order: list[nn.Module] = []
    handles = [
        layer.register_forward_hook(lambda module, _, output: order.append(module))
        for layer in layers.values()
        if isinstance(layer, (nn.Linear, _ConvNd))
    ]
    try:
        run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    for layer in dict.fromkeys(order):
        _scale(model, layer, batch)


def _scale(model: nn.Module, layer: nn.Module, batch: Any) -> None:
    seen: list[float] = []
    handle = layer.register_forward_hook(lambda module, _, output: seen.append(float(output.var())))
    try:
        for _ in range(_MOST_PASSES):
            seen.clear()
            run(model, batch)
            if not seen or seen[0] < _LEAST_VARIANCE or abs(seen[0] - 1) < _TOLERANCE:
                return
            with torch.no_grad():
                layer._parameters["weight"].div_(seen[0] ** 0.5)  # type: ignore[union-attr]
    finally:
        handle.remove()
