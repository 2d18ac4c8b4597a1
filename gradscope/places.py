"""Where runs are written; two runs never share a directory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from torch import distributed

from gradscope.errors import SettingsError

# Not "gradscope": a folder of that name in the current directory would be taken for the package.
RUNS = "gradscope_runs"
# So long a process waits for rank 0 to say where the run goes.
PATIENCE = timedelta(seconds=60)
_agreed = 0


def checked_place(run_dir: Any) -> Path | None:
    """Return where the user wants a run, "~" resolved; SettingsError if it is no path."""
    if run_dir is None:
        return None
    if not isinstance(run_dir, (str, os.PathLike)) or not str(run_dir).strip():
        raise SettingsError(f"run_dir is {run_dir!r}; give a directory, or None for a new one")
    return Path(run_dir).expanduser()


def new_run(asked: Path | None, folder: Path) -> Path:
    """Return the directory of a new run: as asked for, else a new one in `folder`, named for the time.

    A directory that was asked for is the run's own if it is new or empty; if it holds a run, that run is
    kept and the new one goes beside it, numbered; if it holds other things, the run is put into it.
    """
    if asked is None:
        return _free(folder / datetime.now().strftime("run-%Y%m%d-%H%M%S"))
    path = asked
    if not path.is_dir() or not any(path.iterdir()):
        return path
    return _free(path if (path / "run.json").exists() else path / "run")


def _free(path: Path) -> Path:
    """Return the path, numbered if it is taken."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def is_distributed() -> bool:
    """Return whether this process trains together with others."""
    return distributed.is_available() and distributed.is_initialized()


def agreed(choose: Callable[[], Path]) -> tuple[Path, int]:
    """Return the directory that rank 0 chooses for all, and which rank's part of the run this process writes.

    By the store through which the processes found each other: a collective would hang for ever where only
    some of them watch. A process whose rank 0 doesn't watch writes a run of its own.
    """
    global _agreed
    if not is_distributed():
        return choose(), 0
    _agreed += 1
    rank, key = distributed.get_rank(), f"gradscope/run/{_agreed}"
    store = distributed.distributed_c10d._get_default_store()
    if rank == 0:
        path = choose().resolve()
        store.set(key, str(path))
        return path, 0
    try:
        store.wait([key], PATIENCE)
    except Exception:
        warnings.warn(
            f"rank 0 does not watch: this run covers rank {rank} alone; call gradscope.watch on every rank",
            stacklevel=3,
        )
        return choose(), 0
    return Path(store.get(key).decode()), rank
