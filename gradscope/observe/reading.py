"""How a layer's tensors are read, and what reading them gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradscope.observe.activations import Limits
from gradscope.summarise import Between


class Reading(NamedTuple):
    """What is read of a layer's tensors: the moments of an output, or the magnitudes of a signal.

    limits: between which an entry is not saturated; unit_axis: of a rectifier, whose live units are wanted;
    rows: between what the cosine is measured.
    """

    signal: bool = False
    limits: Limits | None = None
    unit_axis: int | None = None
    rows: Between = "samples"


OUTPUT, SIGNAL = Reading(), Reading(signal=True)


@dataclass(frozen=True)
class Measured:
    """Statistics of some calls, still on the device: one column a call.

    owners: the layer of each call; entries: of each call's tensor; table: (OUTPUTS or MAGNITUDES, calls), NaN
    where a statistic means nothing; live: (calls, units), bool.
    """

    signal: bool
    owners: NDArray[np.intp]
    entries: NDArray[np.float64]
    table: Tensor
    live: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return the tensors to bring to the host."""
        return [self.table] if self.live is None else [self.table, self.live]
