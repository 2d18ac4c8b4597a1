"""The data of the reference programs: scikit-learn's handwritten digits, bundled with it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Batches = DataLoader[tuple[Tensor, ...]]


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 images of 8 × 8 pixels, (1797, 64) float32 in 0 … 16, and their digits, (1797,) int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)


def standardize(images: Tensor, like: Tensor) -> Tensor:
    """Shift and scale to mean 0 and deviation 1 over all pixels of `like`.

    Not pixel by pixel: some are blank in nearly every image, and would come out 40 deviations high.
    """
    deviation, mean = torch.std_mean(like)
    return (images - mean) / deviation


def split_digits(
    seed: int, standardized: bool = True, test_size: int = 360
) -> tuple[TensorDataset, TensorDataset]:
    """Return the digits, shuffled by `seed`, as a training and a test set."""
    images, labels = digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, train = order[:test_size], order[test_size:]
    inputs = standardize(images, like=images[train]) if standardized else images
    return TensorDataset(inputs[train], labels[train]), TensorDataset(inputs[test], labels[test])


def batches(data: TensorDataset, seed: int, size: int = 64) -> Batches:
    """Return a loader that deals whole batches in an order drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(data, size, shuffle=True, drop_last=True, generator=generator)
