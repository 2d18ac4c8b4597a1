"""Look at a model before training it: one forward and one backward pass tell how it was initialised."""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader

import gradscope
from gradscope.models.data import split_digits


def deep_network(he: bool) -> nn.Module:
    """Build 20 ReLU layers, as torch initialises them or as He et al. (2015) do."""
    layers = []
    for width in [64] * 20:
        linear = nn.Linear(width, 64)
        if he:
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def main() -> None:
    torch.manual_seed(0)
    train, _ = split_digits(seed=0)
    batch = tuple(next(iter(DataLoader(train, batch_size=64, shuffle=True))))
    for name, model in (
        ("as torch initialises it", deep_network(he=False)),
        ("He-initialised", deep_network(he=True)),
    ):
        report = gradscope.preflight(model, batch, nn.CrossEntropyLoss())
        findings = ", ".join(finding.rule for finding in report.findings)
        print(f"{name}: {findings or 'nothing found'}")
        for item in report.evidence:
            print(f"  {item.statement} Normal: {item.normal}.")
        for finding in report.findings:
            print(f"  {finding.message}\n  Try: {finding.remedies[0].title}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="changes nothing: a pre-flight is quick")
    parser.parse_args()
    main()
