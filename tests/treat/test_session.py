"""Treatments as the command line runs them: the user's own module, a time limit, Ctrl-C in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradscope.errors import GradscopeError
from gradscope.treat.session import patient_of_module

ROOT = Path(__file__).parents[2]

# One module of a user's, plain, and one with Lightning; the rate makes both ill.
PLAIN = """
import torch
from torch import nn

def build():
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    return model, torch.optim.SGD(model.parameters(), lr=100.0), nn.CrossEntropyLoss()

def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(16, 32, 6, generator=generator)
    return [(x, (x[:, 0] > 0).long()) for x in inputs]

def patient():
    return build, batches
"""
LIGHTNING = (
    PLAIN
    + """
import pytorch_lightning as pl

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = build()[0]

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=100.0)

def patient():
    return Net, batches
"""
)
FINE = """
def returns_nothing(): pass
def raises(): raise ValueError("no data")
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "gradscope", "treat", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def treat(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder; standard output and error come together."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_a_module_of_the_users_own_is_treated(tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text(PLAIN)
    done = treat(tmp_path, "training:patient", "--steps", 20, "--seeds", 2)
    assert done.returncode == 0, done.stdout
    assert "Repaired" in done.stdout
    assert "paste" in done.stdout
    assert (tmp_path / "gradscope_treatment" / "patient" / "treatment.html").exists()


@pytest.mark.parametrize("source", [PLAIN, LIGHTNING], ids=["plain", "lightning"])
def test_after_ctrl_c_the_same_command_goes_on(tmp_path: Path, source: str) -> None:
    (tmp_path / "training.py").write_text(source)
    arguments = ("training:patient", "--steps", 100, "--seeds", 2, "--time-limit", "inf", "-o", "out")
    running = subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    started = time.monotonic()
    while not (kept := sorted(tmp_path.glob("out/patient/*/seed-0/trial.json"))):
        assert running.poll() is None
        assert time.monotonic() < started + 60
        time.sleep(0.02)
    before = {path: path.read_text() for path in kept}
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "patient" / "treatment.html").exists()
    done = treat(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout
    assert {path: path.read_text() for path in kept} == before
    assert "treatment.html" in done.stdout


def test_a_time_limit_keeps_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text(PLAIN)
    arguments = ("training:patient", "--steps", 20, "--seeds", 2, "-o", "out")
    done = treat(tmp_path, *arguments, "--time-limit", 1e-6)
    assert done.returncode == 0, done.stdout
    trials = list((tmp_path / "out").glob("*/*/seed-*/trial.json"))
    assert len(trials) == 1
    assert len(json.loads(trials[0].read_text())["losses"]) == 20
    assert (tmp_path / "out" / "patient" / "treatment.html").exists()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("broken:patient", "broken can't be imported: NameError"),
        ("missing:patient", "missing can't be imported"),
        ("fine:missing", "fine has no function missing"),
        ("fine:raises", "fine:raises failed: ValueError: no data"),
        ("fine:returns_nothing", "must return (build, data)"),
    ],
)
def test_what_is_wrong_with_the_users_module_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, said: str
) -> None:
    (tmp_path / "broken.py").write_text("1 / ZERO")
    (tmp_path / "fine.py").write_text(FINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(GradscopeError, match=re.escape(said)):
        patient_of_module(target)
