"""Read a run directory, in whatever state it is: running, crashed, finished, damaged in parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from gradscope.errors import RunError
from gradscope.records import FORMAT_VERSION, Event, Run, RunInfo
from gradscope.store.documents import DocumentError, format_version, load_event, load_info
from gradscope.store.parts import Part, read_parts
from gradscope.store.remote import address_of, fetch, place_of
from gradscope.store.schema import LAYERS, PARAMETERS, STEPS, TABLES, rank_of_events
from gradscope.store.tables import Restarts, assemble, restarts, with_all_steps, with_whole_norms


def read_run(path: Path | str) -> Run:
    """Read everything that a run directory holds; what can't be read is said in the run's problems.

    RunError, one line that says what to do, if there is no run or its format is newer than this gradscope.
    """
    address = address_of(path)
    if address is not None:
        return _read_remote(address)
    path = Path(path)
    info = read_info(path)
    parts, problems = read_parts(path)
    cut = restarts(parts, info.ranks)
    layer_statistics = assemble(LAYERS, parts, cut, {layer.name: 0 for layer in info.layers})
    parameter_statistics = assemble(
        PARAMETERS, parts, cut, {item.name: item.size for item in info.parameters}
    )
    steps = assemble(STEPS, parts, cut)
    if any(part.name.rank for part in parts):
        steps = with_whole_norms(steps, parameter_statistics)
    steps = with_all_steps(steps, (layer_statistics, parameter_statistics))
    events, damaged = _read_events(path, cut)
    said = (*problems, *damaged, *_rank_problems(info, parts))
    return Run(path, info, steps, layer_statistics, parameter_statistics, events, said)


def _read_remote(address: str) -> Run:
    with TemporaryDirectory(prefix="gradscope-") as folder:
        fetch(address, Path(folder))
        for name in ("live", *(table.name for table in TABLES)):  # an address has no empty folders
            Path(folder, name).mkdir(exist_ok=True)
        if not (Path(folder) / "run.json").exists():
            raise RunError(f"{address} is not a run: it has no run.json; give the address of a run")
        return replace(read_run(folder), path=place_of(address))


def read_info(path: Path) -> RunInfo:
    """Read run.json; RunError if it is missing, damaged, not gradscope's or of a newer format."""
    try:
        data = (path / "run.json").read_bytes()
        version = format_version(data)
        if version is not None and version <= FORMAT_VERSION:
            return load_info(data)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(_missing(path)) from None
    except OSError as error:
        raise RunError(f"cannot read {path / 'run.json'}: {error.strerror or error}") from None
    except DocumentError as error:
        raise RunError(
            f"{path / 'run.json'} is damaged ({error}); restore it, or read the tables with pandas"
        ) from None
    if version is None:
        raise RunError(f"{path} holds a run.json of another program; give a run that gradscope recorded")
    raise RunError(
        f"{path} has format version {version}, this gradscope reads up to {FORMAT_VERSION}; upgrade gradscope"
    )


def _missing(path: Path) -> str:
    if not path.exists():
        return f"there is no {path}; give the directory of a run"
    if not path.is_dir():
        return f"{path} is a file; give the directory of a run"
    return f"{path} is not a run: it has no run.json; give the directory of a run"


def _read_events(path: Path, cut: Restarts) -> tuple[tuple[Event, ...], list[str]]:
    """Return the events of all ranks by step; those of steps that a restart repeated are left out."""
    events: list[Event] = []
    problems: list[str] = []
    for file in sorted(path.glob("events*.jsonl")):
        rank = rank_of_events(file.name)
        if rank is None:
            continue
        try:
            lines = file.read_bytes().split(b"\n")[:-1]  # what follows the last newline is being written
        except OSError as error:
            problems.append(f"{file.name} was not read: {error.strerror or error}")
            continue
        loaded = [_load_event(line, rank, cut) for line in lines]
        events += [event for event in loaded if isinstance(event, Event)]
        if damaged := loaded.count("damaged"):
            problems.append(
                f"{file.name}: {damaged} damaged {'line was' if damaged == 1 else 'lines were'} left out"
            )
    return tuple(sorted(events, key=lambda event: event.step)), problems


def _load_event(line: bytes, rank: int, cut: Restarts) -> Event | Literal["undone", "damaged"]:
    try:
        event, attempt = load_event(line)
    except DocumentError:
        return "damaged"
    if event.step >= cut.limit(rank, attempt):
        return "undone"
    return replace(event, data={**event.data, "rank": rank}) if rank else event


def _rank_problems(info: RunInfo, parts: list[Part]) -> list[str]:
    """Name the ranks that recorded nothing, or stopped early; figures then cover the others only."""
    ends: dict[int, int] = {}
    for part in parts:
        last = max((int(rows.step.max()) for rows in part.rows.values() if len(rows.step)), default=-1)
        ends[part.name.rank] = max(last, ends.get(part.name.rank, -1))
    missing = [rank for rank in range(info.ranks) if rank not in ends]
    problems = []
    if ends and missing:
        names = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        problems.append(f"nothing was recorded by {names} of {info.ranks}; the figures cover the others")
    if info.status != "running":
        problems += [
            f"rank {rank} recorded nothing after step {end}; later figures cover the others"
            for rank, end in sorted(ends.items())
            if end < max(ends.values()) and rank < info.ranks
        ]
    return problems
