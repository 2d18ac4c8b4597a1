"""Measure parameters around an optimizer step: weights, gradients, updates and the optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradscope.observe.host_moments import HostMoments
from gradscope.observe.host_parameters import HostReader
from gradscope.observe.moments import moments_of
from gradscope.observe.parameters import is_sharded, local_part, updated_by
from gradscope.observe.pieces import ParameterStep, Piece
from gradscope.observe.samples import Samples
from gradscope.observe.shelves import ShelfReader
from gradscope.summarise.host import is_compiled


class _Group:
    """Parameters that one reader reads: their places among the plan's, in order; often all of them."""

    def __init__(self, reader: HostReader | ShelfReader, places: list[int], of: int) -> None:
        self.reader, self.places, self._all = reader, places, len(places) == of
        self._index = {place: index for index, place in enumerate(places)}

    def chosen(self, by_place: Mapping[int, Any]) -> Mapping[int, Any]:
        """Return what is here, by the reader's own index."""
        if self._all:
            return by_place
        return {self._index[place]: item for place, item in by_place.items() if place in self._index}

    def members(self, of_all: Sequence[Any]) -> Sequence[Any]:
        """Return what is here of a sequence in the plan's order."""
        return of_all if self._all else [of_all[place] for place in self.places]


@dataclass(frozen=True)
class _Plan:
    """How a set of parameters is read, which holds as long as their sizes do.

    rows: in the table; known: rows of these and of empty ones, with the numbers of their entries in `counts`;
    plain: whether no parameter is a shard; moments: what reads them where all is in host memory.
    """

    rows: NDArray[np.intp]
    parameters: list[Tensor]
    sizes: list[int]
    known: NDArray[np.intp]
    counts: NDArray[np.float64]
    plain: bool
    groups: list[_Group]
    moments: HostMoments | None

    def values(self) -> list[Tensor]:
        """Return the parameters, of sharded ones this rank's part."""
        return self.parameters if self.plain else [local_part(item) for item in self.parameters]

    def norms(
        self, column: str, tensors: Mapping[int, Tensor], floors: Mapping[int, float] | None = None
    ) -> list[Piece]:
        """Return the norms of tensors shaped like the parameters at their places, and shares below floors."""
        pieces: list[Piece] = []
        if not self.plain:
            tensors = {place: local_part(tensor) for place, tensor in tensors.items()}
        for group in self.groups:
            chosen = group.chosen(tensors)
            if chosen:
                pieces += group.reader.norms(column, chosen, group.chosen(floors) if floors else None)
        return pieces


@dataclass(frozen=True)
class _Opened:
    """One optimizer's parameters between the two readings around its update.

    gradients: with their versions, which count changes in place.
    """

    plan: _Plan
    gradients: list[Tensor | None]
    versions: list[int]


class ParameterProbe:
    """Reads the parameters before and after each recorded optimizer step.

    Of parameters with more than `update_sample` entries the update is measured on a fixed random sample.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], update_sample: int) -> None:
        self._samples = Samples(list(parameters), update_sample)
        self._row = {id(parameter): row for row, parameter in enumerate(parameters.values())}
        self._parameters = list(parameters.values())
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self.forget()

    def forget(self) -> None:
        """Forget the step that was read so far."""
        self._step = ParameterStep(len(self._parameters))
        self._open: dict[int, _Opened] = {}

    def has_read(self, optimizer: Optimizer) -> bool:
        """Return whether an optimizer's parameters were read, and its update not yet."""
        return id(optimizer) in self._open

    @torch.no_grad()
    def before_update(self, optimizer: Optimizer, scale: float | Tensor = 1.0) -> None:
        """Read weights and gradients of one optimizer's parameters; `scale` is what the gradients carry."""
        plan, step = self._plan_of(updated_by(optimizer)), self._step
        fresh = np.isnan(step.counts[plan.rows])
        if not fresh.all():  # read before in this step (LBFGS): the first counts
            step.repeated = True
            plan = self._plan_of([item for item, new in zip(plan.parameters, fresh, strict=True) if new])
        step.counts[plan.known] = plan.counts
        if not plan.parameters:
            return
        gradients = [parameter.grad for parameter in plan.parameters]
        self._open[id(optimizer)] = _Opened(plan, gradients, _versions(gradients))
        self._note(plan, gradients, scale)
        values = plan.values()
        parts = (
            gradients if plan.plain else [item if item is None else local_part(item) for item in gradients]
        )
        for group in plan.groups:
            step.pieces += group.reader.before(group.members(values), group.members(parts))

    def _note(self, plan: _Plan, gradients: list[Tensor | None], scale: float | Tensor) -> None:
        if isinstance(scale, Tensor) or scale != 1.0:
            self._step.scales.update(dict.fromkeys(plan.rows.tolist(), scale))
        self._step.missing[plan.rows] = [
            float(gradient is None) if parameter.requires_grad else np.nan
            for parameter, gradient in zip(plan.parameters, gradients, strict=True)
        ]

    def _plan_of(self, parameters: list[Tensor]) -> _Plan:
        """Return how to read parameters: as the last time, unless their sizes have changed."""
        key = tuple(map(id, parameters))
        plan = self._plans.get(key)
        if plan is None or [item.numel() for item in plan.parameters] != plan.sizes:
            plan = self._build(parameters)
            if len(plan.parameters) == len(parameters):
                self._plans[key] = plan
        return plan

    def _build(self, parameters: list[Tensor]) -> _Plan:
        known = [item for item in parameters if id(item) in self._row and not is_lazy(item)]
        counts = [local_part(item).numel() * (2 if item.dtype.is_complex else 1) for item in known]
        read = [item for item, count in zip(known, counts, strict=True) if count]
        rows = self._rows_of(read)
        plain = all(type(item) in (Tensor, nn.Parameter) for item in read)
        on_host = plain and all(map(_is_on_host, read))
        return _Plan(
            rows,
            read,
            [item.numel() for item in read],
            self._rows_of(known),
            np.array(counts, np.float64),
            plain,
            self._groups(rows.tolist(), [local_part(item) for item in read]),
            HostMoments(read, rows.tolist()) if on_host else None,
        )

    def _rows_of(self, parameters: Sequence[Tensor]) -> NDArray[np.intp]:
        return np.array([self._row[id(item)] for item in parameters], np.intp)

    def _groups(self, rows: list[int], values: list[Tensor]) -> list[_Group]:
        """Share the parameters out: to compiled passes in host memory, else to torch's operations."""
        kinds: dict[type[HostReader | ShelfReader], list[int]] = {}
        for place, item in enumerate(values):
            kinds.setdefault(HostReader if _is_on_host(item) else ShelfReader, []).append(place)
        return [
            _Group(
                kind([rows[place] for place in places], [values[place] for place in places], self._samples),
                places,
                len(values),
            )
            for kind, places in kinds.items()
        ]

    @torch.no_grad()
    def after_update(self, optimizers: Sequence[Optimizer]) -> None:
        """Read updates, clipped gradients and optimizer state of what was read before, once."""
        for optimizer in optimizers:
            opened = self._open.pop(id(optimizer), None)
            if opened is not None:
                self._read_updates(opened)
                self._read_clipped(opened)
                self._read_state(opened, optimizer)

    def take(self) -> ParameterStep:
        """Return everything that was read in this step; `forget` comes before the next one."""
        self._open = {}
        return self._step

    def _read_updates(self, opened: _Opened) -> None:
        values = opened.plan.values()
        for group in opened.plan.groups:
            self._step.pieces += group.reader.after(group.members(values))

    def _read_clipped(self, opened: _Opened) -> None:
        """Read the gradients that have changed since; those that haven't were not clipped.

        A sharded tensor's version doesn't count its changes in place.
        """
        plan, now = opened.plan, [parameter.grad for parameter in opened.plan.parameters]
        same = map(is_, now, opened.gradients)
        if plan.plain and all(same) and _versions(now) == opened.versions:
            return
        changed = {
            place: gradient
            for place, (gradient, before, version) in enumerate(
                zip(now, opened.gradients, opened.versions, strict=True)
            )
            if gradient is not None
            and before is not None
            and (gradient is not before or is_sharded(gradient) or gradient._version != version)
        }
        self._step.changed[plan.rows[list(changed)]] = True
        self._step.pieces += plan.norms("clipped_gradient_norm", changed)

    def _read_state(self, opened: _Opened, optimizer: Optimizer) -> None:
        plan, pieces = opened.plan, self._step.pieces
        usual = plan.moments.read(optimizer) if plan.moments is not None else None
        if usual is not None:
            pieces += usual
            return
        moments = moments_of(plan.parameters, optimizer)
        pieces += plan.norms("momentum_norm", moments.first)
        floored = {place: moments.second[place] for place in moments.floors}
        others = {place: item for place, item in moments.second.items() if place not in floored}
        pieces += plan.norms("second_moment_norm", floored, moments.floors)
        pieces += plan.norms("second_moment_norm", others)
        # AMSGrad divides by the largest second moment so far
        pieces += plan.norms("", moments.largest, moments.floors)


def _is_on_host(tensor: Tensor) -> bool:
    """Return whether compiled passes can read a tensor."""
    return is_compiled() and tensor.device.type == "cpu"


def _versions(tensors: Sequence[Tensor | None]) -> list[int]:
    """Return the tensors' versions, -1 for those that are not there."""
    return [-1 if tensor is None else tensor._version for tensor in tensors]
