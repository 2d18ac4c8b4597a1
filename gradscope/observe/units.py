"""Count dead units: rectifier units that were active for no sample over a window of recorded steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class LiveUnits:
    """Remembers for each layer how many recorded steps ago each unit was last active."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._idle: dict[int, NDArray[np.int32]] = {}
        self._seen: dict[int, int] = {}

    def update(self, layer: int, live: NDArray[np.bool_]) -> float:
        """Take which units were active in a recorded step; return the share that is dead by now."""
        idle = self._idle.get(layer)
        if idle is None or idle.shape != live.shape:
            idle = self._idle[layer] = np.zeros(live.shape, np.int32)
            self._seen[layer] = 0
        idle += 1
        idle[live] = 0
        self._seen[layer] += 1
        return float((idle >= min(self._window, self._seen[layer])).mean())
