"""Two modalities (held out): a question about a digit's picture, and pictures matched with words."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import digits
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import MakeOptimizer, adam, adamw, sgd, trained

QUESTIONS, WIDTH = 12, 32


@cache
def _asked(unit: float = 1.0) -> Batch:
    """Return pictures (1797, 64), times `unit`, a question about each (1797,), and the answer, (1797, 1).

    Ten questions ask whether it is that digit (half of the time it is), one whether it is even, one whether
    it is large. Neither the picture nor the question alone tells the answer.
    """
    pictures, classes = digits()
    random = torch.Generator().manual_seed(351)
    question = torch.randint(0, QUESTIONS, classes.shape, generator=random)
    question = torch.where(torch.rand(classes.shape, generator=random) < 0.4, classes, question)
    answer = torch.where(question < 10, question == classes, classes % 2 == 0)
    answer = torch.where(question == 11, classes > 4, answer)
    return unit * pictures, question, answer.float()[:, None]


class _Concat(nn.Module):
    """Put picture and question side by side."""

    width = 2 * WIDTH

    def forward(self, seen: Tensor, asked: Tensor) -> Tensor:
        return torch.cat([seen, asked], 1)


class _Product(nn.Module):
    """Multiply picture and question (Kim 2017), each projected `times` times and multiplied in turn."""

    width = WIDTH

    def __init__(self, times: int = 1, initialise: net.Initialise = net.lecun):
        super().__init__()
        self.seen = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(times))
        self.asked = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(times))
        for linear in (*self.seen, *self.asked):
            initialise(linear.weight)

    def forward(self, seen: Tensor, asked: Tensor) -> Tensor:
        product = torch.ones_like(seen)
        for first, second in zip(self.seen, self.asked, strict=True):
            product = product * first(seen) * second(asked)
        return product


class _Gate(nn.Module):
    """Let the question open and shut the picture's entries; shift: of the gates at the start."""

    width = WIDTH

    def __init__(self, shift: float = 0.0):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sigmoid())
        nn.init.constant_(self.gate[0].bias, shift)

    def forward(self, seen: Tensor, asked: Tensor) -> Tensor:
        return seen * self.gate(asked)


class _Modulate(nn.Module):
    """Scale and shift the picture's entries as the question says (Perez 2018), at first not at all."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.modulate = nn.Linear(WIDTH, 2 * WIDTH)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, seen: Tensor, asked: Tensor) -> Tensor:
        scale, shift = self.modulate(asked).chunk(2, 1)
        return F.relu((1 + scale) * seen + shift)


class _CrossAttend(nn.Module):
    """Let the question attend to `parts` equal parts of the picture; sharpness: multiplies the question."""

    width = WIDTH

    def __init__(self, parts: int, sharpness: float = 1.0):
        super().__init__()
        self.parts, self.sharpness = parts, sharpness
        self.place = nn.Parameter(0.5 * torch.randn(parts, WIDTH))
        self.lift = nn.Linear(WIDTH // parts, WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, seen: Tensor, asked: Tensor) -> Tensor:
        keys = self.lift(seen.view(len(seen), self.parts, -1)) + self.place
        return self.attend(self.sharpness * asked[:, None], keys, keys, need_weights=False)[0][:, 0]


class _Answerer(nn.Module):
    """A network for the picture, an embedding for the question, their fusion, and a head."""

    def __init__(
        self,
        fuse: nn.Module,
        activation: Callable[[], nn.Module] = nn.ReLU,
        initialise: net.Initialise | None = net.he,
        norm: nn.Module | None = None,
        output: nn.Module | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.eye = net.mlp((64, 64, WIDTH), activation, initialise, dropout=dropout)
        self.ear, self.norm = nn.Embedding(QUESTIONS, WIDTH), norm or nn.Identity()
        self.fuse = fuse
        width: Any = fuse.width
        self.head = net.mlp((width, 48, 1), activation, initialise, dropout=dropout)
        self.output = output or nn.Identity()

    def forward(self, pictures: Tensor, questions: Tensor) -> Tensor:
        seen = self.norm(self.eye(pictures))
        return self.output(self.head(self.fuse(seen, self.ear(questions))))


def _answer(
    fuse: Callable[[], nn.Module] = _Concat,
    fit: dict[str, Any] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.binary_cross_entropy_with_logits,
    unit: float = 1.0,
    threshold: float = 0.0,
    frozen: str = "",
    **network: Any,
) -> Setup:
    """Answer questions; frozen: a part that wants no gradient."""
    pictures, questions, answers = _asked(unit)
    model = _Answerer(fuse(), **network)
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    options = {"optimizer": adam(3e-3), "steps": 400, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")

    def of_batch(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(batch[0], batch[1]), batch[2])

    def score(model: nn.Module) -> float:
        said = model(pictures, questions)
        right = ((said > threshold).float() == answers).float().mean().item()
        return right if said.isfinite().all() else chance

    share = answers.mean().item()
    chance = max(share, 1 - share)
    parameters = trained(model)
    return Setup(model, make(parameters), (pictures, questions, answers), of_batch, score, chance, **options)


class _Matcher(nn.Module):
    """A tower for pictures, a tower for words, and the trained logarithm of a scale (Radford 2021)."""

    def __init__(
        self, scale: float = math.log(10), norm: Callable[[int], nn.Module] | None = None, axis: int = 1
    ):
        super().__init__()
        self.eye = net.mlp((64, 64, 16), norm=norm)
        self.word, self.ear = nn.Embedding(10, 24), net.mlp((24, 32, 16))
        self.scale = nn.Parameter(torch.tensor(scale))
        self.likeness = net.Apply(lambda alike: alike.log_softmax(axis))

    def forward(self, pictures: Tensor, words: Tensor) -> Tensor:
        seen, read = F.normalize(self.eye(pictures), dim=1), F.normalize(self.ear(self.word(words)), dim=1)
        return self.likeness(self.scale.exp() * seen @ read.T)


def _match(fit: dict[str, Any] | None = None, frozen: str = "", **network: Any) -> Setup:
    """Match pictures with the ten words for digits; score: the share that are given the right one."""
    pictures, classes = digits()
    model = _Matcher(**network)
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    options = {"optimizer": adam(2e-3), "steps": 250, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")
    words = torch.arange(10)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.nll_loss(model(batch[0], words), batch[1])

    def score(model: nn.Module) -> float:
        alike = model(pictures, words)
        return (alike.argmax(1) == classes).float().mean().item() if alike.isfinite().all() else chance

    chance = classes.bincount().max().item() / len(classes)
    return Setup(model, make(trained(model)), (pictures, classes), loss, score, chance, **options)


def _probability(guessed: Tensor, wanted: Tensor) -> Tensor:
    """Take logarithms of a probability by hand, without a floor."""
    return -(wanted * guessed.log() + (1 - wanted) * (1 - guessed).log()).mean()


REF, PRODUCT, GATE, ATTEND = "modalities-concat", "modalities-product", "modalities-gate", "modalities-attend"
MATCH, DESCENT = "modalities-match", "modalities-product-descent"
PLAIN = {"optimizer": sgd(0.1), "steps": 600}
PROGRAMS = (
    Program("modalities-concat", _answer, target=0.85),
    Program("modalities-product", partial(_answer, _Product), target=0.85),
    Program("modalities-gate", partial(_answer, _Gate), target=0.85),
    Program("modalities-modulated-from-nothing", partial(_answer, _Modulate), REF),
    Program("modalities-attend", partial(_answer, partial(_CrossAttend, 8)), target=0.8),
    Program("modalities-product-descent", partial(_answer, _Product, PLAIN), target=0.8),
    Program("modalities-ear-fixed-at-random", partial(_answer, _Product, frozen="ear"), PRODUCT),
    Program("modalities-normed-eye", partial(_answer, norm=nn.LayerNorm(WIDTH)), REF),
    Program("modalities-some-dropout", partial(_answer, _Product, dropout=0.2), PRODUCT),
    Program("modalities-match", _match, target=0.9),
    Program("modalities-match-words-fixed", partial(_match, frozen="word"), MATCH),
    Program("modalities-match-clipped", partial(_match, {"clip": 0.1}, scale=math.log(50)), MATCH),
    Program(
        "modalities-attend-to-one",
        partial(_answer, partial(_CrossAttend, 1)),
        ATTEND,
        ("zero-gradient",),
        ("fuse.attend", "ear", "fuse"),
    ),
    Program(
        "modalities-attend-too-sharply",
        partial(_answer, partial(_CrossAttend, 8, 1000.0)),
        ATTEND,
        ("attention-collapse",),
        ("fuse.attend*", "fuse"),
    ),
    Program(
        "modalities-product-of-ten",
        partial(_answer, partial(_Product, 5, net.normal(0.02)), PLAIN),
        DESCENT,
        ("vanishing-signal", "vanishing-gradient", "poor-initialization"),
        ("fuse*",),
    ),
    Program(
        "modalities-gate-shut",
        partial(_answer, partial(_Gate, -25.0)),
        GATE,
        ("saturated-activation", "vanishing-signal"),
        ("fuse.gate*", "fuse"),
    ),
    Program(
        "modalities-picture-in-bytes",
        partial(_answer, _Product, PLAIN, unit=100.0),
        DESCENT,
        ("unscaled-input",),
        ("eye.0", "eye", "eye.2"),
    ),
    Program(
        "modalities-decided-by-softmax",
        partial(_answer, output=nn.Softmax(1), loss=F.binary_cross_entropy, threshold=0.5),
        REF,
        ("zero-gradient", "output-mismatch"),
        ("output",),
    ),
    Program(
        "modalities-probability-by-hand",
        partial(
            _answer, _Product, {"optimizer": sgd(20.0)}, _probability, output=nn.Sigmoid(), threshold=0.5
        ),
        PRODUCT,
        ("non-finite", "learning-rate-too-high"),
    ),
    Program(
        "modalities-scale-not-its-logarithm",
        partial(_match, scale=100.0),
        MATCH,
        ("non-finite", "exploding-signal"),
        ("likeness",),
    ),
    Program(
        "modalities-decay",
        partial(_answer, _Product, {"optimizer": adamw(3e-3, weight_decay=30.0)}),
        PRODUCT,
        ("excessive-weight-decay", "vanishing-signal"),
    ),
)
