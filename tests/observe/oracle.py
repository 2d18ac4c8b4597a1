"""What a step has to be recorded as, by plain autograd and float64 arithmetic on a twin of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.summarise.test_cosine import plain as plain_cosine

# Of these the first tensor is the output; the others repeat it or are of another kind.
FIRST_ONLY = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)
Row = dict[str, float]


def wide(tensor: Tensor) -> Tensor:
    """Return a copy in float64, complex entries as their magnitudes, parts of nested tensors side by side."""
    if tensor.is_nested:
        return torch.cat([wide(part) for part in tensor.detach().unbind()])
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return (dense.abs() if dense.is_complex() else dense).double().clone()


def tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from tensors(item)
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from tensors(item)
    elif is_dataclass(output):
        for item in fields(output):
            yield from tensors(getattr(output, item.name))


@dataclass
class Seen:
    """What one layer returned in a step, call by call, and the gradients with respect to it."""

    module: nn.Module
    calls: int = 0
    outputs: list[Tensor] = field(default_factory=list)
    signals: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    sparse: bool = False

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if not (torch.is_grad_enabled() or module.training):
            return  # a validation
        self.calls += 1
        found = list(tensors(output))
        self.sparse |= any(item.layout in (torch.sparse_coo, torch.sparse_csr) for item in found)
        if isinstance(module, nn.MultiheadAttention) and len(found) > 1:
            self.weights.append(wide(found[1]))
        for tensor in found[:1] if isinstance(module, FIRST_ONLY) else found:
            if tensor.is_floating_point() or tensor.is_complex():
                self.outputs.append(wide(tensor))
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self.signals.append(wide(gradient)))

    def row(self) -> Row:
        """Return the statistics of a layer's row; what is not there is missing."""
        row: Row = {"calls": float(self.calls)} if self.calls else {}
        for name, parts in (("activation", self.outputs), ("signal", self.signals)):
            entries = torch.cat([part.flatten() for part in parts]) if parts else torch.zeros(0)
            if entries.numel():
                row |= {f"{name}_{key}": value for key, value in moments(entries).items()}
        if self.outputs and row.get("activation_nonfinite") == 0 and not self.sparse:
            row |= self._alikeness()
        for unwanted in ("signal_mean", "signal_std", "signal_min", "signal_max", "activation_absmax"):
            row.pop(unwanted, None)
        return row

    def _alikeness(self) -> Row:
        pairs = [(self._cosine(part), part.numel()) for part in self.outputs]
        known = [(value, size) for value, size in pairs if not math.isnan(value)]
        total = sum(size for _, size in known)
        return {"activation_cosine": sum(value * size for value, size in known) / total} if total else {}

    def _cosine(self, output: Tensor) -> float:
        if output.dim() < 2 or not output.numel():
            return math.nan
        tokens = output.dim() > 2 and (
            isinstance(
                self.module, (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
            )
            or (output.dim() == 3 and not isinstance(self.module, nn.Conv1d))
        )
        return plain_cosine(output[0].flatten(0, -2) if tokens else output.flatten(1))


def moments(entries: Tensor) -> Row:
    bad = float((~entries.isfinite()).sum())
    row = {"count": float(entries.numel()), "nonfinite": bad}
    if bad:
        return row
    return row | {
        "mean": float(entries.mean()),
        "std": float(entries.std(correction=0)),
        "rms": float(entries.square().mean().sqrt()),
        "min": float(entries.min()),
        "max": float(entries.max()),
        "absmax": float(entries.abs().max()),
        "zero_fraction": float((entries == 0).double().mean()),
    }


def layers_of_step(model: nn.Module, names: list[str], backward: Callable[[], None]) -> dict[str, Row]:
    """Return the rows of the layers of these names; `backward` runs the step's passes on the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    seen = {name: Seen(modules[name]) for name in names}
    handles = [modules[name].register_forward_hook(item) for name, item in seen.items()]
    backward()
    for handle in handles:
        handle.remove()
    return {name: item.row() for name, item in seen.items()}


def parameter_of_step(
    gradient: Tensor | None, clipped: Tensor | None, before: Tensor, after: Tensor, trained: bool
) -> Row:
    """Return the row of a parameter, but for the optimizer's state."""
    old, new = flat(before), flat(after)
    row: Row = {
        "count": float(old.numel()),
        "weight_norm": float(old.norm()),
        "weight_rms": float(old.square().mean().sqrt()),
        "weight_absmax": float(old.abs().max()),
        "weight_std": float(old.std(correction=0)),
        "weight_nonfinite": float((~old.isfinite()).sum()),
        "update_norm": float((new - old).norm()),
    }
    if row["weight_norm"]:
        row["update_ratio"] = row["update_norm"] / row["weight_norm"]
    if trained:
        row["gradient_missing"] = 1.0 if gradient is None else 0.0
    if gradient is not None and clipped is not None:
        entries = flat(gradient)
        row |= {
            "gradient_norm": float(entries.norm()),
            "gradient_rms": float(entries.square().mean().sqrt()),
            "gradient_absmax": float(entries.abs().max()),
            "gradient_zero_fraction": float((entries == 0).double().mean()),
            "gradient_nonfinite": float((~entries.isfinite()).sum()),
            "clipped_gradient_norm": float(flat(clipped).norm()),
        }
    return row


def flat(tensor: Tensor) -> Tensor:
    """Return the entries in float64; a complex one is two."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return (torch.view_as_real(dense) if dense.is_complex() else dense).double().flatten().clone()
