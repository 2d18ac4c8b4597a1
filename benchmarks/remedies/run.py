"""Try what gradscope prescribes on every ailing program of the verdict benchmark, beside two strategies.

    python benchmarks/remedies/run.py [--quick] [--only PATTERN] [--split held-out] [--seeds 3] [--jobs 2]
        [--alone]

Recorded runs are the verdict benchmark's own, recorded here where they are missing. Each trial is kept beside
them as soon as it is made, so that an interrupted benchmark goes on where it was, and made again only where
the program, the action, surgery or the trials' own source has changed.
A run of whole splits writes trials.csv and the tables of README.md.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.remedies import scoring
from benchmarks.remedies.judging import follow
from benchmarks.remedies.scoring import Treated
from benchmarks.remedies.strategies import GRADSCOPE, STRATEGIES
from benchmarks.verdicts import programs, recording
from benchmarks.verdicts.program import improvement, label
from gradscope import read_run
from gradscope.store import find_run

HERE = Path(__file__).parent
QUICK = ("mlp-sigmoid-10", "mlp-adam-lr-1e-6", "regression-sgd-lr-3", "regression-all-equal")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark as the command line asks."""
    options = _parse(arguments)
    started = time.perf_counter()
    names = [
        name
        for name in _chosen(options)
        if any(fnmatch(known, options.only or "*") for known in (name, programs.FAMILY[name]))
    ]
    if options.fresh:
        for old in recording.RUNS.glob("*/trials"):
            shutil.rmtree(old)
    strategies = (GRADSCOPE,) if options.alone else tuple(STRATEGIES)
    tasks = [(name, seed, options.all, strategies) for seed in range(options.seeds) for name in names]
    treated = [run for run in _map(tasks, options.jobs) if run is not None]
    print(_sections(treated))
    print(f"{len(treated)} ailing runs in {(time.perf_counter() - started) / 60:.1f} min")
    if not (options.only or options.quick or options.alone):
        _write(treated)
    return 0


def treat(task: tuple[str, int, bool, tuple[str, ...]]) -> Treated | None:
    """Record a program and its twin, and follow each strategy asked for; None if this run is not ailing."""
    import torch

    torch.set_num_threads(1)
    name, seed, to_the_end, strategies = task
    program = programs.PROGRAMS[name]
    recorded, twin = recording.record((name, seed)), recording.record((program.twin or "", seed))
    if recorded.outcome is None or twin.outcome is None:
        return None
    if label(improvement(recorded.outcome, twin.outcome.score), is_control=False) != "ailing":
        return None
    run = read_run(find_run(recorded.path / "run"))
    courses = {
        strategy: follow(
            name, seed, STRATEGIES[strategy](run, recorded), to_the_end and strategy == GRADSCOPE
        )
        for strategy in strategies
    }
    return Treated(name, programs.FAMILY[name], seed, courses)


def _chosen(options: argparse.Namespace) -> list[str]:
    """Return the programs that have a fault and a repaired twin, family by family in turn."""
    if options.quick:
        return list(QUICK)
    families = [
        [program.name for program in family if program.causes and program.twin]
        for family in (programs.FAMILIES[name] for name in programs.SPLITS[options.split])
    ]
    longest = max(map(len, families))
    return [family[place] for place in range(longest) for family in families if place < len(family)]


def _map(tasks: Sequence[tuple[str, int, bool, tuple[str, ...]]], jobs: int) -> list[Treated | None]:
    if jobs == 1:
        return [treat(task) for task in tasks]
    # Two programs may share a twin, which only one process may record.
    twins = {(programs.PROGRAMS[name].twin or "", seed) for name, seed, *_ in tasks}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        list(pool.map(recording.record, sorted(twins)))
        return list(pool.map(treat, tasks))


def _write(treated: Sequence[Treated]) -> None:
    """Write what came of every proposal, and the tables into README.md between its markers."""
    with (HERE / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["family", "program", "seed", "strategy", "place", "remedy", "share of twin", "refused"]
        )
        writer.writerows(row for run in treated for row in scoring.rows(run))
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition("<!-- results -->")
    after = rest.partition("<!-- end of results -->")[2]
    readme.write_text(f"{before}<!-- results -->\n\n{_sections(treated)}\n<!-- end of results -->{after}")


def _sections(treated: Sequence[Treated]) -> str:
    sections = (
        scoring.section(split, [run for run in treated if run.family in programs.SPLITS[split]])
        for split in ("held-out", "tuning")
    )
    return "\n".join(filter(None, sections))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four programs of the tuning families")
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="programs or families whose names match"
    )
    parser.add_argument("--split", choices=list(programs.SPLITS), default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--all", action="store_true", help="try all that gradscope prescribes, not only up to a repair"
    )
    parser.add_argument(
        "--alone", action="store_true", help="try gradscope's proposals only, without the other strategies"
    )
    parser.add_argument("--fresh", action="store_true", help="forget all trials first")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
