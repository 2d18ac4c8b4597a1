"""What can be admitted to treatment, and the batches of its trials."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradscope.errors import GradscopeError
from gradscope.models import DeepMLP
from gradscope.treat.patient import Patient, admit, draw_batches


def build_plain() -> tuple[nn.Module, torch.optim.Optimizer, nn.Module]:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.2}]
    return model, torch.optim.SGD(groups, momentum=0.9), nn.CrossEntropyLoss()


def test_a_tuple_becomes_a_patient() -> None:
    patient = admit(build_plain, 0)
    assert isinstance(patient, Patient)


def test_an_optimizer_is_made_anew_for_a_changed_copy() -> None:
    patient = admit(build_plain, 0)
    assert isinstance(patient, Patient)
    changed = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    changed.add_module("new", nn.BatchNorm1d(2))
    made = patient.optimizer(changed)
    assert type(made) is torch.optim.SGD
    assert [group["lr"] for group in made.param_groups] == [0.1, 0.2]
    assert {id(item) for group in made.param_groups for item in group["params"]} == {
        id(item) for item in changed.parameters()
    }


def test_an_optimizer_goes_on_leaving_out_what_it_left_out() -> None:
    def build() -> Any:
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        return model, torch.optim.SGD(model[1].parameters(), lr=0.1), nn.CrossEntropyLoss()

    patient = admit(build, 0)
    assert isinstance(patient, Patient)
    made = patient.optimizer(patient.model)
    assert len(made.param_groups[0]["params"]) == 2


def test_a_seed_is_handed_on_and_the_same_seed_builds_the_same_model() -> None:
    def build(seed: int) -> DeepMLP:
        assert seed == 7
        return DeepMLP(depth=3)

    one, other = admit(build, 7), admit(build, 7)
    assert isinstance(one, DeepMLP)
    assert isinstance(other, DeepMLP)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


def test_what_is_no_model_is_refused_in_one_line() -> None:
    with pytest.raises(GradscopeError, match="must return a LightningModule"):
        admit(lambda: 3, 0)


def test_batches_are_the_same_for_the_same_seed_and_data_is_gone_through_again() -> None:
    loader = torch.utils.data.DataLoader(torch.arange(10), batch_size=4, shuffle=True)
    first, second = draw_batches(loader, 7, 3), draw_batches(loader, 7, 3)
    assert len(first) == 7
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("data", [[], 3])
def test_data_without_batches_is_refused(data: Any) -> None:
    with pytest.raises(GradscopeError, match="batch"):
        draw_batches(data, 3, 0)
