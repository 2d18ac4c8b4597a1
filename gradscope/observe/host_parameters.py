"""Read parameters in host memory around their update: each where it lies, by compiled passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.observe.pieces import Piece
from gradscope.observe.samples import LARGE, Samples, evenly_spread
from gradscope.summarise import real_entries, stored_size
from gradscope.summarise.host import (
    INSIDE,
    LINE,
    MAGNITUDES_WANTED,
    MOMENTS_WANTED,
    NONFINITE,
    NORM_WANTED,
    RMS,
    STD,
    ZEROS,
    Batch,
    absmax,
)

WEIGHT = ("weight_std", "weight_rms", "weight_absmax", "weight_nonfinite")
GRADIENT = ("gradient_rms", "gradient_absmax", "gradient_zero_fraction", "gradient_nonfinite")

Array = NDArray[np.float64]


class HostReader:
    """Reads some parameters around their update: `rows` of the table, at the start with these values."""

    def __init__(self, rows: Sequence[int], values: Sequence[Tensor], samples: Samples) -> None:
        self._rows = list(rows)
        self._weights = Batch(len(rows))
        self._others: dict[tuple[str, int], Batch] = {}
        self._weights.point(values, steady=True)
        sizes = self._weights.sizes().tolist()
        lines = [samples.lines(row, size) for row, size in zip(rows, sizes, strict=True)]
        self._weights.reserve(lines)
        kept = [
            size if chosen is None else chosen.numel() * LINE
            for size, chosen in zip(sizes, lines, strict=True)
        ]
        self._factors = np.sqrt(np.array(sizes) / np.array(kept))  # norm of all over norm of the sample

    def before(self, values: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Piece]:
        """Return the statistics of weights and gradients; keep what the update is measured against."""
        self._weights.point(values, steady=True)
        self._weights.keep()
        results = self._weights.measure(MOMENTS_WANTED)
        weights = _piece(WEIGHT, self._rows, results[STD], results[RMS], absmax(results), results[NONFINITE])
        present = {place: gradient for place, gradient in enumerate(gradients) if gradient is not None}
        return [weights, *self._read_gradients(present)]

    def _read_gradients(self, gradients: Mapping[int, Tensor]) -> list[Piece]:
        if not gradients:
            return []
        batch = self._batch("gradient", len(gradients))
        batch.point(list(gradients.values()))
        results, stored = batch.measure(MAGNITUDES_WANTED), batch.sizes()
        rms, most, zeros = results[RMS], absmax(results), results[ZEROS]
        for column, gradient in enumerate(gradients.values()):
            if gradient.layout is not torch.strided:
                share = stored[column] / gradient.numel()
                rms[column] = rms[column] * math.sqrt(share) if share else 0.0
                most[column] = most[column] if share else 0.0
                zeros[column] = 1.0 - (1.0 - zeros[column]) * share if share else 1.0
        rows = [self._rows[place] for place in gradients]
        return [_piece(GRADIENT, rows, rms, most, zeros, results[NONFINITE])]

    def after(self, values: Sequence[Tensor]) -> list[Piece]:
        """Return the norms of the updates."""
        self._weights.point(values, steady=True)
        return [_piece(("update_norm",), self._rows, self._weights.change() * self._factors)]

    def norms(
        self, column: str, tensors: Mapping[int, Tensor], floors: Mapping[int, float] | None = None
    ) -> list[Piece]:
        """Return the norms of tensors shaped like the parameters at their places, and shares below floors."""
        highs = [floors[place] for place in tensors] if floors is not None else None
        rows = [self._rows[place] for place in tensors]
        batch, sizes = self._batch(column, len(rows)), [stored_size(item) for item in tensors.values()]
        if column == "clipped_gradient_norm":  # made anew in every step, which an optimizer's state is not
            batch.point(list(tensors.values()))
        else:
            some = [_some_of(item) if item.numel() > LARGE else item for item in tensors.values()]
            batch.point(some, steady=True)
        results = batch.measure(NORM_WANTED, highs)
        pieces = [_piece((column,), rows, results[RMS] * np.sqrt(sizes))]
        if floors is not None:
            pieces.append(_piece(("epsilon_fraction",), rows, results[INSIDE]))
        return pieces

    def _batch(self, name: str, count: int) -> Batch:
        """Return the batch that reads so many tensors of a kind, the one of the last step if it fits."""
        if (name, count) not in self._others:
            self._others[name, count] = Batch(count)
        return self._others[name, count]


def _some_of(tensor: Tensor) -> Tensor:
    dense = tensor.layout is torch.strided
    return evenly_spread(real_entries(tensor)).contiguous() if dense else tensor


def _piece(columns: tuple[str, ...], rows: list[int], *values: Array) -> Piece:
    return Piece(columns, rows, torch.from_numpy(np.stack(values)))
