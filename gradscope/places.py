"""Where runs are written; two runs never share a directory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from torch import distributed

from gradscope.errors import SettingsError
from gradscope.store import address_of, is_taken, place_of

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
    path = Path(run_dir)
    return path.expanduser() if address_of(path) is None else place_of(path)


def new_run(asked: Path | None, folder: Path) -> Path:
    """Return the directory of a new run: as asked for, else a new one in `folder`, named for the time.

    A directory that was asked for is the run's own if it is new or empty; if it holds a run, that run is
    kept and the new one goes beside it, numbered; if it holds other things, the run is put into it. It is
    taken at once, so that no other process takes it, too; one that can't be written is returned as it is.
    """
    path = asked or folder / datetime.now().strftime("run-%Y%m%d-%H%M%S")
    if address_of(path) is not None:
        return _new_address(place_of(path))
    path = path.absolute()  # the program may go to another directory while it trains
    if path.is_dir() and any(path.iterdir()) and not (path / "run.json").exists() and asked:
        path = path / "run"
    candidate, number = path, 1
    while not _taken(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _new_address(path: Path) -> Path:
    """Return an address where nothing is yet; where that can't be seen, the address as it is."""
    candidate, number = path, 1
    with suppress(Exception):  # whatever a file system raises: the writer will say what is wrong with it
        while is_taken(str(candidate)):
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _taken(path: Path) -> bool:
    """Take a directory for a run if it is new or empty; return whether the run can go there.

    Of several processes that try, only one can make the folder of journals.
    """
    try:
        if path.is_dir() and any(path.iterdir()):
            return False
        path.mkdir(parents=True, exist_ok=True)
        (path / "live").mkdir()
    except FileExistsError:
        return not path.is_dir()
    except OSError:
        return True  # the writer will say what is wrong with it
    return True


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
        path = choose()
        path = path.resolve() if address_of(path) is None else path
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
    return place_of(store.get(key).decode()), rank
