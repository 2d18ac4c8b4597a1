"""A recorded step's parameter statistics, between the device and the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradscope.columns import PARAMETER_COLUMNS

COLUMN = {column.name: index for index, column in enumerate(PARAMETER_COLUMNS)}
# A norm that is recorded as a root mean square has a column here until then.
_PLACES = {**COLUMN, "second_moment_norm": len(PARAMETER_COLUMNS)}
_SCALED = ("gradient_norm", "gradient_rms", "gradient_absmax")


class Piece(NamedTuple):
    """Part of a step's table: `values` (columns, rows) of some parameters, still on their device."""

    columns: tuple[str, ...]
    rows: Sequence[int] | NDArray[np.intp]
    values: Tensor


@dataclass
class ParameterStep:
    """All that was read of the parameters in one step, by row of the table of `size` parameters.

    counts: entries, NaN where nothing was read; missing: 1 where a trained parameter had no gradient;
    changed: whether the gradient was changed (clipped) after it was read; scales: what gradients are
    multiplied by; repeated: whether the optimizer evaluated more than once, so that the clipped gradients are
    not those that were read. An optimizer that divides by the scale itself writes the gradients that it used
    back: those are changed.
    """

    size: int
    pieces: list[Piece] = field(default_factory=list)
    scales: dict[int, float | Tensor] = field(default_factory=dict)
    repeated: bool = False

    def __post_init__(self) -> None:
        self.counts, self.missing = np.full((2, self.size), np.nan)
        self.changed = np.zeros(self.size, np.bool_)

    def table(self, arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the step's table (size, PARAMETER_COLUMNS) from the values of its pieces, on the host."""
        table = np.full((len(_PLACES), self.size), np.nan)
        for piece, values in zip(self.pieces, arrays, strict=True):
            for column, row_values in zip(piece.columns, values, strict=True):
                if column:
                    table[_PLACES[column], piece.rows] = row_values
        table[COLUMN["count"]], table[COLUMN["gradient_missing"]] = self.counts, self.missing
        self._derive(table)
        return np.ascontiguousarray(table[: len(PARAMETER_COLUMNS)].T)

    def _derive(self, table: NDArray[np.float64]) -> None:
        """Fill the columns that follow from others."""
        root = np.sqrt(table[COLUMN["count"]])
        table[COLUMN["weight_norm"]] = table[COLUMN["weight_rms"]] * root
        table[COLUMN["gradient_norm"]] = table[COLUMN["gradient_rms"]] * root
        for row, scale in self.scales.items():
            table[[COLUMN[name] for name in _SCALED], row] /= float(scale)
        table[COLUMN["second_moment_rms"]] = table[_PLACES["second_moment_norm"]] / root
        clipped = table[COLUMN["clipped_gradient_norm"]]
        if self.repeated:
            clipped[:] = np.nan
        else:
            kept = ~(np.isnan(self.counts) | self.changed)
            np.copyto(clipped, table[COLUMN["gradient_norm"]], where=kept)
        weight, update = table[COLUMN["weight_norm"]], table[COLUMN["update_norm"]]
        np.divide(update, weight, out=table[COLUMN["update_ratio"]], where=weight > 0)


def norms_of_step(table: NDArray[np.float64]) -> dict[str, float]:
    """Return the norms over all parameters before and after clipping, and their ratio."""
    norms: dict[str, float] = {}
    if (table[:, COLUMN["gradient_nonfinite"]] > 0).any():
        return norms
    for name, column in (("grad_norm", "gradient_norm"), ("clipped_grad_norm", "clipped_gradient_norm")):
        values = table[:, COLUMN[column]]
        known = values[~np.isnan(values)]
        if len(known):
            norms[name] = math.sqrt(float(np.square(known).sum()))
    if norms.get("grad_norm", 0.0) > 0 and "clipped_grad_norm" in norms:
        norms["clip_coefficient"] = norms["clipped_grad_norm"] / norms["grad_norm"]
    return norms
