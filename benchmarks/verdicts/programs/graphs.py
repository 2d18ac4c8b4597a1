"""Graphs (held out): messages over small random graphs and a large one, summed, averaged, attended to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import MakeOptimizer, adam, sgd, trained

Gather = Callable[[Tensor, Tensor], Tensor]
NODES, CIRCLE, CLASSES = 10, 240, 4


@cache
def _molecules(unit: float = 1.0, energy: bool = False) -> Batch:
    """Return 640 graphs of 10 nodes: features (640, 10, 4), adjacency (640, 10, 10), and a number (640, 1).

    The number is the sum over edges of the products of their ends' first features, standardised, or, as an
    energy, about -3000 ± 400. Some nodes have no edge. unit: multiplies the features.
    """
    random = torch.Generator().manual_seed(321)
    features = torch.randn(640, NODES, 4, generator=random)
    linked = (torch.rand(640, NODES, NODES, generator=random) < 0.25).float().triu(1)
    linked = linked + linked.transpose(1, 2)
    charge = features[:, :, :1]
    total = (charge.transpose(1, 2) @ linked @ charge)[:, :, 0]
    total = (total - total.mean()) / total.std()
    return unit * features, linked, 400 * total - 3000 if energy else total


@cache
def _circle() -> Batch:
    """Return a graph of 240 nodes on a circle, each linked to the nearest on both sides and to one at random.

    Noisy features (240, 8), adjacency (240, 240), and the quarter of the circle that a node lies in.
    """
    random = torch.Generator().manual_seed(322)
    place = torch.arange(CIRCLE)
    quarters = place * CLASSES // CIRCLE
    away = (place[:, None] - place[None]).abs()
    linked = ((torch.minimum(away, CIRCLE - away) <= 3) & (away > 0)).float()
    friend = F.one_hot(torch.randint(0, CIRCLE, (CIRCLE,), generator=random), CIRCLE)
    linked = ((linked + friend + friend.T) > 0).float().fill_diagonal_(0)
    shown = F.one_hot(quarters, 8).float() + torch.randn(CIRCLE, 8, generator=random)
    return shown, linked, quarters


def _sum(hidden: Tensor, linked: Tensor) -> Tensor:
    return linked @ hidden


def _mean(floor: float) -> Gather:
    """Return the mean over the neighbours; floor: smallest count that is divided by."""
    return lambda hidden, linked: linked @ hidden / linked.sum(-1, keepdim=True).clamp(min=floor)


def _with_itself(hidden: Tensor, linked: Tensor) -> Tensor:
    """Average a node and its neighbours."""
    return (hidden + linked @ hidden) / (1 + linked.sum(-1, keepdim=True))


class _Attended(nn.Module):
    """Weigh the neighbours, and the node itself, by products of projections."""

    def __init__(self, width: int, scale: float | None = None):
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.weigh = nn.Softmax(-1)
        self.scale = scale or width**-0.5

    def forward(self, hidden: Tensor, linked: Tensor) -> Tensor:
        alike = self.scale * self.query(hidden) @ self.key(hidden).transpose(-1, -2)
        seen = linked + torch.eye(linked.shape[-1])
        return self.weigh(alike.masked_fill(seen == 0, float("-inf"))) @ hidden


class _Gathered(nn.Module):
    """Gather neighbours by a function, so that this has a name among the layers."""

    def __init__(self, gather: Gather):
        super().__init__()
        self.gather = gather

    def forward(self, hidden: Tensor, linked: Tensor) -> Tensor:
        return self.gather(hidden, linked)


class _Layer(nn.Module):
    """Update nodes from themselves (unless `own` is False) and from what is gathered of their neighbours."""

    def __init__(
        self,
        width: int,
        gather: Callable[[int], nn.Module],
        activation: Callable[[], nn.Module],
        norm: Callable[[int], nn.Module],
        skip: bool,
        own: bool,
    ):
        super().__init__()
        self.gather, self.skip, self.own = gather(width), skip, own
        self.update = nn.Linear(2 * width if own else width, width)
        self.norm, self.activation = norm(width), activation()

    def forward(self, hidden: Tensor, linked: Tensor) -> Tensor:
        heard = self.gather(hidden, linked)
        told = self.update(torch.cat([hidden, heard], -1) if self.own else heard)
        new = self.activation(self.norm(told))
        return hidden + new if self.skip else new


class _Graphs(nn.Module):
    """Encode nodes, pass messages, and read out of their sum (or of each node).

    detach: keeps the gradient from the layers below the head.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        each: bool,
        gather: Callable[[int], nn.Module] = lambda width: _Gathered(_sum),
        levels: int = 2,
        width: int = 32,
        activation: Callable[[], nn.Module] = nn.ReLU,
        norm: Callable[[int], nn.Module] = lambda width: nn.Identity(),
        front: nn.Module | None = None,
        skip: bool = False,
        own: bool = True,
        initialise: net.Initialise | None = net.he,
        dropout: float = 0.0,
        detach: bool = False,
    ):
        super().__init__()
        self.front, self.encode = front or nn.Identity(), nn.Linear(features, width)
        self.layers = nn.ModuleList(_Layer(width, gather, activation, norm, skip, own) for _ in range(levels))
        self.dropout, self.head = nn.Dropout(dropout), net.mlp((width, width, outputs))
        self.each, self.detach = each, detach
        net.initialised(self, initialise)

    def forward(self, features: Tensor, linked: Tensor) -> Tensor:
        hidden = self.encode(self.front(features)).relu()
        for layer in self.layers:
            hidden = layer(self.dropout(hidden), linked)
        hidden = hidden.detach() if self.detach else hidden
        return self.head(hidden if self.each else hidden.sum(1) / NODES)


class _Nodewise(nn.Module):
    """Normalise features over graphs and nodes together."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden.flatten(0, -2)).view_as(hidden)


def _measure(
    fit: dict[str, Any] | None = None, unit: float = 1.0, energy: bool = False, **network: Any
) -> Setup:
    """Predict a number of each graph; score: the explained share of its variance."""
    features, linked, wanted = _molecules(unit, energy)
    model = _Graphs(features.shape[-1], 1, False, **network)
    options = {"optimizer": adam(3e-3), "steps": 300, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[0], batch[1]), batch[2])

    def score(model: nn.Module) -> float:
        error = (model(features, linked) - wanted).square().mean() / wanted.var()
        return max(0.0, (1 - error).item()) if error.isfinite() else 0.0

    return Setup(model, make(trained(model)), (features, linked, wanted), loss, score, 0.0, **options)


def _place(fit: dict[str, Any] | None = None, unit: float = 1.0, **network: Any) -> Setup:
    """Tell the quarter of each node of one large graph; a batch is of nodes; features are times `unit`."""
    features, linked, quarters = _circle()
    defaults = {"gather": lambda width: _Gathered(_with_itself), "own": False, "levels": 3}
    model = _Graphs(8, CLASSES, True, **{**defaults, **network})
    options = {"optimizer": adam(3e-3), "steps": 150, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")

    def loss(model: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(model(unit * features, linked)[batch[0]], quarters[batch[0]])

    def score(model: nn.Module) -> float:
        answer = model(unit * features, linked)
        right = (answer.argmax(1) == quarters).float().mean().item()
        return right if answer.isfinite().all() else 1 / CLASSES

    nodes = (torch.arange(CIRCLE),)
    return Setup(model, make(trained(model)), nodes, loss, score, 1 / CLASSES, **options)


def _averaged(floor: float) -> dict[str, Any]:
    return {"gather": lambda width: _Gathered(_mean(floor))}


REF, NODE, DESCENT = "graphs-sum", "graphs-circle", "graphs-circle-descent"
SLOW = {"optimizer": sgd(0.1), "steps": 250}
SUMS = {"gather": lambda width: _Gathered(_sum), "levels": 10}
PROGRAMS = (
    Program("graphs-sum", _measure, target=0.85),
    Program("graphs-mean", partial(_measure, **_averaged(1.0)), target=0.7),
    Program("graphs-attention", partial(_measure, gather=_Attended), target=0.7),
    Program("graphs-circle-descent", partial(_place, SLOW), NODE),
    Program("graphs-batchnorm", partial(_measure, norm=_Nodewise), REF),
    Program(
        "graphs-eight-with-skips",
        partial(_measure, levels=8, norm=_Nodewise, skip=True),
        REF,
    ),
    Program("graphs-clipped-each-step", partial(_measure, {"clip": 0.05}), REF),
    Program("graphs-standardised-by-layer", partial(_measure, unit=1000.0, front=_Nodewise(4)), REF),
    Program("graphs-circle", _place, target=0.85),
    Program("graphs-circle-two-thirds-dropped", partial(_place, {"steps": 300}, dropout=0.66), NODE),
    Program(
        "graphs-circle-sixteen-with-skips", partial(_place, levels=16, skip=True, norm=nn.LayerNorm), NODE
    ),
    Program(
        "graphs-nodes-without-neighbours",
        partial(_measure, **_averaged(0.0)),
        "graphs-mean",
        ("non-finite",),
        ("layers.0.gather", "layers.0"),
    ),
    Program(
        "graphs-circle-sums-of-sums",
        partial(_place, SLOW, **SUMS),
        DESCENT,
        ("exploding-signal", "exploding-gradient", "poor-initialization", "non-finite", "loss-divergence"),
    ),
    Program(
        "graphs-one-neighbour-heard",
        partial(_measure, gather=partial(_Attended, scale=3000.0)),
        "graphs-attention",
        ("attention-collapse",),
        ("layers.*.gather.weigh", "layers.*.gather"),
    ),
    Program(
        "graphs-each-feature-alone-normalised",
        partial(_measure, front=nn.Sequential(nn.Unflatten(-1, (4, 1)), nn.LayerNorm(1), nn.Flatten(2))),
        REF,
        ("degenerate-normalization", "vanishing-signal"),
        ("front", "front.1"),
    ),
    Program(
        "graphs-circle-raw-masses",
        partial(_place, SLOW, unit=1000.0),
        DESCENT,
        ("unscaled-input",),
        ("front", "encode"),
    ),
    Program(
        "graphs-raw-energies",
        partial(_measure, energy=True),
        REF,
        ("output-mismatch", "learning-rate-too-low"),
    ),
    Program(
        "graphs-cached-nodes",
        partial(_measure, detach=True),
        REF,
        ("missing-gradient",),
        ("layers.*", "encode"),
    ),
    Program(
        "graphs-leaps",
        partial(_measure, {"optimizer": adam(1.0)}),
        REF,
        ("learning-rate-too-high", "dead-units"),
    ),
    Program(
        "graphs-circle-clipped-to-nothing",
        partial(_place, SLOW | {"clip": 1e-4}),
        DESCENT,
        ("over-clipping",),
    ),
    Program(
        "graphs-circle-all-alike",
        partial(_place, levels=24),
        NODE,
        ("rank-collapse",),
        ("layers.*",),
    ),
    Program(
        "graphs-circle-alike-weights",
        partial(_place, initialise=net.constant(0.05)),
        NODE,
        ("symmetric-weights", "poor-initialization"),
    ),
)
