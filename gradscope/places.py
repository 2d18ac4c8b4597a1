"""Where runs are written; two runs never share a directory."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

# Not "gradscope": a folder of that name in the current directory would be taken for the package.
RUNS = "gradscope_runs"


def new_run(asked: str | Path | None, folder: Path) -> Path:
    """Return the directory of a new run: as asked for, else a new one in `folder`, named for the time.

    A directory that was asked for is the run's own if it is new or empty; if it holds a run, that run is
    kept and the new one goes beside it, numbered; if it holds other things, the run is put into it.
    """
    if asked is None:
        return _free(folder / datetime.now().strftime("run-%Y%m%d-%H%M%S"))
    path = Path(asked)
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
