"""Data of the programs: real tables and images that ship with scikit-learn, and small synthetic tasks."""

from __future__ import annotations

from functools import cache

import numpy as np
import sklearn.datasets as datasets
import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def _standardise(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / (values.std(0) + 1e-8)


def _tensors(inputs: np.ndarray, targets: np.ndarray) -> Pair:
    kind = torch.long if np.issubdtype(targets.dtype, np.integer) else torch.float32
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets).to(kind)


@cache
def digits() -> Pair:
    """Return 1797 handwritten digits, (1797, 64) of mean 0 and standard deviation 1, and their classes."""
    inputs, targets = datasets.load_digits(return_X_y=True)
    return _tensors((inputs - inputs.mean()) / inputs.std(), targets)


@cache
def images() -> Pair:
    """Return the digits as images (1797, 1, 8, 8)."""
    inputs, targets = digits()
    return inputs.view(-1, 1, 8, 8), targets


@cache
def table(name: str, scaled: bool = True) -> Pair:
    """Return "breast_cancer", "wine", "iris" or "diabetes"; the target of diabetes is standardised."""
    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    if name == "diabetes":
        targets = _standardise(targets)[:, None]
    return _tensors(_standardise(inputs) if scaled else inputs, targets)


@cache
def circles() -> Pair:
    """Return two noisy circles, (1000, 2), and the classes as (1000, 1) floats."""
    inputs, targets = datasets.make_circles(1000, noise=0.1, random_state=1, factor=0.8)
    return _tensors(inputs, targets[:, None].astype(float))


@cache
def blobs() -> Pair:
    """Return three overlapping Gaussian clouds, (1000, 2), and their classes."""
    return _tensors(*datasets.make_blobs(1000, 2, centers=3, cluster_std=2, random_state=2)[:2])


@cache
def moons() -> Pair:
    """Return two interleaved half moons, (1000, 2), and their classes."""
    return _tensors(*datasets.make_moons(1000, noise=0.15, random_state=3))


@cache
def friedman() -> Pair:
    """Return Friedman's first regression problem, (1000, 10) and (1000, 1), both standardised."""
    inputs, targets = datasets.make_friedman1(1000, noise=0.5, random_state=4)
    return _tensors(_standardise(inputs), _standardise(targets)[:, None])


@cache
def waves() -> Pair:
    """Return a smooth curve, (512, 1) inputs in [-1, 1] and (512, 1) targets of unit scale."""
    inputs = np.linspace(-1, 1, 512)[:, None]
    return _tensors(inputs, np.sin(4 * inputs) + 0.5 * np.cos(9 * inputs))


@cache
def recall(length: int, classes: int = 4) -> Pair:
    """Return sequences (1024, length, classes + 1) whose class is the symbol shown first, before noise."""
    random = np.random.default_rng(5)
    targets = random.integers(0, classes, 1024)
    inputs = 0.3 * random.standard_normal((1024, length, classes + 1))
    inputs[np.arange(1024), 0, targets] += 2
    return _tensors(inputs, targets)


@cache
def tokens(length: int = 12, vocabulary: int = 16) -> tuple[Tensor, Tensor]:
    """Return token sequences (2048, length) and, at each place, the token that followed its first occurrence
    of the sequence's first token: a look-up that needs attention."""
    random = np.random.default_rng(6)
    inputs = random.integers(2, vocabulary, (2048, length))
    places = random.integers(2, length - 1, 2048)
    inputs[:, 0] = 1
    inputs[np.arange(2048), places] = 1
    return torch.tensor(inputs), torch.tensor(inputs[np.arange(2048), places + 1])


@cache
def text(length: int = 24) -> tuple[Tensor, Tensor, int]:
    """Return (inputs, next characters, size of the alphabet) of English text: scikit-learn's descriptions."""
    names = ("digits", "breast_cancer", "wine", "diabetes", "iris")
    whole = "".join(getattr(datasets, f"load_{name}")().DESCR for name in names).lower()
    alphabet = sorted(set(whole))
    codes = torch.tensor([alphabet.index(letter) for letter in whole])
    rows = codes.unfold(0, length + 1, length // 2)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), len(alphabet)


@cache
def ring() -> Tensor:
    """Return points (1024, 2) on a noisy ring of radius 1, for generative programs."""
    random = torch.Generator().manual_seed(7)
    angle = 2 * torch.pi * torch.rand(1024, generator=random)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.05 * torch.randn(1024, 2, generator=random)


@cache
def communities() -> tuple[Tensor, Tensor, Tensor]:
    """Return a graph of 240 nodes in 4 communities: noisy features (240, 16), the symmetrically normalised
    adjacency with self-loops (240, 240), and the communities."""
    random = np.random.default_rng(8)
    groups = np.arange(240) % 4
    linked = random.random((240, 240)) < np.where(groups[:, None] == groups[None, :], 0.12, 0.02)
    adjacency = np.triu(linked, 1)
    adjacency = adjacency + adjacency.T + np.eye(240)
    scale = adjacency.sum(1) ** -0.5
    features = random.standard_normal((240, 16)) + 0.7 * np.eye(16)[groups]
    return (*_tensors(features, groups), torch.tensor(scale[:, None] * adjacency * scale[None, :]).float())
