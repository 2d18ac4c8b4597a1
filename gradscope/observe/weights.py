"""Measure parameters around an optimizer step: weights, gradients, updates and the optimizer's state."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradscope.observe.parameters import is_sharded, local_part
from gradscope.observe.pieces import ParameterStep, Piece
from gradscope.summarise import (
    LARGE,
    dense_entries,
    magnitudes_of_whole,
    moments_of_padded,
    moments_of_whole,
    norm_of_whole,
    norms_of_rows,
    shares_below,
)

WEIGHT = ("weight_std", "weight_rms", "weight_absmax", "", "weight_nonfinite")
GRADIENT = ("", "gradient_rms", "gradient_absmax", "gradient_zero_fraction", "gradient_nonfinite")
# So many parameters of one shape have a shelf of their own.
ALIKE = 3
# Padding of fewer entries than this costs less than a shelf more.
NARROW = 1024
# Entries of large parameters are sampled in runs of this length: 64 bytes of float32.
RUN = 16


class Shelf:
    """Room for small parameters of about one size, side by side and padded with zeros.

    Layers of rows: weights before the update, gradients, what is read after the update, and two of scratch.
    Parameters of one shape need no padding; torch lays those side by side several times faster. Of large
    parameters of `entries` entries a sample is laid here; `factor` is the norm of all over that of a sample.
    """

    def __init__(
        self, rows: list[int], places: list[int], parameters: list[Tensor], width: int, entries: int = 0
    ) -> None:
        self.rows, self.places, count = rows, places, len(rows)
        self.sampled = entries > 0
        self.factor = math.sqrt(entries / width) if entries else 1.0
        first = parameters[0]
        dtype = torch.float64 if first.dtype in (torch.float64, torch.complex128) else torch.float32
        self.block = torch.zeros((5 * count, width), dtype=dtype, device=first.device)
        self.sizes = torch.tensor([item.numel() for item in parameters], dtype=torch.float64).to(first.device)
        self.doubled = self.sizes.repeat(2)
        self.alike = width == first.numel() and all(item.shape == first.shape for item in parameters)
        shape = first.shape if self.alike else (width,)
        self.layers = [self.block[start : start + count] for start in range(0, 5 * count, count)]
        self._stacks = [layer.view(count, *shape) for layer in self.layers]
        self._views = [
            [row[: item.numel()].view(item.shape) for row, item in zip(layer, parameters, strict=True)]
            for layer in self.layers
        ]

    def fill(self, layer: int, tensors: list[Tensor]) -> Tensor:
        """Lay one tensor for each parameter into a layer of rows; return the layer."""
        if self.alike:
            torch.stack(tensors, out=self._stacks[layer])
        else:
            torch._foreach_copy_(self._views[layer], tensors)
        return self.layers[layer]

    def fill_some(self, layer: int, which: list[int], tensors: list[Tensor]) -> Tensor:
        """Lay tensors into some rows of a layer; return those rows."""
        torch._foreach_copy_([self._views[layer][index] for index in which], tensors)
        return self.layers[layer][which]

    def measure(self) -> Tensor:
        """Return the statistics of weights before the update, then those of gradients: (5, 2 rows)."""
        count = len(self.rows)
        return moments_of_padded(self.block[: 2 * count], self.doubled, self.block[3 * count :])


@dataclass(frozen=True)
class _Plan:
    """How a set of parameters is read, which holds as long as their sizes do.

    rows: in the table; plain: whether no parameter is a shard; large: the places of those on no shelf.
    """

    rows: list[int]
    parameters: list[Tensor]
    sizes: list[int]
    counts: dict[int, int]
    plain: bool
    shelves: list[Shelf]
    large: list[int]

    def values(self) -> list[Tensor]:
        """Return the parameters, of sharded ones this rank's part."""
        return self.parameters if self.plain else [local_part(item) for item in self.parameters]


@dataclass
class _Opened:
    """One optimizer's parameters between the two readings around its update.

    gradients: with their versions, which count changes in place; sampled: entries of large parameters before
    the update, by place.
    """

    plan: _Plan
    gradients: list[Tensor | None]
    versions: list[int]
    sampled: dict[int, Tensor] = field(default_factory=dict)


class ParameterProbe:
    """Reads the parameters before and after each recorded optimizer step.

    Parameters of at most `update_sample` entries are copied and measured together; of larger ones the
    update is measured on that many entries, chosen once at random from a generator of its own.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], update_sample: int) -> None:
        self._names = list(parameters)
        self._row = {id(parameter): row for row, parameter in enumerate(parameters.values())}
        self._parameters = list(parameters.values())
        self._sample = update_sample
        self._chosen: dict[int, Tensor] = {}
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
        plan = self._plan_of([item for group in optimizer.param_groups for item in group["params"]])
        counts = self._step.counts
        if any(row in counts for row in plan.rows):  # read before in this step (LBFGS): the first counts
            self._step.repeated = True
            plan = self._plan_of(
                [item for row, item in zip(plan.rows, plan.parameters, strict=True) if row not in counts]
            )
        counts.update(plan.counts)
        if not plan.rows:
            return
        gradients = [parameter.grad for parameter in plan.parameters]
        versions = [-1 if gradient is None else gradient._version for gradient in gradients]
        opened = self._open[id(optimizer)] = _Opened(plan, gradients, versions)
        self._note(plan, gradients, scale)
        values = plan.values()
        for shelf in plan.shelves:
            self._read_shelf(shelf, values, gradients)
        for place in plan.large:
            self._read_large(place, values[place], opened)

    def _note(self, plan: _Plan, gradients: list[Tensor | None], scale: float | Tensor) -> None:
        if isinstance(scale, Tensor) or scale != 1.0:
            self._step.scales.update(dict.fromkeys(plan.rows, scale))
        for row, parameter, gradient in zip(plan.rows, plan.parameters, gradients, strict=True):
            if parameter.requires_grad:
                self._step.missing[row] = 1.0 if gradient is None else 0.0

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
        counts = {
            self._row[id(item)]: local_part(item).numel() * (2 if item.dtype.is_complex else 1)
            for item in known
        }
        read = [item for item in known if counts[self._row[id(item)]]]
        rows = [self._row[id(item)] for item in read]
        shelves = self._shelves(rows, [local_part(item) for item in read])
        small = {place for shelf in shelves for place in shelf.places}
        return _Plan(
            rows,
            read,
            [item.numel() for item in read],
            counts,
            all(type(item) in (Tensor, nn.Parameter) for item in read),
            shelves,
            [place for place in range(len(rows)) if place not in small],
        )

    def _shelves(self, rows: list[int], values: list[Tensor]) -> list[Shelf]:
        """Sort small parameters onto shelves: by shape, or by size (within a factor of four) if rare."""
        small = [
            place
            for place, item in enumerate(values)
            if item.numel() <= self._sample and not item.dtype.is_complex
        ]
        large: dict[tuple[Any, ...], list[int]] = {}
        for place, item in enumerate(values):
            if self._is_sampled(item):
                large.setdefault((item.numel(), item.dtype), []).append(place)
        alike = Counter(values[place].shape for place in small)
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for place in small:
            item = values[place]
            shape: Any = item.shape if alike[item.shape] >= ALIKE else None
            width = item.numel() if shape else max(NARROW, 4 ** math.ceil(math.log(item.numel(), 4) - 1e-9))
            kinds.setdefault((shape, width, item.dtype, item.device), []).append(place)
        return [
            Shelf([rows[place] for place in places], places, [values[place] for place in places], kind[1])
            for kind, places in kinds.items()
        ] + [
            Shelf(
                [rows[place] for place in places],
                places,
                [self._chosen_entries(rows[place], real_entries(values[place])) for place in places],
                self._sample // RUN * RUN,
                entries,
            )
            for (entries, _), places in large.items()
        ]

    def _is_sampled(self, item: Tensor) -> bool:
        """Return whether all but the norms of a parameter is taken from its sample."""
        large = item.numel() > max(LARGE, self._sample) and self._sample >= RUN
        return large and item.device.type == "cpu" and not item.dtype.is_complex

    def _members(self, shelf: Shelf, tensors: Iterable[tuple[int, Tensor]]) -> list[Tensor]:
        """Return what is laid on a shelf of (place on it, tensor): this rank's part, or a sample of it."""
        parts = [(index, local_part(tensor)) for index, tensor in tensors]
        if not shelf.sampled:
            return [part for _, part in parts]
        return [self._chosen_entries(shelf.rows[index], real_entries(part)) for index, part in parts]

    def _read_shelf(self, shelf: Shelf, values: list[Tensor], gradients: list[Tensor | None]) -> None:
        weights = [values[place] for place in shelf.places]
        shelf.fill(0, self._members(shelf, enumerate(weights)))
        count, add = len(shelf.rows), self._step.pieces.append
        members = [gradients[place] for place in shelf.places]
        dense = [(index, item) for index, item in enumerate(members) if _is_dense(item) and item is not None]
        if len(dense) == count:
            shelf.fill(1, self._members(shelf, dense))
        else:
            shelf.layers[1].zero_()
            if dense:
                shelf.fill_some(1, [index for index, _ in dense], self._members(shelf, dense))
            for row, gradient in zip(shelf.rows, members, strict=True):
                if gradient is not None and not _is_dense(gradient):
                    add(Piece(GRADIENT, [row], _by_itself(gradient)))
        statistics = shelf.measure()
        if shelf.sampled:
            both = [*enumerate(weights), *((count + index, item) for index, item in dense)]
            for column, tensor in both:
                _correct(statistics, column, real_entries(local_part(tensor.detach())))
        of_gradients = statistics[:, count:]
        if len(dense) < count:
            of_gradients = of_gradients[:, [index for index, _ in dense]]
        add(Piece(WEIGHT, shelf.rows, statistics[:, :count]))
        add(Piece(GRADIENT, [shelf.rows[index] for index, _ in dense], of_gradients))

    def _read_large(self, place: int, value: Tensor, opened: _Opened) -> None:
        row, entries = opened.plan.rows[place], real_entries(value)
        _, std, rms, low, high, zeros, nonfinite = moments_of_whole(entries).unbind(0)
        statistics = torch.stack([std, rms, torch.maximum(-low, high), zeros, nonfinite])
        self._step.pieces.append(Piece(WEIGHT, [row], statistics[:, None]))
        gradient = opened.gradients[place]
        if gradient is not None:
            self._step.pieces.append(Piece(GRADIENT, [row], _by_itself(gradient)))
        opened.sampled[place] = self._chosen_entries(row, entries).clone()

    def _chosen_entries(self, row: int, entries: Tensor) -> Tensor:
        """Return the entries whose update is measured: short runs, as memory is read by cache lines."""
        if entries.numel() <= self._sample or self._sample < RUN:
            return entries[: self._sample]
        if row not in self._chosen:
            generator = torch.Generator().manual_seed(zlib.crc32(self._names[row].encode()))
            runs = torch.randint(entries.numel() // RUN, (self._sample // RUN,), generator=generator)
            self._chosen[row] = runs.sort().values.to(entries.device)
        lines = entries[: entries.numel() // RUN * RUN].view(-1, RUN)
        return torch.index_select(lines, 0, self._chosen[row]).view(-1)

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
        """Return everything that was read in this step, and forget it."""
        step = self._step
        self.forget()
        return step

    def _read_updates(self, opened: _Opened) -> None:
        values = opened.plan.values()
        for shelf in opened.plan.shelves:
            members = self._members(shelf, enumerate(values[place] for place in shelf.places))
            change = shelf.fill(2, members).sub_(shelf.layers[0])
            norms = norms_of_rows(change) * shelf.factor
            self._step.pieces.append(Piece(("update_norm",), shelf.rows, norms[None]))
        for place, before in opened.sampled.items():
            row, entries = opened.plan.rows[place], real_entries(values[place])
            after = self._chosen_entries(row, entries)
            norm = norm_of_whole(after - before) * math.sqrt(entries.numel() / after.numel())
            self._step.pieces.append(Piece(("update_norm",), [row], norm.view(1, 1)))

    def _read_clipped(self, opened: _Opened) -> None:
        """Read the gradients that have changed since; those that haven't were not clipped.

        A sharded tensor's version doesn't count its changes in place.
        """
        plan, now = opened.plan, [parameter.grad for parameter in opened.plan.parameters]
        changed = {
            place: gradient
            for place, (gradient, before, version) in enumerate(
                zip(now, opened.gradients, opened.versions, strict=True)
            )
            if gradient is not None
            and before is not None
            and (gradient is not before or is_sharded(gradient) or gradient._version != version)
        }
        if changed:
            self._step.changed.update(plan.rows[place] for place in changed)
            self._read_norms("clipped_gradient_norm", changed, opened, exactly=True)

    def _read_state(self, opened: _Opened, optimizer: Optimizer) -> None:
        first, second, denominators, floors = _moments(opened.plan.parameters, optimizer)
        self._read_norms("momentum_norm", first, opened)
        left = self._read_norms("second_moment_norm", second, opened, denominators, floors)
        for place, square in left.items():
            row = opened.plan.rows[place]
            entries = self._chosen_entries(row, real_entries(local_part(square)))
            share = (entries < floors[place]).sum().double() / entries.numel()
            self._step.pieces.append(Piece(("epsilon_fraction",), [row], share.view(1, 1)))

    def _read_norms(
        self,
        column: str,
        tensors: Mapping[int, Tensor],
        opened: _Opened,
        denominators: Mapping[int, Tensor] | None = None,
        floors: Mapping[int, float] | None = None,
        exactly: bool = False,
    ) -> dict[int, Tensor]:
        """Read the norms of tensors shaped like the parameters at their places, large ones from a sample.

        Where they are the denominators too, read also which share is below the floors; return the
        denominators for which that is still to be done.
        """
        if not tensors:
            return dict(denominators or {})
        left, large = dict(denominators or {}), set(tensors)
        for shelf in opened.plan.shelves:
            if exactly and shelf.sampled:
                continue
            which = [
                index
                for index, place in enumerate(shelf.places)
                if place in tensors and tensors[place].layout is torch.strided
            ]
            if not which:
                continue
            places = [shelf.places[index] for index in which]
            large.difference_update(places)
            members = self._members(
                shelf, [(index, tensors[shelf.places[index]].detach()) for index in which]
            )
            whole = len(which) == len(shelf.rows)
            matrix = shelf.fill(2, members) if whole else shelf.fill_some(2, which, members)
            rows = [shelf.rows[index] for index in which]
            norms = norms_of_rows(matrix) * shelf.factor
            self._step.pieces.append(Piece((column,), rows, norms[None]))
            if floors and all(left.get(place) is tensors[place] for place in places):
                shares = shares_below(
                    matrix,
                    [floors[place] for place in places],
                    shelf.sizes if whole else shelf.sizes[which],
                    shelf.layers[3][: len(which)],
                )
                self._step.pieces.append(Piece(("epsilon_fraction",), rows, shares[None]))
                for place in places:
                    del left[place]
        for place in sorted(large):
            norm = norm_of_whole(gradient_entries(tensors[place]))
            self._step.pieces.append(Piece((column,), [opened.plan.rows[place]], norm.view(1, 1)))
        return left


def _correct(statistics: Tensor, column: int, entries: Tensor) -> None:
    """Put the exact rms and count of non-finite entries into a column that was measured on a sample."""
    norm = norm_of_whole(entries)
    if torch.isfinite(norm):
        statistics[1, column] = norm / math.sqrt(entries.numel())
    else:
        statistics[:-1, column] = torch.nan
        statistics[-1, column] = (~torch.isfinite(entries)).sum()


def _is_dense(gradient: Tensor | None) -> bool:
    return gradient is not None and gradient.layout is torch.strided


def _by_itself(gradient: Tensor) -> Tensor:
    """Return the statistics of one gradient, entries that it doesn't store counted as zeros: (5, 1)."""
    entries = gradient_entries(gradient)
    stored = entries.numel()
    size = stored if gradient.layout == torch.strided else gradient.numel()
    if not stored:
        return torch.tensor([[0.0], [0.0], [0.0], [1.0], [0.0]], dtype=torch.float64)
    rms, absmax, zeros, nonfinite = magnitudes_of_whole(entries).unbind(0)
    if stored != size:
        rms, zeros = rms * math.sqrt(stored / size), 1.0 - (1.0 - zeros) * stored / size
    return torch.stack([torch.zeros_like(rms), rms, absmax, zeros, nonfinite])[:, None]


def _moments(
    parameters: Sequence[Tensor], optimizer: Optimizer
) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor], dict[int, float]]:
    """Return, by place: first moments, second moments, Adam's denominators, and what is small for those."""
    groups = {id(item): group for group in optimizer.param_groups for item in group["params"]}
    first: dict[int, Tensor] = {}
    second: dict[int, Tensor] = {}
    denominators: dict[int, Tensor] = {}
    steps: dict[int, Any] = {}
    for place, parameter in enumerate(parameters):
        state = optimizer.state.get(parameter)
        if not state:
            continue
        moment = state.get("exp_avg", state.get("momentum_buffer"))
        square = state.get("exp_avg_sq", state.get("square_avg"))
        if isinstance(moment, Tensor):
            first[place] = moment
        if isinstance(square, Tensor):
            second[place] = square
            steps[place] = state.get("step")
            denominators[place] = state.get("max_exp_avg_sq", square)
    known = _floors({place: (groups[id(parameters[place])], step) for place, step in steps.items()})
    return first, second, {place: denominators[place] for place in known}, known


def _floors(steps: Mapping[int, tuple[Mapping[str, Any], Any]]) -> dict[int, float]:
    """Return the second moment v below which sqrt(v / (1 - beta2^t)) < 10 eps; Adam's only."""
    adam = {
        place: (group, step)
        for place, (group, step) in steps.items()
        if step is not None and len(group.get("betas", ())) == 2 and "eps" in group
    }
    tensors = [step for _, step in adam.values() if isinstance(step, Tensor)]
    if any(step.device.type != "cpu" for step in tensors):
        return {}  # reading it would wait for the device
    alike = len(tensors) == len(adam) > 0 and all(step.dim() == 0 for step in tensors)
    numbers = torch.stack(tensors).tolist() if alike else [float(step) for _, step in adam.values()]
    floors: dict[int, float] = {}
    seen: dict[tuple[int, float], float] = {}
    for (place, (group, _)), number in zip(adam.items(), numbers, strict=True):
        key = id(group), number
        if key not in seen:
            correction = 1.0 - float(group["betas"][1]) ** number
            seen[key] = float((10.0 * float(group["eps"])) ** 2 * correction)
        floors[place] = seen[key]
    return floors


def real_entries(tensor: Tensor) -> Tensor:
    """Return all entries as a vector; of complex ones the real and imaginary parts."""
    return dense_entries(torch.view_as_real(tensor) if tensor.dtype.is_complex else tensor)


def gradient_entries(gradient: Tensor) -> Tensor:
    """Return the stored entries of a gradient: of sparse ones the coalesced values."""
    gradient = local_part(gradient.detach())
    if gradient.layout == torch.sparse_coo:
        gradient = gradient.coalesce().values()
    elif gradient.layout != torch.strided:
        gradient = gradient.values()
    return real_entries(gradient)
