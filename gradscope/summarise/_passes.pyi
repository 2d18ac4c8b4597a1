"""The compiled passes; see passes.c. Addresses are of memory that outlives the call."""

from typing import Any

def know(tensor: type, parameter: type, float32: Any, float64: Any, bfloat16: Any, strided: Any, /) -> None:
    """Keep what tensors are compared with to see whether they can be read."""

def use_team(address: int, size: int, /) -> None:
    """Read on so many threads, run by the function of OpenMP at the address; 0: by the caller only."""

def point(tensors: list[Any], jobs: int, /) -> bool:
    """Write where tensors lie into their jobs; return whether all can be read there."""

def gather(holders: Any, name: str, jobs: int, /) -> int:
    """Write where the tensors that dictionaries hold under a name lie; return whether that is as it was."""

def measure_jobs(what: int, jobs: int, highs: int, results: int, count: int, /) -> None:
    """Write the statistics of every job's tensor."""

def keep(jobs: int, count: int, /) -> None:
    """Copy the entries of every job, or its sampled lines, to where they are kept."""

def change(jobs: int, results: int, count: int, /) -> None:
    """Write the norm of every job's change since its entries were kept."""

def note(ledger: int, reading: int, owner: int, tensor: Any, cosine: float, /) -> int:
    """Read a tensor into its owner's row of a ledger, as a reading says; return what became of it."""
