"""gradscope's own failures: one warning, an event where it can be written, training equal to the bit."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.observe import recorder
from gradscope.store import journal

ROOT = Path(__file__).parents[1]


def train(run: Path | None, steps: int = 8) -> tuple[list[Tensor], Tensor]:
    """Return the weights and the random state after a few steps; no hook may be left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scope: Any = gradscope.watch(model, optimizer, run, every_n_steps=1, verbose=False)
    if run:
        scope.__enter__()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(6, 4)).square().mean()
        loss.backward()
        optimizer.step()
        if run:
            scope.step(loss)
    if run:
        scope.__exit__(None, None, None)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    return [item.detach().clone() for item in model.parameters()], torch.get_rng_state()


def check_harmless(run: Path) -> str:
    """Train bare and watched; return the one warning."""
    bare, bare_random = train(None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen, seen_random = train(run)
    assert all(torch.equal(left, right) for left, right in zip(bare, seen, strict=True))
    assert torch.equal(bare_random, seen_random)
    assert len(caught) == 1
    assert "training goes on" in str(caught[0].message)
    return str(caught[0].message)


def failing_after(calls: int, real: Any, error: Exception) -> Any:
    left = [calls]

    def call(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("records", [0, 1, 3])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: int) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(journal.os, "writev", failing_after(records, os.writev, full))
    assert "No space left" in check_harmless(tmp_path / "run")
    monkeypatch.undo()
    run = gradscope.read_run(tmp_path / "run")
    assert len(run.steps) == max(0, records - 1)  # the journal's header is written first
    assert run.info.status == "failed"
    assert [event.kind for event in run.events] == ["recorder-failure"]


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "file" in check_harmless(tmp_path / "file" / "run")


def test_a_directory_that_is_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    monkeypatch.setattr(journal.os, "writev", failing_after(2, os.writev, gone))
    assert "No such file" in check_harmless(tmp_path / "run")


@pytest.mark.parametrize("good", [0, 2])
def test_a_bug_in_a_statistic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    bug = ZeroDivisionError("a bug")
    monkeypatch.setattr(recorder, "norms_of_step", failing_after(good, recorder.norms_of_step, bug))
    assert "ZeroDivisionError: a bug" in check_harmless(tmp_path / "run")
    run = gradscope.read_run(tmp_path / "run")
    assert len(run.steps) == good
    assert [(event.kind, event.step) for event in run.events] == [("recorder-failure", good)]


PROGRAM = """
import sys, time, torch, gradscope
from torch import nn
model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
try:
    with gradscope.watch(model, optimizer, sys.argv[1], every_n_steps=1, verbose=False) as scope:
        for step in range(10**9):
            optimizer.zero_grad()
            loss = model(torch.randn(3, 4)).square().mean()
            loss.backward()
            optimizer.step()
            scope.step(loss)
            if step == 5:
                print("going", flush=True)
finally:
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
    print("hooks left:", hooks, len(optimizer._optimizer_step_pre_hooks), flush=True)
"""


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_asked_to_end(tmp_path: Path, asked: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    process.send_signal(asked)
    said, _ = process.communicate(timeout=60)
    run = gradscope.read_run(tmp_path / "run")
    assert len(run.steps) >= 6
    assert run.problems == ()
    if asked is signal.SIGINT:
        assert said == "hooks left: 0 0\n"
        assert run.info.status == "interrupted"
    else:  # a plain loop is ended by it at once; what was recorded stays
        assert process.returncode == -signal.SIGTERM
        assert run.info.status == "running"
