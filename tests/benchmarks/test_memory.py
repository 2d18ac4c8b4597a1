"""Peak memory of a watched training stays near that of a bare one; benchmarks/memory.py has the figures."""

from __future__ import annotations

from benchmarks.memory import peak

# The aim is 1.02, which benchmarks/README.md compares with what is reached; this is where it would be a leak.
MOST = 1.06


def test_watching_takes_little_memory() -> None:
    bare, watched = (peak("mlp", seen, steps=4) for seen in (False, True))
    assert watched < MOST * bare
