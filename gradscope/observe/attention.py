"""How widely attention looks: the entropy of its weights, from what autograd keeps.

For the backward pass it keeps what a softmax returned, and of fused attention the queries and keys, from
which the weights of a few rows are computed once more. Nothing is called, wrapped or replaced for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# So many queries of the first sample are read of every head, evenly spread.
QUERIES = 16
# The way from an output back to the attention before it is shorter than this.
LONGEST_WAY = 64
_SOFTMAX, _FUSED = ("SoftmaxBackward", "SafeSoftmaxBackward"), "ScaledDotProduct"
_PRODUCTS = ("BmmBackward", "MatmulBackward")


def attends(functions: Sequence[str]) -> bool:
    """Return whether autograd functions, by name, compute attention."""
    softmax = any(name.startswith(_SOFTMAX) for name in functions)
    product = any(name.startswith(_PRODUCTS) for name in functions)
    return (softmax and product) or any(_FUSED in name for name in functions)


def may_attend(module: nn.Module) -> bool:
    """Return whether a module may be attention, or the softmax of one, by its class."""
    return isinstance(module, nn.MultiheadAttention) or type(module) is nn.Softmax


@torch.no_grad()
def attention_weights(module: nn.Module, output: Any) -> Tensor | None:
    """Return a few rows of the weights of the attention that a module is or that lies just before it.

    They are of shape (heads, rows, positions), at least 0; rows need not sum to 1. None where they don't
    show: without gradients, within activation checkpointing and in compiled models.
    """
    heads = module.num_heads if isinstance(module, nn.MultiheadAttention) else 1
    try:
        if type(module) is nn.Softmax:
            return _of_softmax(output, module.dim) if isinstance(output, Tensor) else None
        first = output[0] if isinstance(output, tuple) and output else output
        node = _attention_before(getattr(first, "grad_fn", None))
        weights = None if node is None else _of_node(node, heads)
    except (AttributeError, RuntimeError):  # another version's node; a tensor that isn't plain any more
        weights = None
    if weights is None and isinstance(module, nn.MultiheadAttention):
        return _returned(output)
    return weights


def entropy_shares(weights: Tensor) -> Tensor:
    """Return the mean entropy of heads and the lowest head's: (2,), float32 or float64.

    weights: (heads, rows, positions). A row's entropy is a share of the largest that it could have: the
    logarithm of how many positions (but at least 2) have any weight, so that masked ones don't count. Rows of
    zeros or NaN, where a mask leaves nothing to look at, are left out; NaN if no row remains.
    """
    rows = weights if weights.dtype is torch.float64 else weights.float()
    rows = rows / rows.sum(-1, keepdim=True)
    most = (rows > 0).sum(-1).clamp(min=2).to(rows.dtype).log()
    heads = (torch.special.entr(rows).sum(-1) / most).nanmean(-1)
    lowest = heads.nan_to_num(nan=math.inf).amin()
    return torch.stack([heads.nanmean(), torch.where(lowest.isinf(), torch.nan, lowest)])


def _attention_before(node: Any) -> Any:
    """Return the nearest node of the graph that computes attention weights; None if there is none."""
    seen, queue = {node}, [node] if node is not None else []
    for item in queue:
        name = item.name()
        if name.startswith(_SOFTMAX) or _FUSED in name:
            return item
        for behind, _ in item.next_functions:
            if behind is not None and behind not in seen and len(queue) < LONGEST_WAY:
                seen.add(behind)
                queue.append(behind)
    return None


def _of_node(node: Any, heads: int) -> Tensor | None:
    if _FUSED in node.name():
        return _of_queries_and_keys(node)
    result = _kept(node, "result")
    return None if result is None else _of_softmax(result, node._saved_dim, heads)


def _kept(node: Any, name: str) -> Tensor | None:
    """Return a tensor that autograd keeps; None if there is none, RuntimeError if it can't be had as it is.

    Hooks may be there to make it anew, and that is not to be done for watching: activation checkpointing
    computes a part of the model again in them.
    """
    kept = getattr(node, f"_raw_saved_{name}", None)
    if kept is None:
        return None
    if getattr(kept, "unpack_hook", kept) is not None:
        raise RuntimeError("hooks keep it, or this torch does not tell whether they do")
    value = getattr(node, f"_saved_{name}")
    if value is None:
        return None
    if type(value) not in (Tensor, nn.Parameter) or value.is_nested:
        raise RuntimeError("it is spread over ranks, or of another kind")
    found: Tensor = value.detach()
    return found


def _returned(output: Any) -> Tensor | None:
    """Return the weights that MultiheadAttention returned, usually means over its heads."""
    weights = output[1] if isinstance(output, tuple) and len(output) == 2 else None
    return _of_softmax(weights, -1) if isinstance(weights, Tensor) else None


def _of_softmax(weights: Tensor, dim: int | None, heads: int = 1) -> Tensor | None:
    """Return rows of weights (..., queries, positions): four axes or more have one for heads.

    heads: by how many the first of three axes is shared.
    """
    last = dim is not None and (dim + 1) % 2**64 in (0, weights.dim())  # a node keeps dim without its sign
    if weights.dim() < 3 or not last or not weights.is_floating_point() or not weights.numel():
        return None
    if weights.shape[-1] < 2:
        return None
    weights = weights.detach()
    if weights.dim() == 3:
        weights = weights.unflatten(0, (-1, heads if weights.shape[0] % heads == 0 else 1))
    first: Tensor = weights.flatten(0, -4)[0]
    return first[:, _queries(first.shape[1])]


def _of_queries_and_keys(node: Any) -> Tensor | None:
    """Return rows of the weights of fused attention, computed once more."""
    queries, keys = _kept(node, "query"), _kept(node, "key")
    if queries is None or keys is None or queries.dim() != 4 or keys.shape[2] < 2 or not queries.numel():
        return None
    mask = _kept(node, "attn_mask" if hasattr(node, "_raw_saved_attn_mask") else "attn_bias")
    chosen, wide = _queries(queries.shape[2]), _unrounded(queries)
    own = keys[0].to(wide)
    own = own.repeat_interleave(queries.shape[1] // len(own), 0)  # heads may share their keys
    scale = 1 / math.sqrt(queries.shape[3]) if node._saved_scale is None else float(node._saved_scale)
    scores: Tensor = scale * queries[0, :, chosen].to(wide) @ own.transpose(1, 2)
    if mask is not None:
        scores = scores + mask.expand(*queries.shape[:3], -1)[0, :, chosen]
    if node._saved_is_causal:
        ours = torch.arange(queries.shape[2], device=scores.device)[chosen, None]
        scores = scores.masked_fill(torch.arange(keys.shape[2], device=scores.device) > ours, -math.inf)
    return scores.softmax(-1)


def _unrounded(tensor: Tensor) -> torch.dtype:
    """Return the dtype to multiply in: one that autocasting, which this runs inside of, leaves alone."""
    narrow = tensor.dtype is not torch.float32 or torch.is_autocast_enabled(tensor.device.type)
    return torch.float64 if narrow and tensor.device.type != "mps" else torch.float32


def _queries(size: int) -> slice:
    """Return which of so many queries are read: not the first, to which a causal mask leaves one position."""
    used = min(size - 1, QUERIES)
    if used < 1:
        return slice(0, 1)
    step = (size - 1) // used
    return slice(step, step * used + 1, step)
