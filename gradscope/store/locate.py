"""Find runs in a folder."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from gradscope.errors import RunError
from gradscope.store.documents import DocumentError, format_version, load_info
from gradscope.store.remote import address_of, runs_at

DEEPEST = 6  # folders below the one asked for: deeper than any logger puts a run


def find_run(path: Path | str) -> Path:
    """Return the path itself if it is a run, else the newest run below it; RunError if there is none."""
    return find_runs(path)[0]


def find_runs(path: Path | str) -> list[Path]:
    """Return the run at the path, else all runs below it, the newest first; RunError if there is none."""
    address = address_of(path)
    if address is not None:
        return _find_remote(address)
    root = Path(path)
    if root.name == "run.json" and root.is_file():
        root = root.parent
    if not root.exists():
        raise RunError(f"there is no {root}; give the directory of a run, or a folder that holds runs")
    if not root.is_dir():
        raise RunError(f"{root} is a file; give the directory of a run, or a folder that holds runs")
    if (root / "run.json").exists():
        return [root]
    found = sorted(_runs_below(root), key=_age, reverse=True)
    if not found:
        raise RunError(f"{root} holds no run; train with gradscope's callback first, or give another folder")
    return found


def _find_remote(address: str) -> list[Path]:
    found = {run: (_started(data), str(run)) for run, data in runs_at(address.removesuffix("/run.json"))}
    if not found:
        raise RunError(f"{address} holds no run; give the address of a run, or of a folder that holds runs")
    return sorted(found, key=lambda run: found[run], reverse=True)


def _runs_below(root: Path) -> list[Path]:
    """Return the directories below with a run.json, gradscope's if there are any."""
    ours: list[Path] = []
    damaged: list[Path] = []
    for folder, below, files in os.walk(root):
        if "run.json" in files:
            (ours if _is_ours(Path(folder)) else damaged).append(Path(folder))
            below.clear()
        deep = len(Path(folder).relative_to(root).parts) >= DEEPEST
        below[:] = [] if deep else sorted(name for name in below if not name.startswith("."))
    return ours or damaged


def _is_ours(run: Path) -> bool:
    try:
        return format_version((run / "run.json").read_bytes()) is not None
    except (OSError, DocumentError):
        return False


def _age(run: Path) -> tuple[float, float, str]:
    """Return what orders runs by their start: the time in run.json, the file's own time, the name."""
    try:
        changed = (run / "run.json").stat().st_mtime
        return _started((run / "run.json").read_bytes(), changed), changed, str(run)
    except OSError:
        return 0.0, 0.0, str(run)


def _started(data: bytes, otherwise: float = 0.0) -> float:
    """Return the time that a run.json gives as the run's start, 0 if it is damaged."""
    try:
        started = load_info(data).started.replace("Z", "+00:00")
        return datetime.fromisoformat(started).timestamp()
    except DocumentError:
        return 0.0
    except (ValueError, OverflowError):
        return otherwise
