"""Why depth fails, and four cures by depth: activation, initialisation, normalisation, clipping."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from charts import heatmap, line_chart
from gain_per_layer import Options, measured_gain, predicted_gain, signal_profile
from page import Claim, Figure, Result, Table, at_least, at_most, main, near, seeds
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

DEPTHS = (5, 15, 30)  # of the patients and their cures
GRID_DEPTHS = (10, 20)  # of every activation, initialisation, normalisation and clipping
STEPS = 100
TRAINING = {"width": 64, "optimizer": "momentum", "learning_rate": 0.01, "momentum": 0.9}
VANISHING_SIGMOID = {"activation": "sigmoid", "initialization": "xavier"}
VANISHING_RELU = {"activation": "relu", "initialization": "default"}
EXPLODING_RELU = {"activation": "relu", "initialization": "he", "gain": 1.3}
HE_RELU = {"activation": "relu", "initialization": "he"}
CRITICAL_TANH = {"activation": "tanh", "initialization": "orthogonal"}
BATCH, LAYER, SKIPS = {"normalization": "batch"}, {"normalization": "layer"}, {"residual": True}
CLIPPING = {"clip_norm": 1.0}
FIFTY_LAYERS: list[Options] = [  # with BatchNorm and without
    CRITICAL_TANH,
    {"activation": "tanh", "initialization": "xavier"},
    {"activation": "tanh", "initialization": "he"},
    HE_RELU,
    {"activation": "selu", "initialization": "orthogonal"},
]
TREATMENTS: dict[str, Options] = {  # of every activation and initialisation
    "none": {},
    "clip": CLIPPING,
    "BN": BATCH,
    "BN + clip": BATCH | CLIPPING,
    "LN": LAYER,
    "LN + clip": LAYER | CLIPPING,
}
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
    "ReLU, 1.3 × He (explodes)": EXPLODING_RELU,
    "— clipping to norm 1": EXPLODING_RELU | CLIPPING,
    "— right initialisation: He": HE_RELU,
    "— BatchNorm  ": EXPLODING_RELU | BATCH,
    "— skip connections ": EXPLODING_RELU | SKIPS,
    "tanh, orthogonal (healthy)": CRITICAL_TANH,
    "— BatchNorm, not needed": CRITICAL_TANH | BATCH,
}


def accuracy(options: Options, depth: int, steps: int, seed: int) -> float:
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


@dataclass(frozen=True)
class Scores:
    """Accuracies by network and depth; those that claims are about were measured with several seeds."""

    measured: dict[str, list[float]]

    def first(self, options: Options, depth: int) -> float:
        return self.measured[key(options, depth)][0]

    def lowest(self, options: Options, depth: int) -> float:
        return min(self.measured[key(options, depth)])

    def highest(self, options: Options, depth: int) -> float:
        return max(self.measured[key(options, depth)])


def key(options: Options, depth: int) -> str:
    return f"{sorted(options.items())} at {depth}"


Job = tuple[Options, int]  # what to train, and how deep


def train_all(once: list[Job], repeated: list[Job], steps: int, repetitions: range) -> Scores:
    """Train each network once, and those of `repeated` with every seed; many on two processes."""
    unique = {key(*job): (job, [repetitions[0]]) for job in once}
    unique |= {key(*job): (job, list(repetitions)) for job in repeated}
    if len(unique) < 10:
        return Scores({name: [accuracy(*job, steps, n) for n in ns] for name, (job, ns) in unique.items()})
    deepest_first = sorted(unique, key=lambda name: -unique[name][0][1])
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = {
            name: [pool.submit(accuracy, *unique[name][0], steps, n) for n in unique[name][1]]
            for name in deepest_first
        }
        return Scores({name: [task.result() for task in runs] for name, runs in tasks.items()})


PLAIN: list[Options] = [
    {"activation": activation, "initialization": scheme}
    for activation in ACTIVATIONS
    for scheme in INITIALIZATIONS
]
NORMALIZED: list[Options] = [
    {"activation": activation, "initialization": "he"} | norm
    for activation in ACTIVATIONS
    for norm in (BATCH, LAYER)
]


def experiment(quick: bool, seed: int) -> Result:
    repetitions = seeds(seed, 1 if quick else 3)
    gains = [(measured_gain(option, repetitions), predicted_gain(option)) for option in PLAIN + NORMALIZED]
    if quick:
        depths: tuple[int, ...] = (15,)
        scores = train_all([], QUICK_CLAIMED, 60, repetitions)
        cures = {name: options for name, options in CURES.items() if (options, 15) in QUICK_CLAIMED}
    else:
        depths, cures = DEPTHS, CURES
        grid = [plain | treatment for plain in PLAIN for treatment in TREATMENTS.values()]
        once = [(options, depth) for options in grid for depth in GRID_DEPTHS]
        once += [(options, depth) for options in cures.values() for depth in depths]
        once += [(options | norm, 50) for options in FIFTY_LAYERS for norm in ({}, BATCH)]
        scores = train_all(once, CLAIMED, STEPS, repetitions)
    figures = [gain_figure(gains[: len(PLAIN)]), agreement_figure(gains), profile_figure(repetitions[0])]
    figures.append(cure_figure(cures, scores, depths))
    tables = [gain_table(gains)]
    if not quick:
        figures += [grid_figure(scores, depth) for depth in GRID_DEPTHS]
        tables.insert(0, batch_norm_table(scores))
    return Result(
        title="Vanishing and exploding gradients, and the four cures",
        lead="On its way back through a deep network the gradient is multiplied once a layer. A factor "
        "of 0.4 leaves nothing after thirty layers, a factor of 1.5 makes it two hundred thousand times "
        "as large. Activation and initialisation set this factor, and theory predicts it before any "
        "training. Four cures change it or its consequences; each has its depth.",
        claims=gain_claims(gains) + (quick_claims(scores) if quick else full_claims(scores)),
        figures=figures,
        tables=tables,
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
    f"depth, yet at thirty layers it learns little in these {STEPS} steps: its layers map all images to "
    "nearly the same direction. An orthogonal tanh network does learn there.",
    "BatchNorm sets the scale of every layer right and so revives networks with hopeless weights. But "
    "without skip connections its own backward pass multiplies the gradient by more than 1 a layer "
    "(1.21 with ReLU), so with depth it brings back the explosion. A network whose gain is 1 already only "
    "loses by it: see orthogonal tanh at fifty layers, in the table. Where the weights are wrong it still "
    "helps there.",
    "BatchNorm and clipping get on badly at depth twenty (ReLU and GELU, column BN + clip). A likely reason: "
    "most of the exploded gradient belongs to the first layers, and clipping leaves the others too little to "
    "learn from. LayerNorm does not explode, and clipping mostly helps it.",
    "Clipping bounds the step, not the cause. At moderate depth that is enough to learn from an exploding "
    "gradient; at thirty layers its direction is of no use, however short one cuts it. Where gradients "
    "vanish it changes nothing.",
    "GELU with He is the one combination that theory misses (seeds measured 0.82 to 0.98; "
    "predicted 0.80): its variance sinks slowly and has no fixed point that would pull it back, so that "
    "each network's chance fluctuations add up from layer to layer. It is left out of the first claim.",
    "Claims about accuracies hold for each of three seeds. The other accuracies are of one training each; "
    "those that differ by less than about 0.15 are not different. Chance is 0.1.",
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


CLAIMED: list[Job] = [  # trained with several seeds
    (VANISHING_SIGMOID, 15),
    (VANISHING_RELU, 15),
    (EXPLODING_RELU, 15),
    (VANISHING_RELU, 10),
    (HE_RELU, 10),
    (CRITICAL_TANH, 30),
    (VANISHING_SIGMOID | BATCH, 15),
    (CRITICAL_TANH, 50),
    (CRITICAL_TANH | BATCH, 50),
    (VANISHING_RELU | SKIPS, 30),
    (EXPLODING_RELU | CLIPPING, 15),
    (EXPLODING_RELU | CLIPPING, 30),
    (HE_RELU | CLIPPING, 20),
    (HE_RELU | CLIPPING | BATCH, 20),
]
QUICK_CLAIMED: list[Job] = [
    (VANISHING_RELU, 15),
    (EXPLODING_RELU, 15),
    (CRITICAL_TANH, 15),
    (EXPLODING_RELU | CLIPPING, 15),
    (VANISHING_RELU | SKIPS, 15),
]


def full_claims(scores: Scores) -> list[Claim]:
    low, high = scores.lowest, scores.highest
    return [
        at_most("Sigmoid with Xavier vanishes: accuracy at depth 15", high(VANISHING_SIGMOID, 15), 0.3),
        at_most("ReLU with torch's default vanishes: accuracy at depth 15", high(VANISHING_RELU, 15), 0.3),
        at_most("ReLU with 1.3 × He explodes: accuracy at depth 15", high(EXPLODING_RELU, 15), 0.3),
        at_least(
            "Cure by initialisation: accuracy that He gains ReLU over torch's default at depth 10",
            low(HE_RELU, 10) - high(VANISHING_RELU, 10),
            0.4,
        ),
        at_least(
            "Cure by activation and initialisation: orthogonal tanh at depth 30", low(CRITICAL_TANH, 30), 0.7
        ),
        at_least(
            "Cure by BatchNorm: sigmoid with Xavier at depth 15", low(VANISHING_SIGMOID | BATCH, 15), 0.7
        ),
        at_least(
            "BatchNorm makes it worse: accuracy that it costs orthogonal tanh at depth 50",
            low(CRITICAL_TANH, 50) - high(CRITICAL_TANH | BATCH, 50),
            0.05,
        ),
        at_least(
            "BatchNorm makes it worse with clipping: accuracy that it costs ReLU with He at depth 20",
            low(HE_RELU | CLIPPING, 20) - high(HE_RELU | CLIPPING | BATCH, 20),
            0.2,
        ),
        at_least(
            "Cure by skip connections: ReLU with torch's default at depth 30",
            low(VANISHING_RELU | SKIPS, 30),
            0.7,
        ),
        at_least(
            "Cure by clipping: accuracy that it gains ReLU with 1.3 × He at depth 15",
            low(EXPLODING_RELU | CLIPPING, 15) - high(EXPLODING_RELU, 15),
            0.2,
        ),
        at_most("… but it is no cure at depth 30: accuracy", high(EXPLODING_RELU | CLIPPING, 30), 0.4),
    ]


def quick_claims(scores: Scores) -> list[Claim]:
    low, high = scores.lowest, scores.highest
    return [
        at_most("ReLU with torch's default vanishes: accuracy at depth 15", high(VANISHING_RELU, 15), 0.3),
        at_most("ReLU with 1.3 × He explodes: accuracy at depth 15", high(EXPLODING_RELU, 15), 0.3),
        at_least(
            "Cure by activation and initialisation: orthogonal tanh at depth 15", low(CRITICAL_TANH, 15), 0.6
        ),
        at_least(
            "Cure by skip connections: ReLU with torch's default at depth 15",
            low(VANISHING_RELU | SKIPS, 15),
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


def profile_figure(seed: int) -> Figure:
    networks = {
        "sigmoid, Xavier": VANISHING_SIGMOID,
        "ReLU, torch default": VANISHING_RELU,
        "ReLU, He": HE_RELU,
        "tanh, orthogonal": CRITICAL_TANH,
        "ReLU, He, BatchNorm": HE_RELU | BATCH,
        "ReLU, 1.3 × He": EXPLODING_RELU,
    }
    layers = list(range(1, 31))
    series = {}
    for name, options in networks.items():
        profile = signal_profile(options, seed)
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


def cure_figure(cures: dict[str, Options], scores: Scores, depths: tuple[int, ...]) -> Figure:
    rows = {name: [scores.first(options, depth) for depth in depths] for name, options in cures.items()}
    chart = accuracy_map(rows, [f"depth {depth}" for depth in depths])
    return Figure(
        "Which cure works at which depth",
        "A patient, and under it the same network with one thing changed: accuracy on test digits. Chance is "
        "0.10.",
        chart,
    )


def grid_figure(scores: Scores, depth: int) -> Figure:
    rows = {
        name_of(plain): [scores.first(plain | treatment, depth) for treatment in TREATMENTS.values()]
        for plain in PLAIN
    }
    return Figure(
        f"What can be trained at depth {depth}",
        f"Activation × initialisation × normalisation × clipping: accuracy after {STEPS} steps of SGD with "
        "momentum, all at one learning rate. BN: BatchNorm, LN: LayerNorm, clip: gradients' norm at most 1.",
        accuracy_map(rows, list(TREATMENTS)),
        wide=False,
    )


def accuracy_map(rows: dict[str, list[float]], columns: list[str]) -> Chart:
    text = [[f"{value:.2f}" for value in row] for row in rows.values()]
    chart = heatmap(
        list(rows.values()),
        columns,
        list(rows),
        text=text,
        scale="YlGnBu_r",
        limits=(0.0, 1.0),
        height=640 if len(rows) > 8 else 360,
    )
    return chart.update_traces(showscale=False)


def batch_norm_table(scores: Scores) -> Table:
    rows = [
        [name_of(options), scores.first(options, 50), scores.first(options | BATCH, 50)]
        for options in FIFTY_LAYERS
    ]
    rows = [[*row, row[2] - row[1]] for row in rows]
    columns = ["network", "without", "with BatchNorm", "gained"]
    return Table("BatchNorm at fifty layers: where it hurts and where it helps", columns, rows)


def gain_table(gains: list[tuple[float, float]]) -> Table:
    rows = [
        [name_of(option), measured, predicted, measured**30]
        for option, (measured, predicted) in zip(PLAIN + NORMALIZED, gains, strict=True)
    ]
    return Table(
        "Gain per layer, and what thirty layers make of it",
        ["network", "measured", "predicted", "measured, to the 30th power"],
        rows,
    )


def name_of(options: Options) -> str:
    norm = {"batch": "BatchNorm", "layer": "LayerNorm"}.get(options.get("normalization", ""), "")
    return ", ".join(filter(None, (NAMES[options["activation"]], NAMES[options["initialization"]], norm)))


if __name__ == "__main__":
    main(experiment)
