"""Start a program in several real processes that train together over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.distributed.programs import RANKS

ROOT = Path(__file__).parents[2]


def launch(scenario: str, folder: Path) -> list[int]:
    """Run a scenario on every rank; return the exit statuses and print what the processes said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [_start(scenario, folder, rank, port) for rank in range(RANKS)]
    try:
        for process in processes:
            print(process.communicate(timeout=120)[0])
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes]


def _start(scenario: str, folder: Path, rank: int, port: int) -> subprocess.Popen[str]:
    # Lightning takes these for torchrun's, and so starts no processes of its own.
    torchrun = {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": str(RANKS)}
    environment = {
        **os.environ,
        **torchrun,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.programs", scenario, str(folder)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
