"""The compiled passes; see passes.c. Addresses are of memory that outlives the call."""

from typing import Any

def know(tensor: type, parameter: type, float32: Any, float64: Any, bfloat16: Any, strided: Any, /) -> None:
    """Keep what tensors are compared with to see whether they can be read."""

def use_team(address: int, size: int, /) -> None:
    """Read on so many threads, run by the function of OpenMP at the address; 0: by the caller only."""

def measure(what: int, tensor: Any, low: float, high: float, result: int, /) -> int:
    """Write a tensor's statistics and return the number of its entries; 0 if it can't be read in place."""

def point(tensors: list[Any], jobs: int, /) -> bool:
    """Write where tensors lie into their jobs; return whether all can be read there."""

def measure_jobs(what: int, jobs: int, highs: int, results: int, count: int, /) -> None:
    """Write the statistics of every job's tensor."""

def keep(jobs: int, count: int, /) -> None:
    """Copy the entries of every job, or its sampled lines, to where they are kept."""

def change(jobs: int, results: int, count: int, /) -> None:
    """Write the norm of every job's change since its entries were kept."""

def mark_live(tensor: Any, axis: int, units: int, live: int, /) -> bool:
    """Mark the units that are above zero anywhere; return whether the axis counts so many units."""

def cosine(tensor: Any, groups: int, width: int, /) -> float | None:
    """Return the mean cosine between the rows of the first group; None if it can't be read in place."""
