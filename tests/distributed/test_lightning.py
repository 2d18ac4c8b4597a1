"""Lightning's strategies over two real processes: the run says what one process would have recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gradscope import read_run
from tests.distributed.launching import launch
from tests.distributed.programs import RANKS
from tests.distributed.sameness import check_same

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", ["ddp", "fsdp1", "fsdp2"])
def test_a_fit_records_what_one_process_would_and_changes_nothing(kind: str, tmp_path: Path) -> None:
    from tests.distributed import fitting

    assert launch(f"lightning-{kind}", tmp_path) == [0] * RANKS
    fitting.fit("one", tmp_path / "whole", clipped=kind != "fsdp1")
    run, whole = read_run(tmp_path / "run"), read_run(tmp_path / "whole")
    assert run.problems == ()
    assert run.info.ranks == RANKS
    assert run.info.status == "finished"
    assert run.steps["micro_batches"].tolist() == [2, 2]
    check_same(run, whole)
    for rank in range(RANKS):
        bare, seen = (torch.load(tmp_path / f"{name}-{rank}.pt")["weights"] for name in ("bare", "watched"))
        assert all(torch.equal(left, right) for left, right in zip(bare, seen, strict=True))
