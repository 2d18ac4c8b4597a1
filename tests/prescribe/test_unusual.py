"""Surgery on models unlike the usual ones: it works or says why not, and never touches the original."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradscope.errors import SurgeryRefused
from gradscope.prescribe import surgery
from tests.prescribe.unusual import PATIENTS, LanguageModel, Projected, depthwise, lazy

ACTIONS: dict[str, dict[str, Any]] = {
    "activation": {"do": "replace-activation", "to": "elu"},
    "initialize": {"do": "initialize", "scheme": "own"},
    "lsuv": {"do": "initialize", "scheme": "lsuv"},
    "norm": {"do": "normalize", "norm": "layer"},
    "residual": {"do": "residual"},
    "widen": {"do": "widen", "factor": 2},
}
# What can't be done, and a word of the reason that must be given.
REFUSED: dict[str, dict[str, str]] = {
    "U-Net": {"widen": "transposed"},
    "ConvNeXt": {"residual": "projection", "widen": "follows from the width"},
    "encoder": {"norm": "torch's own", "residual": "projection", "widen": "follows from the width"},
    "decoder": {"norm": "torch's own", "residual": "projection", "widen": "follows from the width"},
    "language model": {"residual": "differs between training", "widen": "follows from the width"},
    "tied and shared": {"norm": "no hidden", "residual": "no hidden", "widen": "doesn't run"},
    "bidirectional": dict.fromkeys(("activation", "norm", "residual", "widen"), "no hidden"),
    "projected": dict.fromkeys(("activation", "norm", "residual", "widen"), "no hidden"),
    "cells": {"activation": "can't follow", **dict.fromkeys(("norm", "residual", "widen"), "no hidden")},
    "experts": {"residual": "projection", "widen": "not a chain"},
    "containers": {"widen": "doesn't run"},
    "branching": dict.fromkeys(("activation", "norm", "residual"), "control flow"),
    "Lightning": {"widen": "not a chain"},
    "depthwise": {"widen": "follows from the width"},
    "computed weights": dict.fromkeys(("initialize", "lsuv", "widen"), "computed"),
}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("patient", PATIENTS)
def test_unusual_models_are_operated_on_or_refused_and_never_touched(patient: str, name: str) -> None:
    torch.manual_seed(0)
    model, batch = (make() for make in PATIENTS[patient])
    before, expected = state(model), shapes(model.eval()(batch))
    reason = REFUSED.get(patient, {}).get(name)
    if reason:
        with pytest.raises(SurgeryRefused, match=reason):
            surgery.apply(ACTIONS[name], model, batch)
    else:
        changed = surgery.apply(ACTIONS[name], model, batch)
        assert shapes(changed(batch)) == expected
        assert {value.dtype for value in changed.state_dict().values()} == {
            value.dtype for value in before.values()
        }
        if name != "activation":  # which may have weights of its own
            assert set(changed.state_dict()) >= set(before)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def shapes(output: Any) -> Any:
    return output.shape if isinstance(output, torch.Tensor) else [shapes(part) for part in output]


def test_layers_that_can_be_followed_are_normalised_beside_those_that_cannot() -> None:
    model, batch = LanguageModel(), torch.randint(11, (4, 5))
    changed: Any = surgery.apply({"do": "normalize", "norm": "layer"}, model, batch)
    assert isinstance(changed.mlp[1][0], nn.LayerNorm)
    with pytest.raises(SurgeryRefused, match="differs between training and evaluation"):
        surgery.apply({"do": "normalize", "norm": "layer", "layers": ["attention.project"]}, model, batch)


def test_an_activation_with_weights_keeps_their_name_behind_a_norm() -> None:
    model, batch = depthwise(), torch.randn(2, 4, 6, 6)
    changed = surgery.apply({"do": "normalize", "norm": "batch"}, model, batch)
    assert torch.equal(changed.state_dict()["3.weight"], model.state_dict()["3.weight"])
    changed.train()(batch).sum().backward()
    assert all(parameter.grad is not None for parameter in changed.parameters())


def test_a_projected_recurrence_starts_with_an_orthogonal_block_for_each_gate() -> None:
    changed: Any = surgery.apply({"do": "initialize", "scheme": "own"}, Projected())
    for gate in changed.rnn.weight_hh_l0.detach().split(10):
        assert torch.allclose(gate.T @ gate, torch.eye(4), atol=1e-5)


def test_a_lazy_model_stays_lazy() -> None:
    model = lazy()
    changed = surgery.apply({"do": "replace-activation", "to": "elu"}, model, torch.randn(4, 8))
    assert changed(torch.randn(4, 8)).shape == (4, 2)
    assert nn.parameter.is_lazy(model[0].weight)  # type: ignore[index]
    with pytest.raises(SurgeryRefused, match="no shape yet"):
        surgery.apply({"do": "initialize", "scheme": "own"}, model)


def test_what_torch_jit_compiled_is_refused() -> None:
    inner = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    with pytest.raises(SurgeryRefused, match=r"0 was compiled by torch\.jit"):
        surgery.apply({"do": "initialize", "scheme": "own"}, nn.Sequential(inner, nn.Linear(8, 2)))
