"""How wide to accumulate, and when float32 has lost what it was asked for."""

from __future__ import annotations

import torch
from torch import Tensor

# Beyond these magnitudes the squares of float32 entries leave its range (1e-38 to 3e38) or lose digits.
SMALLEST, LARGEST = 1e-16, 1e18
# Below this share of variance in the mean square, E[x²] − E[x]² loses four of float32's seven digits.
CANCELLATION = 0.02


def accumulator(tensor: Tensor) -> torch.dtype | None:
    """Return the dtype that reductions accumulate in: float64 on accelerators that have it, else the own one.

    On an accelerator a reduction is bound by memory, so width is free, and there is no looking at the values
    to see whether float32 was enough. On the CPU, float32 is several times faster and the doubtful rows are
    computed again.
    """
    return None if tensor.device.type in ("cpu", "mps") else torch.float64


def on_host(tensor: Tensor) -> bool:
    """Return whether values can be looked at without waiting for a device."""
    return tensor.device.type == "cpu"
