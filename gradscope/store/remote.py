"""Runs at addresses such as s3://bucket/run, through fsspec: written to the local disk first, and sent on."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradscope.errors import RunError
from gradscope.records import Event, RunInfo, Status, StepRecord
from gradscope.settings import Settings
from gradscope.store.writer import RunWriter

# So often what is new is sent while a training runs.
INTERVAL = 15.0
ATTEMPTS = 3  # failures in a row after which nothing more is sent
PATIENCE = 60.0  # seconds that the end of a training waits for what is still to be sent
# The writer fills these folders in this order, and then what lies beside them.
_TURNS = ("layers", "parameters", "steps", "live")
# A Path makes one slash of two; a single letter is a drive of Windows.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,3}(?=[^/])")


def address_of(place: Path | str) -> str | None:
    """Return the address that a place is, also where a Path has taken one of its slashes; None if local."""
    text = os.fspath(place)
    match = _ADDRESS.match(text)
    if match is None or match[1] == "file" or os.path.exists(match[0]):
        return None
    return f"{match[1]}://{text[match.end() :]}".rstrip("/")


class Address(type(Path())):  # type: ignore[misc]
    """A path of another file system, which as text has both its slashes again."""

    def __str__(self) -> str:
        return address_of(super().__str__()) or super().__str__()


def place_of(text: Path | str) -> Path:
    """Return a path, an Address where it is one."""
    return Path(text) if address_of(text) is None else Address(text)


def file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path there; RunError if there is none."""
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise RunError(f"{address} can't be reached: {error}") from None
    return system, str(path).rstrip("/")


def runs_at(address: str) -> list[tuple[Path, bytes]]:
    """Return all runs at or below an address, with what their run.json holds; RunError if unreachable."""
    system, root = file_system(address)
    try:
        files = [path for path in system.find(root) if path.endswith("/run.json")]
        return [
            (Address(address + path[len(root) : -len("/run.json")]), system.cat_file(path)) for path in files
        ]
    except OSError as error:
        raise RunError(f"{address} was not read: {error}") from None


def is_taken(address: str) -> bool:
    """Say whether something is at an address."""
    system, root = file_system(address)
    return bool(system.exists(root) and system.find(root))


def fetch(address: str, folder: Path) -> None:
    """Copy all files below an address into a local folder; RunError if they can't be had."""
    system, root = file_system(address)
    try:
        for path in system.find(root):
            target = folder / path[len(root) :].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # replaced since it was listed
                target.write_bytes(system.cat_file(path))
    except OSError as error:
        raise RunError(f"{address} was not read: {error}") from None


def writer_of(path: Path, rank: int = 0, settings: Settings | None = None) -> RunWriter | RemoteWriter:
    """Return the writer of one rank's part of a run, wherever it is."""
    address = address_of(path)
    return RunWriter(path, rank, settings) if address is None else RemoteWriter(address, rank, settings)


class RemoteWriter:
    """The writer of one rank's part of a run at an address; what it writes is sent by a thread of its own.

    A process that is killed leaves what wasn't sent yet in its local folder, as does a network that fails:
    then that is said once, and writing goes on.
    """

    def __init__(self, address: str, rank: int = 0, settings: Settings | None = None) -> None:
        self._address = address
        self._folder = Path(tempfile.mkdtemp(prefix="gradscope-"))
        self._local = RunWriter(self._folder, rank, settings)
        self._sent: dict[str, tuple[int, int]] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = False

    def begin(self, info: RunInfo) -> None:
        """Open the run; where it has been recorded before, go on as a restart. RunError if it can't be."""
        fetch(self._address, self._folder)
        self._sent = self._files()
        self._local.begin(info)
        self._thread = threading.Thread(target=self._keep_sending, daemon=True)
        self._thread.start()

    def update(self, info: RunInfo) -> None:
        """Replace what run.json says."""
        self._local.update(info)

    def append(self, record: StepRecord) -> None:
        """Add one step."""
        self._local.append(record)

    def event(self, event: Event) -> None:
        """Add one event."""
        self._local.event(event)

    def close(self, status: Status, exception: str = "") -> None:
        """End the run and send the rest; harmless a second time."""
        try:
            self._local.close(status, exception)
        finally:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._end.set()
                thread.join(PATIENCE)  # a network that hangs must not hold up the end of a training
                if thread.is_alive():
                    self._say_what_stays("it takes too long")
                elif not self._failed:
                    shutil.rmtree(self._folder, ignore_errors=True)

    def _keep_sending(self) -> None:
        ended, failures = False, 0
        while not (ended and failures == 0) and not self._failed:
            ended = self._end.wait(INTERVAL if self._sent else 0.1)
            try:
                self._send()
                failures = 0
            except Exception as error:
                failures += 1
                self._failed = failures == ATTEMPTS
                if self._failed:
                    self._say_what_stays(f"{type(error).__name__}: {error}")

    def _say_what_stays(self, reason: str) -> None:
        warnings.warn(
            f"gradscope can't send the run to {self._address} ({reason}); it stays in {self._folder}",
            stacklevel=3,
        )

    def _send(self) -> None:
        """Send what is new or has changed, then take away what is no longer here: journals that are sealed.

        In the writer's order, so that a reader meanwhile finds every step.
        """
        system, root = file_system(self._address)
        now = self._files()
        for name in sorted(now, key=_turn):
            if self._sent.get(name) != now[name]:
                with suppress(FileNotFoundError):  # sealed since it was listed
                    system.pipe_file(f"{root}/{name}", (self._folder / name).read_bytes())
                    self._sent[name] = now[name]
        for name in [name for name in self._sent if name not in now]:
            del self._sent[name]
            with suppress(FileNotFoundError):
                system.rm_file(f"{root}/{name}")

    def _files(self) -> dict[str, tuple[int, int]]:
        """Return the folder's files with their size and time of change."""
        found = {}
        for place, _, names in os.walk(self._folder):
            for name in names:
                path = Path(place, name)
                with suppress(FileNotFoundError):
                    if not name.startswith("."):
                        facts = path.stat()
                        found[path.relative_to(self._folder).as_posix()] = (facts.st_size, facts.st_mtime_ns)
        return found


def _turn(name: str) -> int:
    """Return a file's turn by its folder; one that isn't the writer's may lie at the address, too."""
    folder = name.rpartition("/")[0]
    return _TURNS.index(folder) if folder in _TURNS else len(_TURNS)
