"""Measure peak memory of watched training against bare training: `python benchmarks/memory.py`.

Each training is a process of its own; what is compared is the peak resident size of the whole process, Python
and torch included, and the median over several of each, interleaved. The watched one is also judged while it
runs, and seals a segment of its run: both first happen after 32 recorded steps here.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

STEPS, SEGMENT, REPEATS = 40, 32, 5


def peak(workload: str, watched: bool, steps: int = STEPS) -> float:
    """Return the peak resident size in MiB of a process that trains a workload."""
    command = [sys.executable, __file__, "--train", workload, "--steps", str(steps)]
    done = subprocess.run(
        [*command, *(["--watched"] if watched else [])], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def train(name: str, steps: int, watched: bool) -> None:
    """Train here, every step recorded if watched, and print the peak."""
    import torch
    from torch.nn.functional import cross_entropy

    import gradscope.loop  # in bare training too: what is measured is observing, not importing
    from benchmarks.workloads import WORKLOADS

    torch.set_num_threads(1)
    torch.manual_seed(0)
    workload = next(item for item in WORKLOADS if item.name == name)
    model, (x, y) = workload.build(), workload.batch()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with tempfile.TemporaryDirectory() as folder:
        scope = gradscope.loop.watch(
            model, optimizer, Path(folder) / "run", every_n_steps=1, segment_steps=SEGMENT
        )
        with scope if watched else nullcontext():
            for _ in range(steps):
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                if watched:
                    scope.step(loss)
            reached = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(reached / 1024)


def compare(names: list[str], steps: int, repeats: int) -> None:
    """Print a table of medians."""
    print("| workload | bare, MiB | watched, MiB | ratio |\n|---|---|---|---|")
    for name in names:
        pairs = [(peak(name, False, steps), peak(name, True, steps)) for _ in range(repeats)]
        bare, seen = (median(values) for values in zip(*pairs, strict=True))
        print(f"| {name} | {bare:.1f} | {seen:.1f} | {seen / bare:.3f} |", flush=True)


def main() -> None:
    """Train one workload, or compare all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", metavar="WORKLOAD", help="train this one here and print its peak")
    parser.add_argument("--watched", action="store_true", help="with --train: every step recorded")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("workloads", nargs="*", default=["mlp", "tiny", "resnet", "gpt"])
    asked = parser.parse_args()
    if asked.train:
        train(asked.train, asked.steps, asked.watched)
    else:
        compare(asked.workloads, asked.steps, asked.repeats)


if __name__ == "__main__":
    main()
