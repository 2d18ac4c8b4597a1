"""Tags of tokens (held out): chains of tags, padding, and far context."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.program import Batch, Program, Setup
from benchmarks.verdicts.tasks import MakeOptimizer, adam, adamw, sgd, trained

WORDS, LENGTH, TAGS, WIDTH = 20, 14, 4, 32
PAD = 0


@cache
def _sentences() -> tuple[Tensor, Tensor]:
    """Return padded sentences of 6 to 14 words (1024, 14) and the tag of each word, -1 for padding.

    A tag is made of the word's kind and of the kind of the word before it.
    """
    random = torch.Generator().manual_seed(361)
    words = torch.randint(1, WORDS, (1024, LENGTH), generator=random)
    length = torch.randint(6, LENGTH + 1, (1024, 1), generator=random)
    kind = words % 2
    before = F.pad(words[:, :-1], (1, 0)) // 10
    padded = torch.arange(LENGTH) >= length
    return words.masked_fill(padded, PAD), (2 * kind + before).masked_fill(padded, -1)


@cache
def _opened() -> tuple[Tensor, Tensor]:
    """Return sentences (1024, 14) and tags (1024, 14): the parity of the word, and which word came first."""
    words = torch.randint(1, WORDS, (1024, LENGTH), generator=torch.Generator().manual_seed(362))
    return words, 2 * (words % 2) + (words[:, :1] // 10)


class _Tagger(nn.Module):
    """Embed words, run a body over the sentence, and score each word's tags."""

    def __init__(
        self, body: nn.Module, width: int = WIDTH, output: nn.Module | None = None, spread: float = 1.0
    ):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH, padding_idx=PAD)
        self.place = nn.Parameter(0.5 * torch.randn(LENGTH, WIDTH))
        self.body, self.head, self.output = body, nn.Linear(width, TAGS), output or nn.Identity()
        with torch.no_grad():
            self.embed.weight.mul_(spread)
            self.place.mul_(spread)

    def forward(self, words: Tensor) -> Tensor:
        return self.output(self.head(self.body(self.embed(words) + self.place)))


class _Sequence(nn.Module):
    """A recurrent layer that answers with its outputs alone."""

    def __init__(self, cell: nn.RNNBase):
        super().__init__()
        self.cell = cell

    def forward(self, hidden: Tensor) -> Tensor:
        return self.cell(hidden)[0]


def _lstm(two_ways: bool = False) -> nn.Module:
    return _Sequence(nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=two_ways))


def _rnn(gain: float, layers: int = 1) -> nn.Module:
    """Return a tanh network whose recurrent weights are orthogonal times a gain."""
    cell = nn.RNN(WIDTH, WIDTH, layers, batch_first=True)
    for name, weight in cell.named_parameters():
        if name.startswith("weight_hh"):
            net.scaled(net.orthogonal, gain)(weight)
    return _Sequence(cell)


class _Along(nn.Module):
    """A convolution along the sentence."""

    def __init__(self, size: int = 3):
        super().__init__()
        self.turn = nn.Conv1d(WIDTH, WIDTH, size, padding=size // 2)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.turn(hidden.transpose(1, 2)).transpose(1, 2)


class _Heads(nn.Module):
    """Attention whose logits are multiplied by `sharpness` instead of being left as they are."""

    def __init__(self, sharpness: float = 1.0):
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        with torch.no_grad():
            self.attend.in_proj_weight[:WIDTH] *= sharpness

    def forward(self, hidden: Tensor) -> Tensor:
        return self.attend(hidden, hidden, hidden, need_weights=False)[0]


def _attention(levels: int = 1, sharpness: float = 1.0) -> nn.Module:
    """Return pre-norm blocks of attention and a two-layer network."""
    blocks: list[nn.Module] = []
    for _ in range(levels):
        blocks.append(net.Residual(nn.Sequential(nn.LayerNorm(WIDTH), _Heads(sharpness))))
        wide = net.mlp((WIDTH, 64, WIDTH), nn.GELU, net.lecun)
        blocks.append(net.Residual(nn.Sequential(nn.LayerNorm(WIDTH), wide)))
    return nn.Sequential(*blocks, nn.LayerNorm(WIDTH))


def _convolved(levels: int = 1, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    layers = [layer for _ in range(levels) for layer in (_Along(), activation())]
    return net.initialised(nn.Sequential(*layers), net.he)


def _word_by_word(answers: Tensor, tags: Tensor) -> Tensor:
    """Return the cross-entropy of the words that are not padding."""
    return F.cross_entropy(answers.flatten(0, 1).float(), tags.flatten(), ignore_index=-1)


def _sentence_by_sentence(floor: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return each sentence's mean of what is beyond its eighth word; floor: smallest count divided by."""

    def loss(answers: Tensor, tags: Tensor) -> Tensor:
        late = (tags >= 0) & (torch.arange(LENGTH) >= 8)
        cost = F.cross_entropy(answers.transpose(1, 2), tags.clamp(min=0), reduction="none")
        return ((cost * late).sum(1) / late.sum(1).clamp(min=floor)).mean()

    return loss


def _summed(answers: Tensor, tags: Tensor) -> Tensor:
    """Return the cross-entropy summed over all words of the batch."""
    return F.cross_entropy(answers.flatten(0, 1), tags.flatten(), ignore_index=-1, reduction="sum")


def _tag(
    body: Callable[[], nn.Module] = _lstm,
    fit: dict[str, Any] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = _word_by_word,
    data: Callable[[], tuple[Tensor, Tensor]] = _sentences,
    only: str = "",
    **network: Any,
) -> Setup:
    """Tag words; score: the share of words with the right tag; only: the one part that is optimized."""
    words, tags = data()
    model = _Tagger(body(), **network)
    options = {"optimizer": adam(5e-3), "steps": 200, "batch_size": 48, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")
    real = tags >= 0
    chance = tags[real].bincount().max().item() / int(real.sum())

    def of_batch(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(batch[0]), batch[1])

    def score(model: nn.Module) -> float:
        answers = model(words)
        right = (answers.argmax(2) == tags)[real].float().mean().item()
        return right if answers.isfinite().all() else chance

    parameters = trained(model.get_submodule(only))
    return Setup(model, make(parameters), (words, tags), of_batch, score, chance, **options)


class _Chain(nn.Module):
    """Score a sentence's tags and each pair of neighbouring tags (Lafferty 2001).

    by_logs: sums paths in logarithms; otherwise sums products of exponentials, whose logarithm comes last.
    """

    def __init__(self, by_logs: bool = True, scale: float = 1.0):
        super().__init__()
        self.tagger = _Tagger(_convolved())
        self.pairs = nn.Parameter(torch.zeros(TAGS, TAGS))
        self.total = net.Apply(self._in_logs if by_logs else self._in_products)
        self.scale = scale

    def _in_logs(self, scores: Tensor) -> Tensor:
        paths = scores[:, 0]
        for step in range(1, scores.shape[1]):
            paths = (paths[:, :, None] + self.pairs).logsumexp(1) + scores[:, step]
        return paths.logsumexp(1)

    def _in_products(self, scores: Tensor) -> Tensor:
        paths = scores[:, 0].exp()
        for step in range(1, scores.shape[1]):
            paths = (paths @ self.pairs.exp()) * scores[:, step].exp()
        return paths.sum(1).log()

    def forward(self, words: Tensor) -> Tensor:
        return self.scale * self.tagger(words)


def _chain(fit: dict[str, Any] | None = None, by_logs: bool = True, scale: float = 1.0) -> Setup:
    """Tag sentences as chains; score: as of single words, by the words' own scores."""
    words, tags = _joined()
    model = _Chain(by_logs, scale)
    options = {"optimizer": adam(5e-3), "steps": 150, "batch_size": 48, **(fit or {})}
    make: MakeOptimizer = options.pop("optimizer")

    def loss(model: Any, batch: Batch) -> Tensor:
        scores, wanted = model(batch[0]), batch[1]
        told = scores.gather(2, wanted[:, :, None]).sum((1, 2)) + model.pairs[
            wanted[:, :-1], wanted[:, 1:]
        ].sum(1)
        return (model.total(scores) - told).mean() / LENGTH

    def score(model: nn.Module) -> float:
        scores = model(words)
        return (scores.argmax(2) == tags).float().mean().item() if scores.isfinite().all() else chance

    chance = tags.flatten().bincount().max().item() / tags.numel()
    return Setup(model, make(trained(model)), (words, tags), loss, score, chance, **options)


@cache
def _joined() -> tuple[Tensor, Tensor]:
    """Return sentences without padding, tagged by the word's kind and that of the word before it."""
    words = torch.randint(1, WORDS, (1024, LENGTH), generator=torch.Generator().manual_seed(363))
    return words, 2 * (words % 2) + F.pad(words[:, :-1], (1, 0)) // 10


REF, FAR, CHAIN = "tagging-lstm", "tagging-first-word", "tagging-chain"
DESCENT, ATTEND = "tagging-descent", "tagging-attention"
PLAIN = {"optimizer": sgd(0.3, momentum=0.9), "steps": 300}
PROGRAMS = (
    Program("tagging-lstm", _tag, target=0.9),
    Program("tagging-both-ways", partial(_tag, partial(_lstm, True), width=2 * WIDTH), REF),
    Program(
        "tagging-attention", partial(_tag, _attention, {"optimizer": adam(3e-3), "steps": 300}), target=0.9
    ),
    Program("tagging-convolved", partial(_tag, _convolved), REF),
    Program("tagging-mean-of-late-words", partial(_tag, _convolved, loss=_sentence_by_sentence(1.0)), REF),
    Program("tagging-descent", partial(_tag, _convolved, PLAIN), REF),
    Program("tagging-logarithm-taken-twice", partial(_tag, output=nn.LogSoftmax(2)), REF),
    Program("tagging-recurrent-clipped", partial(_tag, partial(_rnn, 1.0), {"clip": 0.1}), REF),
    Program("tagging-summed-adam", partial(_tag, loss=_summed), REF),
    Program("tagging-first-word", partial(_tag, data=_opened, fit={"steps": 300}), target=0.9),
    Program("tagging-chain", _chain, target=0.9),
    Program("tagging-16-bits", partial(_tag, _convolved, {"autocast": torch.bfloat16}), REF),
    Program(
        "tagging-mean-of-no-words",
        partial(_tag, _convolved, loss=_sentence_by_sentence(0.0)),
        "tagging-mean-of-late-words",
        ("non-finite",),
    ),
    Program(
        "tagging-chain-in-products",
        partial(_chain, by_logs=False, scale=10.0),
        CHAIN,
        ("non-finite", "exploding-signal"),
        ("total",),
    ),
    Program(
        "tagging-head-alone-optimized",
        partial(_tag, only="head"),
        REF,
        ("not-optimized",),
        ("body*", "embed"),
    ),
    Program(
        "tagging-recurrence-of-4",
        partial(_tag, partial(_rnn, 4.0, 3), data=_opened, fit={"steps": 300}),
        FAR,
        ("exploding-gradient", "saturated-activation", "poor-initialization"),
        ("body.cell", "body"),
    ),
    Program(
        "tagging-recurrence-of-0.01",
        partial(_tag, partial(_rnn, 0.01), {"optimizer": sgd(0.1), "steps": 300}, data=_opened),
        FAR,
        ("vanishing-gradient", "poor-initialization", "vanishing-signal"),
        ("body.cell", "body"),
    ),
    Program(
        "tagging-attention-too-sharp",
        partial(_tag, partial(_attention, 1, 1000.0), {"optimizer": adam(3e-3), "steps": 300}),
        ATTEND,
        ("attention-collapse",),
        ("body.0.branch.1*", "body.0*"),
    ),
    Program(
        "tagging-eight-sigmoids",
        partial(_tag, partial(_convolved, 8, nn.Sigmoid)),
        "tagging-convolved",
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
        ("body.*",),
    ),
    Program(
        "tagging-gradients-pile-up",
        partial(_tag, _convolved, PLAIN | {"zero_gradients": False}),
        DESCENT,
        ("gradient-not-zeroed",),
    ),
    Program(
        "tagging-summed-descent",
        partial(_tag, _convolved, PLAIN, _summed),
        DESCENT,
        ("learning-rate-too-high", "exploding-gradient", "loss-divergence", "output-mismatch"),
    ),
    Program(
        "tagging-decay",
        partial(_tag, _convolved, {"optimizer": adamw(5e-3, weight_decay=40.0)}),
        "tagging-convolved",
        ("excessive-weight-decay", "vanishing-signal"),
    ),
    Program(
        "tagging-epsilon-of-one",
        partial(_tag, _convolved, {"optimizer": adam(5e-3, eps=1.0)}),
        "tagging-convolved",
        ("epsilon-floor", "learning-rate-too-low"),
    ),
)
