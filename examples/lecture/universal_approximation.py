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


GENTLE, STEEP = 0.2, 0.65  # the steps' slopes at the start, over the sine's steepest


@dataclass(frozen=True)
class Effort:
    """How hard to search: random starts, each tried for a while, and the best few of them continued.

    The narrower a layer, the fewer good minima it has, and the more starts it gets: `units` over its width.
    """

    units: int
    trial: int  # L-BFGS iterations of each start
    continued: int
    iterations: int  # and of those that are continued


FULL, QUICK = Effort(128, 250, 3, 1000), Effort(30, 60, 2, 200)


@dataclass(frozen=True)
class Fit:
    """A fitted network's largest error on the grid, and its output there."""

    error: float
    curve: Tensor


def target(x: Tensor, frequency: int) -> Tensor:
    return torch.sin(2 * math.pi * frequency * x)


def one_hidden_layer(width: int, steepest: float) -> nn.Sequential:
    """Build Linear-tanh-Linear with steps spread over [-1, 1], somewhat gentler than the target."""
    network = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)).double()
    jitter = (torch.rand(width, dtype=torch.float64) - 0.5) * 2 / width
    centres = torch.linspace(-1, 1, width, dtype=torch.float64) + jitter
    slopes = steepest * torch.empty(width, dtype=torch.float64).uniform_(GENTLE, STEEP)
    network[0].weight.data, network[0].bias.data = slopes.unsqueeze(1), -slopes * centres
    network[2].weight.data *= 0.1
    return network


def minimise(network: nn.Sequential, frequency: int, iterations: int) -> float:
    """Minimise the mean squared error on 201 points with L-BFGS; return what is left of it."""
    targets = target(INPUTS, frequency)
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
    return nn.functional.mse_loss(network(INPUTS), targets).item()


def fits(width: int, frequency: int, effort: Effort, seed: int) -> list[Fit]:
    """Try many random starts for a while and continue the most promising ones."""
    torch.manual_seed(seed)
    starts = max(effort.units // width, effort.continued)
    networks = [one_hidden_layer(width, steepest=2 * math.pi * frequency) for _ in range(starts)]
    losses = [minimise(network, frequency, effort.trial) for network in networks]
    promising = sorted(range(starts), key=losses.__getitem__)[: effort.continued]
    finished = []
    for number in promising:
        minimise(networks[number], frequency, effort.iterations)
        curve = networks[number](GRID).detach()
        finished.append(Fit((curve - target(GRID, frequency)).abs().max().item(), curve))
    return finished


def experiment(quick: bool, seed: int) -> Result:
    effort, widths = (QUICK, QUICK_WIDTHS) if quick else (FULL, WIDTHS)
    fitted = {
        (frequency, width): fits(width, frequency, effort, seed)
        for frequency in widths
        for width in widths[frequency]
    }
    best = {key: min(tries, key=lambda attempt: attempt.error) for key, tries in fitted.items()}
    return Result(
        title="Universal approximation: one hidden layer",
        lead="A weighted sum of enough tanh steps comes as close as one likes to any continuous "
        "function on an interval. How many are enough depends on the function: three times the "
        "frequency needs several times the width.",
        claims=quick_claims(best) if quick else full_claims(best),
        figures=[error_figure(best, widths), *(fit_figure(best, widths, frequency) for frequency in widths)],
        tables=[error_table(fitted)],
        notes=[
            "The theorem says that good weights exist. It says nothing of finding them, and the table "
            "shows it: neighbouring starts of one width differ by a factor of ten and more, and where "
            "the width barely suffices most starts end in a poor local minimum. That is why "
            f"many random starts get {effort.trial} iterations of L-BFGS each ({effort.units} over the "
            f"width), and the {effort.continued} with the smallest loss get {effort.iterations:,} more.",
            "At width 2 two minima compete: the sup error of one is 0.83, of the other 1.0 (it fits half the "
            "waves and leaves the others flat). Which one a run ends in is luck.",
            "Beyond a width that suffices the error no longer falls: it is then set by the optimizer's "
            "patience and by the 201 points, not by what the layer could represent.",
        ],
        code=[one_hidden_layer, minimise, fits],
        sources=["Cybenko 1989", "Hornik, Stinchcombe and White 1989"],
    )


def full_claims(best: dict[tuple[int, int], Fit]) -> list[Claim]:
    reproduced = [key for key in KNOWN if key != (1, 2)]
    return [
        at_least("sup error on sin(2πx) at width 2 (known: 0.83): too narrow", best[1, 2].error, 0.5),
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
            "sin(6πx): four times the width (8 to 32) divides the error by", ratio(best, (3, 8), (3, 32)), 5
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


def error_table(fitted: dict[tuple[int, int], list[Fit]]) -> Table:
    rows = [
        [
            f"sin({2 * frequency}πx), width {width}",
            *(attempt.error for attempt in tries),
            KNOWN.get((frequency, width), ""),
        ]
        for (frequency, width), tries in fitted.items()
    ]
    starts = [f"start {place}" for place in range(1, len(rows[0]) - 1)]
    return Table("sup error on [−1, 1]", ["function and width", *starts, "known, best of 3"], rows)


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
    return Figure("Error against width", "The best of the starts, and the known figures, dotted.", chart)


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
