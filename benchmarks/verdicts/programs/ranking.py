"""Learning to rank (held out): lists of documents ordered by pairs, by lists, by margins and by context."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import MakeOptimizer, adam, adamw, sgd, trained

Loss = Callable[[Tensor, Tensor], Tensor]
LISTS, LENGTH, QUERY, FEATURES, WIDTH = 512, 10, 4, 12, 32
GRADES = 4


@cache
def _judged(unit: float = 1.0, clicks: bool = False) -> Pair:
    """Return lists of documents beside their query (512, 10, 12) and the grade of each, 0 to 3, (512, 10).

    unit: of two of the features, say a length in bytes; clicks: tells one document a list, drawn by grade.
    """
    random = torch.Generator().manual_seed(411)
    query = torch.randn(LISTS, 1, QUERY, generator=random).expand(-1, LENGTH, -1)
    document = torch.randn(LISTS, LENGTH, FEATURES - QUERY, generator=random)
    worth = (query * document[:, :, :QUERY]).sum(2) + document[:, :, 4] - document[:, :, 5].abs()
    worth = worth + 0.3 * torch.randn(LISTS, LENGTH, generator=random)
    grades = torch.bucketize(worth, worth.flatten().quantile(torch.tensor([0.5, 0.75, 0.9]))).float()
    if clicks:
        clicked = torch.multinomial((3 * grades).exp(), 1, generator=random)
        grades = torch.zeros_like(grades).scatter(1, clicked, 1.0)
    scale = torch.ones(FEATURES)
    scale[-4:-2] = unit
    return scale * torch.cat([query, document], 2), grades


@cache
def _ordered_by_neighbours() -> Pair:
    """Return lists, and in how many of two features a document is near the mean of its list."""
    random = torch.Generator().manual_seed(412)
    shown = torch.randn(LISTS, LENGTH, FEATURES, generator=random) + 2 * torch.randn(
        LISTS, 1, FEATURES, generator=random
    )
    apart = shown[:, :, :2] - shown[:, :, :2].mean(1, keepdim=True)
    return shown, (apart.abs() < 0.7).sum(2).float()


class _Scorer(nn.Module):
    """Score each document (lists, documents, features) by a body and a head of one output.

    aside: a number that is added to all scores of a list, made of the query alone; level: the head's bias.
    """

    def __init__(
        self,
        body: nn.Module,
        output: Callable[[], nn.Module] = nn.Identity,
        aside: bool = False,
        level: float = 0.0,
    ):
        super().__init__()
        self.body, self.head, self.output = body, nn.Linear(WIDTH, 1), output()
        self.aside = nn.Linear(QUERY, 1) if aside else None
        nn.init.constant_(self.head.bias, level)

    def forward(self, lists: Tensor) -> Tensor:
        scores = self.output(self.head(self.body(lists)))
        if self.aside is not None:
            scores = scores + self.aside(lists[:, :, :QUERY])
        return scores.squeeze(2)


def _layers(
    depth: int = 2,
    activation: Callable[[], nn.Module] = nn.ReLU,
    initialise: net.Initialise | None = net.he,
    norm: Callable[[int], nn.Module] | None = None,
) -> nn.Module:
    """Return `depth` layers, each with its activation."""
    sizes = (FEATURES, *[WIDTH] * depth)
    layers = list(net.mlp((*sizes, 1), activation, initialise, norm))[:-1]
    return nn.Sequential(*layers)


def _random_features() -> nn.Module:
    """Return a wide random layer that is frozen on purpose, and a trained one behind it."""
    front = nn.Sequential(nn.Linear(FEATURES, 256), nn.ReLU())
    net.initialised(front, net.he).requires_grad_(False)
    return nn.Sequential(front, nn.Linear(256, WIDTH), nn.ReLU())


def _context(levels: int = 1, skip: bool = True, sharpness: float = 1.0) -> nn.Module:
    """Return attention among the documents of a list; sharpness: multiplies the queries of attention."""
    enter = nn.Linear(FEATURES, WIDTH)
    if skip:
        blocks: list[nn.Module] = [net.pre_norm_block(WIDTH) for _ in range(levels)]
    else:
        blocks = [nn.Sequential(net.Attention(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(levels)]
    model = nn.Sequential(enter, *blocks)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            with torch.no_grad():
                module.in_proj_weight[:WIDTH] *= sharpness
    return model


def _differences(scores: Tensor, grades: Tensor) -> tuple[Tensor, Tensor]:
    """Return s_i - s_j of all pairs of a list, and which of the pairs are to be positive."""
    return scores[:, :, None] - scores[:, None], grades[:, :, None] > grades[:, None]


def _logistic(scores: Tensor, grades: Tensor) -> Tensor:
    """Return the logistic loss of pairs (Burges 2005)."""
    apart, above = _differences(scores.float(), grades)
    return F.softplus(-apart[above]).mean()


def _hinge(margin: float) -> Loss:
    """Return the loss that wants each pair apart by a margin (Joachims 2002)."""

    def loss(scores: Tensor, grades: Tensor) -> Tensor:
        apart, above = _differences(scores, grades)
        return (margin - apart[above]).relu().mean()

    return loss


def _softmax(scores: Tensor, grades: Tensor) -> Tensor:
    """Return the cross-entropy of a list's scores and its grades (Cao 2007)."""
    return -(grades.softmax(1) * scores.log_softmax(1)).sum(1).mean()


def _clicked(scores: Tensor, grades: Tensor) -> Tensor:
    return F.cross_entropy(scores, grades.argmax(1))


def _in_order(scores: Tensor, grades: Tensor) -> Tensor:
    """Return a list's scores, those of the best grades first."""
    return scores.gather(1, torch.sort(grades, dim=1, descending=True, stable=True).indices)


def _plackett(scores: Tensor, grades: Tensor) -> Tensor:
    """Return minus the likelihood of the order of grades (Xia 2008), in logarithms."""
    told = _in_order(scores, grades)
    return (told.flip(1).logcumsumexp(1).flip(1) - told).mean()


def _plackett_by_products(scores: Tensor, grades: Tensor) -> Tensor:
    """Return the same, by exponentials and their sums."""
    told = _in_order(scores, grades).exp()
    return -(told / told.flip(1).cumsum(1).flip(1)).log().mean()


def _smooth_gain(temperature: float) -> Loss:
    """Return minus the normalised gain at ranks that are sums of sigmoids (Qin 2010)."""

    def loss(scores: Tensor, grades: Tensor) -> Tensor:
        ahead = torch.sigmoid((scores[:, None] - scores[:, :, None]) / temperature)
        rank = 0.5 + ahead.sum(2)
        places = torch.arange(LENGTH, dtype=scores.dtype)
        best = (grades.sort(1, descending=True)[0].exp2() - 1) / (places + 2).log2()
        gain = (grades.exp2() - 1) / (rank + 1).log2()
        return -(gain.sum(1) / best.sum(1).clamp(min=1)).mean()

    return loss


def _lambdas(scores: Tensor, grades: Tensor) -> Tensor:
    """Return the logistic loss, each pair weighed by what swapping it changes, which has no gradient."""
    apart, above = _differences(scores, grades)
    with torch.no_grad():
        rank = 1.0 + (scores[:, None] > scores[:, :, None]).sum(2)
        discount = 1 / (rank + 1).log2()
        gain = grades.exp2()
        swap = (gain[:, :, None] - gain[:, None]) * (discount[:, :, None] - discount[:, None])
    return (swap.abs() * F.softplus(-apart))[above].mean()


def _pointwise(scores: Tensor, grades: Tensor) -> Tensor:
    return F.mse_loss(scores, grades)


def _standardised(scores: Tensor, grades: Tensor) -> Tensor:
    """Return the logistic loss of scores that are divided by their deviation in the list."""
    spread = scores.std(1, keepdim=True)
    return _logistic((scores - scores.mean(1, keepdim=True)) / (spread + 1e-3), grades)


def _rank(
    loss: Loss = _logistic,
    fit: dict[str, Any] | None = None,
    body: Callable[[], nn.Module] = _layers,
    data: Callable[[], Pair] = _judged,
    only: str = "",
    truth: Callable[[], Pair] | None = None,
    zeros: bool = False,
    **network: Any,
) -> Setup:
    """Rank lists; score: the share of pairs of different grade in the right order; chance: a half.

    only: the one part that is optimized; truth: grades that the order is held to; zeros: of the head.
    """
    lists, grades = data()
    wanted = (truth or data)()[1]
    model = _Scorer(body(), **network)
    if zeros:
        nn.init.zeros_(model.head.weight)
    options = {"optimizer": adam(5e-3), "steps": 250, "batch_size": 32, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")

    def of_batch(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(batch[0]), batch[1])

    def score(model: nn.Module) -> float:
        scores = model(lists)
        apart, above = _differences(scores, wanted)
        right = (apart > 0).float() + 0.5 * (apart == 0).float()
        return right[above].mean().item() if scores.isfinite().all() else 0.5

    parameters = trained(model.get_submodule(only))
    return Setup(model, make(parameters), (lists, grades), of_batch, score, 0.5, **options)


REF, LISTWISE, DESCENT, CONTEXT = "ranking-pairs", "ranking-lists", "ranking-descent", "ranking-context"
PLACKETT, GAIN, DEEP = "ranking-plackett", "ranking-smooth-gain", "ranking-deep-tanh"
PLAIN = {"optimizer": sgd(0.1, momentum=0.9), "steps": 300}
AMONG = {"body": _context, "data": _ordered_by_neighbours}
PROGRAMS = (
    Program("ranking-pairs", _rank, target=0.9),
    Program("ranking-lists", partial(_rank, _softmax), REF),
    Program("ranking-hinge-mostly-satisfied", partial(_rank, _hinge(0.1), {"steps": 400}), REF),
    Program("ranking-plackett", partial(_rank, _plackett), REF),
    Program("ranking-smooth-gain", partial(_rank, _smooth_gain(1.0), {"steps": 400}), REF),
    Program("ranking-lambdas-without-gradient", partial(_rank, _lambdas), REF),
    Program("ranking-pointwise", partial(_rank, _pointwise), REF),
    Program("ranking-descent", partial(_rank, fit=PLAIN), REF),
    Program("ranking-scores-near-1000", partial(_rank, level=1000.0), REF),
    Program("ranking-query-term-that-cancels", partial(_rank, aside=True), REF),
    Program("ranking-random-features-frozen", partial(_rank, body=_random_features), REF),
    Program("ranking-head-of-zero", partial(_rank, zeros=True), REF),
    Program(
        "ranking-one-click-a-list",
        partial(_rank, _clicked, data=partial(_judged, clicks=True), truth=_judged),
        target=0.85,
    ),
    Program("ranking-context", partial(_rank, fit={"optimizer": adam(3e-3)}, **AMONG), target=0.85),
    Program(
        "ranking-deep-tanh", partial(_rank, fit=PLAIN, body=partial(_layers, 6, nn.Tanh, net.glorot)), REF
    ),
    Program("ranking-lists-standardised", partial(_rank, _standardised), REF),
    Program("ranking-16-bits", partial(_rank, fit={"autocast": torch.bfloat16}), REF),
    Program(
        "ranking-softmax-over-one-score",
        partial(_rank, output=partial(nn.Softmax, -1)),
        REF,
        ("zero-gradient", "output-mismatch"),
        ("output",),
    ),
    Program(
        "ranking-norm-of-one-score",
        partial(_rank, output=partial(nn.LayerNorm, 1)),
        REF,
        ("degenerate-normalization", "zero-gradient"),
        ("output",),
    ),
    Program(
        "ranking-no-score-below-zero",
        partial(_rank, output=nn.ReLU, level=-15.0),
        REF,
        ("dead-units", "zero-gradient", "poor-initialization"),
        ("output", "head"),
    ),
    Program(
        "ranking-lengths-in-bytes",
        partial(_rank, fit=PLAIN, data=partial(_judged, 2000.0)),
        DESCENT,
        ("unscaled-input",),
        ("body.0", "body"),
    ),
    Program(
        "ranking-plackett-by-products",
        partial(_rank, _plackett_by_products, level=100.0),
        PLACKETT,
        ("non-finite",),
    ),
    Program("ranking-head-alone-optimized", partial(_rank, only="head"), REF, ("not-optimized",), ("body*",)),
    Program(
        "ranking-rate-of-1", partial(_rank, fit={"optimizer": adam(1.0)}), REF, ("learning-rate-too-high",)
    ),
    Program(
        "ranking-rate-of-1e-6",
        partial(_rank, _softmax, {"optimizer": adam(1e-6)}),
        LISTWISE,
        ("learning-rate-too-low",),
    ),
    Program(
        "ranking-gradients-pile-up",
        partial(_rank, fit=PLAIN | {"zero_gradients": False}),
        DESCENT,
        ("gradient-not-zeroed",),
    ),
    Program(
        "ranking-clipped-to-nothing",
        partial(_rank, fit=PLAIN | {"clip": 1e-4}),
        DESCENT,
        ("over-clipping",),
    ),
    Program(
        "ranking-eight-tanh-barely-started",
        partial(_rank, fit=PLAIN, body=partial(_layers, 8, nn.Tanh, net.normal(0.03))),
        DEEP,
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
        ("body.*",),
    ),
    Program(
        "ranking-tanh-driven-hard",
        partial(_rank, fit=PLAIN, body=partial(_layers, 6, nn.Tanh, net.normal(4.0))),
        DEEP,
        ("saturated-activation", "exploding-gradient", "poor-initialization"),
        ("body.*",),
    ),
    Program(
        "ranking-smooth-gain-too-cold",
        partial(_rank, _smooth_gain(1e-4), {"steps": 400}),
        GAIN,
        ("zero-gradient", "vanishing-gradient", "exploding-gradient"),
    ),
    Program(
        "ranking-context-without-skips",
        partial(
            _rank,
            fit={"optimizer": adam(3e-3)},
            body=partial(_context, 6, False),
            data=_ordered_by_neighbours,
        ),
        CONTEXT,
        ("rank-collapse", "vanishing-signal", "vanishing-gradient"),
        ("body.*",),
    ),
    Program(
        "ranking-context-too-sharp",
        partial(
            _rank,
            fit={"optimizer": adam(3e-3)},
            body=partial(_context, sharpness=1000.0),
            data=_ordered_by_neighbours,
        ),
        CONTEXT,
        ("attention-collapse",),
        ("body.1*",),
    ),
    Program(
        "ranking-decay",
        partial(_rank, fit={"optimizer": adamw(5e-3, weight_decay=40.0)}),
        REF,
        ("excessive-weight-decay", "vanishing-signal"),
    ),
)
