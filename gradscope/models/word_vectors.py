"""Word vectors by skip-gram with negative sampling (Mikolov et al. 2013), and analogies by 3CosAdd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize


class SkipGram(nn.Module):
    """Two vectors for each word: one as the word in the middle, one as a word of its context."""

    def __init__(self, words: int, dimension: int) -> None:
        super().__init__()
        self.word = nn.Embedding(words, dimension)
        self.context = nn.Embedding(words, dimension)
        nn.init.normal_(self.word.weight, std=dimension**-0.5)
        nn.init.zeros_(self.context.weight)

    def forward(self, words: Tensor, contexts: Tensor, noise: Tensor) -> Tensor:
        """Return the mean loss of (batch) pairs against (batch, k) words drawn at random as contexts."""
        vectors = self.word(words)
        true = (vectors * self.context(contexts)).sum(dim=-1)
        false = torch.einsum("bd,bkd->bk", vectors, self.context(noise))
        return -(logsigmoid(true) + logsigmoid(-false).sum(dim=-1)).mean()


def index_words(sentences: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]], Tensor]:
    """Return the vocabulary (frequent words first), the sentences as numbers, and the words' counts."""
    counts = Counter(word for sentence in sentences for word in sentence)
    vocabulary = sorted(counts, key=lambda word: (-counts[word], word))
    number = {word: place for place, word in enumerate(vocabulary)}
    numbered = [[number[word] for word in sentence] for sentence in sentences]
    return vocabulary, numbered, torch.tensor([counts[word] for word in vocabulary])


def context_pairs(sentences: Sequence[Sequence[int]], window: int) -> Tensor:
    """Return every (word, context word) at most `window` places apart in a sentence, (pairs, 2)."""
    return torch.tensor(
        [
            (word, sentence[other])
            for sentence in sentences
            for place, word in enumerate(sentence)
            for other in range(max(0, place - window), min(len(sentence), place + window + 1))
            if other != place
        ]
    )


def train_skip_gram(
    pairs: Tensor,
    counts: Tensor,
    dimension: int = 32,
    steps: int = 2000,
    batch_size: int = 1024,
    negatives: int = 5,
    lr: float = 0.01,
) -> Tensor:
    """Return word vectors, (words, dimension); contexts of the noise are drawn by count to the power 3/4."""
    model = SkipGram(len(counts), dimension)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)
    frequency = counts**0.75
    for _ in range(steps):
        words, contexts = pairs[torch.randint(len(pairs), (batch_size,))].T
        noise = torch.multinomial(frequency, batch_size * negatives, replacement=True)
        loss = model(words, contexts, noise.view(batch_size, negatives))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.word.weight.detach()


def solve_analogies(vectors: Tensor, questions: Tensor, exclude: bool) -> Tensor:
    """Answer "a is to b as c is to ?" by 3CosAdd: the word nearest to b - a + c, all vectors of length 1.

    questions: (number, 3), the words a, b, c; exclude: leave a, b and c out as answers, as most published
    figures do without saying so (Linzen 2016). Returns the (number) answers.
    """
    unit = normalize(vectors)
    a, b, c = (unit[column] for column in questions.T)
    closeness = (b - a + c) @ unit.T
    if exclude:
        closeness.scatter_(1, questions, -torch.inf)
    return closeness.argmax(dim=1)
