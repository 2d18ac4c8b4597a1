"""Runs at addresses, through fsspec's file system in memory."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytorch_lightning as pl
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gradscope
from gradscope.cli import gradscope as command
from gradscope.errors import RunError
from gradscope.store import address_of, find_runs, place_of, read_run, remote


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote.tempfile, "tempdir", str(tmp_path))
    MemoryFileSystem.store.clear()
    yield
    MemoryFileSystem.store.clear()


def train(
    run: Path | str | None, steps: int = 12, after: Callable[[], None] = lambda: None, **options: Any
) -> tuple[Path | None, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scope: Any = gradscope.watch(model, optimizer, run, verbose=False, every_n_steps=1, **options)
    if run:
        scope.__enter__()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(5, 3)).square().mean()
        loss.backward()
        optimizer.step()
        if run:
            scope.step(loss)
        after()
    if run:
        scope.__exit__(None, None, None)
    return scope.run_path, [item.detach() for item in model.parameters()]


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        (Path("s3://bucket/run"), "s3://bucket/run"),
        ("memory:///run/", "memory://run"),
        ("runs/first", None),
        ("/tmp/a:b", None),
        ("C:/runs", None),
        ("file:///tmp/run", None),
    ],
)
def test_what_is_an_address(place: Path | str, address: str | None) -> None:
    assert address_of(place) == address
    if address:
        assert str(place_of(place)) == str(place_of(Path(place))) == address
        assert str(place_of(place).with_name("other")).startswith(address.rpartition("/")[0] + "/")


def test_a_run_at_an_address_is_what_it_is_on_the_disk(tmp_path: Path) -> None:
    bare, local = train(None), train(tmp_path / "run", segment_steps=5)
    path, weights = train("memory://runs/one", segment_steps=5)
    assert all(torch.equal(left, right) for left, right in zip(bare[1], weights, strict=True))
    assert str(path) == "memory://runs/one"
    run, other = read_run(path), read_run(tmp_path / "run")
    assert run.problems == ()
    assert run.info.status == "finished"
    assert str(run.path) == "memory://runs/one"
    assert run.layer_table("signal_rms").equals(other.layer_table("signal_rms"))
    assert run.parameter_table("update_norm").equals(other.parameter_table("update_norm"))
    assert sorted(os.listdir(tmp_path)) == ["run"]  # nothing is left behind
    assert local[0] == tmp_path / "run"


def test_a_second_run_never_overwrites_the_first_and_the_newest_is_found() -> None:
    first, second = train("memory://runs/one", 3)[0], train("memory://runs/one", 4)[0]
    assert str(second) == "memory://runs/one-2"
    assert [len(read_run(run).steps) for run in (first, second)] == [3, 4]
    assert find_runs("memory://runs") == [second, first]
    assert find_runs("memory://runs/one/run.json") == [first]


def test_a_run_is_read_while_it_is_written_and_loses_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "INTERVAL", 0.02)
    seen: list[int] = []

    def slowly() -> None:
        time.sleep(0.03)
        if MemoryFileSystem.store:
            run = read_run("memory://runs/one")
            assert run.info.status == "running"
            assert run.steps["step"].tolist() == list(range(len(run.steps)))
            seen.append(len(run.steps))

    train("memory://runs/one", 20, slowly, segment_steps=4)
    assert seen == sorted(seen)
    assert 4 < seen[-1] <= 20
    run = read_run("memory://runs/one")
    assert len(run.steps) == 20
    assert not [name for name in MemoryFileSystem.store if "/live/" in name]


def test_a_restart_stands_files_that_somebody_else_put_beside_the_run() -> None:
    path = train("memory://runs/one")[0]
    MemoryFileSystem().pipe_file("runs/one/figures/loss.png", b"a picture")
    writer = remote.writer_of(path)
    writer.begin(read_run(path).info)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.close("finished")
    assert read_run(path).info.restarts == 1
    assert MemoryFileSystem().cat_file("runs/one/figures/loss.png") == b"a picture"


def test_a_network_that_fails_is_one_warning_and_the_run_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise TimeoutError("no route")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)
    bare = train(None)[1]
    with pytest.warns(UserWarning, match="can't send the run to memory://runs/one .*no route") as caught:
        weights = train("memory://runs/one")[1]
    assert len(caught) == 1
    assert all(torch.equal(left, right) for left, right in zip(bare, weights, strict=True))
    (left,) = tmp_path.glob("gradscope-*")
    assert len(read_run(left).steps) == 12
    assert read_run(left).info.status == "finished"


def test_a_network_that_fails_once_or_hangs_harms_neither_run_nor_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send, failures = remote.RemoteWriter._send, iter([OSError("a moment"), None])

    def fails_once(writer: remote.RemoteWriter) -> None:
        if (error := next(failures, None)) is not None:
            raise error
        send(writer)

    monkeypatch.setattr(remote.RemoteWriter, "_send", fails_once)
    train(f"memory://{uuid4().hex}/once")
    released = threading.Event()
    monkeypatch.setattr(remote, "PATIENCE", 0.1)
    monkeypatch.setattr(remote.RemoteWriter, "_send", lambda writer: released.wait(30))
    with pytest.warns(UserWarning, match="it takes too long"):
        train(f"memory://{uuid4().hex}/hangs")
    released.set()


def test_what_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(RunError, match="memory://nothing is not a run"):
        read_run("memory://nothing")
    with pytest.raises(RunError, match="memory://nothing holds no run"):
        find_runs("memory://nothing")
    with pytest.raises(RunError, match="nosuch://a/b can't be reached"):
        read_run("nosuch://a/b")
    with pytest.warns(UserWarning, match="stopped recording .*nosuch://a/b can't be reached"):
        train("nosuch://a/b")


def test_the_report_of_a_run_at_an_address_goes_into_the_current_directory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train("memory://runs/one")
    assert command(["report", "memory://runs"], standalone_mode=False) == 0
    assert "memory://runs/one" in (tmp_path / "one.html").read_text()
    assert "memory://runs/one (the only run in memory:" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_lightning_with_a_remote_root_resumes_there(tmp_path: Path) -> None:
    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 1)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    def fit(epochs: int, checkpoint: Path | None) -> Path | None:
        scope = gradscope.GradScope(every_n_steps=1, verbose=False)
        trainer = pl.Trainer(
            default_root_dir="memory://root",
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[scope, pl.callbacks.ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)],
        )
        trainer.fit(Net(), DataLoader(torch.randn(12, 3), batch_size=4), ckpt_path=checkpoint)
        return scope.run_path

    first = fit(1, None)
    assert str(first).startswith("memory://root/gradscope_runs/run-")
    assert fit(2, tmp_path / "last.ckpt") == first
    assert first is not None
    run = read_run(first)
    assert run.steps["step"].tolist() == list(range(6))
    assert run.info.restarts == 1
    assert not (tmp_path / "memory:").exists()
