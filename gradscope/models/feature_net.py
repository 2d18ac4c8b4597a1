"""A small convolutional network whose layers can be looked into: for features from edges to whole digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureNet(nn.Module):
    """Three convolutions and a linear layer for images of 16 × 16 pixels; each stage halves the image."""

    def __init__(self, channels: tuple[int, int, int] = (8, 16, 32), hidden: int = 64, classes: int = 10):
        super().__init__()
        first, second, third = channels
        self.stages = nn.ModuleDict(
            {
                "conv 1": nn.Sequential(nn.Conv2d(1, first, 5, padding=2), nn.ReLU()),
                "conv 2": nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(first, second, 3, padding=1), nn.ReLU()),
                "conv 3": nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(second, third, 3, padding=1), nn.ReLU()),
                "dense": nn.Sequential(
                    nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * third, hidden), nn.ReLU()
                ),
            }
        )
        self.classifier = nn.Linear(hidden, classes)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Return the images and the output of each stage, by name, in order."""
        outputs = {"pixels": images}
        for name, stage in self.stages.items():
            images = stage(images)
            outputs[name] = images
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, 1, 16, 16) images to (batch, classes) logits."""
        return self.classifier(self.features(images)["dense"])  # type: ignore[no-any-return]


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, penalty: float = 1.0) -> Tensor:
    """Return the class that a ridge regression names for each test sample (Alain and Bengio 2017).

    train: (samples, features); labels: (samples); test: (others, features). Features are standardised;
    penalty: in thousandths of the Gram matrix's trace. Nothing of the network is trained.
    """
    mean, std = train.mean(dim=0), train.std(dim=0) + 1e-6
    x, targets = (train - mean) / std, nn.functional.one_hot(labels).to(train) - 0.1
    gram = x @ x.T  # the dual form: as large as the number of samples, however many features there are
    ridge = penalty * 1e-3 * len(x) * gram.diagonal().mean() * torch.eye(len(x)).to(x)
    weights = x.T @ torch.linalg.solve(gram + ridge, targets)
    scores: Tensor = (test - mean) / std @ weights
    return scores.argmax(dim=1)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear centred kernel alignment of two layers on the same samples (Kornblith 2019).

    1: the same up to rotation and scale; 0: nothing in common. x: (samples, features), y: (samples, others).
    """
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    x_gram, y_gram = x @ x.T, y @ y.T
    return float((x_gram * y_gram).sum() / (x_gram.norm() * y_gram.norm()))


def class_selectivity(features: Tensor, labels: Tensor) -> float:
    """Return the share of the units' variance that the classes explain, mean over units that vary."""
    means = torch.stack([features[labels == digit].mean(dim=0) for digit in labels.unique()])
    between, total = means[labels.unique(return_inverse=True)[1]].var(dim=0), features.var(dim=0)
    varies = total > 1e-8
    return float((between[varies] / total[varies]).mean())
