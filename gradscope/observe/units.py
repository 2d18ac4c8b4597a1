"""Count dead units: rectifier units that were active for no sample over a window of recorded steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class LiveUnits:
    """Remembers for each layer how many recorded steps ago each unit was last active."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._idle: dict[int, NDArray[np.int32]] = {}
        self._seen: dict[int, int] = {}

    def update(self, live: Mapping[int, NDArray[np.bool_]]) -> dict[int, float]:
        """Take which units of each layer were active in a step; return the share of each that is dead by now.

        Active in none of the last `window` recorded steps, or, while there are fewer, in none of all.
        """
        return {layer: self._update(layer, units) for layer, units in live.items()}

    def _update(self, layer: int, live: NDArray[np.bool_]) -> float:
        idle = self._idle.get(layer)
        if idle is None or idle.shape != live.shape:
            idle = self._idle[layer] = np.zeros(live.shape, np.int32)
            self._seen[layer] = 0
        idle += 1
        idle[live] = 0
        self._seen[layer] += 1
        return np.count_nonzero(idle >= min(self._window, self._seen[layer])) / max(1, idle.size)
