"""A process killed at any moment loses at most the step in flight."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradscope.store import read_run
from tests.store.recording import write

PROGRAM = """
import sys
from pathlib import Path
from tests.store.recording import begin, record
writer = begin(Path(sys.argv[1]), segment_steps=5)
for step in range(10**9):
    writer.append(record(step))
    print(step, flush=True)
"""


@pytest.fixture
def victim(tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("seed", range(3))
def test_kill_in_the_middle_of_writing(tmp_path: Path, victim: subprocess.Popen[str], seed: int) -> None:
    assert victim.stdout is not None
    first = victim.stdout.readline()
    time.sleep(random.Random(seed).uniform(0.01, 0.2))
    victim.send_signal(signal.SIGKILL)
    said = [
        int(line) for line in [first, *victim.stdout.read().splitlines(keepends=True)] if line[-1] == "\n"
    ]
    victim.stdout.close()
    assert victim.wait() == -signal.SIGKILL
    run = read_run(tmp_path / "run")
    assert run.problems == ()
    assert run.info.status == "running"
    assert run.steps["step"].tolist() == list(range(len(run.steps)))
    assert len(run.steps) in (said[-1] + 1, said[-1] + 2)
    assert len(run.layer_statistics) == 3 * len(run.steps)
    write(tmp_path / "run", range(len(run.steps), len(run.steps) + 3))
    resumed = read_run(tmp_path / "run")
    assert resumed.problems == ()
    assert len(resumed.steps) == len(run.steps) + 3


@pytest.mark.parametrize("fails_after", ["layers", "parameters", "steps"])
def test_a_crash_between_sealing_and_deleting_the_journal_duplicates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_after: str
) -> None:
    from gradscope.store import segments

    real = segments._place

    def crash(hidden: Path, path: Path) -> None:
        real(hidden, path)
        if path.parent.name == fails_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(segments, "_place", crash)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "run", range(4), segment_steps=4)
    monkeypatch.undo()
    run = read_run(tmp_path / "run")
    assert run.problems == ()
    assert run.steps["step"].tolist() == [0, 1, 2, 3]
    assert len(run.layer_statistics) == 12
    write(tmp_path / "run", range(4, 6))
    run = read_run(tmp_path / "run")
    assert run.problems == ()
    assert run.steps["step"].tolist() == list(range(6))
    assert len(run.layer_statistics) == 18
