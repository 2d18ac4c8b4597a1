"""Statistics of tensors in host memory by the compiled passes, which read each tensor once."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

try:
    from gradscope.summarise import _passes
except ImportError:  # there was no compiler: torch's operations do the same, more slowly
    _passes = None  # type: ignore[assignment]
passes = _passes

# What a pass reads beside the root mean square; the same bits as in passes.c.
_SUM, _RANGE, _ZEROS, INSIDE_WANTED = 1, 2, 4, 8
MOMENTS_WANTED, MAGNITUDES_WANTED, NORM_WANTED = _SUM | _RANGE | _ZEROS, _RANGE | _ZEROS, 0
# Rows of a result; the first seven are those of MOMENTS.
MEAN, STD, RMS, LOW, HIGH, ZEROS, NONFINITE, INSIDE, RESULT = range(9)
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}

if passes is not None:
    passes.know(Tensor, nn.Parameter, torch.float32, torch.float64, torch.bfloat16, torch.strided)


def use_threads_of_torch() -> None:
    """Let the passes share large tensors among as many threads as torch uses now, by its own OpenMP."""
    if passes is not None:
        passes.use_team(_openmp(), torch.get_num_threads())


@cache
def _openmp() -> int:
    """Return the address of the function that runs OpenMP's team, 0 if there is none that torch uses, too."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value or 0
    except (AttributeError, TypeError, OSError):
        return 0


Limits = tuple[float, float]
Array = NDArray[np.float64]


def is_compiled() -> bool:
    """Return whether the compiled passes are there."""
    return passes is not None


def readable(tensor: Tensor) -> Tensor:
    """Return a strided tensor as the passes can read it, copied where they cannot read it in place."""
    plain = tensor.detach().resolve_neg().contiguous()
    plain = plain.abs() if plain.dtype.is_complex else plain
    return plain if plain.dtype in TYPES else plain.float()


def absmax(results: Array) -> Array:
    """Return the largest magnitudes from results (RESULT, tensors) that have the extremes: (tensors,)."""
    magnitudes: Array = np.maximum(-results[LOW], results[HIGH])
    return magnitudes


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor holds floats in host memory, so that it is readable at least as a copy."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.numel() > 0
        and (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
    )


def in_memory_order(tensor: Tensor) -> list[int]:
    """Return a tensor's axes, the outermost in memory first."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
