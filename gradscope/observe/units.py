"""Count dead units: rectifier units that were active for no sample over a window of recorded steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class LiveUnits:
    """Remembers how many recorded steps ago each unit was last active.

    The units of the layers that ran in the last step lie side by side, so that they are counted together.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._idle: dict[int, NDArray[np.int32]] = {}  # by layer, parts of `_all`
        self._seen: dict[int, NDArray[np.int32]] = {}  # by layer, parts of `_steps`
        self._units: dict[int, int] = {}
        self._all = self._steps = np.zeros(0, np.int32)

    def update(self, live: Mapping[int, NDArray[np.bool_]]) -> dict[int, float]:
        """Take which units of each layer were active in a step; return the share of each that is dead by now.

        Active in none of the last `window` recorded steps, or, while there are fewer, in none of all.
        """
        units = {layer: len(active) for layer, active in live.items()}
        if not units:
            return {}
        if units != self._units:
            self._lay_out(units)
        self._all += 1
        self._all[np.concatenate([live[layer] for layer in self._units])] = 0
        self._steps += 1
        limits = np.minimum(self._window, self._steps)
        dead = self._all >= np.repeat(limits, self._sizes)
        shares = np.add.reduceat(dead, self._starts, dtype=np.float64) / self._sizes
        return dict(zip(self._units, shares.tolist(), strict=True))

    def _lay_out(self, units: dict[int, int]) -> None:
        """Lay the layers that ran side by side; those whose number of units has changed begin anew."""
        self._units = units
        self._sizes = np.array(list(units.values()))
        self._starts = np.cumsum(self._sizes) - self._sizes
        idle, seen = np.zeros(self._sizes.sum(), np.int32), np.zeros(len(units), np.int32)
        for place, (layer, start) in enumerate(zip(units, self._starts, strict=True)):
            part, steps = idle[start : start + units[layer]], seen[place : place + 1]
            if layer in self._idle and len(self._idle[layer]) == len(part):
                part[:], steps[:] = self._idle[layer], self._seen[layer]
            self._idle[layer], self._seen[layer] = part, steps
        self._all, self._steps = idle, seen
