"""Momentum as a moving average and Adam with its two moments, equal to torch.optim, and compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from charts import line_chart
from page import Claim, Figure, Result, Table, at_least, at_most, main
from torch import nn
from torch.optim import Optimizer

from gradscope import read_run, watch
from gradscope.models.data import split_digits
from gradscope.models.deep_mlp import DeepMLP
from gradscope.models.optimizers import MovingAverageSGD, WrittenAdam
from gradscope.records import Run

CURVATURES = torch.logspace(
    0, 4, 10, dtype=torch.float64
)  # curvatures of the quadratic: condition number 10^4
MOMENTUM = "momentum, v = 0.9 v + 0.1 g"
Build = Callable[[list[nn.Parameter]], Optimizer]

PAIRS: dict[str, tuple[Build, Build]] = {  # ours, and what should be the same in torch
    MOMENTUM: (
        lambda weights: MovingAverageSGD(weights, lr=0.05, momentum=0.9),
        lambda weights: torch.optim.SGD(weights, lr=0.05 * (1 - 0.9), momentum=0.9),
    ),
    "Adam": (
        lambda weights: WrittenAdam(weights, lr=0.01),
        lambda weights: torch.optim.Adam(weights, lr=0.01),
    ),
    "Adam + L2": (
        lambda weights: WrittenAdam(weights, lr=0.01, weight_decay=0.1),
        lambda weights: torch.optim.Adam(weights, lr=0.01, weight_decay=0.1),
    ),
    "AdamW": (
        lambda weights: WrittenAdam(weights, lr=0.01, weight_decay=0.1, decoupled=True),
        lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1),
    ),
}


def with_dampening(weights: list[nn.Parameter]) -> Optimizer:
    """Build what looks like the moving average in torch, and is not."""
    return torch.optim.SGD(weights, lr=0.05, momentum=0.9, dampening=0.9)


def deep_network(seed: int) -> DeepMLP:
    """Build a deep ReLU network in float64, with He initialisation."""
    torch.manual_seed(seed)
    return DeepMLP(depth=12, width=32).double()


def gradients(network: DeepMLP, generator: torch.Generator) -> float:
    """Put the gradients of a batch of digits into the network; return the loss."""
    images, labels = split_digits(0)[0].tensors
    batch = torch.randint(len(images), (64,), generator=generator)
    loss = network.loss(network(images[batch].double()), labels[batch])
    network.zero_grad()
    loss.backward()
    return loss.item()


def difference(ours: Build, theirs: Build, steps: int, seed: int) -> float:
    """Hand both the gradients of a training by torch's; return the weights' largest relative difference."""
    leader, follower = deep_network(seed), deep_network(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizers = theirs(list(leader.parameters())), ours(list(follower.parameters()))
    for _ in range(steps):
        gradients(leader, generator)
        for copy, weight in zip(follower.parameters(), leader.parameters(), strict=True):
            copy.grad = weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    return max(
        ((copy - weight).abs().max() / weight.abs().max()).item()
        for copy, weight in zip(follower.parameters(), leader.parameters(), strict=True)
    )


def trained(build: Build, steps: int, seed: int) -> tuple[list[float], Run]:
    """Train the deep network on digits while gradscope watches; return the loss at each step, and the run."""
    network, generator, losses = deep_network(seed), torch.Generator().manual_seed(seed), []
    optimizer = build(list(network.parameters()))
    with tempfile.TemporaryDirectory() as folder:
        with watch(network, optimizer, run_dir=Path(folder) / "run", verbose=False) as observed:
            for _ in range(steps):
                losses.append(gradients(network, generator))
                optimizer.step()
                observed.step(losses[-1])
        return losses, read_run(Path(folder) / "run")


def quadratic_descent(build: Build, steps: int) -> list[float]:
    """Minimise half the sum of curvature times weight²; return the loss at each step."""
    weights = nn.Parameter(torch.ones(len(CURVATURES), dtype=torch.float64))
    optimizer, losses = build([weights]), []
    for _ in range(steps):
        loss = (CURVATURES * weights.square()).sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


ON_QUADRATIC: dict[str, Build] = {  # the largest learning rates that converge, about
    "gradient descent": lambda weights: torch.optim.SGD(weights, lr=1.9e-4),
    "momentum 0.9": lambda weights: MovingAverageSGD(weights, lr=1.9e-3, momentum=0.9),
    "Adam": lambda weights: WrittenAdam(weights, lr=0.01),
}
ON_DIGITS: dict[str, Build] = {
    "gradient descent": lambda weights: torch.optim.SGD(weights, lr=0.02),
    "momentum 0.9": lambda weights: MovingAverageSGD(weights, lr=0.1, momentum=0.9),
    "Adam": lambda weights: WrittenAdam(weights, lr=0.002),
}


def experiment(quick: bool, seed: int) -> Result:
    steps = 40 if quick else 200
    differences = {name: difference(*pair, steps, seed) for name, pair in PAIRS.items()}
    dampened = difference(PAIRS[MOMENTUM][0], with_dampening, steps, seed)
    quadratic = {name: quadratic_descent(build, 1000) for name, build in ON_QUADRATIC.items()}
    digits = {name: trained(build, 60 if quick else 300, seed) for name, build in ON_DIGITS.items()}
    claims: list[Claim] = [
        *(
            at_most(f"{name}: largest relative difference from torch.optim after {steps} steps", value, 1e-12)
            for name, value in differences.items()
        ),
        at_least(
            "Torch's dampening = 0.9 at the same rate is not the moving average: difference", dampened, 1e-3
        ),
        at_most(
            "Quadratic with condition number 10⁴: momentum's loss after 1000 steps over gradient descent's",
            quadratic["momentum 0.9"][-1] / quadratic["gradient descent"][-1],
            0.1,
        ),
        at_most(
            "… and Adam's over momentum's (the axes are those of the weights)",
            quadratic["Adam"][-1] / quadratic["momentum 0.9"][-1],
            0.1,
        ),
        at_least(
            "Adam's updates are alike in every layer: smallest over largest median update ratio of its "
            "layers",
            spread_over_layers(digits["Adam"][1]),
            0.1,
        ),
    ]
    if not quick:
        losses = {name: final(losses) for name, (losses, _) in digits.items()}
        claims.append(
            at_most(
                "Deep MLP on digits: Adam's final loss over gradient descent's",
                losses["Adam"] / losses["gradient descent"],
                0.8,
            )
        )
    return Result(
        title="Optimizers: momentum and Adam, written out",
        lead="Momentum follows a moving average of the gradients. Adam divides that average by a moving "
        "average of their size, weight by weight. Each is a few lines, equal to torch's to the last "
        "digits.",
        claims=claims,
        figures=[
            loss_figure(
                "A badly scaled quadratic",
                "Ten weights with curvatures from 1 to 10⁴, all starting at 1.",
                quadratic,
                wide=False,
            ),
            loss_figure(
                "A deep network on digits",
                "Twelve hidden ReLU layers; mean of ten steps.",
                {name: smooth(losses) for name, (losses, _) in digits.items()},
                wide=False,
            ),
            *(recorded_figure(digits, *view) for view in VIEWS),
        ],
        tables=[
            Table(
                "Largest relative difference of weights from torch.optim, float64",
                ["optimizer", f"after {steps} steps on the same gradients"],
                [*differences.items(), ("torch's dampening = 0.9 instead", dampened)],
            )
        ],
        notes=[
            "v = βv + (1 − β)∇J at rate η is torch's SGD(lr = η(1 − β), momentum = β, dampening = 0): "
            "torch's buffer is v / (1 − β). Torch's dampening = β at rate η looks like the same formula "
            "and is not, since torch's first buffer is the whole first gradient.",
            "Adam wins on this quadratic because its axes are those of the weights: scaling each weight "
            "separately undoes the bad conditioning. A rotated quadratic would take that away.",
            "Both sides get the same gradients here. Trained apart, differences of the last digit grow "
            "like any other small difference in a network's training.",
        ],
        code=[MovingAverageSGD, WrittenAdam],
        sources=[
            "Polyak 1964",
            "Kingma and Ba 2015, arXiv 1412.6980",
            "Loshchilov and Hutter 2019, arXiv 1711.05101",
        ],
    )


# title, caption, recorded column
VIEWS = (
    (
        "What gradscope records: updates",
        "Update over weight, median of the weight matrices, step by step.",
        "update_ratio",
    ),
    (
        "What gradscope records: first moments",
        "Norm of the optimizer's momentum buffer, median of the weight matrices. "
        "Plain gradient descent has none.",
        "momentum_norm",
    ),
    (
        "What gradscope records: second moments",
        "Root mean square of Adam's second moment, the average of squared gradients by which it divides; "
        "median of the weight matrices. The others keep none.",
        "second_moment_rms",
    ),
)


def smooth(losses: list[float], steps: int = 10) -> list[float]:
    return torch.tensor(losses).unfold(0, steps, 1).mean(dim=1).tolist()


def final(losses: list[float]) -> float:
    return sum(losses[-30:]) / 30


def weight_table(run: Run, column: str) -> pd.DataFrame:
    names = [parameter.name for parameter in run.parameters if parameter.role == "weight"]
    return run.parameter_table(column)[names]


def spread_over_layers(run: Run) -> float:
    """Return the smallest over the largest of the layers' median update ratios, after ten steps."""
    ratios = weight_table(run, "update_ratio").iloc[10:].median()
    return float(ratios.min() / ratios.max())


def loss_figure(title: str, caption: str, curves: dict[str, list[float]], wide: bool) -> Figure:
    series = {name: (list(range(len(losses)))[::5], losses[::5]) for name, losses in curves.items()}
    return Figure(title, caption, line_chart(series, "step", "loss", log_y=True, mode="lines"), wide)


def recorded_figure(
    digits: dict[str, tuple[list[float], Run]], title: str, caption: str, column: str
) -> Figure:
    medians = {name: weight_table(run, column).median(axis=1).dropna() for name, (_, run) in digits.items()}
    series = {name: (list(values.index), list(values)) for name, values in medians.items()}
    chart = line_chart(series, "step", column.replace("_", " "), log_y=True, mode="lines")
    return Figure(title, caption, chart, wide=column == "second_moment_rms")


if __name__ == "__main__":
    main(experiment)
