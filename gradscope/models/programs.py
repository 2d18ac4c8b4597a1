"""The catalogue of demo programs: ailing ones with the rule that must find why, healthy ones with none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradscope.models.classifier import Classifier
from gradscope.models.data import Batches, batches, split_digits
from gradscope.models.deep_mlp import DeepMLP
from gradscope.models.networks import ConvNet, Reader, Transformer

AILING_STEPS, HEALTHY_STEPS = 100, 150
BATCH = 64


@dataclass(frozen=True)
class Training:
    """What a Trainer needs: the model, its batches, those it is tested on, and the number of steps."""

    model: pl.LightningModule
    train: Batches
    test: Batches
    steps: int


@dataclass(frozen=True)
class Program:
    """A named training program.

    finding: the rule whose finding must be ranked first, None if the program is healthy. build: seed ->
    Training. repaired: the same program without its fault, None if it has none.
    """

    name: str
    summary: str
    finding: str | None
    build: Callable[[int], Training]
    repaired: Callable[[int], Training] | None = None


def _train(model: Callable[[], pl.LightningModule], steps: int, seed: int, gap: bool = False) -> Training:
    """Pair a model with the digits, all drawn from `seed`; a `gap` is one training pixel that is missing."""
    torch.manual_seed(seed)
    train, test = split_digits(seed)
    if gap:
        train = _with_a_gap(train)
    return Training(model(), batches(train, seed, BATCH), DataLoader(test, len(test)), steps)


def _with_a_gap(data: TensorDataset) -> TensorDataset:
    images, labels = data.tensors
    images = images.clone()
    images[len(images) // 2, 27] = torch.nan
    return TensorDataset(images, labels)


def _mlp(steps: int, **options: Any) -> Callable[[int], Training]:
    return partial(_train, partial(DeepMLP, **options), steps)


def _classifier(network: Callable[[], nn.Module], steps: int, **options: Any) -> Callable[[int], Training]:
    return partial(_train, lambda: Classifier(network(), **options), steps)


def _ill_mlp(
    name: str, summary: str, finding: str, options: Mapping[str, Any], repair: Mapping[str, Any]
) -> Program:
    """Describe a DeepMLP that fails, and the options that repair it."""
    return Program(
        name, summary, finding, _mlp(AILING_STEPS, **options), _mlp(AILING_STEPS, **{**options, **repair})
    )


class DetachedHead(nn.Module):
    """A network that cuts its hidden layers off the graph, so that only the output layer can learn."""

    def __init__(self, depth: int = 6, width: int = 64, detached: bool = True):
        super().__init__()
        pairs = pairwise([64] + [width] * depth)
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairs))
        self.head = nn.Linear(width, 10)
        self.detached = detached

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, 64) pixels to (batch, 10) logits."""
        features = self.body(images)
        return self.head(features.detach() if self.detached else features)  # type: ignore[no-any-return]


def _reader(recurrent_deviation: float | None) -> nn.Module:
    """Build a tanh network that reads two pixels at a time: 32 steps of backpropagation through time."""
    reader = Reader("rnn", pixels=2, width=64)
    weight = reader.get_parameter("recurrent.weight_hh_l0")
    if recurrent_deviation is None:
        nn.init.orthogonal_(weight)
    else:
        nn.init.normal_(weight, std=recurrent_deviation)
    return reader


_MOMENTUM = {"optimizer": "momentum", "learning_rate": 0.02}

AILING = (
    _ill_mlp(
        "vanishing-sigmoid",
        "12 sigmoid layers: each passes on less than a quarter of the gradient",
        "vanishing-gradient",
        {**_MOMENTUM, "depth": 12, "activation": "sigmoid", "initialization": "xavier"},
        {"activation": "relu", "initialization": "he"},
    ),
    _ill_mlp(
        "vanishing-default-init",
        "20 ReLU layers as torch initialises them: the gradient shrinks by 0.41 a layer",
        "vanishing-gradient",
        {
            "depth": 20,
            "width": 128,
            "initialization": "default",
            "optimizer": "momentum",
            "learning_rate": 0.01,
        },
        {"initialization": "he", "residual": True},  # He alone: 0.4 to 0.8, by the seed and the rounding
    ),
    _ill_mlp(
        "exploding-init",
        "10 ReLU layers with weights from N(0, 1): the signal grows by 5.7 a layer",
        "exploding-gradient",
        {"depth": 10, "initialization": "normal", "optimizer": "adam", "learning_rate": 1e-3},
        {"initialization": "he"},
    ),
    Program(
        "exploding-recurrent",
        "A tanh network that reads 32 steps, with recurrent weights too large",
        "exploding-gradient",
        _classifier(partial(_reader, 0.5), steps=AILING_STEPS, learning_rate=1e-3),
        _classifier(partial(_reader, None), steps=AILING_STEPS, learning_rate=1e-3),
    ),
    _ill_mlp(
        "exploding-batchnorm",
        "40 layers with batch normalisation and no skips: the gradient grows by 1.2 a layer",
        "exploding-gradient",
        {"depth": 40, "normalization": "batch", "optimizer": "adam", "learning_rate": 1e-3},
        {"residual": True},
    ),
    _ill_mlp(
        "dead-relu",
        "6 ReLU layers whose biases start at −1: most units are never active",
        "dead-units",
        {"depth": 6, "bias": -1.0},
        {"bias": 0.0},
    ),
    _ill_mlp(
        "saturated-tanh",
        "5 tanh layers with weights from N(0, 1): pre-activations far out on the flat ends",
        "saturated-activation",
        {"depth": 5, "activation": "tanh", "initialization": "normal"},
        {"initialization": "xavier"},
    ),
    _ill_mlp(
        "learning-rate-too-high",
        "A sound network under Adam with a learning rate of 0.3",
        "learning-rate-too-high",
        {"depth": 6, "optimizer": "adam", "learning_rate": 0.3},
        {"learning_rate": 1e-3},
    ),
    _ill_mlp(
        "learning-rate-too-low",
        "A sound network under Adam with a learning rate of 0.000001",
        "learning-rate-too-low",
        {"depth": 6, "optimizer": "adam", "learning_rate": 1e-6},
        {"learning_rate": 1e-3},
    ),
    Program(
        "non-finite",
        "A sound network; one pixel of one training image is missing (NaN)",
        "non-finite",
        partial(_train, partial(DeepMLP, depth=6), AILING_STEPS, gap=True),
        _mlp(AILING_STEPS, depth=6),
    ),
    _ill_mlp(
        "zero-gradient",
        "All weights start at zero: no gradient reaches any hidden layer",
        "zero-gradient",
        {"depth": 6, "initialization": "zero", "optimizer": "adam", "learning_rate": 1e-3},
        {"initialization": "he"},
    ),
    Program(
        "missing-gradient",
        "A .detach() before the last layer: the hidden layers have no gradient at all",
        "missing-gradient",
        _classifier(DetachedHead, steps=AILING_STEPS, learning_rate=1e-3),
        _classifier(partial(DetachedHead, detached=False), steps=AILING_STEPS, learning_rate=1e-3),
    ),
)

HEALTHY = (
    Program(
        "relu-he",
        "10 ReLU layers with He initialisation and momentum",
        None,
        _mlp(HEALTHY_STEPS, depth=10, **_MOMENTUM),
    ),
    Program(
        "batchnorm",
        "10 sigmoid layers that batch normalisation keeps alive",
        None,
        _mlp(HEALTHY_STEPS, depth=10, activation="sigmoid", initialization="xavier", normalization="batch"),
    ),
    Program(
        "residual",
        "30 ReLU layers with residual connections",
        None,
        _mlp(HEALTHY_STEPS, depth=30, residual=True, optimizer="momentum", learning_rate=0.01),
    ),
    Program(
        "selu",
        "20 SELU layers with LeCun initialisation",
        None,
        _mlp(
            HEALTHY_STEPS,
            depth=20,
            activation="selu",
            initialization="lecun",
            optimizer="momentum",
            learning_rate=0.01,
        ),
    ),
    Program(
        "conv-net", "Two convolutions with pooling, under Adam", None, _classifier(ConvNet, HEALTHY_STEPS)
    ),
    Program(
        "transformer",
        "A pre-norm transformer over the rows of the image, under AdamW",
        None,
        _classifier(Transformer, HEALTHY_STEPS, optimizer="adamw", weight_decay=0.01),
    ),
    Program(
        "lstm",
        "An LSTM that reads the image row by row",
        None,
        _classifier(Reader, HEALTHY_STEPS, learning_rate=5e-3),
    ),
)

PROGRAMS: dict[str, Program] = {program.name: program for program in AILING + HEALTHY}
