"""How widely attention looks: the entropy of its weights, from what autograd keeps.

For the backward pass it keeps what a softmax returned, and of fused attention the queries and keys, from
which the weights of a few rows are computed once more. Nothing is called, wrapped or replaced for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

# So many queries of the first sample are read of every head, evenly spread.
QUERIES = 16
# So many weights are held until they are read together.
HELD = 1 << 20
# The way from an output back to the attention before it is shorter than this.
LONGEST_WAY = 64
# Rows of attention's weights (heads, rows, positions), at least 0, whatever their sum; or what makes them:
# scaled queries (heads, rows, width), keys (heads, positions, width) and perhaps what a mask adds (heads or
# 1, rows, positions). They share no memory with the training.
Rows = tuple[Tensor, ...]
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
def attention_rows(module: nn.Module, output: Any) -> Rows | None:
    """Return a few rows of the weights of the attention that a module is or that lies just before it.

    None where they don't show: without gradients, within activation checkpointing and in compiled models.
    """
    heads = module.num_heads if isinstance(module, nn.MultiheadAttention) else 1
    try:
        if type(module) is nn.Softmax:
            return _of_softmax(output, module.dim) if isinstance(output, Tensor) else None
        first = output[0] if isinstance(output, tuple) and output else output
        node = _attention_before(getattr(first, "grad_fn", None))
        rows = None if node is None else _of_node(node, heads)
    except (AttributeError, RuntimeError):  # another version's node; a tensor that isn't plain any more
        rows = None
    if rows is None and isinstance(module, nn.MultiheadAttention):
        return _returned(output)
    return rows


class Entropies:
    """The entropies of one step's attention, by the number of the layer.

    Rows of one shape are held until they are asked for, so that they share the operations that read them.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget what was added."""
        self._held: dict[Any, list[tuple[int, Rows]]] = {}
        self._entries = 0
        self._read: list[tuple[list[int], Tensor]] = []

    def add(self, owner: int, rows: Rows) -> None:
        """Take some rows of a layer's attention."""
        kind = tuple((item.shape, item.dtype, item.device) for item in rows)
        self._held.setdefault(kind, []).append((owner, rows))
        self._entries += sum(item.numel() for item in rows)
        if self._entries > HELD:
            self._read_held()

    def take(self) -> list[tuple[list[int], Tensor]]:
        """Return owners, and (owners, 2) as `entropy_shares`, of what was added since; forget it."""
        self._read_held()
        read = self._read
        self.forget()
        return read

    @torch.no_grad()
    def _read_held(self) -> None:
        for held in self._held.values():
            stacked = [torch.stack(alike) for alike in zip(*(rows for _, rows in held), strict=True)]
            self._read.append(([owner for owner, _ in held], entropy_shares(_weights(*stacked))))
        self._held, self._entries = {}, 0


def _weights(first: Tensor, keys: Tensor | None = None, mask: Tensor | float = 0.0) -> Tensor:
    """Return the weights (..., heads, rows, positions) that Rows are or come from."""
    return first if keys is None else (first @ keys.transpose(-1, -2) + mask).softmax(-1)


def entropy_shares(weights: Tensor) -> Tensor:
    """Return the mean entropy of heads and the lowest head's: (..., 2), float32 or float64.

    weights: (..., heads, rows, positions). A row's entropy is a share of the largest that it could have: the
    logarithm of how many positions (but at least 2) have any weight, so that masked ones don't count. Rows of
    zeros or NaN, where a mask leaves nothing to look at, are left out; NaN if no row remains.
    """
    rows = weights if weights.dtype is torch.float64 else weights.float()
    total = rows.sum(-1)
    most = (rows > 0).sum(-1).clamp_(min=2).to(rows.dtype).log_()
    # of p / total it is this much
    heads = ((torch.special.entr(rows).sum(-1) / total + total.log()) / most).nanmean(-1)
    lowest = heads.nan_to_num(nan=math.inf).amin(-1)
    return torch.stack([heads.nanmean(-1), torch.where(lowest.isinf(), torch.nan, lowest)], -1)


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


def _of_node(node: Any, heads: int) -> Rows | None:
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


def _returned(output: Any) -> Rows | None:
    """Return the weights that MultiheadAttention returned, usually means over its heads."""
    weights = output[1] if isinstance(output, tuple) and len(output) == 2 else None
    return _of_softmax(weights, -1) if isinstance(weights, Tensor) else None


def _of_softmax(weights: Tensor, dim: int | None, heads: int = 1) -> Rows | None:
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
    return (first[:, _queries(first.shape[1])].clone(),)


def _of_queries_and_keys(node: Any) -> Rows | None:
    """Return what rows of the weights of fused attention are to be computed from."""
    queries, keys = _kept(node, "query"), _kept(node, "key")
    if queries is None or keys is None or queries.dim() != 4 or keys.shape[2] < 2 or not queries.numel():
        return None
    mask = _kept(node, "attn_mask" if hasattr(node, "_raw_saved_attn_mask") else "attn_bias")
    chosen, wide = _queries(queries.shape[2]), _unrounded(queries)
    own = keys[0].to(wide, copy=True)
    if len(own) < queries.shape[1]:  # heads share their keys
        own = own.repeat_interleave(queries.shape[1] // len(own), 0)
    scale = 1 / math.sqrt(queries.shape[3]) if node._saved_scale is None else float(node._saved_scale)
    rows = scale * queries[0, :, chosen].to(wide), own
    if mask is not None:
        return *rows, mask.expand(*queries.shape[:3], -1)[0, :, chosen].clone()
    if node._saved_is_causal:
        return *rows, _later(queries.shape[2], keys.shape[2], queries.device)
    return rows


@lru_cache(maxsize=8)
def _later(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return what a causal mask adds for the queries that are read: (1, rows, keys)."""
    hidden = torch.full((queries, keys), -math.inf, device=device).triu(1)
    return hidden[None, _queries(queries)].clone()


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
