"""From edges to shapes to objects: what each layer of a convolutional network knows (Alain, Bengio 2017)."""

from __future__ import annotations

import torch
from charts import heatmap, images, line_chart
from page import Claim, Figure, Result, Table, at_least, at_most, main
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from gradscope.models.data import digits
from gradscope.models.feature_net import FeatureNet, class_selectivity, linear_cka, linear_probe

RECEPTIVE = {
    "conv 1": (5, 1),
    "conv 2": (10, 2),
    "conv 3": (18, 4),
}  # pixels that a unit sees, and between units
TEST = 360


def scattered_digits(copies: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, then test ones: digits put at random places in 16 × 16 pixels.

    Centred digits can nearly be told from their pixels by a linear rule; scattered ones can't.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures, labels = digits()
    order = torch.randperm(len(labels), generator=generator)
    train, test = order[TEST:].repeat(copies), order[:TEST]
    return (*_scatter(pictures, labels, train, generator), *_scatter(pictures, labels, test, generator))


def _scatter(
    pictures: Tensor, labels: Tensor, chosen: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    canvas = torch.zeros(len(chosen), 1, 16, 16)
    corners = torch.randint(9, (len(chosen), 2), generator=generator).tolist()
    for place, (row, column) in zip(canvas, corners, strict=True):
        place[0, row : row + 8, column : column + 8] = 1
    canvas[canvas == 1] = pictures[chosen].flatten() / 16
    return canvas, labels[chosen]


def trained(pictures: Tensor, labels: Tensor, steps: int, seed: int) -> FeatureNet:
    torch.manual_seed(seed)
    network = FeatureNet()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = torch.randint(len(labels), (64,))
        loss = cross_entropy(network(pictures[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@torch.no_grad()
def flat_features(network: FeatureNet, pictures: Tensor) -> dict[str, Tensor]:
    return {name: features.flatten(1) for name, features in network.features(pictures).items()}


def probe_accuracies(
    network: FeatureNet, data: tuple[Tensor, Tensor, Tensor, Tensor], samples: int
) -> dict[str, float]:
    """Return for each layer the accuracy of a linear rule that sees nothing but this layer."""
    pictures, labels, test_pictures, test_labels = data
    train, test = flat_features(network, pictures[:samples]), flat_features(network, test_pictures)
    return {
        name: (linear_probe(train[name], labels[:samples], test[name]) == test_labels).double().mean().item()
        for name in train
    }


@torch.no_grad()
def strongest_patches(
    network: FeatureNet, pictures: Tensor, stage: str, units: int, each: int
) -> list[list[Tensor]]:
    """Return for some units of a stage the patches of images, (size, size), that excite them most."""
    maps = network.features(pictures)[stage]
    size, stride = RECEPTIVE[stage]
    padded = pad(pictures, [size] * 4)
    found = []
    for unit in maps.amax(dim=(0, 2, 3)).topk(units).indices:
        peaks, places = maps[:, unit].flatten(1).max(dim=1)
        patches = []
        for image in peaks.topk(each).indices.tolist():
            row, column = divmod(int(places[image]), maps.shape[-1])
            top, left = (int((index + 0.5) * stride) - size // 2 + size for index in (row, column))
            patches.append(padded[image, 0, top : top + size, left : left + size])
        found.append(patches)
    return found


def experiment(quick: bool, seed: int) -> Result:
    data = scattered_digits(2 if quick else 6, seed)
    samples = 1000 if quick else 2874
    network, untrained = (trained(*data[:2], steps, seed) for steps in (350 if quick else 900, 0))
    probes, control = probe_accuracies(network, data, samples), probe_accuracies(untrained, data, samples)
    features = flat_features(network, data[2])
    selectivity = {name: class_selectivity(values, data[3]) for name, values in features.items()}
    alike = [[linear_cka(x, y) for y in features.values()] for x in features.values()]
    accuracy = (network(data[2]).argmax(dim=1) == data[3]).double().mean().item()
    return Result(
        title="Hierarchical features: from edges to shapes to objects",
        lead="A convolutional network looks at scattered digits. Its first layer answers to edges, the "
        "next to strokes and corners, the last to whole digits: layer by layer the class becomes easier "
        "to read off.",
        claims=claims(probes, control, selectivity, alike, quick),
        figures=[
            probe_figure(probes, control, selectivity),
            cka_figure(alike, list(features)),
            filter_figure(network),
            *(patch_figure(network, data[2], stage) for stage in RECEPTIVE),
        ],
        tables=[
            Table(
                f"Layer by layer; the network's own accuracy is {accuracy:.3f}",
                ["layer", "features", "accuracy of a linear probe", "before training", "class selectivity"],
                [
                    [name, features[name].shape[1], probes[name], control[name], selectivity[name]]
                    for name in probes
                ],
            )
        ],
        notes=[
            "The probe is a ridge regression on one layer's outputs. Early layers have more features "
            "than late ones, so nothing favours the late layers but what they compute. The untrained "
            "network is the control: convolution alone makes the class a little easier to read off, and "
            "the last layer loses that again; learning makes the difference.",
            "From the last convolution to the dense layer the probe need not rise further: what is left "
            "to do there is little. What still rises is the selectivity of single units, the share of a "
            "unit's variance that the class explains.",
            "That the filters show edges and the patches shapes is for the eye; no figure here measures it.",
        ],
        code=[FeatureNet, linear_probe, linear_cka, class_selectivity],
        sources=[
            "Alain and Bengio 2017, arXiv 1610.01644",
            "Kornblith et al. 2019, arXiv 1905.00414",
            "Zeiler and Fergus 2014, arXiv 1311.2901",
        ],
    )


def claims(
    probes: dict[str, float],
    control: dict[str, float],
    selectivity: dict[str, float],
    alike: list[list[float]],
    quick: bool,
) -> list[Claim]:
    rises = [
        probes[after] - probes[before]
        for before, after in zip(list(probes)[:3], list(probes)[1:4], strict=True)
    ]
    return [
        at_least(
            "The probe's accuracy rises with depth, pixels to the third convolution: smallest rise",
            min(rises),
            0.02,
        ),
        at_least("… and altogether by", probes["conv 3"] - probes["pixels"], 0.3 if quick else 0.5),
        at_least(
            "… and does not fall again in the dense layer, by more than noise",
            probes["dense"] - probes["conv 3"],
            -0.08,
        ),
        at_least(
            "Learning does that: probe of the last layer, trained minus untrained",
            probes["dense"] - control["dense"],
            0.25,
        ),
        at_least(
            "Single units become selective: class selectivity of the last layer over that of the pixels",
            selectivity["dense"] / selectivity["pixels"],
            3,
        ),
        at_most("Layers drift apart: CKA of pixels and last layer", alike[0][-1], 0.5),
        at_least("… while neighbours stay alike: CKA of pixels and first convolution", alike[0][1], 0.7),
    ]


def probe_figure(
    probes: dict[str, float], control: dict[str, float], selectivity: dict[str, float]
) -> Figure:
    layers = list(probes)
    series = {
        "linear probe": (layers, list(probes.values())),
        "linear probe, untrained network": (layers, list(control.values())),
        "class selectivity of the units": (layers, list(selectivity.values())),
    }
    chart = line_chart(series, "layer", "share", height=400).update_yaxes(range=[0, 1.03])
    return Figure(
        "What can be read off each layer", "Accuracy on 360 test digits; chance is 0.1.", chart, wide=False
    )


def cka_figure(alike: list[list[float]], layers: list[str]) -> Figure:
    text = [[f"{value:.2f}" for value in row] for row in alike]
    chart = heatmap(alike, layers, layers, text=text, limits=(0.0, 1.0), scale="YlGnBu_r", height=400)
    chart.update_traces(showscale=False)
    return Figure(
        "How alike two layers are",
        "Linear CKA: 1 means the same up to rotation and scale.",
        chart,
        wide=False,
    )


def filter_figure(network: FeatureNet) -> Figure:
    kernels = network.stages["conv 1"][0].weight.detach()[:, 0]
    chart = images([list(kernels[:4]), list(kernels[4:])], ["", ""], height=300, signed=True)
    return Figure(
        "The first layer's filters",
        "5 × 5 pixels, red positive, blue negative: bright beside dark is an edge.",
        chart,
        wide=False,
    )


def patch_figure(network: FeatureNet, pictures: Tensor, stage: str) -> Figure:
    found = strongest_patches(network, pictures, stage, units=3, each=6)
    names = {"conv 1": "edges", "conv 2": "strokes and corners", "conv 3": "shapes and digits"}
    chart = images(found, [f"unit {place}" for place in range(1, 4)], height=300)
    size = RECEPTIVE[stage][0]
    return Figure(
        f"What excites {stage}: {names[stage]}",
        f"For three units the {size} × {size} pixels that excite them most.",
        chart,
        wide=False,
    )


if __name__ == "__main__":
    main(experiment)
