"""The cosine between rows and the entropy of attention, as recorded, against plain computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gradscope.observe.attention import entropy_share, shown_weights
from gradscope.summarise import mean_cosine
from tests.observe.sinks import record


def outputs_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    outputs = []
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            outputs.append(x.clone())
    return outputs


def test_samples_of_a_batch_tokens_of_a_sample_and_images() -> None:
    torch.manual_seed(0)
    for model, x, between in (
        (nn.Sequential(nn.Linear(6, 5), nn.Tanh()), torch.randn(7, 6), "samples"),
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU()), torch.randn(3, 9, 6), "tokens"),
        (nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True)), torch.randn(5, 2, 6, 6), "samples"),
    ):
        expected = [float(mean_cosine(output[None].double(), between)) for output in outputs_of(model, x)]
        sink = record(model, lambda net, x=x: net(x).square().mean())
        assert [sink.layer(str(i), "activation_cosine", 0) for i in range(2)] == pytest.approx(
            expected, abs=1e-9
        )


def test_calls_are_averaged_and_calls_of_one_row_left_out() -> None:
    layer = nn.Sequential(nn.Linear(4, 4))
    many, one = torch.randn(6, 4), torch.randn(1, 4)
    with torch.no_grad():
        expected = float(mean_cosine(layer(many)[None].double(), "samples"))
    sink = record(layer, lambda net: (net(many).sum() + net(one).sum()).square())
    assert sink.layer("0", "activation_cosine", 0) == pytest.approx(expected, abs=1e-9)


def test_an_output_that_is_not_finite_has_none() -> None:
    sink = record(nn.Sequential(nn.Linear(3, 3)), lambda net: net(torch.full((4, 3), math.inf)).sum())
    assert math.isnan(sink.layer("0", "activation_cosine", 0))


class Attending(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attention(x, x, x, attn_mask=mask, need_weights=self.need_weights)[0]


def plain_entropy(weights: Tensor) -> float:
    rows = weights.double().flatten(0, -2)
    shares = [-sum(p * math.log(p) for p in row if p > 0) / math.log(len(row)) for row in rows.tolist()]
    return sum(shares) / len(shares)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_that_returns_weights_has_their_entropy(masked: bool) -> None:
    torch.manual_seed(0)
    model, x = Attending(True), torch.randn(4, 6, 8)
    mask = torch.full((6, 6), -math.inf).triu(1) if masked else None
    with torch.no_grad():
        weights = model.attention(x, x, x, attn_mask=mask)[1]
    sink = record(model, lambda net: net(x, mask).square().mean())
    assert sink.layer("attention", "attention_entropy", 0) == pytest.approx(plain_entropy(weights), abs=1e-6)


def test_attention_that_keeps_its_weights_has_none() -> None:
    sink = record(Attending(False), lambda net: net(torch.randn(2, 5, 8)).square().mean())
    assert math.isnan(sink.layer("attention", "attention_entropy", 0))


def test_entropy_is_one_when_uniform_and_zero_when_sharp() -> None:
    assert float(entropy_share(torch.full((2, 3, 5), 0.2))) == pytest.approx(1.0)
    assert float(entropy_share(torch.eye(5)[None])) == 0.0
    assert float(entropy_share(torch.tensor([[0.5, 0.5], [math.nan, math.nan]]))) == pytest.approx(1.0)
    assert math.isnan(float(entropy_share(torch.zeros(3, 4))))


def test_only_a_softmax_over_the_last_of_three_axes_shows_weights() -> None:
    softmax = nn.Softmax(dim=-1)
    assert shown_weights(softmax, torch.rand(2, 3, 4)) is not None
    assert shown_weights(softmax, torch.rand(2, 3)) is None
    assert shown_weights(softmax, torch.rand(2, 3, 0)) is None
    assert shown_weights(nn.Softmax(dim=1), torch.rand(2, 3, 4)) is None
    assert shown_weights(nn.Linear(2, 2), torch.rand(2, 3, 4)) is None
