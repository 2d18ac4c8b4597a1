"""Measure parameters around an optimizer step: weights, gradients, updates and the optimizer's state."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradscope.observe.parameters import local_part
from gradscope.observe.pieces import ParameterStep, Piece
from gradscope.summarise import (
    dense_entries,
    magnitudes_of_whole,
    moments_of_padded,
    moments_of_whole,
    norm_of_whole,
    norms_of_rows,
)

WEIGHT = ("weight_std", "weight_rms", "weight_absmax", "", "weight_nonfinite")
GRADIENT = ("", "gradient_rms", "gradient_absmax", "gradient_zero_fraction", "gradient_nonfinite")


class Shelf:
    """Room for small parameters of about one size, side by side and padded with zeros.

    Three layers of rows: weights before the update, gradients, and what is read after the update.
    """

    def __init__(self, rows: list[int], parameters: list[Tensor], width: int) -> None:
        self.rows, count = rows, len(rows)
        first = parameters[0]
        dtype = torch.float64 if first.dtype in (torch.float64, torch.complex128) else torch.float32
        self.block = torch.zeros((3 * count, width), dtype=dtype, device=first.device)
        self.sizes = [parameter.numel() for parameter in parameters]
        doubled = torch.tensor(self.sizes * 2, dtype=torch.float64)
        self.doubled = doubled.to(first.device)
        views = [
            row[: parameters[index % count].numel()].view(parameters[index % count].shape)
            for index, row in enumerate(self.block.unbind(0))
        ]
        self.before, self.gradients, self.after = views[:count], views[count : 2 * count], views[2 * count :]

    def update_norms(self, now: list[Tensor]) -> Tensor:
        """Return the norms of the change since `before` was filled."""
        count = len(self.rows)
        torch._foreach_copy_(self.after, now)
        later = self.block[2 * count :]
        return norms_of_rows(later.sub_(self.block[:count]))

    def norms(self, places: list[int], tensors: list[Tensor]) -> Tensor:
        """Return the norms of tensors shaped like the parameters at `places`."""
        return norms_of_rows(self.later(places, tensors))

    def shares_below(self, places: list[int], tensors: list[Tensor], floors: list[float]) -> Tensor:
        """Return the share of entries below a floor of each tensor."""
        rows = self.later(places, tensors)
        limits = torch.tensor(floors, dtype=rows.dtype, device=rows.device)[:, None]
        sizes = self.doubled[places]
        below = torch.lt(rows, limits, out=torch.empty_like(rows)).sum(1).double()
        return (below - (rows.shape[1] - sizes) * (limits[:, 0] > 0)) / sizes

    def later(self, places: list[int], tensors: list[Tensor]) -> Tensor:
        """Return tensors shaped like the parameters at `places` as padded rows."""
        count = len(self.rows)
        torch._foreach_copy_([self.after[place] for place in places], tensors)
        later = self.block[2 * count :]
        return later if len(places) == count else later[places]


@dataclass
class _Opened:
    """One optimizer's parameters between the two readings around its update.

    sampled: entries of large parameters before the update; gradients: with their version, which counts
    changes in place.
    """

    shelves: list[Shelf]
    sampled: dict[int, Tensor] = field(default_factory=dict)
    gradients: dict[int, tuple[Tensor, int]] = field(default_factory=dict)


class ParameterProbe:
    """Reads the parameters before and after each recorded optimizer step.

    Parameters of at most `update_sample` entries are copied and measured together; of larger ones the
    update is measured on that many entries, chosen once at random from a generator of its own.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], update_sample: int) -> None:
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._row = {id(parameter): row for row, parameter in enumerate(self._parameters)}
        self._sample = update_sample
        self._chosen: dict[int, Tensor] = {}
        self._shelves: dict[tuple[int, ...], list[Shelf]] = {}
        self.forget()

    def forget(self) -> None:
        """Forget the step that was read so far."""
        self._step = ParameterStep(len(self._parameters))
        self._open: dict[int, _Opened] = {}

    @torch.no_grad()
    def before_update(self, optimizer: Optimizer, scale: float | Tensor = 1.0) -> None:
        """Read weights and gradients of one optimizer's parameters; `scale` is what the gradients carry."""
        rows = tuple(self._unread(optimizer))
        if not rows:
            return
        if rows not in self._shelves:
            self._shelves[rows] = self._build(rows)
        opened = self._open[id(optimizer)] = _Opened(self._shelves[rows])
        for row in rows:
            parameter = self._parameters[row]
            gradient = parameter.grad
            if isinstance(scale, Tensor) or scale != 1.0:
                self._step.scales[row] = scale
            if parameter.requires_grad:
                self._step.missing[row] = float(gradient is None)
            if gradient is not None:
                opened.gradients[row] = gradient, gradient._version
        for shelf in opened.shelves:
            self._fill(shelf, opened)
        on_shelves = {row for shelf in opened.shelves for row in shelf.rows}
        for row in rows:
            if row not in on_shelves:
                self._read_large(row, opened)

    def has_read(self, optimizer: Optimizer) -> bool:
        """Return whether an optimizer's parameters were read, and its update not yet."""
        return id(optimizer) in self._open

    def _unread(self, optimizer: Optimizer) -> Iterable[int]:
        """Yield the rows to read now; one read before in this step (LBFGS) keeps its first."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                row = self._row.get(id(parameter))
                if row is None or is_lazy(parameter):
                    continue
                again = row in self._step.counts
                self._step.repeated |= again
                size = local_part(parameter).numel() * (2 if parameter.dtype.is_complex else 1)
                self._step.counts[row] = size
                if size and not again:
                    yield row

    def _build(self, rows: tuple[int, ...]) -> list[Shelf]:
        """Sort small parameters onto shelves by size (within a factor of four), dtype and device."""
        kinds: dict[tuple[int, torch.dtype, torch.device], list[int]] = {}
        for row in rows:
            values = self._values(row)
            if values.numel() <= self._sample and not values.dtype.is_complex:
                width = 4 ** math.ceil(math.log(values.numel(), 4) - 1e-9)
                kinds.setdefault((width, values.dtype, values.device), []).append(row)
        return [
            Shelf(members, [self._values(row) for row in members], width)
            for (width, _, _), members in kinds.items()
        ]

    def _values(self, row: int) -> Tensor:
        return local_part(self._parameters[row])

    def _fill(self, shelf: Shelf, opened: _Opened) -> None:
        torch._foreach_copy_(shelf.before, [self._values(row) for row in shelf.rows])
        count = len(shelf.rows)
        places = [place for place, row in enumerate(shelf.rows) if _is_dense(opened, row)]
        if len(places) < count:
            shelf.block[count : 2 * count].zero_()
            for row in shelf.rows:
                if row in opened.gradients and not _is_dense(opened, row):
                    self._step.pieces.append(Piece(GRADIENT, [row], _by_itself(opened.gradients[row][0])))
        if places:
            gradients = [local_part(opened.gradients[shelf.rows[place]][0]) for place in places]
            torch._foreach_copy_([shelf.gradients[place] for place in places], gradients)
        statistics = moments_of_padded(shelf.block[: 2 * count], shelf.doubled)
        self._step.pieces.append(Piece(WEIGHT, shelf.rows, statistics[:, :count]))
        with_gradient = [shelf.rows[place] for place in places]
        chosen = statistics[:, count:] if len(places) == count else statistics[:, [count + p for p in places]]
        self._step.pieces.append(Piece(GRADIENT, with_gradient, chosen))

    def _read_large(self, row: int, opened: _Opened) -> None:
        entries = real_entries(self._values(row))
        _, std, rms, low, high, zeros, nonfinite = moments_of_whole(entries).unbind(0)
        self._step.pieces.append(
            Piece(
                WEIGHT, [row], torch.stack([std, rms, torch.maximum(-low, high), zeros, nonfinite])[:, None]
            )
        )
        if row in opened.gradients:
            self._step.pieces.append(Piece(GRADIENT, [row], _by_itself(opened.gradients[row][0])))
        opened.sampled[row] = self._chosen_entries(row, entries).clone()

    def _chosen_entries(self, row: int, entries: Tensor) -> Tensor:
        """Return the entries whose update is measured."""
        if entries.numel() <= self._sample:
            return entries
        if row not in self._chosen:
            generator = torch.Generator().manual_seed(zlib.crc32(self._names[row].encode()))
            chosen = torch.randint(entries.numel(), (self._sample,), generator=generator).sort().values
            self._chosen[row] = chosen.to(entries.device)
        return torch.index_select(entries, 0, self._chosen[row])

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
        for shelf in opened.shelves:
            now = [self._values(row) for row in shelf.rows]
            self._step.pieces.append(Piece(("update_norm",), shelf.rows, shelf.update_norms(now)[None]))
        for row, before in opened.sampled.items():
            entries = real_entries(self._values(row))
            after = self._chosen_entries(row, entries)
            norm = norm_of_whole(after - before) * math.sqrt(entries.numel() / after.numel())
            self._step.pieces.append(Piece(("update_norm",), [row], norm.view(1, 1)))

    def _read_clipped(self, opened: _Opened) -> None:
        """Read the gradients that have changed since; those that haven't were not clipped."""
        changed: dict[int, Tensor] = {}
        for row, (gradient, version) in opened.gradients.items():
            now = self._parameters[row].grad
            if now is not None and (now is not gradient or now._version != version):
                changed[row] = now
        self._step.changed |= set(changed)
        self._norms_of("clipped_gradient_norm", changed, opened)

    def _read_state(self, opened: _Opened, optimizer: Optimizer) -> None:
        first: dict[int, Tensor] = {}
        second: dict[int, Tensor] = {}
        denominators: dict[int, tuple[Tensor, float]] = {}
        for group, parameter, state in _states(optimizer):
            row = self._row.get(id(parameter), -1)
            if row not in self._step.counts:
                continue
            moment = state.get("exp_avg", state.get("momentum_buffer"))
            square = state.get("exp_avg_sq", state.get("square_avg"))
            if isinstance(moment, Tensor):
                first[row] = moment
            if isinstance(square, Tensor):
                second[row] = square
                floor = _floor(group, state)
                if floor is not None:
                    denominators[row] = state.get("max_exp_avg_sq", square), floor
        self._norms_of("momentum_norm", first, opened)
        self._norms_of("second_moment_norm", second, opened)
        self._shares_below(denominators, opened)

    def _shares_below(self, denominators: Mapping[int, tuple[Tensor, float]], opened: _Opened) -> None:
        done: set[int] = set()
        for shelf in opened.shelves:
            places = [place for place, row in enumerate(shelf.rows) if row in denominators]
            if places:
                rows = [shelf.rows[place] for place in places]
                squares = [local_part(denominators[row][0]) for row in rows]
                shares = shelf.shares_below(places, squares, [denominators[row][1] for row in rows])
                self._step.pieces.append(Piece(("epsilon_fraction",), rows, shares[None]))
                done.update(rows)
        for row, (square, floor) in denominators.items():
            if row not in done:
                entries = self._chosen_entries(row, real_entries(local_part(square)))
                share = (entries < floor).sum().double() / entries.numel()
                self._step.pieces.append(Piece(("epsilon_fraction",), [row], share.view(1, 1)))

    def _norms_of(self, column: str, tensors: Mapping[int, Tensor], opened: _Opened) -> None:
        """Read the norms of tensors shaped like the parameters of their rows."""
        done: set[int] = set()
        for shelf in opened.shelves:
            places = [
                place
                for place, row in enumerate(shelf.rows)
                if row in tensors and tensors[row].layout == torch.strided
            ]
            if places:
                rows = [shelf.rows[place] for place in places]
                done.update(rows)
                norms = shelf.norms(places, [local_part(tensors[row].detach()) for row in rows])
                self._step.pieces.append(Piece((column,), rows, norms[None]))
        for row, tensor in tensors.items():
            if row not in done:
                self._step.pieces.append(
                    Piece((column,), [row], norm_of_whole(gradient_entries(tensor)).view(1, 1))
                )


def _is_dense(opened: _Opened, row: int) -> bool:
    return row in opened.gradients and opened.gradients[row][0].layout == torch.strided


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


def _states(optimizer: Optimizer) -> Iterator[tuple[Mapping[str, Any], Tensor, Mapping[str, Any]]]:
    """Yield every parameter that has a state in an optimizer, with its group's options and that state."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if state:
                yield group, parameter, state


def _floor(group: Mapping[str, Any], state: Mapping[str, Any]) -> float | None:
    """Return the second moment v below which sqrt(v / (1 − beta2^t)) < 10 eps; None if that isn't Adam's."""
    step = state.get("step")
    if step is None or len(group.get("betas", ())) != 2 or "eps" not in group:
        return None
    if isinstance(step, Tensor) and step.device.type != "cpu":
        return None  # reading it would wait for the device
    correction: float = 1.0 - float(group["betas"][1]) ** float(step)
    return float((10.0 * float(group["eps"])) ** 2 * correction)


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
