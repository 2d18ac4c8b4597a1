"""What recording costs, and whether a training can afford to have one more step recorded."""

from __future__ import annotations

from collections import deque
from statistics import median

# Medians over so many steps: a slow moment of the machine is not gradscope's.
_LATEST = 15


class Budget:
    """Keeps account of the time of all steps and of what recording took of it.

    A recorded step costs what gradscope's own code took, or what it took longer than steps that were not
    recorded, if that is more: hooks cost time outside of gradscope's own code. The first recorded step also
    describes the model, once; its cost is told, but the budget is for what comes again.
    """

    def __init__(self, share: float | None) -> None:
        self._share = share
        self.seconds = self.spent = 0.0
        self._described: float | None = None
        self._own: deque[float] = deque(maxlen=_LATEST)
        self._recorded: deque[float] = deque(maxlen=_LATEST)
        self._plain: deque[float] = deque(maxlen=_LATEST)

    def affords(self) -> bool:
        """Return whether one more recorded step keeps the budget; two are granted, to learn the price."""
        if self._share is None or not self._own:
            return True
        return self.spent + self._price() <= self._share * self.seconds

    def note(self, seconds: float, own: float | None) -> None:
        """Note a step's time and, of a recorded one, what gradscope's own code took of it."""
        self.seconds += seconds
        if own is None:
            self._plain.append(seconds)
            return
        if self._described is None:
            self._described = own
            return
        self._own.append(own)
        self._recorded.append(seconds)
        self.spent += max(own, self._price())

    def share_spent(self) -> float:
        """Return what recording took as a share of the time without it; 0 before any step."""
        spent = self.spent + (self._described or 0.0)
        return spent / (self.seconds - spent) if self.seconds > spent else 0.0

    def _price(self) -> float:
        own = median(self._own)
        longer = median(self._recorded) - median(self._plain) if self._plain else 0.0
        return max(own, longer)
