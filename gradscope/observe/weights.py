"""Measure parameters around an optimizer step: weights, gradients, updates and the optimizer's state."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.columns import PARAMETER_COLUMNS
from gradscope.observe.parameters import local_part
from gradscope.summarise import dense_entries, magnitudes_of_whole, moments_of_whole, norm_of_whole

COLUMN = {column.name: index for index, column in enumerate(PARAMETER_COLUMNS)}


class ParameterProbe:
    """Reads the parameters before and after each recorded optimizer step."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], update_sample: int) -> None:
        self._parameters = list(parameters.values())
        self._row = {id(parameter): row for row, parameter in enumerate(self._parameters)}
        self._names = list(parameters)
        self._sample = update_sample
        self._entries: dict[int, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the step that was read."""
        self._table = np.full((len(self._parameters), len(PARAMETER_COLUMNS)), np.nan)
        self._before: dict[int, tuple[Tensor, Tensor | None, int]] = {}
        self.missing_optimizer = True

    @torch.no_grad()
    def before_update(self, optimizer: Optimizer, scale: float = 1.0) -> None:
        """Read weights and gradients of one optimizer's parameters; `scale` is what the gradients carry."""
        for parameter in _parameters_of(optimizer):
            row = self._row.get(id(parameter))
            if row is None or row in self._before:
                continue
            values = self._table[row]
            weight = dense_entries(local_part(parameter.detach()))
            values[COLUMN["count"]] = weight.numel()
            if not weight.numel():
                continue
            self._read_weight(values, weight)
            gradient = parameter.grad
            values[COLUMN["gradient_missing"]] = (
                float(gradient is None) if parameter.requires_grad else np.nan
            )
            if gradient is not None:
                _read_gradient(values, gradient, scale)
            self._before[row] = self._entries_of(row, weight).clone(), gradient, _version(gradient)

    def _read_weight(self, values: NDArray[np.float64], weight: Tensor) -> None:
        mean, std, rms, low, high, _, nonfinite = moments_of_whole(weight).tolist()
        values[COLUMN["weight_norm"]] = rms * math.sqrt(weight.numel())
        values[COLUMN["weight_rms"]] = rms
        values[COLUMN["weight_std"]] = std
        values[COLUMN["weight_absmax"]] = max(-low, high)
        values[COLUMN["weight_nonfinite"]] = nonfinite

    def _entries_of(self, row: int, weight: Tensor) -> Tensor:
        """Return the entries whose update is measured."""
        if weight.numel() <= self._sample:
            return weight
        if row not in self._entries:
            generator = torch.Generator().manual_seed(zlib.crc32(self._names[row].encode()))
            chosen = torch.randint(weight.numel(), (self._sample,), generator=generator)
            self._entries[row] = chosen.to(weight.device)
        return weight[self._entries[row]]

    @torch.no_grad()
    def after_update(self, optimizers: Sequence[Optimizer]) -> NDArray[np.float64]:
        """Read clipped gradients, updates and optimizer state; return the step's table and forget it."""
        states = {
            id(p): (o, g, o.state.get(p, {})) for o in optimizers for g in o.param_groups for p in g["params"]
        }
        for row, (before, gradient, version) in self._before.items():
            parameter, values = self._parameters[row], self._table[row]
            weight = dense_entries(local_part(parameter.detach()))
            self._read_update(values, before, self._entries_of(row, weight), weight.numel())
            if gradient is not None:
                _read_clipped(values, parameter.grad, gradient, version)
            if id(parameter) in states:
                _, group, state = states[id(parameter)]
                _read_state(values, group, state)
        table = self._table
        self.reset()
        return table

    def _read_update(self, values: NDArray[np.float64], before: Tensor, after: Tensor, size: int) -> None:
        norm = float(norm_of_whole(after - before)) * math.sqrt(size / after.numel())
        values[COLUMN["update_norm"]] = norm
        weight = values[COLUMN["weight_norm"]]
        values[COLUMN["update_ratio"]] = norm / weight if weight > 0 else np.nan


def _parameters_of(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _version(tensor: Tensor | None) -> int:
    return tensor._version if tensor is not None else 0


def gradient_entries(gradient: Tensor) -> Tensor:
    """Return the stored entries of a gradient: of sparse ones the coalesced values."""
    gradient = local_part(gradient.detach())
    if gradient.layout != torch.strided:
        gradient = gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient.values()
    return dense_entries(gradient)


def _read_gradient(values: NDArray[np.float64], gradient: Tensor, scale: float) -> None:
    entries = gradient_entries(gradient)
    if not entries.numel():
        values[COLUMN["gradient_norm"]] = values[COLUMN["gradient_rms"]] = 0.0
        return
    rms, absmax, zeros, nonfinite = magnitudes_of_whole(entries).tolist()
    size = gradient.numel()
    norm = rms * math.sqrt(entries.numel()) / scale
    values[COLUMN["gradient_norm"]] = norm
    values[COLUMN["gradient_rms"]] = norm / math.sqrt(size)
    values[COLUMN["gradient_absmax"]] = absmax / scale
    values[COLUMN["gradient_zero_fraction"]] = 1.0 - (1.0 - zeros) * entries.numel() / size
    values[COLUMN["gradient_nonfinite"]] = nonfinite


def _read_clipped(values: NDArray[np.float64], now: Tensor | None, before: Tensor, version: int) -> None:
    if now is before and now._version == version:
        values[COLUMN["clipped_gradient_norm"]] = values[COLUMN["gradient_norm"]]
    elif now is not None:
        values[COLUMN["clipped_gradient_norm"]] = float(norm_of_whole(gradient_entries(now)))


def _read_state(values: NDArray[np.float64], group: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    first = state.get("exp_avg", state.get("momentum_buffer"))
    second = state.get("exp_avg_sq", state.get("square_avg"))
    if isinstance(first, Tensor):
        values[COLUMN["momentum_norm"]] = float(norm_of_whole(dense_entries(local_part(first))))
    if isinstance(second, Tensor):
        entries = dense_entries(local_part(second))
        values[COLUMN["second_moment_rms"]] = float(norm_of_whole(entries)) / math.sqrt(entries.numel())
        if "betas" in group and "eps" in group and "step" in state:
            correction = 1 - group["betas"][1] ** float(state["step"])
            limit = (10 * group["eps"]) ** 2 * correction
            values[COLUMN["epsilon_fraction"]] = float((entries < limit).sum()) / entries.numel()
