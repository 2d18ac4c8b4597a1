"""Read the layers' outputs and signals in host memory: each at once, where it lies, by a compiled pass."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.observe.reading import Measured, Reading
from gradscope.summarise import mean_cosine
from gradscope.summarise.host import (
    INSIDE,
    MAGNITUDES_WANTED,
    MOMENTS_WANTED,
    NONFINITE,
    RMS,
    ZEROS,
    absmax,
    cosine_in_place,
    in_memory_order,
    is_compiled,
    is_plain,
    readable,
)
from gradscope.summarise.ledger import Ledger, Marks


class HostCollector:
    """Gathers the outputs and signals of one recorded step."""

    def __init__(self) -> None:
        self._outputs, self._signals = Ledger(MOMENTS_WANTED), Ledger(MAGNITUDES_WANTED)
        self._live = Marks()
        self._cosines: list[float] = []
        self._compiled = is_compiled()

    def add_signal(self, owner: int, gradient: Tensor) -> bool:
        """Take the statistics of a signal of layer `owner`; return False if it can't be read."""
        if not self._compiled:
            return False
        if self._signals.add(owner, gradient):
            return True
        plain = _plain(gradient)
        return plain is not None and self._signals.add(owner, plain)

    def add_output(self, reading: Reading, owner: int, output: Tensor) -> bool:
        """Take the statistics of an output of layer `owner`; return False if it can't be read."""
        if not self._compiled:
            return False
        axis = reading.unit_axis
        if not self._outputs.add(owner, output, reading.limits):
            plain = _plain(output)
            if plain is None or not self._outputs.add(owner, plain, reading.limits):
                return False
            real = output.detach().abs() if output.is_complex() else output.detach()
            self._cosines.append(float(mean_cosine(real[None], reading.rows)))
            axis = in_memory_order(output).index(axis) if axis is not None and axis < output.dim() else None
            output = plain
        else:
            cosine = cosine_in_place(output, reading.rows)
            self._cosines.append(math.nan if cosine is None else cosine)
        if axis is not None and axis < output.dim():
            self._live.add(owner, output, axis)
        return True

    def take(self) -> tuple[list[Measured], dict[int, NDArray[np.bool_]]]:
        """Return everything gathered since the last call, and by layer which units were live."""
        measured = []
        if len(self._outputs):
            owners, entries, results = self._outputs.take()
            saturated = torch.from_numpy(1.0 - results[INSIDE])
            table = torch.from_numpy(results[: NONFINITE + 1])
            cosine, self._cosines = torch.tensor(self._cosines, dtype=torch.float64), []
            measured.append(Measured(False, owners, entries, table, saturated, cosine=cosine))
        if len(self._signals):
            owners, entries, results = self._signals.take()
            table = torch.from_numpy(
                np.stack([results[RMS], absmax(results), results[ZEROS], results[NONFINITE]])
            )
            measured.append(Measured(True, owners, entries, table))
        return measured, self._live.take()


def _plain(tensor: Tensor) -> Tensor | None:
    """Return a tensor that can't be read where it lies with its axes in memory order, copied if need be."""
    if not is_plain(tensor):
        return None
    return readable(tensor.permute(in_memory_order(tensor)))
