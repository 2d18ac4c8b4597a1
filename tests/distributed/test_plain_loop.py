"""Two real processes train one model: merged statistics are those of one process on the whole batch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from gradscope import read_run
from gradscope.records import Run
from tests.distributed.launching import launch
from tests.distributed.programs import BATCH, CLIP, RANKS, WRAPPERS, batches, build, train
from tests.distributed.sameness import check_same
from tests.observe.oracle import layers_of_step

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the run of one process that trains on the global batches, in float64."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(build().double(), path, lambda batch: (batch[0].double(), batch[1]))
    return read_run(path)


@pytest.fixture(scope="module", params=WRAPPERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    assert launch(f"plainly-{request.param}", folder) == [0] * RANKS
    return folder


def test_merged_statistics_are_those_of_one_process(trained: Path, whole: Run) -> None:
    run = read_run(trained / "run")
    assert run.problems == ()
    assert run.info.ranks == RANKS
    check_same(run, whole)


def test_the_merged_cosine_is_the_mean_of_those_within_each_rank_s_samples(trained: Path) -> None:
    """Samples of two ranks are never compared: that would take a collective."""
    seen = read_run(trained / "run").layer_table("activation_cosine").iloc[0]
    x, size = batches()[0][0], BATCH // RANKS
    parts = []
    for rank in range(RANKS):
        model = build().double()
        mine = x[rank * size : (rank + 1) * size].double()
        parts.append(layers_of_step(model, list(seen.index), lambda net=model, own=mine: net(own)))
    expected = [sum(rows[name]["activation_cosine"] for rows in parts) / RANKS for name in seen.index]
    assert seen.tolist() == pytest.approx(expected, abs=1e-5)


def test_the_gradient_norm_is_that_of_a_plain_float64_computation(trained: Path) -> None:
    model, (x, y) = build().double(), batches()[0]
    cross_entropy(model(x.double()), y).backward()
    norm = math.sqrt(
        sum(float(item.grad.square().sum()) for item in model.parameters() if item.grad is not None)
    )
    steps = read_run(trained / "run").steps
    assert steps["grad_norm"][0] == pytest.approx(norm, rel=1e-5)
    assert steps["clipped_grad_norm"][0] == pytest.approx(CLIP, rel=1e-4)
    assert steps["clip_coefficient"][0] == pytest.approx(CLIP / norm, rel=1e-4)


def test_training_is_equal_to_the_bit_and_takes_no_further_collective(trained: Path) -> None:
    for rank in range(RANKS):
        bare = torch.load(trained / f"bare-{rank}.pt")
        seen = torch.load(trained / f"watched-{rank}.pt")
        assert all(
            torch.equal(left, right) for left, right in zip(bare["weights"], seen["weights"], strict=True)
        )
        assert torch.equal(bare["random"], seen["random"])
        assert sum(bare["collectives"].values()) > 0
        assert bare["collectives"] == seen["collectives"]


def test_each_rank_writes_its_own_files(trained: Path) -> None:
    for table in ("steps", "layers", "parameters"):
        names = [path.name for path in (trained / "run" / table).glob("*.parquet")]
        assert len(names) == len(set(names)) == RANKS
    assert not list((trained / "run" / "live").iterdir())


def test_a_killed_rank_leaves_a_run_that_reads(tmp_path: Path) -> None:
    statuses = launch("killed", tmp_path)
    assert statuses[1] == -9
    run = read_run(tmp_path / "run")
    assert run.info.status == "failed"
    assert "rank 1 recorded nothing after step 3; later figures cover the others" in run.problems or not any(
        run.steps["step"] > 3
    )
    assert run.steps["step"].tolist()[:4] == [0, 1, 2, 3]
    assert np.isfinite(run.parameter_table("gradient_norm").iloc[:4].to_numpy()).all()


def test_watching_on_one_rank_only_hangs_nothing_and_is_said(tmp_path: Path) -> None:
    assert launch("alone", tmp_path) == [0] * RANKS
    run = read_run(tmp_path / "run")
    assert run.problems == ("nothing was recorded by rank 1 of 2; the figures cover the others",)
    assert run.info.status == "finished"
