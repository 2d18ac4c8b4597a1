"""Why depth fails, and four cures by depth: activation, initialisation, normalisation, clipping."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch
from charts import heatmap, line_chart
from gain_per_layer import Options, measured_gain, predicted_gain, signal_profile
from page import Claim, Figure, Result, Table, at_least, at_most, main, near
from plotly.graph_objects import Figure as Chart
from torch import nn

from gradscope.models.data import split_digits
from gradscope.models.deep_mlp import DeepMLP

ACTIVATIONS = ("sigmoid", "tanh", "relu", "gelu", "selu")
INITIALIZATIONS = ("default", "xavier", "he", "orthogonal")
NAMES = {
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "relu": "ReLU",
    "gelu": "GELU",
    "selu": "SELU",
    "default": "torch default",
    "xavier": "Xavier",
    "he": "He",
    "orthogonal": "orthogonal",
}

TRAINING = {"width": 64, "optimizer": "momentum", "learning_rate": 0.01, "momentum": 0.9}
VANISHING_SIGMOID = {"activation": "sigmoid", "initialization": "xavier"}
VANISHING_RELU = {"activation": "relu", "initialization": "default"}
EXPLODING_RELU = {"activation": "relu", "initialization": "he", "gain": 1.5}
HE_RELU = {"activation": "relu", "initialization": "he"}
CRITICAL_TANH = {"activation": "tanh", "initialization": "orthogonal"}
BATCH, LAYER, SKIPS = {"normalization": "batch"}, {"normalization": "layer"}, {"residual": True}
CLIPPING = {"clip_norm": 1.0}
CURES: dict[str, Options] = {  # patients first, each with its cures
    "sigmoid, Xavier (vanishes)": VANISHING_SIGMOID,
    "— other activation: tanh": {"activation": "tanh", "initialization": "xavier"},
    "— BatchNorm": VANISHING_SIGMOID | BATCH,
    "— LayerNorm": VANISHING_SIGMOID | LAYER,
    "ReLU, torch default (vanishes)": VANISHING_RELU,
    "— other initialisation: He": HE_RELU,
    "— BatchNorm ": VANISHING_RELU | BATCH,
    "— LayerNorm ": VANISHING_RELU | LAYER,
    "— skip connections": VANISHING_RELU | SKIPS,
    "ReLU, 1.5 × He (explodes)": EXPLODING_RELU,
    "— clipping to norm 1": EXPLODING_RELU | CLIPPING,
    "— right initialisation: He": HE_RELU,
    "— BatchNorm  ": EXPLODING_RELU | BATCH,
    "— skip connections ": EXPLODING_RELU | SKIPS,
    "tanh, orthogonal (healthy)": CRITICAL_TANH,
    "— BatchNorm, not needed": CRITICAL_TANH | BATCH,
}


def accuracy(options: Options, depth: int, steps: int, seed: int = 0) -> float:
    """Train a DeepMLP on digits and return its share of right answers on the 360 test digits."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = DeepMLP(depth=depth, **TRAINING, **options)
    (images, labels), (test_images, test_labels) = (part.tensors for part in split_digits(0))
    optimizer = model.configure_optimizers()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,), generator=generator)
        loss = model.loss(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        if options.get("clip_norm"):
            nn.utils.clip_grad_norm_(model.parameters(), options["clip_norm"])
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return (model(test_images).argmax(dim=1) == test_labels).double().mean().item()


def accuracies(jobs: list[tuple[Options, int]], steps: int) -> dict[str, float]:
    """Train each (options, depth) once, many on two processes; a result's key is `key(options, depth)`."""
    unique = {key(options, depth): (options, depth) for options, depth in jobs}
    if len(unique) < 10:
        return {name: accuracy(*job, steps) for name, job in unique.items()}
    longest_first = sorted(unique, key=lambda name: -unique[name][1])
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = {name: pool.submit(accuracy, *unique[name], steps) for name in longest_first}
        return {name: task.result() for name, task in tasks.items()}


def key(options: Options, depth: int) -> str:
    return f"{sorted(options.items())} at {depth}"


def experiment(quick: bool) -> Result:
    depths = (15,) if quick else (5, 15, 30)
    steps, seeds = (60, 1) if quick else (150, 2)
    plain = [
        {"activation": activation, "initialization": scheme}
        for activation in ACTIVATIONS
        for scheme in INITIALIZATIONS
    ]
    normalized = [
        {"activation": activation, "initialization": "he", "normalization": norm}
        for activation in ACTIVATIONS
        for norm in ("batch", "layer")
    ]
    gains = [(measured_gain(options, seeds), predicted_gain(options)) for options in plain + normalized]
    patients = [
        VANISHING_RELU,
        HE_RELU,
        EXPLODING_RELU,
        CRITICAL_TANH,
        EXPLODING_RELU | CLIPPING,
        VANISHING_RELU | SKIPS,
    ]
    trained = patients if quick else plain + list(CURES.values())
    jobs = [(options, depth) for options in trained for depth in depths]
    if not quick:
        jobs += [(CRITICAL_TANH, 50), (CRITICAL_TANH | BATCH, 50)]
    scores = accuracies(jobs, steps)
    cures = {name: options for name, options in CURES.items() if options in trained}
    claims = gain_claims(gains) + (quick_claims(scores) if quick else full_claims(scores))
    figures = [gain_figure(gains[: len(plain)]), agreement_figure(gains), profile_figure()]
    if not quick:
        figures.append(grid_figure(scores, depths))
    return Result(
        title="Vanishing and exploding gradients, and the four cures",
        lead="On its way back through a deep network the gradient is multiplied once a layer. A factor "
        "of 0.4 leaves nothing after thirty layers, a factor of 1.5 a two-hundred-thousandfold. "
        "Activation and initialisation set this factor, and theory predicts it before any training. "
        "Four cures change it or its consequences; each has its depth.",
        claims=claims,
        figures=[*figures, cure_figure(cures, scores, depths)],
        tables=[gain_table(plain + normalized, gains)],
        notes=NOTES,
        code=[signal_profile, measured_gain, predicted_gain, accuracy],
        sources=[
            "Glorot and Bengio 2010",
            "He et al. 2015, arXiv 1502.01852",
            "Schoenholz et al. 2017, arXiv 1611.01232",
            "Pascanu, Mikolov and Bengio 2013",
            "Ioffe and Szegedy 2015",
            "Yang et al. 2019, arXiv 1902.08129",
        ],
    )


NOTES = [
    "Activation and initialisation are one cure, not two: it is their product that must be 1. He suits "
    "ReLU and only ReLU; with GELU the gradient still shrinks, with tanh and SELU it is slightly above "
    "1.",
    "A gain of 1 is necessary and not sufficient. He-initialised ReLU keeps the gradient's size at any "
    "depth, yet at thirty layers it hardly learns in these 150 steps: its layers map all images to "
    "nearly the same direction. An orthogonal tanh network does learn there.",
    "BatchNorm sets the scale of every layer right and so revives networks with hopeless weights. But "
    "without skip connections its own backward pass multiplies the gradient by more than 1 a layer "
    "(1.21 with ReLU), so with depth it brings back the explosion: the orthogonal tanh network of fifty "
    "layers is better without it.",
    "Clipping bounds the step, not the cause. It saves a network of moderate depth from divergence; at "
    "thirty layers the direction of an exploded gradient is of no use, however short one cuts it.",
    "GELU with He is the one combination that theory misses (seeds measured 0.82, 0.87 and 0.98; "
    "predicted 0.80): its variance sinks slowly and has no fixed point that would pull it back, so that "
    "each network's chance fluctuations add up from layer to layer. It is left out of the first claim.",
    "One seed for each training; accuracies that differ by less than about 0.1 are not different. "
    "Chance is 0.1.",
]


def gain_claims(gains: list[tuple[float, float]]) -> list[Claim]:
    combinations = len(ACTIVATIONS) * len(INITIALIZATIONS)
    plain, normalized = gains[:combinations], gains[combinations:]
    batch_relu = normalized[2 * ACTIVATIONS.index("relu")][0]
    gelu_he = 4 * ACTIVATIONS.index("gelu") + INITIALIZATIONS.index("he")
    others = plain[:gelu_he] + plain[gelu_he + 1 :]
    return [
        at_most(
            "Gain per layer, 19 combinations of activation and initialisation: largest difference of "
            "measured and predicted",
            max(abs(measured - predicted) for measured, predicted in others),
            0.06,
        ),
        near("Gain per layer of ReLU with torch's default initialisation: √(1/6)", plain[8][0], 0.408, 0.03),
        near("Gain per layer of ReLU with He: 1", plain[10][0], 1.0, 0.05),
        near("BatchNorm with ReLU explodes backwards: √(π / (π − 1)) a layer", batch_relu, 1.211, 0.06),
    ]


def full_claims(scores: dict[str, float]) -> list[Claim]:
    def score(options: Options, depth: int) -> float:
        return scores[key(options, depth)]

    return [
        at_most("Sigmoid with Xavier vanishes: accuracy at depth 15", score(VANISHING_SIGMOID, 15), 0.3),
        at_most("ReLU with torch's default vanishes: accuracy at depth 15", score(VANISHING_RELU, 15), 0.3),
        at_most("ReLU with 1.5 × He explodes: accuracy at depth 15", score(EXPLODING_RELU, 15), 0.3),
        at_least("Cure by initialisation: ReLU with He at depth 15", score(HE_RELU, 15), 0.6),
        at_least(
            "Cure by activation and initialisation: orthogonal tanh at depth 30",
            score(CRITICAL_TANH, 30),
            0.7,
        ),
        at_least(
            "Cure by BatchNorm: sigmoid with Xavier at depth 15", score(VANISHING_SIGMOID | BATCH, 15), 0.6
        ),
        at_least(
            "BatchNorm makes it worse: accuracy that it costs orthogonal tanh at depth 50",
            score(CRITICAL_TANH, 50) - score(CRITICAL_TANH | BATCH, 50),
            0.1,
        ),
        at_least(
            "Cure by skip connections: ReLU with torch's default at depth 30",
            score(VANISHING_RELU | SKIPS, 30),
            0.8,
        ),
        at_least(
            "Clipping keeps ReLU with 1.5 × He learning at depth 5", score(EXPLODING_RELU | CLIPPING, 5), 0.6
        ),
        at_most("… and does not cure it at depth 30", score(EXPLODING_RELU | CLIPPING, 30), 0.4),
    ]


def quick_claims(scores: dict[str, float]) -> list[Claim]:
    return [
        at_most(
            "ReLU with torch's default vanishes: accuracy at depth 15", scores[key(VANISHING_RELU, 15)], 0.3
        ),
        at_most("ReLU with 1.5 × He explodes: accuracy at depth 15", scores[key(EXPLODING_RELU, 15)], 0.3),
        at_least(
            "Cure by activation and initialisation: orthogonal tanh at depth 15",
            scores[key(CRITICAL_TANH, 15)],
            0.6,
        ),
        at_least(
            "Cure by skip connections: ReLU with torch's default at depth 15",
            scores[key(VANISHING_RELU | SKIPS, 15)],
            0.6,
        ),
    ]


def gain_figure(gains: list[tuple[float, float]]) -> Figure:
    size = len(INITIALIZATIONS)
    rows = [gains[start : start + size] for start in range(0, len(gains), size)]
    text = [[f"{measured:.2f}<br>({predicted:.2f})" for measured, predicted in row] for row in rows]
    values = [[measured for measured, _ in row] for row in rows]
    chart = heatmap(
        values,
        [NAMES[scheme] for scheme in INITIALIZATIONS],
        [NAMES[name] for name in ACTIVATIONS],
        text=text,
        scale="RdBu_r",
        limits=(0.0, 2.0),
        height=400,
        bar="gain per layer",
    )
    caption = (
        "Measured at initialisation, over thirty layers; in brackets what theory predicts. Blue vanishes, "
    )
    return Figure("Gain per layer", caption + "white is critical, red explodes.", chart, wide=False)


def agreement_figure(gains: list[tuple[float, float]]) -> Figure:
    plain, normalized = gains[:20], gains[20:]
    series = {
        "activation × initialisation": ([p for _, p in plain], [m for m, _ in plain]),
        "with BatchNorm or LayerNorm": ([p for _, p in normalized], [m for m, _ in normalized]),
        "measured = predicted": ([0.1, 1.3], [0.1, 1.3]),
    }
    chart = line_chart(
        series,
        "predicted gain per layer",
        "measured gain per layer",
        mode="markers",
        dotted=["measured = predicted"],
        height=400,
    )
    return Figure(
        "Theory against measurement",
        "Mean-field theory knows only the activation and the weights' variance.",
        chart,
        wide=False,
    )


def profile_figure() -> Figure:
    networks = {
        "sigmoid, Xavier": VANISHING_SIGMOID,
        "ReLU, torch default": VANISHING_RELU,
        "ReLU, He": HE_RELU,
        "tanh, orthogonal": CRITICAL_TANH,
        "ReLU, He, BatchNorm": HE_RELU | BATCH,
        "ReLU, 1.5 × He": EXPLODING_RELU,
    }
    layers = list(range(1, 31))
    series = {}
    for name, options in networks.items():
        profile = signal_profile(options)
        series[name] = (layers, (profile / profile[-1]).tolist())
    chart: Chart = line_chart(
        series,
        "layer (the loss is on the right)",
        "gradient, relative to the last layer",
        log_y=True,
        mode="lines",
        height=420,
    )
    chart.update_yaxes(dtick=3)
    return Figure(
        "The gradient on its way back",
        "Root mean square of the loss's gradient with respect to each "
        "layer's output, before training. Straight lines: a constant factor a layer.",
        chart,
    )


def grid_figure(scores: dict[str, float], depths: tuple[int, ...]) -> Figure:
    rows = {
        f"{NAMES[activation]}, {NAMES[scheme]}": [
            scores[key({"activation": activation, "initialization": scheme}, depth)] for depth in depths
        ]
        for activation in ACTIVATIONS
        for scheme in INITIALIZATIONS
    }
    chart = accuracy_map(rows, depths, height=640)
    return Figure(
        "What can be trained: activation × initialisation × depth",
        "Accuracy on test digits after 150 steps of SGD with momentum at one learning rate; chance is 0.10.",
        chart,
        wide=False,
    )


def cure_figure(cures: dict[str, Options], scores: dict[str, float], depths: tuple[int, ...]) -> Figure:
    rows = {name: [scores[key(options, depth)] for depth in depths] for name, options in cures.items()}
    chart = accuracy_map(rows, depths, height=640 if len(rows) > 8 else 360)
    return Figure(
        "Which cure works at which depth",
        "A patient, and under it the same network with one thing changed.",
        chart,
        wide=False,
    )


def accuracy_map(rows: dict[str, list[float]], depths: tuple[int, ...], height: int) -> Chart:
    text = [[f"{value:.2f}" for value in row] for row in rows.values()]
    columns = [f"depth {depth}" for depth in depths]
    chart = heatmap(
        list(rows.values()),
        columns,
        list(rows),
        text=text,
        scale="YlGnBu_r",
        limits=(0.0, 1.0),
        height=height,
    )
    return chart.update_traces(showscale=False)


def gain_table(options: list[Options], gains: list[tuple[float, float]]) -> Table:
    rows = []
    for option, (measured, predicted) in zip(options, gains, strict=True):
        norm = {"batch": "BatchNorm", "layer": "LayerNorm"}.get(option.get("normalization", ""), "")
        name = ", ".join(filter(None, (NAMES[option["activation"]], NAMES[option["initialization"]], norm)))
        rows.append([name, measured, predicted, measured**30])
    return Table(
        "Gain per layer, and what thirty layers make of it",
        ["network", "measured", "predicted", "measured, to the 30th power"],
        rows,
    )


if __name__ == "__main__":
    main(experiment)
