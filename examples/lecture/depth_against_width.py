"""k composed tents need 2k ReLU units in a deep network or 2^k - 1 in one layer (Telgarsky 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch
from charts import line_chart
from page import Claim, Figure, Result, Table, at_least, at_most, exactly, main, seeds
from torch import nn

from gradscope.models.sawtooth import count_pieces, deep_sawtooth, flat_sawtooth, sawtooth

FOLDS = 3  # of the sawtooth that networks are trained on: 8 pieces
INPUTS = torch.linspace(0, 1, 257).unsqueeze(1)
TARGETS = sawtooth(INPUTS, FOLDS)
PAIRS = {  # hidden layers of a deep and of a flat network with about as many parameters
    "as small as the construction": ([2] * FOLDS, [6]),
    "ten times as many": ([8] * 4, [80]),
    "seventy times as many": ([16] * 6, [490]),
}


@dataclass(frozen=True)
class Trained:
    """A network after training: its size, the share of the target's variance it misses, its pieces."""

    parameters: int
    error: float
    pieces: int
    network: nn.Sequential


def multilayer(widths: list[int], seed: int) -> nn.Sequential:
    """Build a ReLU network with He initialisation whose first kinks are spread over [0, 1]."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, width in zip([1, *widths], widths, strict=False):
        linear = nn.Linear(fan_in, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        if fan_in == 1:
            linear.bias.data = -linear.weight.data[:, 0] * torch.rand(width)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))


def near_construction(noise: float, seed: int) -> nn.Sequential:
    """Return the constructed sawtooth with each weight moved by about `noise` of the layer's mean size."""
    torch.manual_seed(seed)
    network = deep_sawtooth(FOLDS)
    for parameter in network.parameters():
        parameter.data += noise * parameter.data.abs().mean() * torch.randn_like(parameter)
    return network


def train(network: nn.Sequential, steps: int, lr: float = 0.01) -> Trained:
    """Fit the sawtooth with Adam and a one-cycle learning rate, on all points at once."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(steps):
        loss = nn.functional.mse_loss(network(INPUTS), TARGETS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    error = nn.functional.mse_loss(network(INPUTS), TARGETS).item() / TARGETS.var().item()
    size = sum(parameter.numel() for parameter in network.parameters())
    return Trained(size, error, count_pieces(network, tolerance=1e-3), network)


def experiment(quick: bool, seed: int) -> Result:
    steps, repetitions = (600, seeds(seed, 2)) if quick else (1500, seeds(seed, 3))
    folds = range(1, 9) if quick else range(1, 13)
    pairs = dict(list(PAIRS.items())[:1]) if quick else PAIRS
    trained = {
        name: [[train(multilayer(widths, number), steps) for number in repetitions] for widths in pair]
        for name, pair in pairs.items()
    }
    started_near = [train(near_construction(0.01, number), steps, lr=1e-3) for number in repetitions]
    claims = [*constructed_claims(folds), *trained_claims(trained, started_near, quick)]
    return Result(
        title="Depth against width: the sawtooth",
        lead="Fold the interval k times and a straight line becomes a sawtooth with 2ᵏ pieces. A deep "
        "ReLU network needs two units for each fold. A network with one hidden layer needs a unit for "
        "each kink, 2ᵏ − 1 of them.",
        claims=claims,
        figures=[units_figure(), *trained_figures(trained, started_near)],
        tables=[trained_table(trained, started_near)],
        notes=[
            "That the small deep network exists does not mean that training finds it. From a random "
            "start neither network as small as the construction learns the sawtooth; started close to "
            "the constructed weights, gradient descent does return to it. Depth makes the function "
            "cheap to write down, not easy to find.",
            "With many more parameters than the construction needs, both learn these eight pieces, and "
            "the flat network is the easier one to train: at equal parameter counts depth is no "
            "advantage here. Depth shows in what a network of a given size can express, not in this "
            "fit. Pieces of trained networks are counted just as exactly, those whose slopes differ by "
            "less than a thousandth of the steepest taken as one.",
            "By its kinks the flat network needs at least 2ᵏ − 1 units; the one that is built here has "
            "2ᵏ, since the slope at x = 0 takes one more.",
        ],
        code=[deep_sawtooth, flat_sawtooth, count_pieces],
        sources=["Telgarsky 2016, Benefits of depth in neural networks, arXiv 1602.04485"],
    )


def constructed_claims(folds: range) -> list[Claim]:
    x = torch.linspace(0, 1, 2**14 + 1, dtype=torch.float64).unsqueeze(1)
    deep, flat = [deep_sawtooth(k) for k in folds], [flat_sawtooth(k) for k in folds]
    errors = [
        (network.double()(x) - sawtooth(x, k)).abs().max().item()
        for k, pair in zip(folds, zip(deep, flat, strict=True), strict=True)
        for network in pair
    ]
    last, pieces = folds[-1], 2 ** folds[-1]
    return [
        exactly(
            f"Pieces of the deep network, k = 1 … {last}: 2ᵏ for every k",
            all(count_pieces(network) == 2**k for k, network in zip(folds, deep, strict=True)),
            True,
        ),
        exactly(f"… and for k = {last} that is, counted exactly", count_pieces(deep[-1]), pieces),
        exactly(f"Hidden units of the deep network at k = {last}: 2k", units(deep[-1]), 2 * last),
        exactly(f"Pieces of the flat network at k = {last}", count_pieces(flat[-1]), pieces),
        at_least(
            f"Hidden units of the flat network at k = {last}: at least 2ᵏ − 1", units(flat[-1]), pieces - 1
        ),
        exactly("Largest error of all these networks on 16,385 points", max(errors), 0.0),
    ]


def units(network: nn.Sequential) -> int:
    """Return the number of hidden units."""
    return sum(layer.out_features for layer in network if isinstance(layer, nn.Linear)) - 1


def trained_claims(
    trained: dict[str, list[list[Trained]]], started_near: list[Trained], quick: bool
) -> list[Claim]:
    pairs = list(trained.values())
    smallest, largest = pairs[0], pairs[-1]
    claims = [
        at_least(
            "Trained from random weights at the construction's size, even the best deep network misses "
            "this share of the variance",
            min(run.error for run in smallest[0]),
            0.5,
        ),
        at_most(
            "Started 1 % away from the construction, training returns: worst share missed",
            max(run.error for run in started_near),
            0.02 if quick else 0.001,
        ),
    ]
    if not quick:
        claims.append(
            at_most(
                "With seventy times the parameters both learn it: worst median share missed",
                max(median(run.error for run in runs) for runs in largest),
                0.05,
            )
        )
    return claims


def trained_table(trained: dict[str, list[list[Trained]]], started_near: list[Trained]) -> Table:
    rows = []
    for name, pair in trained.items():
        for kind, runs in zip(("deep", "flat"), pair, strict=True):
            rows.append([f"{kind}, {name}", *_summary(runs)])
    rows.append(["deep, started 1 % off the construction", *_summary(started_near)])
    columns = ["network", "parameters", "share of variance missed, each seed", "pieces, each seed"]
    return Table(f"Trained on the sawtooth with {2**FOLDS} pieces", columns, rows)


def _summary(runs: list[Trained]) -> list[object]:
    return [runs[0].parameters, [run.error for run in runs], [run.pieces for run in runs]]


def units_figure() -> Figure:
    folds = list(range(1, 13))
    series = {
        "deep, 2k": (folds, [2.0 * k for k in folds]),
        "one layer, at least 2ᵏ − 1": (folds, [2.0**k - 1 for k in folds]),
    }
    chart = line_chart(series, "folds k", "hidden units", log_y=True)
    return Figure(
        "Units for 2ᵏ pieces", "Two more units double the pieces of the deep network.", chart, wide=False
    )


def trained_figures(trained: dict[str, list[list[Trained]]], started_near: list[Trained]) -> list[Figure]:
    name, (deep, flat) = list(trained.items())[-1]
    best = {
        f"deep, {deep[0].parameters} parameters": min(deep, key=lambda run: run.error),
        f"flat, {flat[0].parameters} parameters": min(flat, key=lambda run: run.error),
        "deep, started near the construction": min(started_near, key=lambda run: run.error),
    }
    x = INPUTS[:, 0].tolist()
    series = {"sawtooth": (x, TARGETS[:, 0].tolist())}
    series |= {label: (x, run.network(INPUTS)[:, 0].detach().tolist()) for label, run in best.items()}
    chart = line_chart(series, "x", "output", mode="lines", dotted=["sawtooth"])
    return [Figure("What training finds", f"The best of the seeds; networks {name}.", chart, wide=False)]


if __name__ == "__main__":
    main(experiment)
