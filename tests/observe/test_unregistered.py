"""Tensors that are trained in vain: the model holds them where torch doesn't look."""

from __future__ import annotations

import torch
from torch import nn

from gradscope.observe.unregistered import unregistered


class _Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.known = nn.Linear(3, 3)
        self.blocks = [nn.Linear(3, 3), nn.Linear(3, 1)]
        self.scales = {"loud": torch.ones(1, requires_grad=True), "idle": torch.ones(1, requires_grad=True)}
        self.parent = [self.known]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.blocks[1](self.blocks[0](self.known(inputs))) * self.scales["loud"]


def _trained() -> _Listed:
    model = _Listed()
    model(torch.ones(2, 3)).sum().backward()
    return model


def test_what_a_plain_list_or_dictionary_holds_is_found_if_it_got_a_gradient() -> None:
    model = _trained()
    found = unregistered(model, [torch.optim.SGD(model.parameters(), 0.1)])
    layers = [f"blocks.{number}.{part}" for number in (0, 1) for part in ("weight", "bias")]
    assert list(found) == [*layers, "scales.loud"]


def test_what_the_optimizer_was_given_by_hand_is_trained() -> None:
    model = _trained()
    listed = [*model.parameters(), *model.blocks[0].parameters(), *model.blocks[1].parameters()]
    assert list(unregistered(model, [torch.optim.SGD([*listed, model.scales["loud"]], 0.1)])) == []


def test_frozen_parts_in_a_list_are_no_ailment() -> None:
    model = _Listed()
    for block in model.blocks:
        block.requires_grad_(False)
    model.scales = {}
    model.known(torch.ones(2, 3)).sum().backward()
    assert unregistered(model, [torch.optim.SGD(model.parameters(), 0.1)]) == {}
