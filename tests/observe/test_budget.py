"""The account of what recording costs, on a clock of the test's own."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from gradscope import Settings
from gradscope.errors import SettingsError
from gradscope.observe import Recorder
from gradscope.observe.budget import Budget
from tests.observe.sinks import MemorySink


def simulate(share: float | None, steps: int, plain: float, own: float, hidden: float = 0.0) -> list[int]:
    """Return which steps were recorded; such a step takes `own + hidden` longer, and says `own`."""
    budget, recorded = Budget(share), []
    for step in range(steps):
        if budget.affords():
            recorded.append(step)
            budget.note(plain + own + hidden, own)
        else:
            budget.note(plain, None)
    return recorded


@pytest.mark.parametrize("share", [0.01, 0.02, 0.1])
@pytest.mark.parametrize("own", [0.002, 0.5, 3.0])
def test_recorded_steps_are_spaced_so_that_the_budget_holds(share: float, own: float) -> None:
    steps = 4000
    recorded = simulate(share, steps, 1.0, own)
    cost = len(recorded) * own
    assert recorded[:2] == [0, 1]
    assert cost <= share * (steps + cost) + 2 * own  # the first two are granted
    assert len(recorded) == steps or cost >= 0.9 * share * steps - own


def test_time_that_hooks_cost_outside_of_our_code_is_counted() -> None:
    recorded = simulate(0.02, 4000, 1.0, 0.1, hidden=0.4)
    assert len(recorded) * 0.5 == pytest.approx(0.02 * 4000, rel=0.1)


def test_without_a_budget_everything_is_recorded() -> None:
    assert simulate(None, 50, 1.0, 9.0) == list(range(50))


def test_a_slow_moment_of_the_machine_is_not_charged() -> None:
    budget = Budget(0.02)
    for step in range(400):
        if budget.affords():
            budget.note(100.0 if step < 2 else 1.1, 0.1)
        else:
            budget.note(50.0 if step % 40 == 39 else 1.0, None)
    assert budget.share_spent() < 0.03


@pytest.mark.parametrize("bad", [0, -0.1, 1.5, True, "2%"])
def test_a_budget_that_means_nothing_is_refused(bad: object) -> None:
    with pytest.raises(SettingsError, match="overhead_budget"):
        Settings(overhead_budget=bad)  # type: ignore[arg-type]


def test_a_training_within_its_budget_says_what_recording_cost() -> None:
    model, sink = nn.Sequential(*(nn.Linear(8, 8) for _ in range(10))), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    observer = Recorder(model, [optimizer], sink, Settings(every_n_steps=1, overhead_budget=0.05))
    observer.start()
    for _ in range(200):
        observer.begin_step()
        model(torch.randn(4, 8)).sum().backward()
        observer.before_update(optimizer)
        optimizer.step()
        time.sleep(0.001)
        observer.end_step({})
    observer.stop("finished")
    assert 3 <= len(sink.records) < 200
    assert 0 < sink.info.training["overhead_share"] < 0.35


def test_describing_the_model_once_does_not_use_the_budget_up() -> None:
    budget, recorded = Budget(0.02), 0
    for step in range(600):
        affordable = budget.affords()
        recorded += affordable
        budget.note(
            1.0 + (20.0 if step == 0 else 0.2 * affordable),
            (20.0 if step == 0 else 0.2) if affordable else None,
        )
    assert recorded == pytest.approx(0.02 * 600 / 0.2, rel=0.1)
    assert budget.share_spent() == pytest.approx(0.02 + 20 / 600, rel=0.1)  # what it took is told whole
