"""Run experiments with several seeds and print how far each claim stays from its limit, as Markdown."""

from __future__ import annotations

import argparse
import importlib

from page import Claim, measure

from gradscope.models.lecture import EXPERIMENTS


def main() -> None:
    names = [experiment.name for experiment in EXPERIMENTS]
    parser = argparse.ArgumentParser(prog="margins.py", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"experiments, all by default: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="the smaller versions")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    options = parser.parse_args()
    unknown = set(options.names) - set(names)
    if unknown:
        parser.error(f"there is no experiment {min(unknown)!r}; choose from: {', '.join(names)}")
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; give at least 1")
    for name in options.names or names:
        experiment = importlib.import_module(name.replace("-", "_")).experiment
        runs = [measure(experiment, options.quick, seed).claims for seed in range(options.seeds)]
        print(f"| {name} | expected | {' | '.join(f'seed {seed}' for seed in range(options.seeds))} |")
        print("|---" * (2 + options.seeds) + "|")
        for claims in zip(*runs, strict=True):
            print(_row(claims), flush=True)
        print()


def _row(claims: tuple[Claim, ...]) -> str:
    measured = [claim.measured if claim.holds else f"**{claim.measured}**" for claim in claims]
    return f"| {claims[0].statement} | {claims[0].expected} | {' | '.join(measured)} |"


if __name__ == "__main__":
    main()
