"""Guarded operations are finite at the edges and have slopes on steps; elsewhere they change nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradscope.prescribe.surgery import Guarded

EDGES: dict[str, Callable[[Tensor], Tensor]] = {
    "root": lambda x: x.sqrt(),
    "reciprocal root": torch.rsqrt,
    "logarithm": torch.log,
    "logarithm of 1 + x": lambda x: torch.log1p(x - 1),
    "nought by nought": lambda x: x / x.abs(),
    "unit vector": lambda x: (0 * x) / (0 * x).norm(),
    "reciprocal": lambda x: 1 / x,
    "half power": lambda x: x**0.5,
    "negative power": lambda x: x.pow(-1),
    "exponential": lambda x: (1e4 * x).exp(),
    "arc": lambda x: torch.acos(x),
    "variance of equal numbers, rooted": lambda x: x[1:2].expand(3).var().sqrt(),
    "division by a number that is zero": lambda x: x / 0.0,
    "all masked": lambda x: x.masked_fill(torch.ones(4, dtype=torch.bool), float("-inf")).softmax(0),
}
STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "round": torch.round,
    "floor": lambda x: x.floor(),
    "sign": lambda x: x.sign(),
    "comparison": lambda x: (x > 0.5).float(),
    "comparison the other way": lambda x: (x < 0.5).to(torch.float32),
}


@pytest.mark.parametrize("name", EDGES)
def test_values_and_slopes_at_the_edge_are_finite(name: str) -> None:
    numbers = torch.tensor([0.0, 1.0, -1.0, -0.0], requires_grad=True)
    plain = EDGES[name](numbers)
    plain.sum().backward()
    assert numbers.grad is not None
    assert not (plain.isfinite().all() and numbers.grad.isfinite().all()), "there is nothing to guard"
    numbers.grad = None
    with Guarded():
        result = EDGES[name](numbers)
    result.sum().backward()
    assert numbers.grad is not None
    assert result.isfinite().all()
    assert numbers.grad.isfinite().all()


ALWAYS_AT_THE_EDGE = (
    "all masked",
    "division by a number that is zero",
    "exponential",
    "unit vector",
    "variance of equal numbers, rooted",
)


@pytest.mark.parametrize("name", [name for name in EDGES if name not in ALWAYS_AT_THE_EDGE])
def test_inside_the_domain_nothing_changes(name: str) -> None:
    numbers = torch.tensor([0.25, 0.5, 0.75], requires_grad=True)
    function = EDGES[name] if name != "logarithm of 1 + x" else torch.log1p
    (plain,) = torch.autograd.grad(function(numbers).sum(), numbers)
    with Guarded():
        guarded = function(numbers)
    torch.testing.assert_close(guarded, function(numbers))
    torch.testing.assert_close(torch.autograd.grad(guarded.sum(), numbers)[0], plain)


@pytest.mark.parametrize("name", STEPS)
def test_steps_keep_their_values_and_get_a_slope(name: str) -> None:
    numbers = torch.tensor([0.3, 0.6, -0.2], requires_grad=True)
    with Guarded(finite=False, slopes=True):
        result = STEPS[name](numbers)
    torch.testing.assert_close(result, STEPS[name](numbers.detach()))
    (slope,) = torch.autograd.grad(result.sum(), numbers)
    assert (slope != 0).all()


def test_attention_to_nothing_is_finite() -> None:
    attend = nn.MultiheadAttention(4, 1, batch_first=True)
    points, padding = torch.randn(2, 3, 4), torch.tensor([[True] * 3, [False, False, True]])
    usual = attend(points, points, points, key_padding_mask=padding)[0]
    with Guarded():
        guarded = attend(points, points, points, key_padding_mask=padding)[0]
    assert guarded.isfinite().all()
    torch.testing.assert_close(guarded[1], usual[1])  # which is masked in part only


def test_outside_of_it_everything_is_as_before() -> None:
    with Guarded():
        pass
    assert torch.tensor(0.0).log().item() == float("-inf")
