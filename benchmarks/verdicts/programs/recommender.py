"""Recommenders (tuning): embeddings, factors, towers, ranking, ordered and several labels at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair, digits
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import adam, classify, regress, sgd

USERS, ITEMS, RANK = 120, 80, 8


@cache
def _ratings(stars: bool = False) -> Pair:
    """Return pairs (6000, 2) of a user and an item, items of very unequal fame, and ratings (6000, 1).

    They are a product of two factors a pair, with noise: of mean 0 and deviation 1, or (stars) from 1 to 5.
    """
    random = torch.Generator().manual_seed(51)
    fame = 1 / torch.arange(1, ITEMS + 1).float()
    items = torch.multinomial(fame, 6000, True, generator=random)
    users = torch.randint(0, USERS, (6000,), generator=random)
    tastes, kinds = torch.randn(USERS, 2, generator=random), torch.randn(ITEMS, 2, generator=random)
    liking = (tastes[users] * kinds[items]).sum(1) + 0.3 * torch.randn(6000, generator=random)
    liking = ((liking - liking.mean()) / liking.std())[:, None]
    return torch.stack([users, items], 1), (3 + 1.3 * liking).round().clamp(1, 5) if stars else liking


class _Factors(nn.Module):
    """Multiply a user's factors by an item's, add their biases (Koren 2009)."""

    def __init__(self, spread: float = 0.3, sparse: bool = False, end: nn.Module | None = None):
        super().__init__()
        self.users, self.items = (nn.Embedding(count, RANK, sparse=sparse) for count in (USERS, ITEMS))
        self.biases, self.end = nn.Embedding(ITEMS, 1, sparse=sparse), end or nn.Identity()
        for table in (self.users, self.items, self.biases):
            nn.init.normal_(table.weight, 0, spread) if spread else nn.init.zeros_(table.weight)

    def forward(self, pairs: Tensor) -> Tensor:
        users, items = pairs[:, 0], pairs[:, 1]
        product = (self.users(users) * self.items(items)).sum(1, keepdim=True)
        return self.end(product + self.biases(items))


def _factors(fit: dict[str, Any] | None = None, stars: bool = False, **network: Any) -> Setup:
    options = {"optimizer": adam(2e-2), "steps": 400, "batch_size": 256, **(fit or {})}
    return regress(_Factors(**network), _ratings(stars), **options)


def _sparse_adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SparseAdam(list(parameters), lr=2e-2)


def _factors_in_groups() -> Setup:
    """Decay the factors but not the biases, and train the biases faster."""
    setup = _factors()
    model: Any = setup.model
    groups = [
        {"params": [model.users.weight, model.items.weight], "weight_decay": 1e-4},
        {"params": [model.biases.weight], "lr": 5e-2},
    ]
    return replace(setup, optimizer=torch.optim.Adam(groups, lr=2e-2))


class _Network(nn.Module):
    """Feed both embeddings, and the time of the rating in seconds or scaled, to a network (He 2017)."""

    def __init__(self, closed: float):
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, RANK), nn.Embedding(ITEMS, RANK)
        self.body = net.mlp((2 * RANK + 1, 32, 32, 1))
        for table in (self.users, self.items):
            nn.init.normal_(table.weight)
        if closed:
            nn.init.constant_(self.body[2].bias, closed)

    def forward(self, rows: Tensor) -> Tensor:
        users, items = rows[:, 0].long(), rows[:, 1].long()
        return self.body(torch.cat([self.users(users), self.items(items), rows[:, 2:]], 1))


def _network(seconds: float = 1.0, closed: float = 0.0) -> Setup:
    pairs, ratings = _ratings()
    when = torch.linspace(-1, 1, len(pairs))[:, None]
    when = when if seconds == 1 else 1.6e9 + seconds * when
    data = torch.cat([pairs, when], 1), ratings
    return regress(_Network(closed), data, adam(1e-2), steps=400, batch_size=256)


@cache
def _baskets() -> Pair:
    """Return six bought items a person (2000, 6), item 0 filling up, and the item bought next (2000,)."""
    random = torch.Generator().manual_seed(52)
    kinds = torch.randint(0, 4, (2000, 1), generator=random)
    bought = 1 + kinds + 4 * torch.randint(0, 5, (2000, 6), generator=random)
    noise = torch.randint(1, 21, bought.shape, generator=random)
    bought = torch.where(torch.rand(bought.shape, generator=random) < 0.2, noise, bought)
    counts = torch.randint(0, 7, (2000, 1), generator=random)
    following = kinds[:, 0] + 4 * (bought[:, 0] % 2)
    return bought.masked_fill(torch.arange(6) >= counts.clamp(min=1), 0), following


class _Basket(nn.Module):
    """Average the embeddings of what was bought, the first one apart; item 0 fills up and is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bag = nn.Embedding(21, 16, padding_idx=0), nn.EmbeddingBag(21, 16, padding_idx=0)
        self.head = net.mlp((32, 32, 8))

    def forward(self, bought: Tensor) -> Tensor:
        return self.head(torch.cat([self.embed(bought[:, 0]), self.bag(bought[:, 1:])], 1))


def _basket() -> Setup:
    return classify(_Basket(), _baskets(), adam(1e-2))


class _Towers(nn.Module):
    """Compare a user's tower with an item's by their product."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = (
            nn.Sequential(nn.Embedding(count, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, RANK))
            for count in (USERS, ITEMS)
        )

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(1, keepdim=True)


def _ranked(forgotten: bool = False) -> Setup:
    """Rank a liked pair above a random item of the same user (Rendle 2009); score: how often it stands above.

    forgotten: the optimizer is given the item tower's last layer alone.
    """
    pairs, ratings = _ratings()
    liked = pairs[ratings[:, 0] > 0.5]
    other = torch.randint(0, ITEMS, (len(liked),), generator=torch.Generator().manual_seed(53))

    def margin(model: nn.Module, pairs: Tensor, items: Tensor) -> Tensor:
        return model(pairs) - model(torch.stack([pairs[:, 0], items], 1))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.softplus(-margin(model, batch[0], batch[1])).mean()

    model = _Towers()
    chosen = {"parameters": list(model.items[3].parameters())} if forgotten else {}
    options = {"optimizer": adam(1e-2), "steps": 250, "batch_size": 128, **chosen}
    setup = classify(model, (liked, other), **options)
    return replace(
        setup,
        loss=loss,
        score=lambda model: (margin(model, liked, other) > 0).float().mean().item(),
        chance=0.5,
    )


@cache
def _clicks() -> Pair:
    """Return the pairs and clicks (6000, 1) drawn with probability sigmoid(rating - 1): much is chance."""
    pairs, ratings = _ratings()
    clicked = torch.rand(6000, 1, generator=torch.Generator().manual_seed(54)) < (ratings - 1).sigmoid()
    return pairs, clicked.float()


def _clicked() -> Setup:
    """Predict clicks; score: explained share of the true probabilities."""
    truth = (_ratings()[1] - 1).sigmoid()
    options = {"optimizer": adam(1e-2), "steps": 120, "batch_size": 256, "wanted": truth}
    return regress(_Factors(0.1, end=nn.Sigmoid()), _clicks(), loss=F.binary_cross_entropy, **options)


@cache
def _attributes() -> Pair:
    """Return digits and five labels that hold at once: even, prime, above 6, with a loop, zero (rare)."""
    inputs, targets = digits()
    members = ((0, 2, 4, 6, 8), (2, 3, 5, 7), (7, 8, 9), (0, 6, 8, 9), (0,))
    return inputs, torch.stack([torch.isin(targets, torch.tensor(group)) for group in members], 1).float()


def _labelled(output: nn.Module) -> Setup:
    """Name all attributes; score: the share of digits with all five right."""
    inputs, labels = _attributes()
    model = net.mlp((64, 48, 48, 5), output=output)

    def score(model: nn.Module) -> float:
        return ((model(inputs) > 0.5) == labels.bool()).all(1).float().mean().item()

    setup = regress(model, (inputs, labels), adam(3e-3), F.binary_cross_entropy)
    common = labels.unique(dim=0, return_counts=True)[1].max().item() / len(labels)
    return replace(setup, score=score, chance=common)


class _Ordered(nn.Module):
    """Return the logits of rating > 1, > 2, > 3, > 4: one value and four shared cuts (Cao 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.cuts = _Factors(), nn.Parameter(torch.tensor([2.0, 0.5, -0.5, -2.0]))

    def forward(self, pairs: Tensor) -> Tensor:
        return self.value(pairs) + self.cuts


def _ordered() -> Setup:
    """Predict stars as four questions; score: explained share of the stars."""
    pairs, stars = _ratings(True)
    setup = regress(_Ordered(), (pairs, stars), adam(2e-2), steps=400, batch_size=256)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0]), (batch[1] > torch.arange(1, 5)).float())

    def guess(model: nn.Module) -> Tensor:
        return 1 + model(pairs).sigmoid().sum(1, keepdim=True)

    return replace(setup, loss=loss, score=lambda model: setup.score(net.Apply(lambda rows: guess(model))))


REF, NETWORK, RANKED = "recommender-factors", "recommender-network", "recommender-ranked"
PROGRAMS = (
    Program("recommender-factors", _factors, target=0.8),
    Program("recommender-sparse-gradients", partial(_factors, {"optimizer": _sparse_adam}, sparse=True), REF),
    Program("recommender-groups", _factors_in_groups, REF),
    Program("recommender-network", _network, target=0.75),
    Program("recommender-basket", _basket, target=0.7),
    Program("recommender-ranked", _ranked, target=0.85),
    Program("recommender-clicks", _clicked, target=0.42),
    Program("recommender-labels", partial(_labelled, nn.Sigmoid()), target=0.9),
    Program("recommender-ordered-stars", _ordered, target=0.7),
    Program(
        "recommender-zero-factors",
        partial(_factors, spread=0.0),
        REF,
        ("zero-gradient", "symmetric-weights", "poor-initialization"),
        ("users", "items"),
    ),
    Program(
        "recommender-sgd-0.01",
        partial(_factors, {"optimizer": sgd(0.01)}),
        REF,
        ("learning-rate-too-low",),
    ),
    Program(
        "recommender-sigmoid-stars",
        partial(_factors, stars=True, end=nn.Sigmoid()),
        "recommender-ordered-stars",
        ("output-mismatch",),
        ("end",),
    ),
    Program(
        "recommender-decayed-factors",
        partial(_factors, {"optimizer": adam(2e-2, weight_decay=0.1)}),
        REF,
        ("excessive-weight-decay",),
    ),
    Program(
        "recommender-timestamps",
        partial(_network, seconds=1e7),
        NETWORK,
        ("unscaled-input",),
        ("body.0", "body.1"),
    ),
    Program(
        "recommender-closed-network",
        partial(_network, closed=-50.0),
        NETWORK,
        ("dead-units", "poor-initialization"),
        ("body.2", "body.3"),
    ),
    Program(
        "recommender-towers-forgotten",
        partial(_ranked, True),
        RANKED,
        ("not-optimized",),
        ("users.*", "items.0", "items.1"),
    ),
    Program(
        "recommender-softmax-labels",
        partial(_labelled, nn.Softmax(1)),
        "recommender-labels",
        ("output-mismatch",),
        ("4", "5"),
    ),
)
