"""Small trainings of every kind: what modules return, how they are called, how gradients come about."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from tests.observe.test_modules import Output, Wrapped


@dataclass(frozen=True)
class Training:
    """A training to be recorded.

    build: makes the model; batches: a step's micro-batches; loss: of a model and one of them; clip: what is
    done to the gradients; twin: the dtype of the twin that says what is true, None for the model's own.
    """

    build: Callable[[], nn.Module]
    batches: Callable[[int], Sequence[Any]]
    loss: Callable[[nn.Module, Any], Tensor] = lambda model, x: model(x).square().mean()
    optimizers: Callable[[nn.Module], list[Optimizer]] = lambda model: [
        torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    ]
    clip: Callable[[nn.Module], Any] | None = None
    twin: torch.dtype | None = torch.float64
    tolerance: float = 2e-4


def vectors(*sizes: int, width: int = 6) -> Callable[[int], list[Tensor]]:
    """Return what gives each step micro-batches of these sizes."""

    def batches(step: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(step)
        return [torch.randn(size, width, generator=generator) for size in sizes or (8,)]

    return batches


def shaped(*shape: int) -> Callable[[int], list[Tensor]]:
    return lambda step: [torch.randn(shape, generator=torch.Generator().manual_seed(step))]


def tokens(step: int) -> list[Tensor]:
    return [torch.randint(20, (5, 4), generator=torch.Generator().manual_seed(step))]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))


class Checkpointed(nn.Module):
    """Recompute the inner layers in the backward pass, unless it is told not to."""

    def __init__(self, reentrant: bool, width: int = 6, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.inner, self.reentrant = nn.Linear(width, width), inner or mlp(), reentrant
        self.recomputes = True

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.recomputes:
            return checkpoint(self.inner, h, use_reentrant=self.reentrant)
        return self.inner(h)


class Packed(nn.Module):
    """Outputs in tuples, lists, dictionaries and dataclasses, with None and integers among them."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Wrapped(lambda h: (h, None, [torch.ones(3, dtype=torch.long)]))
        self.named = Wrapped(lambda h: {"hidden": h, "nothing": None, "mask": torch.ones(2).bool()})
        self.record = Wrapped(lambda h: Output(h, 2 * h))
        self.nothing, self.head = Wrapped(lambda h: None), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        record: Any = self.record(self.named(self.pair(x)[0])["hidden"])
        self.nothing(record.extra)
        return self.head(record.hidden + record.extra)


class Recurrent(nn.Module):
    """A cell that is called 64 times, and the layers that unroll themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.lstm = nn.GRUCell(6, 5), nn.LSTM(5, 4, num_layers=2, batch_first=True)
        self.gru, self.last = nn.GRU(4, 3, bidirectional=True, batch_first=True), nn.LSTMCell(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, seen = x.new_zeros(len(x), 5), []
        for index in range(64):
            h = self.cell(x * (index % 3), h)
            seen.append(h)
        h, _ = self.gru(self.lstm(torch.stack(seen[-4:], 1))[0])
        return self.last(h[:, -1])[0]


class Attending(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(8, 2, bias=False, batch_first=True), nn.LayerNorm(8)
        self.need_weights, self.softmax = need_weights, nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x + self.attention(x, x, x, need_weights=self.need_weights)[0])
        return self.softmax(h @ h.transpose(1, 2)) @ h


class Tied(nn.Module):
    """A table that is also the output layer, and a module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.twice, self.head = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, 20, bias=False)
        self.head.weight, self.again = self.words.weight, self.twice

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.again(self.twice(self.words(x)))))


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.bag = nn.Embedding(20, 4, sparse=True), nn.EmbeddingBag(20, 4, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.words(x).mean(1) * self.bag(x)


class Spread(nn.Module):
    """Return a sparse tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to_sparse()


class Sparsely(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.spread = nn.Linear(6, 4), Spread()

    def forward(self, x: Tensor) -> Tensor:
        return self.spread(self.first(x).relu()).to_dense()


class Partly(nn.Module):
    """Frozen, unused and sometimes unused parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.unused = nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 6)
        self.even, self.odd = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return (self.even if x[0, 0] > 0 else self.odd)(self.frozen(x))


class Parametrised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
        self.orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.orthogonal(self.normed(x))


class Phases(nn.Module):
    """Complex weights and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5, dtype=torch.complex64), nn.Linear(5, 2, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(torch.complex(x, x.flip(1)))).abs()


class Coded(nn.Module):
    """A layer of integers, views of larger tensors, and functional activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.codes, self.part = nn.Linear(6, 8), Codes(), Part()

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.first(x))
        return self.part(h) * self.codes(h)


class Codes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1, keepdim=True)


class Part(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.t()[2:5].t()


def images() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten()
    )
    return model.to(memory_format=torch.channels_last)


def pictures(step: int) -> list[Tensor]:
    return [shaped(5, 3, 10, 10)(step)[0].to(memory_format=torch.channels_last)]


def doubled(model: nn.Module) -> list[Optimizer]:
    """Return an optimizer for the first half of the parameters, and another for the others."""
    own = list(model.parameters())
    half = len(own) // 2
    return [torch.optim.Adam(own[:half], 0.01), torch.optim.SGD(own[half:], 0.1)]


def autocast(dtype: torch.dtype) -> Callable[[nn.Module, Tensor], Tensor]:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return model(x).float().square().mean()

    return loss


def validated(model: nn.Module, x: Tensor) -> Tensor:
    """Validate before the training's own pass."""
    model.eval()
    with torch.no_grad():
        model(x)
    model.train()
    return model(x).square().mean()


def copied(model: nn.Module, x: Tensor) -> Tensor:
    """Copy, pickle and save the model between its passes, and run the copies."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    before = [twin(x).sum() for twin in twins]
    loss = model(x).square().mean()
    assert all(torch.equal(value, twin(x).sum()) for value, twin in zip(before, twins, strict=True))
    return loss


class Nested(nn.Module):
    """Sentences of several lengths in one nested tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        sentences = torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.jagged)
        return torch.cat(self.last(self.relu(self.first(sentences))).unbind())


class Large(nn.Module):
    """Outputs whose squares float16 can't hold, and gradients whose squares it takes for 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 9).half(), nn.Linear(9, 2).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(1e-4 * self.first(1e4 * x)) * 1e-3


def adam(**options: Any) -> Callable[[nn.Module], list[Optimizer]]:
    return lambda model: [torch.optim.Adam(model.parameters(), 0.01, **options)]


def by_norm(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)


def by_value(model: nn.Module) -> None:
    nn.utils.clip_grad_value_(model.parameters(), 0.01)


TRAININGS: dict[str, Training] = {
    "plain": Training(mlp, vectors()),
    "accumulated": Training(mlp, vectors(8, 8, 8)),
    "accumulated unevenly": Training(mlp, vectors(8, 1, 3)),
    "accumulated with empty": Training(mlp, vectors(8, 0, 8), lambda m, x: m(x).square().sum()),
    "clipped by norm": Training(mlp, vectors(), clip=by_norm),
    "clipped by value": Training(mlp, vectors(4, 4), clip=by_value),
    "several optimizers": Training(mlp, vectors(), optimizers=doubled),
    "fused": Training(mlp, vectors(), optimizers=adam(fused=True)),
    "foreach": Training(mlp, vectors(), optimizers=adam(foreach=True, amsgrad=True), clip=by_norm),
    "checkpointed": Training(lambda: Checkpointed(False), vectors()),
    "checkpointed, reentrant": Training(lambda: Checkpointed(True), vectors()),
    "containers": Training(Packed, vectors(width=4), lambda m, x: 1e-3 * m(x).square().mean()),
    "called 64 times": Training(Recurrent, vectors()),
    "attention": Training(lambda: Attending(True), shaped(3, 5, 8)),
    "attention, accumulated": Training(
        lambda: Attending(True), lambda step: [*shaped(3, 5, 8)(step), *shaped(2, 7, 8)(step)]
    ),
    "attention without weights": Training(lambda: Attending(False), shaped(3, 5, 8)),
    "attention, checkpointed": Training(lambda: Checkpointed(False, 8, Attending(False)), shaped(3, 5, 8)),
    "tied": Training(Tied, tokens),
    "sparse gradients": Training(Sparse, tokens, optimizers=lambda m: [torch.optim.SGD(m.parameters(), 0.1)]),
    "sparse outputs": Training(Sparsely, vectors()),
    "partly used": Training(Partly, vectors()),
    "parametrised": Training(Parametrised, vectors()),
    "lazy": Training(
        lambda: nn.Sequential(nn.LazyLinear(5, bias=False), nn.LazyBatchNorm1d(), nn.Tanh(), nn.Linear(5, 2)),
        vectors(),
    ),
    "complex": Training(Phases, vectors(), twin=None),
    "integers and views": Training(Coded, vectors()),
    "channels last": Training(images, pictures),
    "float64": Training(lambda: mlp().double(), lambda step: [x.double() for x in vectors()(step)]),
    "bfloat16": Training(
        lambda: mlp().bfloat16(), lambda step: [x.bfloat16() for x in vectors()(step)], twin=None
    ),
    "float16": Training(Large, lambda step: [x.half() for x in vectors()(step)], twin=None),
    "autocast": Training(mlp, vectors(4, 4), autocast(torch.bfloat16), twin=None),
    "dropout": Training(lambda: nn.Sequential(*mlp(), nn.Dropout(0.5)), vectors(), twin=None),
    "nested": Training(Nested, vectors()),
    "copied": Training(mlp, vectors(), copied),
    "validated": Training(mlp, vectors(), validated),
}
