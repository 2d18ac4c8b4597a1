"""Dropout, L2 and decoupled weight decay: what they do to the gap to the test, and to weights."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from charts import line_chart
from page import Claim, Figure, Result, Table, at_least, at_most, main, near, seeds
from torch import nn
from torch.nn.functional import cross_entropy

from gradscope.models.data import split_digits
from gradscope.models.deep_mlp import DeepMLP

SCALES = (1e-3, 1.0, 1e3)  # of the gradients
KNOWN = {"AdamW": (0.818, 0.818, 0.818), "Adam + L2": (0.021, 0.819, 0.999)}
OPTIMIZERS = {"AdamW": torch.optim.AdamW, "Adam + L2": torch.optim.Adam}
DECAY, RATE = 0.1, 1e-3
IMAGES = 200
WRONG = 0.2  # share of the labels that are drawn at random
REGULARIZERS: dict[str, dict[str, Any]] = {
    "none": {"optimizer": "adam"},
    "dropout 0.5": {"optimizer": "adam", "dropout": 0.5},
    "L2 0.03 (Adam)": {"optimizer": "adam", "weight_decay": 0.03},
    "weight decay 1 (AdamW)": {"optimizer": "adamw", "weight_decay": 1.0},
    "both: dropout, AdamW": {"optimizer": "adamw", "dropout": 0.5, "weight_decay": 1.0},
}


@dataclass(frozen=True)
class Outcome:
    """Loss and accuracy on the training digits and on the test digits."""

    train_loss: float
    test_loss: float
    train_accuracy: float
    test_accuracy: float


def shrinkage(optimizer_class: type[torch.optim.Optimizer], scale: float, steps: int, seed: int) -> float:
    """Return the mean of 1000 weights that start at 1 and get only noise of this scale as gradients."""
    generator = torch.Generator().manual_seed(seed)
    weights = nn.Parameter(torch.ones(1000))
    optimizer = optimizer_class([weights], lr=RATE, weight_decay=DECAY)
    for _ in range(steps):
        weights.grad = scale * torch.randn(1000, generator=generator)
        optimizer.step()
    return weights.mean().item()


def trained(options: dict[str, Any], wrong: float, steps: int, seed: int) -> Outcome:
    """Train on 200 digits, some with labels drawn at random; evaluate on those and on 360 others."""
    torch.manual_seed(seed)
    model = DeepMLP(depth=2, width=128, learning_rate=2e-3, **options)
    train, test = split_digits(seed)
    few = [tensor[:IMAGES] for tensor in train.tensors]
    few[1] = torch.where(torch.rand(IMAGES) < wrong, torch.randint(10, (IMAGES,)), few[1])
    optimizer = model.configure_optimizers()
    for _ in range(steps):
        batch = torch.randint(IMAGES, (64,))
        loss = cross_entropy(model(few[0][batch]), few[1][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        (train_loss, train_accuracy), (test_loss, test_accuracy) = (
            (cross_entropy(model(x), y).item(), (model(x).argmax(dim=1) == y).double().mean().item())
            for x, y in (few, test.tensors)
        )
    return Outcome(train_loss, test_loss, train_accuracy, test_accuracy)


def average(outcomes: list[Outcome], name: str) -> float:
    return mean(getattr(outcome, name) for outcome in outcomes)


def gap(outcomes: list[Outcome]) -> float:
    return average(outcomes, "test_loss") - average(outcomes, "train_loss")


Runs = dict[str, list[Outcome]]  # regularizer: an outcome for each seed


def experiment(quick: bool, seed: int) -> Result:
    steps = 500 if quick else 2000
    shrunk = {
        name: [shrinkage(optimizer, scale, steps, seed) for scale in SCALES]
        for name, optimizer in OPTIMIZERS.items()
    }
    names = list(REGULARIZERS)[:2] if quick else list(REGULARIZERS)
    noisy, clean = (
        {
            name: [
                trained(REGULARIZERS[name], wrong, 300 if quick else 600, number)
                for number in seeds(seed, 3 if quick else 6)
            ]
            for name in names
        }
        for wrong in (WRONG, 0.0)
    )
    return Result(
        title="Regularisation: dropout, L2 and decoupled weight decay",
        lead="A network that learns two hundred digits by heart, wrong labels and all, does worse on "
        "others. Regularisation narrows that gap. L2 under Adam is not weight decay: Adam divides it by "
        "the gradient's size, so that it fades where gradients are large.",
        claims=[*shrinkage_claims(shrunk, steps), *gap_claims(noisy, clean, quick)],
        figures=[shrinkage_figure(shrunk, steps), gap_figure(noisy)],
        tables=[
            shrinkage_table(shrunk, steps),
            gap_table("Trained on 200 digits, a fifth of the labels random; mean of the seeds", noisy),
            gap_table("The same with all labels right", clean),
        ],
        notes=[
            "The weights start at 1 and their gradients are pure noise. A decay of 0.1 at rate 0.001 "
            f"should shrink them by (1 − 10⁻⁴) a step, to {(1 - RATE * DECAY) ** steps:.3f} after "
            f"{steps} steps, whatever the noise. AdamW does; Adam + L2 does so only where the noise "
            "happens to have size 1.",
            "The gap is the test loss minus the training loss. It is a better witness than accuracy, "
            "which on so few digits moves by a percent from seed to seed.",
            "Dropout helps here because a fifth of the labels are wrong: it keeps the network from learning "
            "them by heart. With all labels right the same network has a small gap, and dropout of one half "
            "leaves it as it is and wins no accuracy (the last table). Decoupled weight decay narrows both.",
        ],
        code=[shrinkage, trained],
        sources=["Srivastava et al. 2014", "Loshchilov and Hutter 2019, arXiv 1711.05101"],
    )


def shrinkage_claims(shrunk: dict[str, list[float]], steps: int) -> list[Claim]:
    decayed = (1 - RATE * DECAY) ** steps
    claims = [
        near(f"AdamW, gradients of scale {scale:g}: mean weight after {steps} steps", value, decayed, 0.005)
        for scale, value in zip(SCALES, shrunk["AdamW"], strict=True)
    ]
    small, _, large = shrunk["Adam + L2"]
    if steps == 2000:
        for scale, value, known in zip(SCALES, shrunk["Adam + L2"], KNOWN["Adam + L2"], strict=True):
            claims.append(near(f"Adam + L2, gradients of scale {scale:g}", value, known, 0.01))
        return claims
    return [
        *claims,
        at_most(
            "Adam + L2 with gradients of scale 0.001 shrinks the weights far more: mean weight", small, 0.8
        ),
        at_least("Adam + L2 with gradients of scale 1000 hardly shrinks them: mean weight", large, 0.99),
    ]


def gap_claims(noisy: Runs, clean: Runs, quick: bool) -> list[Claim]:
    plain, dropout = noisy["none"], noisy["dropout 0.5"]
    claims = [
        at_least("Without regularisation: training accuracy", average(plain, "train_accuracy"), 0.98),
        at_least("… and a gap between test and training loss", gap(plain), 0.3),
        at_most("Dropout narrows it: gap over the gap without", gap(dropout) / gap(plain), 0.9),
    ]
    if quick:
        return claims
    return [
        *claims,
        at_least(
            "… and raises the test accuracy by",
            average(dropout, "test_accuracy") - average(plain, "test_accuracy"),
            0.005,
        ),
        at_most("L2 narrows it: gap over the gap without", gap(noisy["L2 0.03 (Adam)"]) / gap(plain), 0.6),
        at_least(
            "With all labels right dropout hardly narrows it: gap over the gap without",
            gap(clean["dropout 0.5"]) / gap(clean["none"]),
            0.85,
        ),
    ]


def shrinkage_table(shrunk: dict[str, list[float]], steps: int) -> Table:
    rows = [[name, *values] for name, values in shrunk.items()]
    if steps == 2000:
        rows += [[f"known, {name}", *values] for name, values in KNOWN.items()]
    return Table(
        f"Mean weight after {steps} steps of noise",
        ["optimizer", *(f"noise {scale:g}" for scale in SCALES)],
        rows,
    )


def gap_table(title: str, runs: Runs) -> Table:
    fields = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    rows = [
        [name, *(average(outcomes, field) for field in fields), gap(outcomes)]
        for name, outcomes in runs.items()
    ]
    columns = ["regularisation", *(field.replace("_", " ") for field in fields), "gap of the loss"]
    return Table(title, columns, rows)


def shrinkage_figure(shrunk: dict[str, list[float]], steps: int) -> Figure:
    series = {name: (SCALES, values) for name, values in shrunk.items()}
    series["(1 − rate × decay) to the number of steps"] = (
        SCALES,
        [(1 - RATE * DECAY) ** steps] * len(SCALES),
    )
    chart = line_chart(
        series,
        "scale of the gradients",
        "mean weight, from 1",
        log_x=True,
        ticks=SCALES,
        dotted=["(1 − rate × decay) to the number of steps"],
    )
    return Figure(
        "The same decay, and what becomes of it",
        "Only noise as gradients, at three scales.",
        chart,
        wide=False,
    )


def gap_figure(runs: Runs) -> Figure:
    names = list(runs)[::-1]  # plotly counts upwards
    series = {
        "training": ([average(runs[name], "train_loss") for name in names], names),
        "test": ([average(runs[name], "test_loss") for name in names], names),
    }
    chart = line_chart(series, "loss", "", mode="markers").update_traces(marker={"size": 11})
    return Figure("Training and test loss", "The distance of the two points is the gap.", chart, wide=False)


if __name__ == "__main__":
    main(experiment)
