"""Greedy layer-wise pre-training rescues a sigmoid network; ReLU with He needs no rescue (Bengio 2007)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from statistics import mean
from typing import Any

import torch
from charts import line_chart
from page import Claim, Figure, Result, Table, at_least, at_most, main, seeds
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradscope.models.data import split_digits
from gradscope.models.deep_mlp import DeepMLP
from gradscope.models.pretraining import pretrain_layers

NETWORKS: dict[str, dict[str, Any]] = {
    "sigmoid, random start": {"activation": "sigmoid", "initialization": "xavier"},
    "sigmoid, pre-trained": {"activation": "sigmoid", "initialization": "xavier"},
    "sigmoid, BatchNorm": {"activation": "sigmoid", "initialization": "xavier", "normalization": "batch"},
    "ReLU, He": {"activation": "relu", "initialization": "he"},
    "ReLU, He, pre-trained": {"activation": "relu", "initialization": "he"},
}


SHALLOW, MODERATE, DEEP = 2, 6, 8  # hidden layers


@dataclass(frozen=True)
class Trained:
    """Test accuracy, the loss at each step, and what each autoencoder failed to reconstruct."""

    accuracy: float
    losses: list[float]
    reconstruction: list[float]


@cache
def start(name: str, depth: int, steps: int, seed: int) -> tuple[DeepMLP, list[float]]:
    """Build a network and pre-train it on all digits without their labels, if the name says so."""
    torch.manual_seed(seed)
    model = DeepMLP(depth=depth, width=64, optimizer="adam", learning_rate=2e-3, **NETWORKS[name])
    if "pre-trained" not in name:
        return model, []
    layers = [layer.linear for layer in model.hidden]
    images = split_digits(seed)[0].tensors[0]
    return model, pretrain_layers(layers, model.hidden[0].activation, images, steps)


def train(name: str, depth: int, labels: int, steps: int, pretraining: int, seed: int) -> Trained:
    """Train a network, pre-trained or not, on the first digits with their labels."""
    model, reconstruction = deepcopy(start(name, depth, pretraining, seed))
    (images, digits), (test_images, test_digits) = (part.tensors for part in split_digits(seed))
    torch.manual_seed(seed)
    optimizer, losses = model.configure_optimizers(), []
    for _ in range(steps):
        batch = torch.randint(labels, (64,))
        loss = cross_entropy(model(images[batch]), digits[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Trained(accuracy(model, test_images, test_digits), losses, reconstruction)


def accuracy(model: nn.Module, images: Tensor, digits: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(dim=1) == digits).double().mean().item()


Runs = dict[tuple[str, int, int], list[Trained]]  # network, depth, labelled digits: a run for each seed


def experiment(quick: bool, seed: int) -> Result:
    depths, numbers = ((MODERATE,), (100,)) if quick else ((SHALLOW, MODERATE, DEEP), (1437, 100))
    names = list(NETWORKS)[:4] if quick else list(NETWORKS)
    runs = {
        (name, depth, labels): [
            train(name, depth, labels, steps=200, pretraining=900, seed=number)
            for number in seeds(seed, 1 if quick else 3)
        ]
        for depth in depths
        for labels in numbers
        for name in names
    }
    return Result(
        title="Pre-training layer by layer",
        lead="Before 2010 a deep sigmoid network was trained in two stages: each layer first learned, "
        "as an autoencoder and without labels, to keep what the layer under it says; only then came the "
        "labels. It makes a network of moderate depth trainable. A better activation with the right "
        "initialisation does more, for nothing.",
        claims=quick_claims(runs) if quick else full_claims(runs),
        figures=[
            *(accuracy_figure(runs, names, depths, labels) for labels in numbers),
            loss_figure(runs, names),
        ],
        tables=[accuracy_table(runs, names), reconstruction_table(runs)],
        notes=[
            "When it pays: a sigmoid network of moderate depth, and the more so the fewer labels there are.",
            "When not: a shallow network hardly needs it, a sigmoid network of eight layers is beyond "
            "it (the upper autoencoders fail to reconstruct their inputs, as the second table shows), "
            "and He with ReLU or BatchNorm does better at every depth without it.",
            "Table and charts show the mean of the seeds, the claims ask every seed.",
        ],
        code=[pretrain_layers, start, train],
        sources=[
            "Hinton, Osindero and Teh 2006",
            "Bengio, Lamblin, Popovici and Larochelle 2007",
            "Glorot, Bordes and Bengio 2011",
        ],
    )


def quick_claims(runs: Runs) -> list[Claim]:
    score = {name: trained[0].accuracy for (name, _, _), trained in runs.items()}
    return [
        at_least(
            "Six sigmoid layers, 100 labels: pre-training raises the accuracy by",
            score["sigmoid, pre-trained"] - score["sigmoid, random start"],
            0.05,
        ),
        at_least(
            "… and ReLU with He, without pre-training, is better than the random start by",
            score["ReLU, He"] - score["sigmoid, random start"],
            0.2,
        ),
    ]


def full_claims(runs: Runs) -> list[Claim]:
    def gained(better: str, worse: str, depth: int, labels: int) -> list[float]:
        pairs = zip(runs[better, depth, labels], runs[worse, depth, labels], strict=True)
        return [one.accuracy - other.accuracy for one, other in pairs]

    pretrained, random_start = "sigmoid, pre-trained", "sigmoid, random start"
    return [
        at_least(
            "It pays: six sigmoid layers, all labels, accuracy gained",
            min(gained(pretrained, random_start, MODERATE, 1437)),
            0.1,
        ),
        at_least(
            "It pays: six sigmoid layers, 100 labels, accuracy gained",
            min(gained(pretrained, random_start, MODERATE, 100)),
            0.1,
        ),
        at_most(
            "It hardly pays: two sigmoid layers, all labels, accuracy gained",
            max(gained(pretrained, random_start, SHALLOW, 1437)),
            0.06,
        ),
        at_most(
            "It no longer helps: accuracy of eight pre-trained sigmoid layers, all labels",
            max(run.accuracy for run in runs[pretrained, DEEP, 1437]),
            0.6,
        ),
        at_least(
            "ReLU with He beats it: eight layers, all labels, by",
            min(gained("ReLU, He", pretrained, DEEP, 1437)),
            0.2,
        ),
        at_least(
            "BatchNorm beats it: eight sigmoid layers, all labels, by",
            min(gained("sigmoid, BatchNorm", pretrained, DEEP, 1437)),
            0.2,
        ),
        at_most(
            "Pre-training ReLU with He gains little: six layers, all labels",
            max(gained("ReLU, He, pre-trained", "ReLU, He", MODERATE, 1437)),
            0.05,
        ),
    ]


def mean_accuracy(trained: list[Trained]) -> float:
    return mean(run.accuracy for run in trained)


def accuracy_figure(runs: Runs, names: list[str], depths: tuple[int, ...], labels: int) -> Figure:
    series = {
        name: (depths, [mean_accuracy(runs[name, depth, labels]) for depth in depths]) for name in names
    }
    chart = line_chart(series, "hidden layers", "accuracy on test digits", ticks=depths)
    return Figure(
        f"{labels:,} labelled digits",
        "200 steps of Adam after any pre-training.",
        chart.update_yaxes(range=[0, 1.03]),
        wide=False,
    )


def loss_figure(runs: Runs, names: list[str]) -> Figure:
    labels = min(number for _, _, number in runs)
    series = {}
    for name in names:
        smooth = (
            torch.tensor([run.losses for run in runs[name, MODERATE, labels]])
            .mean(dim=0)
            .unfold(0, 10, 5)
            .mean(dim=1)
            .tolist()
        )
        series[name] = ([10 + 5 * place for place in range(len(smooth))], smooth)
    chart = line_chart(series, "step", "training loss", log_y=True, mode="lines")
    return Figure(
        f"The start matters: six layers, {labels} labels",
        "Training loss, mean of ten steps and of the seeds.",
        chart,
    )


def accuracy_table(runs: Runs, names: list[str]) -> Table:
    settings = sorted({(depth, labels) for _, depth, labels in runs}, key=lambda pair: (-pair[1], pair[0]))
    rows = [
        [name, *(mean_accuracy(runs[name, depth, labels]) for depth, labels in settings)] for name in names
    ]
    return Table(
        "Accuracy on 360 test digits, mean of the seeds",
        ["network", *(f"{d} layers, {n:,} labels" for d, n in settings)],
        rows,
    )


def reconstruction_table(runs: Runs) -> Table:
    rows = [
        [f"{name}, {depth} layers", trained[0].reconstruction]
        for (name, depth, labels), trained in runs.items()
        if trained[0].reconstruction and labels == min(number for _, _, number in runs)
    ]
    return Table(
        "Share of each layer's input that its autoencoder loses (1: no better than the mean), first seed",
        ["network", "first layer to last"],
        rows,
    )


if __name__ == "__main__":
    main(experiment)
