"""A product of n numbers takes 4(n-1) neurons in a tree, 2^n in one layer (Lin, Tegmark, Rolnick 2017)."""

from __future__ import annotations

import plotly.graph_objects as go
import torch
from page import Claim, Figure, Result, Table, at_most, exactly, main, near
from torch import Tensor, nn

from gradscope.models.product import FlatProduct, ProductGate, ProductTree

KNOWN = {2: 0.0011, 4: 0.0027, 8: 0.0053, 16: 0.0095}  # relative error of the tree at input scale 0.1
SCALES = (0.8, 0.4, 0.2, 0.1, 0.05, 0.025)
LARGEST_FLAT = 8  # beyond it 2^n neurons take long to build


def relative_error(network: nn.Module, inputs: int, scale: float, samples: int, seed: int) -> float:
    """Return the root mean square error of the product for inputs in ±scale, over the product's own."""
    generator = torch.Generator().manual_seed(1000 * inputs + seed)
    x = (2 * torch.rand(samples, inputs, dtype=torch.float64, generator=generator) - 1) * scale
    wrong, size = [], []
    with torch.no_grad():
        for part in x.split(10_000):
            exact = part.prod(dim=1)
            wrong.append((network(part) - exact).square().sum())
            size.append(exact.square().sum())
    return (_total(wrong) / _total(size)).sqrt().item()


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum()


def experiment(quick: bool, seed: int) -> Result:
    samples = 20_000 if quick else 200_000
    sizes = (2, 4, 8) if quick else (2, 4, 8, 16)
    trees = {n: ProductTree(n, 0.1).double() for n in sizes}
    deep = {n: relative_error(trees[n], n, 0.1, samples, seed) for n in sizes}
    flat = {
        n: relative_error(FlatProduct(n).double(), n, 0.1, samples, seed) for n in sizes if n <= LARGEST_FLAT
    }
    by_scale = [relative_error(ProductTree(4, scale).double(), 4, scale, samples, seed) for scale in SCALES]
    order = (torch.tensor(by_scale[-2]) / by_scale[-1]).log2().item()
    claims: list[Claim] = [
        exactly(
            "Neurons of the tree: 4(n − 1)",
            [tree.neurons for tree in trees.values()],
            [4 * (n - 1) for n in sizes],
        ),
        *(near(f"Relative error of the tree for n = {n}", deep[n], KNOWN[n], 0.2 * KNOWN[n]) for n in sizes),
        near(
            "Halving the input scale divides the error by 4: order of the error in the scale", order, 2.0, 0.1
        ),
        at_most(
            "At n = 8 and the same scale the tree is the more exact one: its error over the flat one's",
            deep[8] / flat[8],
            0.5,
        ),
    ]
    rows = [[n, trees[n].neurons, 2**n, deep[n], KNOWN[n], flat.get(n, "not built")] for n in sizes]
    return Result(
        title="No flattening: the product of n numbers",
        lead="Four softplus neurons multiply two numbers as exactly as one likes, if the numbers are "
        "small enough. A tree of such gates multiplies n numbers with 4(n − 1) neurons. One layer needs "
        "2ⁿ: depth is not a luxury here, flattening the network costs exponentially many neurons.",
        claims=claims,
        figures=[_neurons_figure(), _error_figure(deep, flat), _scale_figure(by_scale)],
        tables=[
            Table(
                "Relative error at input scale 0.1",
                ["n", "neurons, deep", "neurons, flat", "error, deep", "known", "error, flat"],
                rows,
            )
        ],
        notes=[
            "No training here: the weights follow from the Taylor series of softplus. That 2ⁿ neurons "
            "are needed in one layer is a theorem (Rolnick and Tegmark 2018), not something that a "
            "measurement can show; what is measured is that 2ⁿ are enough, and that they are no more "
            "exact than the tree.",
            "Every level of the tree multiplies its results by 1 / scale, so that all gates work at the "
            "same input size. That factor belongs in the weights of the next level and costs no neuron.",
        ],
        code=[ProductGate, ProductTree, FlatProduct],
        sources=[
            "Lin, Tegmark and Rolnick 2017, arXiv 1608.08225",
            "Rolnick and Tegmark 2018, arXiv 1705.05502",
        ],
    )


def _neurons_figure() -> Figure:
    sizes = [2, 4, 8, 16, 32]
    chart = go.Figure(
        [
            go.Scatter(x=sizes, y=[4 * (n - 1) for n in sizes], name="deep tree, 4(n − 1)"),
            go.Scatter(x=sizes, y=[2**n for n in sizes], name="one layer, 2ⁿ"),
        ]
    )
    chart.update_layout(
        height=360,
        xaxis={"title": "numbers multiplied, n", "type": "log", "tickvals": sizes},
        yaxis={"title": "hidden neurons", "type": "log", "exponentformat": "power"},
    )
    return Figure(
        "How many neurons",
        "Both axes are logarithmic; the flat network leaves the page at n = 64.",
        chart,
        wide=False,
    )


def _error_figure(deep: dict[int, float], flat: dict[int, float]) -> Figure:
    chart = go.Figure(
        [
            go.Scatter(x=list(deep), y=list(deep.values()), name="deep tree"),
            go.Scatter(x=list(flat), y=list(flat.values()), name="one layer"),
            go.Scatter(
                x=list(KNOWN),
                y=list(KNOWN.values()),
                name="known figure",
                mode="markers",
                marker={"symbol": "circle-open", "size": 13},
            ),
        ]
    )
    chart.update_layout(
        height=360,
        xaxis={"title": "numbers multiplied, n", "type": "log", "tickvals": list(KNOWN)},
        yaxis={"title": "relative error", "type": "log", "exponentformat": "power"},
    )
    return Figure(
        "How exact",
        "Root mean square error over root mean square product, inputs uniform in ±0.1.",
        chart,
        wide=False,
    )


def _scale_figure(errors: list[float]) -> Figure:
    chart = go.Figure(
        [
            go.Scatter(x=SCALES, y=errors, name="tree, n = 4", mode="lines+markers"),
            go.Scatter(
                x=SCALES,
                y=[errors[-1] * (scale / SCALES[-1]) ** 2 for scale in SCALES],
                name="scale²",
                line={"dash": "dot"},
            ),
        ]
    )
    chart.update_layout(
        height=340,
        xaxis={"title": "input scale", "type": "log", "tickvals": SCALES},
        yaxis={"title": "relative error", "type": "log", "exponentformat": "power"},
    )
    return Figure(
        "As exact as one likes",
        "The error falls with the square of the inputs' size; no neuron is added.",
        chart,
    )


if __name__ == "__main__":
    main(experiment)
