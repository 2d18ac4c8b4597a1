"""Read an optimizer's moments in host memory: tensors that stay where they are from step to step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from gradscope.observe.moments import (
    FIRST,
    LARGEST,
    SECOND,
    STEP,
    denominator_of,
    floors_at,
    name_among,
)
from gradscope.observe.pieces import Piece
from gradscope.summarise.batch import Batch
from gradscope.summarise.host import INSIDE, NORM_WANTED, RMS


class HostMoments:
    """Reads what one optimizer keeps for some parameters, of which `rows` are in the table.

    For an optimizer that keeps the same kinds of tensors for each of them, as most do.
    """

    def __init__(self, parameters: Sequence[Tensor], rows: Sequence[int]) -> None:
        self._row_of = dict(zip(map(id, parameters), rows, strict=True))
        self._kept_for: list[int] = []

    def read(self, optimizer: Optimizer) -> list[Piece] | None:
        """Return the moments' norms and what follows from them; None if they are not of that kind."""
        states = list(optimizer.state.values())
        kinds, options = set().union(*states), {denominator_of(group) for group in optimizer.param_groups}
        if len(options) != 1 or LARGEST in kinds or not self._knows(optimizer):
            return None
        first, second = name_among(FIRST, kinds), name_among(SECOND, kinds)
        denominator = options.pop() if second is not None and STEP in kinds else None
        are_there = (
            (first is None or self._first.gather(states, first))
            and (second is None or self._second.gather(states, second))
            and (denominator is None or self._steps.gather(states, STEP))
        )
        if not are_there:
            return None
        pieces = []
        if first is not None:
            pieces.append(self._norms("momentum_norm", self._first, self._first.measure(NORM_WANTED)))
        if second is not None:
            pieces += self._second_moments(denominator)
        return pieces

    def _second_moments(self, denominator: tuple[float, float] | None) -> list[Piece]:
        if denominator is None:
            return [self._norms("second_moment_norm", self._second, self._second.measure(NORM_WANTED))]
        steps = self._steps.measure(NORM_WANTED)[RMS].tolist()  # of single numbers it is the number
        results = self._second.measure(NORM_WANTED, floors_at(steps, *denominator))
        shares = Piece(("epsilon_fraction",), self._rows, torch.from_numpy(results[INSIDE:]))
        return [self._norms("second_moment_norm", self._second, results), shares]

    def _norms(self, column: str, batch: Batch, results: NDArray[np.float64]) -> Piece:
        norms = results[RMS] * np.sqrt(batch.sizes())
        return Piece((column,), self._rows, torch.from_numpy(norms[None]))

    def _knows(self, optimizer: Optimizer) -> bool:
        """Return whether the optimizer keeps state for known parameters only."""
        kept_for = [*map(id, optimizer.state)]
        if kept_for != self._kept_for:
            if not self._row_of.keys() >= set(kept_for):
                return False
            self._kept_for = kept_for
            self._rows = np.array([self._row_of[key] for key in kept_for], np.intp)
            count = len(kept_for)
            self._first, self._second = Batch(count, sampled=True), Batch(count, sampled=True)
            self._steps = Batch(count)
        return True
