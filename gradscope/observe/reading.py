"""How a layer's tensors are read, and what reading them gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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

    owners: the layer of each call; entries: of each call's tensor; table: (MOMENTS or MAGNITUDES, calls);
    saturated: (calls,), NaN where that means nothing; live: (calls, units), bool;
    cosine: (calls,), between rows of the output, NaN where there are no two.
    """

    signal: bool
    owners: list[int]
    entries: list[int]
    table: Tensor
    saturated: Tensor | None = None
    live: Tensor | None = None
    cosine: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return the tensors to bring to the host."""
        return [item for item in (self.table, self.saturated, self.live, self.cosine) if item is not None]
