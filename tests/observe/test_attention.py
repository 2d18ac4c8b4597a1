"""The entropy of attention, as recorded, against a plain float64 computation of all its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradscope.observe.attention import QUERIES, attends, attention_rows, entropy_shares
from tests.observe.sinks import MemorySink, record

HEADS, LENGTH, WIDTH = 2, 9, 8
CAUSAL = torch.full((LENGTH, LENGTH), -math.inf).triu(1)
Mix = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def allowed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask == 0)


def by_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return F.softmax(scores if mask is None else scores + mask, -1) @ v


def with_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.2)


class Hand(nn.Module):
    """Attention by functions; its output layer is what a watcher sees of it."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.qkv, self.out, self.mix = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), mix

    def split(self, x: Tensor) -> Tensor:
        return self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.out(self.mix(*self.split(x), mask).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return plain_weights(*self.split(x)[:2], mask)


class Module(nn.Module):
    """torch's module."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.out = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.out(x, x, x, attn_mask=mask, need_weights=self.need_weights)[0]

    def weights(self, x: Tensor, mask: Tensor | None) -> Tensor:
        both = F.linear(x, self.out.in_proj_weight[: 2 * WIDTH], self.out.in_proj_bias[: 2 * WIDTH])
        return plain_weights(*both.unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4), mask)


def plain_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.einsum("bhqe,bhke->bhqk", q, k) / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores + mask).softmax(-1)


def plain_entropies(weights: Tensor) -> list[float]:
    """Return each head's mean over the queries of the first sample but the first one."""
    heads = []
    for head in weights[0].tolist():
        shares = []
        for row in head[1:]:
            positive = [p for p in row if p > 0]
            shares.append(-sum(p * math.log(p) for p in positive) / math.log(max(2, len(positive))))
        heads.append(sum(shares) / len(shares))
    return heads


def check(sink: MemorySink, heads: list[float], step: int = -1, tolerance: float = 1e-5) -> None:
    mean = sum(heads) / len(heads)
    assert sink.layer("out", "attention_entropy", step) == pytest.approx(mean, rel=tolerance)
    assert sink.layer("out", "attention_entropy_lowest", step) == pytest.approx(min(heads), rel=tolerance)


MODELS: dict[str, Callable[[], Any]] = {
    "fused": lambda: Hand(fused),
    "fused, allowed positions": lambda: Hand(allowed),
    "by softmax": lambda: Hand(by_softmax),
    "with dropout": lambda: Hand(with_dropout),
    "module with weights": lambda: Module(True),
    "module without": lambda: Module(False),
}


@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["everywhere", "causal"])
@pytest.mark.parametrize("kind", MODELS)
def test_it_is_that_of_all_weights(kind: str, mask: Tensor | None) -> None:
    assert LENGTH - 1 <= QUERIES
    torch.manual_seed(0)
    model, x = MODELS[kind](), torch.randn(3, LENGTH, WIDTH)
    with torch.no_grad():
        for item in model.parameters():
            item.mul_(3.0)
    heads = plain_entropies(copy.deepcopy(model).double().weights(x.double(), mask))
    assert max(heads) < 0.95
    assert min(heads) < max(heads) - 0.01
    check(record(model, lambda m: m(x, mask).square().mean(), steps=1), heads)


def test_causal_by_flag_scale_and_shared_keys() -> None:
    def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k[:, :1], v[:, :1], is_causal=True, scale=2.0, enable_gqa=True
        )

    torch.manual_seed(0)
    x = torch.randn(2, LENGTH, WIDTH)
    model = Hand(causal)
    heads = plain_entropies(model.weights(x, CAUSAL))
    check(record(model, lambda m: m(x).sum()), heads)
    model = Hand(grouped)
    q, k, _ = copy.deepcopy(model).double().split(x.double())
    heads = plain_entropies(plain_weights(2.0 * math.sqrt(q.shape[-1]) * q, k[:, :1].expand_as(k), CAUSAL))
    check(record(model, lambda m: m(x).sum()), heads)


def test_a_softmax_module_shows_its_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Softmax(-1)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.scale * x @ x.transpose(1, 2)) @ x

    torch.manual_seed(0)
    x = torch.randn(3, LENGTH, WIDTH)
    weights = (2.0 * x.double() @ x.double().transpose(1, 2)).softmax(-1)
    check(record(Net(), lambda m: m(x).sum()), plain_entropies(weights[:, None]))


def test_micro_batches_are_averaged_and_the_lowest_head_is_of_all() -> None:
    torch.manual_seed(0)
    model, parts = Hand(fused), [torch.randn(2, LENGTH, WIDTH), 5 * torch.randn(1, 4, WIDTH)]
    first, second = (plain_entropies(model.weights(x, None)) for x in parts)
    sink = record(model, lambda m: sum(m(x).sum() for x in parts))  # type: ignore[arg-type,return-value]
    both = (sum(first) + sum(second)) / 4
    assert sink.layer("out", "attention_entropy") == pytest.approx(both, rel=1e-5)
    assert sink.layer("out", "attention_entropy_lowest") == pytest.approx(min(first + second), rel=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_an_empty_micro_batch_adds_nothing(kind: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[kind](), torch.randn(2, LENGTH, WIDTH)
    heads = plain_entropies(model.weights(x, None))
    check(record(model, lambda m: m(x).sum() + m(x[:0]).sum()), heads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["fused", "by softmax"])
def test_autocast_rounds_queries_but_not_the_entropy(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = MODELS[kind](), torch.randn(2, LENGTH, WIDTH)

    def loss(m: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype):
            return m(x).float().sum()

    heads = plain_entropies(model.weights(x, None))
    check(record(model, loss), heads, tolerance=2e-3)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["fused", "module without", "by softmax"])
def test_checkpointing_hides_it_and_is_not_disturbed(kind: str, reentrant: bool) -> None:
    """What checkpointing keeps would be computed anew, in the middle of the forward pass, by a look at it."""
    torch.manual_seed(0)
    model, x = MODELS[kind](), torch.randn(2, LENGTH, WIDTH, requires_grad=True)
    runs: list[int] = []
    inner = model.mix if isinstance(model, Hand) else model.out
    if isinstance(model, Hand):
        model.mix = lambda *tensors: (runs.append(1), checkpoint(inner, *tensors, use_reentrant=reentrant))[1]
        sink = record(model, lambda m: m(x).sum(), steps=2)
        assert not runs[2:]
    else:
        sink = record(model, lambda m: checkpoint(m, x, use_reentrant=reentrant).sum(), steps=2)
    assert math.isnan(sink.layer("out", "attention_entropy"))
    assert not [event for event in sink.events if event.kind == "recorder-failure"]
    assert sink.layer("out", "signal_rms") == pytest.approx(1.0)


def test_frozen_attention_shows_what_it_returns_and_else_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, LENGTH, WIDTH)
    for need_weights in (True, False):
        model = nn.Sequential(Module(need_weights).requires_grad_(False), nn.Linear(WIDTH, 1))
        inner = model[0].out
        sink = record(model, lambda m: m(x).sum())
        seen = sink.layer("0.out", "attention_entropy")
        returned = plain_entropies(inner(x, x, x)[1].double()[:, None])
        assert math.isnan(seen) if not need_weights else seen == pytest.approx(returned[0], rel=1e-5)


def test_one_sharp_head_shows() -> None:
    torch.manual_seed(0)
    model, x = Hand(fused), torch.randn(2, LENGTH, WIDTH)
    with torch.no_grad():
        model.qkv.weight[: WIDTH // HEADS].mul_(500)  # the queries of the first head
    sink = record(model, lambda m: m(x).sum())
    assert sink.layer("out", "attention_entropy_lowest") < 0.02
    assert sink.layer("out", "attention_entropy") > 0.4


def test_entropy_is_one_when_uniform_zero_when_sharp_and_missing_without_rows() -> None:
    def shares(rows: Tensor) -> list[float]:
        return entropy_shares(rows).tolist()

    assert shares(torch.full((2, 3, 5), 0.2)) == pytest.approx([1.0, 1.0])
    assert shares(torch.eye(5)[None]) == [0.0, 0.0]
    assert shares(torch.tensor([[[0.5, 0.5, 0.0, 0.0], [math.nan] * 4]])) == pytest.approx([1.0, 1.0])
    assert shares(torch.stack([torch.eye(4), torch.full((4, 4), 0.25)])) == pytest.approx([0.5, 0.0])
    assert all(map(math.isnan, shares(torch.zeros(1, 3, 4))))


def test_it_is_the_same_held_together_or_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(Hand(mix) for mix in (fused, causal, by_softmax, causal)))
    x = torch.randn(3, LENGTH, WIDTH)
    names = [f"{place}.out" for place in range(4)]

    def recorded() -> list[float]:
        sink = record(copy.deepcopy(model), lambda m: m(x).square().mean(), steps=1)
        return [
            sink.layer(name, column)
            for name in names
            for column in ("attention_entropy", "attention_entropy_lowest")
        ]

    together = recorded()
    monkeypatch.setattr("gradscope.observe.attention.HELD", 0)
    assert recorded() == pytest.approx(together, rel=1e-6)


def test_only_a_softmax_over_the_last_of_three_axes_shows_weights() -> None:
    softmax = nn.Softmax(dim=-1)
    rows = attention_rows(softmax, torch.rand(2, 3, 4))
    assert rows is not None
    assert [item.shape for item in rows] == [(1, 2, 4)]
    assert attention_rows(softmax, torch.rand(2, 3)) is None
    assert attention_rows(softmax, torch.rand(2, 3, 0)) is None
    assert attention_rows(nn.Softmax(dim=1), torch.rand(2, 3, 4)) is None
    assert attention_rows(nn.Linear(2, 2), torch.rand(2, 3, 4)) is None


def test_a_router_is_no_attention() -> None:
    """A softmax whose scores no product of queries and keys made."""
    assert attends(("ViewBackward0", "BmmBackward0", "SoftmaxBackward0"))
    assert attends(("ScaledDotProductEfficientAttentionBackward0",))
    assert not attends(("MulBackward0", "SoftmaxBackward0", "AddmmBackward0"))

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.out = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x * self.router(x).softmax(-1)[..., :1])

    sink = record(Routed(), lambda m: m(torch.randn(2, LENGTH, WIDTH)).sum())
    assert math.isnan(sink.layer("out", "attention_entropy"))
