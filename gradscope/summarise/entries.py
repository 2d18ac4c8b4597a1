"""A tensor's entries as a vector."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_entries(tensor: Tensor) -> Tensor:
    """Return all entries as a vector, in memory order and without a copy where the memory has no gaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    if torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return tensor.reshape(-1)


def real_entries(tensor: Tensor) -> Tensor:
    """Return all entries as a vector; of complex ones the real and imaginary parts."""
    return dense_entries(torch.view_as_real(tensor.resolve_conj()) if tensor.dtype.is_complex else tensor)


def stored_size(tensor: Tensor) -> int:
    """Return how many real numbers a tensor stores: of sparse ones, the coalesced values'."""
    if tensor.layout is torch.strided:
        return tensor.numel() * (2 if tensor.dtype.is_complex else 1)
    return stored_entries(tensor).numel()


def stored_entries(tensor: Tensor) -> Tensor:
    """Return the entries that a tensor stores as a vector: of sparse ones the coalesced values."""
    return real_entries(tensor.detach() if tensor.layout is torch.strided else stored_values(tensor))


def stored_values(tensor: Tensor) -> Tensor:
    """Return the values of a sparse tensor, of entries that were given several times the sum."""
    tensor = tensor.detach()
    return tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
