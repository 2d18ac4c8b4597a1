"""Put every kind of fault into a healthy program of every tuning family; print which kinds gradscope sees.

    python benchmarks/verdicts/injections.py [--only PATTERN] [--seed 0] [--jobs 2] [--fresh]

An instrument for tuning the rules, no proof: what it misses is sorted by kind of fault, not by program. Runs
are kept under benchmarks/verdicts/runs/injected; after a change to faults.py, give --fresh. PATTERN is
matched with names such as mlp-relu-he+rate-x30.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.verdicts import programs, recording, scoring
from benchmarks.verdicts.faults import FAULTS, Fault, Inapplicable
from benchmarks.verdicts.judging import GRADSCOPE, judge
from benchmarks.verdicts.program import Outcome, Program, Setup, improvement, label
from benchmarks.verdicts.scoring import Judged
from gradscope import read_run
from gradscope.store import find_run

FOLDER = recording.RUNS / "injected"
LEFT = "inapplicable"


@dataclass(frozen=True)
class Injection:
    """A fault in a program, by their names, and the seed."""

    program: str
    fault: str
    seed: int

    @property
    def name(self) -> str:
        """Return program and fault."""
        return f"{self.program}+{self.fault}"

    @property
    def path(self) -> Path:
        """Return the folder in which it is recorded."""
        return FOLDER / f"{self.name}-{self.seed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Record and judge the injections that the command line asks for."""
    options = _parse(arguments)
    if options.fresh:
        shutil.rmtree(FOLDER, ignore_errors=True)
    hosts = [name for name in _hosts() if recording.record((name, options.seed)).outcome]
    chosen = [Injection(host, fault.name, options.seed) for fault in FAULTS for host in hosts]
    chosen = [item for item in chosen if fnmatch(item.name, options.only or "*")]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        judged = [run for run in pool.map(record_and_judge, chosen, chunksize=8) if run is not None]
    print("\n".join(scoring.misses(judged, GRADSCOPE)), end="\n\n")
    print(_counts(judged), end="\n\n")
    print(scoring.by_family(judged, GRADSCOPE))
    print(scoring.table(judged, (GRADSCOPE,)))
    return 0


def _hosts() -> Iterator[str]:
    """Yield each family's first reference that a plain loop trains."""
    for family in programs.TUNING.values():
        for program in family:
            if program.twin is None and program.is_control and _plain(program):
                yield program.name
                break


def _plain(program: Program) -> bool:
    setup = program.build()
    return isinstance(setup, Setup) and not setup.by_lightning


def record_and_judge(item: Injection) -> Judged | None:
    """Record an injection unless it is, and judge it; None where the fault can't be put into the program."""
    import torch

    torch.set_num_threads(1)
    fault = next(fault for fault in FAULTS if fault.name == item.fault)
    file = item.path / "outcome.json"
    if not file.exists():
        content = _train(item, fault)
        item.path.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    content = json.loads(file.read_text())
    twin = recording.find(item.program, item.seed).outcome
    if LEFT in content or twin is None:
        return None
    program = Program(item.name, Setup, item.program, fault.causes, tuple(content.pop("where")))
    share = improvement(Outcome(**content), twin.score)
    said = judge(GRADSCOPE, read_run(find_run(item.path / "run")), ())
    return Judged(program, fault.name, item.seed, share, label(share, False), {GRADSCOPE: said})


def _train(item: Injection, fault: Fault) -> dict[str, object]:
    """Train and record; return how it ended, or why that was impossible."""
    from benchmarks.verdicts.training import train

    where: list[str] = []
    try:
        program = Program(item.name, partial(_build, item.program, fault, where))
        return asdict(train(program, item.seed, item.path / "run")) | {"where": where}
    except Inapplicable:
        return {LEFT: "the program has nothing of the kind"}
    except Exception as error:  # a fault may also break a program outright, which no verdict is about
        return {LEFT: f"{type(error).__name__}: {error}"}


def _build(host: str, fault: Fault, where: list[str]) -> Setup:
    setup = programs.PROGRAMS[host].build()
    assert isinstance(setup, Setup)
    mutated = fault.apply(setup)
    where.extend(mutated.where)
    return mutated.setup


def _counts(runs: Sequence[Judged]) -> str:
    kinds = ("healthy", "ailing", "borderline")
    return ", ".join(f"{sum(run.label == kind for run in runs)} {kind}" for kind in kinds)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", metavar="PATTERN", help="injections whose names match")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--fresh", action="store_true", help="forget all recorded injections first")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
