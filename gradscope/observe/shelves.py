"""Read parameters where nothing may wait: small ones are laid side by side and measured together.

For accelerators, and for host memory where the compiled passes are missing. The price is the number of
operations: parameters of about one size share a matrix, large ones are read one by one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradscope.observe.pieces import Piece
from gradscope.observe.samples import Samples
from gradscope.summarise import (
    magnitudes_of_rows,
    moments_of_padded,
    norms_of_rows,
    real_entries,
    shares_below,
    stored_entries,
)

WEIGHT = ("weight_std", "weight_rms", "weight_absmax", "", "weight_nonfinite")
GRADIENT = ("", "gradient_rms", "gradient_absmax", "gradient_zero_fraction", "gradient_nonfinite")
# So many parameters of one shape have a shelf of their own.
ALIKE = 3
# Padding of fewer entries than this costs less than a shelf more.
NARROW = 1024


class Shelf:
    """Room for small parameters of about one size, side by side and padded with zeros.

    Layers of rows: weights before the update, gradients, what is read after the update.
    Parameters of one shape need no padding; torch lays those side by side several times faster.
    """

    def __init__(self, places: list[int], parameters: list[Tensor], width: int) -> None:
        self.places, count = places, len(places)
        first = parameters[0]
        dtype = torch.float64 if first.dtype is torch.float64 else torch.float32
        self.block = torch.zeros((3 * count, width), dtype=dtype, device=first.device)
        self.sizes = torch.tensor([item.numel() for item in parameters], dtype=torch.float64).to(first.device)
        self._doubled = self.sizes.repeat(2)
        self._alike = width == first.numel() and all(item.shape == first.shape for item in parameters)
        shape = first.shape if self._alike else (width,)
        self.layers = [self.block[start : start + count] for start in range(0, 3 * count, count)]
        self._stacks = [layer.view(count, *shape) for layer in self.layers]
        self._views = [
            [row[: item.numel()].view(item.shape) for row, item in zip(layer, parameters, strict=True)]
            for layer in self.layers
        ]

    def fill(self, layer: int, tensors: Mapping[int, Tensor]) -> Tensor:
        """Lay tensors, by their index on the shelf, into a layer of rows; return those rows, in order."""
        if len(tensors) < len(self.places):
            torch._foreach_copy_([self._views[layer][index] for index in tensors], list(tensors.values()))
            return self.layers[layer][list(tensors)]
        if self._alike:
            torch.stack(list(tensors.values()), out=self._stacks[layer])
        else:
            torch._foreach_copy_(self._views[layer], list(tensors.values()))
        return self.layers[layer]

    def measure(self) -> Tensor:
        """Return the statistics of weights before the update, then those of gradients: (5, 2 rows)."""
        return moments_of_padded(self.block[: 2 * len(self.places)], self._doubled)


class ShelfReader:
    """Reads some parameters around their update: `rows` of the table, at the start with these values."""

    def __init__(self, rows: Sequence[int], values: Sequence[Tensor], samples: Samples) -> None:
        self._rows, self._samples = list(rows), samples
        self._shelves = _shelves(values, samples.size)
        small = {place for shelf in self._shelves for place in shelf.places}
        self._large = [place for place in range(len(rows)) if place not in small]
        self._before: dict[int, Tensor] = {}

    def before(self, values: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Piece]:
        """Return the statistics of weights and gradients; keep what the update is measured against."""
        pieces = []
        for shelf in self._shelves:
            pieces += self._read_shelf(shelf, values, gradients)
        for place in self._large:
            entries, gradient = real_entries(values[place]), gradients[place]
            self._before[place] = self._samples.of(self._rows[place], entries).clone()
            size = torch.tensor([entries.numel()], dtype=torch.float64).to(entries.device, non_blocking=True)
            pieces.append(Piece(WEIGHT, [self._rows[place]], moments_of_padded(entries[None], size)))
            if gradient is not None:
                pieces.append(Piece(GRADIENT, [self._rows[place]], _by_itself(gradient)))
        return pieces

    def _read_shelf(
        self, shelf: Shelf, values: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> list[Piece]:
        rows, pieces = [self._rows[place] for place in shelf.places], []
        shelf.fill(0, {index: values[place] for index, place in enumerate(shelf.places)})
        dense: dict[int, Tensor] = {}
        for index, place in enumerate(shelf.places):
            gradient = gradients[place]
            if gradient is not None and gradient.layout is torch.strided:
                dense[index] = gradient
            elif gradient is not None:
                pieces.append(Piece(GRADIENT, [rows[index]], _by_itself(gradient)))
        if len(dense) < len(rows):
            shelf.layers[1].zero_()
        if dense:
            shelf.fill(1, dense)
        statistics = shelf.measure()
        of_gradients = statistics[:, len(rows) :]
        if len(dense) < len(rows):
            of_gradients = of_gradients[:, list(dense)]
        pieces.append(Piece(WEIGHT, rows, statistics[:, : len(rows)]))
        pieces.append(Piece(GRADIENT, [rows[index] for index in dense], of_gradients))
        return pieces

    def after(self, values: Sequence[Tensor]) -> list[Piece]:
        """Return the norms of the updates."""
        pieces = []
        for shelf in self._shelves:
            after = shelf.fill(2, {index: values[place] for index, place in enumerate(shelf.places)})
            norms = norms_of_rows(after.sub_(shelf.layers[0]))
            pieces.append(Piece(("update_norm",), [self._rows[place] for place in shelf.places], norms[None]))
        for place, before in self._before.items():
            entries = real_entries(values[place])
            now = self._samples.of(self._rows[place], entries)
            norm = norms_of_rows((now - before)[None]) * math.sqrt(entries.numel() / now.numel())
            pieces.append(Piece(("update_norm",), [self._rows[place]], norm[None]))
        return pieces

    def norms(
        self, column: str, tensors: Mapping[int, Tensor], floors: Mapping[int, float] | None = None
    ) -> list[Piece]:
        """Return the norms of tensors shaped like the parameters at their places, and shares below floors."""
        pieces, left = [], dict(tensors)
        for shelf in self._shelves:
            which = {
                index: left.pop(place)
                for index, place in enumerate(shelf.places)
                if place in left and left[place].layout is torch.strided
            }
            if not which:
                continue
            matrix, rows = shelf.fill(2, which), [self._rows[shelf.places[index]] for index in which]
            pieces.append(Piece((column,), rows, norms_of_rows(matrix)[None]))
            if floors is not None:
                limits = [floors[shelf.places[index]] for index in which]
                shares = shares_below(matrix, limits, shelf.sizes[list(which)])
                pieces.append(Piece(("epsilon_fraction",), rows, shares[None]))
        for place, tensor in left.items():
            row, entries = [self._rows[place]], stored_entries(tensor)[None]
            pieces.append(Piece((column,), row, norms_of_rows(entries)[None]))
            if floors is not None:
                share = (entries < floors[place]).sum(1).double() / entries.numel()
                pieces.append(Piece(("epsilon_fraction",), row, share[None]))
        return pieces


def _shelves(values: Sequence[Tensor], most: int) -> list[Shelf]:
    """Sort small parameters onto shelves: by shape, or by size (within a factor of four) if rare."""
    small = [place for place, item in enumerate(values) if item.numel() <= most and not item.dtype.is_complex]
    alike = Counter(values[place].shape for place in small)
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for place in small:
        item = values[place]
        shape: Any = item.shape if alike[item.shape] >= ALIKE else None
        width = item.numel() if shape else max(NARROW, 4 ** math.ceil(math.log(item.numel(), 4) - 1e-9))
        kinds.setdefault((shape, width, item.dtype, item.device), []).append(place)
    return [Shelf(places, [values[place] for place in places], kind[1]) for kind, places in kinds.items()]


def _by_itself(gradient: Tensor) -> Tensor:
    """Return the statistics of one gradient, entries that it doesn't store counted as zeros: (5, 1)."""
    entries = stored_entries(gradient)
    stored = entries.numel()
    size = stored if gradient.layout == torch.strided else gradient.numel()
    if not stored:
        return torch.tensor([[0.0], [0.0], [0.0], [1.0], [0.0]], dtype=torch.float64)
    rms, absmax, zeros, nonfinite = magnitudes_of_rows(entries[None])
    rms, zeros = rms * math.sqrt(stored / size), 1.0 - (1.0 - zeros) * stored / size
    return torch.stack([torch.zeros_like(rms), rms, absmax, zeros, nonfinite])
