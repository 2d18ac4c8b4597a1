"""Read parameters in host memory around their update: each where it lies, by compiled passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.observe.pieces import Piece
from gradscope.observe.samples import Samples
from gradscope.summarise.batch import LINE, Batch
from gradscope.summarise.host import (
    INSIDE,
    LOW,
    MAGNITUDES_WANTED,
    MOMENTS_WANTED,
    NONFINITE,
    NORM_WANTED,
    RMS,
    STD,
    ZEROS,
    absmax,
)

# The columns of results from STD to NONFINITE, and from RMS; the largest magnitude is put in place of LOW.
WEIGHT = ("weight_std", "weight_rms", "weight_absmax", "", "", "weight_nonfinite")
GRADIENT = ("gradient_rms", "gradient_absmax", "", "gradient_zero_fraction", "gradient_nonfinite")

Array = NDArray[np.float64]
Rows = NDArray[np.intp]


class HostReader:
    """Reads some parameters around their update: `rows` of the table, at the start with these values."""

    def __init__(self, rows: Sequence[int], values: Sequence[Tensor], samples: Samples) -> None:
        self._rows = np.array(rows, np.intp)
        self._weights = Batch(len(rows))
        self._others: dict[tuple[str, int], Batch] = {}
        self._weights.point(values, steady=True)
        sizes = self._weights.sizes().tolist()
        lines = [samples.lines(row, size) for row, size in zip(rows, sizes, strict=True)]
        self._weights.reserve([None if chosen is None else chosen * LINE for chosen in lines])
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
        results[LOW] = absmax(results)
        weights = Piece(WEIGHT, self._rows, torch.from_numpy(results[STD : NONFINITE + 1]))
        present = [gradient for gradient in gradients if gradient is not None]
        if not present:
            return [weights]
        rows = self._rows
        if len(present) < len(rows):
            rows = rows[[gradient is not None for gradient in gradients]]
        return [weights, self._read_gradients(rows, present)]

    def _read_gradients(self, rows: Rows, gradients: Sequence[Tensor]) -> Piece:
        batch = self._batch("gradient", len(gradients))
        batch.point(gradients)
        results, stored = batch.measure(MAGNITUDES_WANTED), batch.sizes()
        results[LOW] = absmax(results)
        for place, gradient in enumerate(gradients):
            if gradient.layout is not torch.strided:
                _count_unstored(results[:, place], stored[place] / gradient.numel())
        return Piece(GRADIENT, rows, torch.from_numpy(results[RMS : NONFINITE + 1]))

    def after(self, values: Sequence[Tensor]) -> list[Piece]:
        """Return the norms of the updates."""
        self._weights.point(values, steady=True)
        norms = self._weights.change() * self._factors
        return [Piece(("update_norm",), self._rows, torch.from_numpy(norms[None]))]

    def norms(
        self, column: str, tensors: Mapping[int, Tensor], floors: Mapping[int, float] | None = None
    ) -> list[Piece]:
        """Return the norms of tensors shaped like the parameters at their places, and shares below floors."""
        chosen = list(tensors.values())
        rows = self._rows[np.fromiter(tensors, np.intp, len(tensors))]
        clipped = column == "clipped_gradient_norm"  # made anew in every step, unlike an optimizer's state
        batch = self._batch(column, len(chosen), sampled=not clipped)
        batch.point(chosen, steady=not clipped)
        results = batch.measure(NORM_WANTED, [floors[place] for place in tensors] if floors else None)
        norms = results[RMS] * np.sqrt(batch.sizes())
        pieces = [Piece((column,), rows, torch.from_numpy(norms[None]))]
        if floors:
            pieces.append(Piece(("epsilon_fraction",), rows, torch.from_numpy(results[INSIDE:])))
        return pieces

    def _batch(self, name: str, count: int, sampled: bool = False) -> Batch:
        """Return the batch that reads so many tensors of a kind, the one of the last step if it fits."""
        if (name, count) not in self._others:
            self._others[name, count] = Batch(count, sampled)
        return self._others[name, count]


def _count_unstored(result: Array, share: float) -> None:
    """Count as zeros, in a gradient's result, the entries that it doesn't store; share: of stored ones."""
    if share:
        result[RMS] *= math.sqrt(share)
        result[ZEROS] = 1.0 - (1.0 - result[ZEROS]) * share
    else:
        result[[RMS, LOW, ZEROS]] = 0.0, 0.0, 1.0
