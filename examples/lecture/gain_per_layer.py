"""How much a gradient grows or shrinks a layer in a deep network before training: measured, and by theory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from gradscope.diagnose import theory
from gradscope.models.data import split_digits
from gradscope.models.deep_mlp import DeepMLP

Options = dict[str, Any]  # of DeepMLP
SIGMA_W2 = {"default": 1 / 3, "xavier": 1.0, "he": 2.0, "orthogonal": 1.0}  # fan-in × variance of a weight
DEPTH, WIDTH = 30, 128  # of the networks whose gain is measured
FIRST, LAST = 2, DEPTH - 3  # the layers between which it is: theory is about the middle of a deep network


def signal_profile(options: Options, seed: int) -> Tensor:
    """Return for each layer the root mean square of the loss's gradient with respect to its output."""
    torch.manual_seed(seed)
    model = DeepMLP(depth=DEPTH, width=WIDTH, **options).double()
    images, labels = split_digits(0)[0].tensors
    h = images[:128].double()
    h = h / h.square().mean(dim=1, keepdim=True).sqrt()  # theory starts from one input variance for all
    outputs = []
    for layer in model.hidden:
        h = layer(h)
        outputs.append(h)
    loss = model.loss(model.output(h), labels[:128])
    signals = torch.autograd.grad(loss, outputs)
    return torch.stack([signal.square().mean().sqrt() for signal in signals])


def measured_gain(options: Options, seeds: Sequence[int]) -> float:
    """Return by what factor the gradient changes when it goes down one layer: the slope of its logarithm."""
    profile = torch.stack([signal_profile(options, seed).log() for seed in seeds]).mean(dim=0)
    return ((profile[FIRST] - profile[LAST]) / (LAST - FIRST)).exp().item()


def predicted_gain(options: Options) -> float:
    """Return what mean-field theory predicts for it from activation, weights' variance and norm."""
    normalization = options.get("normalization", "none")
    if normalization != "none":
        norm_gain = {"batch": theory.batch_norm_gain, "layer": theory.layer_norm_gain}[normalization]
        return norm_gain(options["activation"])
    sigma_w2 = SIGMA_W2[options["initialization"]] * options.get("gain", 1.0) ** 2
    sigma_b2 = 1 / (3 * WIDTH) if options["initialization"] == "default" else 0.0
    q, log_gains = sigma_w2 + sigma_b2, []  # q: variance of the pre-activations; of the inputs it is 1
    for _ in range(DEPTH):
        log_gains.append(math.log(theory.chi(options["activation"], sigma_w2, q)) / 2)
        q = sigma_w2 * theory.mean_square(options["activation"], q) + sigma_b2
    return math.exp(mean(log_gains[FIRST + 1 : LAST + 1]))
