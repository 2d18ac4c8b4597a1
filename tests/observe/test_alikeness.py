"""The cosine between rows, as recorded, against plain computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

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
