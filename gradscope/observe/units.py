"""Count dead units: rectifier units that were active for no sample over a window of recorded steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradscope.summarise.ledger import Live


class DeadUnits:
    """Remembers how many recorded steps ago each unit was last active.

    The units of the layers that ran in the last step lie side by side, so that they are counted together.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._idle: dict[int, NDArray[np.int32]] = {}  # by layer, parts of `_all`
        self._seen: dict[int, NDArray[np.int32]] = {}  # by layer, parts of `_steps`
        self._laid_out = b""
        self._all = self._steps = np.zeros(0, np.int32)

    def shares(self, live: Live) -> NDArray[np.float64]:
        """Take which units were active in a step; return the share of each layer's that is dead by now.

        Active in none of the last `window` recorded steps, or, while there are fewer, in none of all.
        """
        layout = live.layers.tobytes() + live.sizes.tobytes()
        if layout != self._laid_out:
            self._lay_out(live)
            self._laid_out = layout
        self._all += 1
        self._all[live.active] = 0
        self._steps += 1
        limits = np.minimum(self._window, self._steps)
        dead = self._all >= np.repeat(limits, live.sizes)
        shares: NDArray[np.float64] = np.add.reduceat(dead, self._starts, dtype=np.float64) / live.sizes
        return shares

    def _lay_out(self, live: Live) -> None:
        """Lay the layers that ran side by side; those whose number of units has changed begin anew."""
        self._starts = np.cumsum(live.sizes) - live.sizes
        idle, seen = np.zeros(len(live.active), np.int32), np.zeros(len(live.layers), np.int32)
        parts = np.split(idle, self._starts[1:])
        for place, (layer, part) in enumerate(zip(live.layers.tolist(), parts, strict=True)):
            steps = seen[place : place + 1]
            if layer in self._idle and len(self._idle[layer]) == len(part):
                part[:], steps[:] = self._idle[layer], self._seen[layer]
            self._idle[layer], self._seen[layer] = part, steps
        self._all, self._steps = idle, seen
