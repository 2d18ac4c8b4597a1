"""Which entries of a large parameter are read of its update."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.summarise.batch import LINE


class Samples:
    """A fixed random sample of `size` entries for each parameter with more, in short lines.

    Lines, as memory is read by cache lines. Drawn by a generator of its own, seeded by the parameter's name.
    """

    def __init__(self, names: Sequence[str], size: int) -> None:
        self.size, self._names = size, names
        self._lines: dict[int, Tensor] = {}

    def lines(self, row: int, entries: int) -> Tensor | None:
        """Return the lines of the parameter in a row of the table; None if all its entries are measured."""
        if entries <= self.size or self.size < LINE:
            return None
        if row not in self._lines:
            generator = torch.Generator().manual_seed(zlib.crc32(self._names[row].encode()))
            drawn = torch.randint(entries // LINE, (self.size // LINE,), generator=generator)
            self._lines[row] = drawn.sort().values
        return self._lines[row]

    def of(self, row: int, entries: Tensor) -> Tensor:
        """Return the entries, of the vector of all, whose update is measured."""
        lines = self.lines(row, entries.numel())
        if lines is None:
            return entries[: self.size]
        if lines.device != entries.device:
            self._lines[row] = lines = lines.to(entries.device)
        whole = entries[: entries.numel() // LINE * LINE].view(-1, LINE)
        return torch.index_select(whole, 0, lines).view(-1)
