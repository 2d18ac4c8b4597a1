"""Read the layers' outputs and signals in host memory: each at once, where it lies, by a compiled pass."""

from __future__ import annotations

import numpy as np
import torch
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
    in_memory_order,
    is_compiled,
    is_plain,
    readable,
)
from gradscope.summarise.ledger import Ledger, Live


class HostCollector:
    """Gathers the outputs and signals of one recorded step of so many layers."""

    def __init__(self, layers: int) -> None:
        self._outputs, self._signals = Ledger(layers, MOMENTS_WANTED), Ledger(layers, MAGNITUDES_WANTED)
        self._readings = [Reading()] * layers
        self._compiled = is_compiled()

    def read_as(self, owner: int, reading: Reading) -> None:
        """Say how outputs of layer `owner` are read."""
        self._readings[owner] = reading
        self._outputs.read_as(owner, reading.limits, reading.rows, reading.unit_axis)

    def add_signal(self, owner: int, gradient: Tensor) -> bool:
        """Take the statistics of a signal of layer `owner`; return False if it can't be read."""
        if not self._compiled:
            return False
        if self._signals.add(owner, gradient):
            return True
        return is_plain(gradient) and self._signals.add(owner, _plain(gradient, in_memory_order(gradient)))

    def add_output(self, owner: int, output: Tensor) -> bool:
        """Take the statistics of an output of layer `owner`; return False if it can't be read."""
        if not self._compiled:
            return False
        return self._outputs.add(owner, output) or (is_plain(output) and self._add_turned(owner, output))

    def _add_turned(self, owner: int, output: Tensor) -> bool:
        """Take the statistics of an output that must be copied, or read with its axes in another order."""
        real, order = output.detach(), in_memory_order(output)
        real = real.abs() if real.is_complex() else real
        cosine = float(mean_cosine(real[None], self._readings[owner].rows))
        return self._outputs.add_turned(owner, _plain(output, order), order, cosine)

    def forget(self) -> None:
        """Forget what was gathered."""
        if not (self._outputs.is_empty and self._signals.is_empty):
            self.take()

    def take(self) -> tuple[list[Measured], Live]:
        """Return everything gathered since the last call, and which units were live."""
        measured = []
        owners, entries, results = self._outputs.take()
        if len(owners):
            results[INSIDE] = 1.0 - results[INSIDE]
            measured.append(Measured(False, owners, entries, torch.from_numpy(results)))
        owners, entries, results = self._signals.take()
        if len(owners):
            table = np.stack([results[RMS], absmax(results), results[ZEROS], results[NONFINITE]])
            measured.append(Measured(True, owners, entries, torch.from_numpy(table)))
        return measured, self._outputs.take_marks()


def _plain(tensor: Tensor, order: list[int]) -> Tensor:
    """Return a plain tensor with its axes in memory order, copied if it can't be read where it lies."""
    return readable(tensor.permute(order))
