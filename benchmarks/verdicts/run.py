"""Train, record and judge every program with gradscope and its peers; print who is right.

    python benchmarks/verdicts/run.py [--quick] [--only PATTERN] [--split held-out] [--seeds 3] [--jobs 2]

Runs are kept under benchmarks/verdicts/runs and trained again only where a program's source has changed:
after a change to the recorder, give --fresh. A full run writes labels.csv and the tables of README.md.
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

from benchmarks.verdicts import programs, recording, scoring
from benchmarks.verdicts.judging import GRADSCOPE, TOOLS, Judgement, judge
from benchmarks.verdicts.program import Label, Program, improvement, label
from benchmarks.verdicts.recording import Recorded
from benchmarks.verdicts.scoring import Judged
from gradscope import read_run
from gradscope.store import find_run

HERE = Path(__file__).parent
QUICK = (
    "mlp-relu-he",
    "mlp-sigmoid-10",
    "mlp-root-of-negative",
    "mlp-safe-root",
    "mlp-he-20",
    "regression-friedman",
    "regression-sgd-lr-3",
    "regression-sgd-lr-1e-5",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark as the command line asks."""
    options = _parse(arguments)
    started = time.perf_counter()
    names = chosen(options.split, options.only, options.quick)
    if options.fresh:
        shutil.rmtree(recording.RUNS, ignore_errors=True)
    if not options.judge_only:
        _record(names, options.seeds, options.jobs)
    runs = judge_all(names, options.seeds, options.jobs)
    for split in ("held-out", "tuning"):
        print(_section(split, [run for run in runs if run.family in programs.SPLITS[split]]))
    print(f"{len(runs)} runs in {(time.perf_counter() - started) / 60:.1f} min")
    if not (options.only or options.quick) and options.split == "all":
        _write(runs)
    return 0


def chosen(split: str, only: str, quick: bool) -> list[str]:
    """Return the names of the programs asked for, with the twins that their labels need."""
    names = [program.name for family in programs.SPLITS[split].values() for program in family]
    if quick:
        names = list(QUICK)
    wanted = [name for name in names if fnmatch(name, only or "*")]
    for name in wanted:  # grows while we read it: a twin may have a twin
        twin = programs.PROGRAMS[name].twin
        if twin and twin not in wanted:
            wanted.append(twin)
    return wanted


def judge_all(names: Sequence[str], seeds: int, jobs: int) -> list[Judged]:
    """Label what is recorded, and let every tool judge it; borderline runs are left out of the counts."""
    found = [recording.find(name, seed) for name in names for seed in range(seeds)]
    known = [recorded for recorded in found if recorded.outcome and _reference(recorded) is not None]
    if jobs == 1:
        return [_judged(recorded, _judge(recorded)) for recorded in known]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return [_judged(*pair) for pair in zip(known, pool.map(_judge, known, chunksize=4), strict=True)]


def _record(names: Sequence[str], seeds: int, jobs: int) -> None:
    total = len(names) * seeds
    for number, recorded in enumerate(recording.record_all(names, seeds, jobs), start=1):
        if recorded.error:
            print(f"{recorded.name} (seed {recorded.seed}) could not be recorded: {recorded.error}")
        if number % 25 == 0:
            print(f"recorded {number} of {total}", flush=True)


def _reference(recorded: Recorded) -> float | None:
    """Return the score that a run is compared with: its twin's of the same seed, or its program's target."""
    program = programs.PROGRAMS[recorded.name]
    if program.twin is None:
        return program.target
    twin = recording.find(program.twin, recorded.seed).outcome
    return twin.score if twin else None


def _labelled(recorded: Recorded) -> tuple[float, Label]:
    """Return the share of the twin's improvement that a run reached, and its label."""
    outcome, reference = recorded.outcome, _reference(recorded)
    assert outcome is not None
    assert reference is not None
    share = improvement(outcome, reference)
    return share, label(share, programs.PROGRAMS[recorded.name].is_control)


def _judge(recorded: Recorded) -> dict[str, Judgement]:
    """Ask every tool; borderline runs aren't counted, so they aren't judged."""
    kind = _labelled(recorded)[1]
    if kind == "borderline":
        return {}
    run = read_run(find_run(recorded.path / "run"))
    trace = recorded.outcome.trace if recorded.outcome else ()
    return {tool: judge(tool, run, trace, when=kind == "ailing") for tool in TOOLS}


def _judged(recorded: Recorded, said: dict[str, Judgement]) -> Judged:
    program = programs.PROGRAMS[recorded.name]
    return Judged(program, programs.FAMILY[recorded.name], recorded.seed, *_labelled(recorded), said)


def _section(split: str, runs: Sequence[Judged]) -> str:
    if not runs:
        return ""
    counts = {kind: sum(run.label == kind for run in runs) for kind in ("healthy", "ailing", "borderline")}
    parts = [
        f"### {split.capitalize()} families",
        f"{len({run.program.name for run in runs})} programs, {len(runs)} runs: {counts['healthy']} healthy, "
        f"{counts['ailing']} ailing, {counts['borderline']} borderline (in no column).",
        scoring.table(runs),
        f"gradscope by family (hits / runs counted; for false alarms, fewer is better):\n\n"
        f"{scoring.by_family(runs, GRADSCOPE)}",
        "Every miss of gradscope:\n\n" + "\n".join(f"- {line}" for line in scoring.misses(runs, GRADSCOPE)),
    ]
    return "\n\n".join(parts) + "\n"


def _write(runs: Sequence[Judged]) -> None:
    """Write the labels, and the tables into README.md between its markers."""
    with (HERE / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["family", "program", "seed", "score", "chance", "share of twin", "label", "causes"])
        writer.writerows(_label_row(run.program, run) for run in runs)
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition("<!-- results -->")
    after = rest.partition("<!-- end of results -->")[2]
    sections = [
        _section(split, [run for run in runs if run.family in programs.SPLITS[split]])
        for split in ("held-out", "tuning")
    ]
    results = "\n".join(sections)
    readme.write_text(f"{before}<!-- results -->\n\n{results}\n<!-- end of results -->{after}")


def _label_row(program: Program, run: Judged) -> list[object]:
    outcome = recording.find(program.name, run.seed).outcome
    assert outcome is not None
    figures = [f"{outcome.score:.4g}", f"{outcome.chance:.4g}", f"{run.share:.3g}"]
    return [run.family, program.name, run.seed, *figures, run.label, " ".join(program.causes)]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a few programs of the tuning families, one seed"
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="programs whose names match")
    parser.add_argument("--split", choices=list(programs.SPLITS), default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--judge-only", action="store_true", help="train nothing: judge what is recorded")
    parser.add_argument("--fresh", action="store_true", help="forget all recorded runs first")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds = 1
    return options


if __name__ == "__main__":
    sys.exit(main())
