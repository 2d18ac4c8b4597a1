"""Thirty trainings killed at random moments: each lost at most the step in flight."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gradscope.store import read_run

ROOT, KILLS = Path(__file__).parents[2], 30

# One process forks them all, as importing torch thirty times would take a minute.
PROGRAM = """
import json, os, random, signal, sys, time
import torch
from torch import nn
import gradscope
torch.set_num_threads(1)


def train(run, said, steps=10**9):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with gradscope.watch(model, optimizer, run, every_n_steps=1, verbose=False, segment_steps=7) as scope:
        for step in range(steps):
            optimizer.zero_grad()
            loss = model(torch.randn(6, 4)).square().mean()
            loss.backward()
            optimizer.step()
            scope.step(loss)
            os.write(said, b"%d\\n" % step)


train(f"{sys.argv[1]}/first", os.open(os.devnull, os.O_WRONLY), 20)  # so that everything is imported
chance, ends = random.Random(0), []
for number in range(int(sys.argv[2])):
    heard, said = os.pipe()
    child = os.fork()
    if not child:
        os.close(heard)
        train(f"{sys.argv[1]}/{number}", said)
    os.close(said)
    first = os.read(heard, 1)
    time.sleep(chance.uniform(0.0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(heard, "rb") as file:
        lines = (first + file.read()).split(b"\\n")[:-1]
    ends.append(int(lines[-1]) if lines else -1)
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """Return the folder of the runs, and the last step that each training said it had finished."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(KILLS)], cwd=ROOT, capture_output=True, check=True
    )
    return folder, json.loads(done.stdout)


def test_each_lost_at_most_the_step_in_flight(ends: tuple[Path, list[int]]) -> None:
    folder, last = ends
    assert len(last) == KILLS
    assert len(set(last)) > 5  # they were killed at different moments
    for number, step in enumerate(last):
        run = read_run(folder / str(number))
        assert run.problems == ()
        assert run.info.status == "running"
        assert run.steps["step"].tolist() == list(range(len(run.steps)))
        assert len(run.steps) in (step + 1, step + 2)
        assert run.layer_table("activation_rms").notna().all(axis=None)
        assert run.parameter_table("update_norm").notna().all(axis=None)
        assert len(run.layer_table("calls")) == len(run.steps)
