from __future__ import annotations

import pytest
import torch

from gradscope.models.data import batches, split_digits, standardize


def test_digits_are_split_without_overlap_and_standardized_by_the_training_images() -> None:
    train, test = split_digits(seed=0)
    assert len(train) + len(test) == 1797
    images = train.tensors[0]
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std().item() == pytest.approx(1, abs=1e-4)
    raw_train, raw_test = split_digits(seed=0, standardized=False)
    assert torch.equal(raw_train.tensors[1], train.tensors[1])
    assert torch.equal(standardize(raw_test.tensors[0], like=raw_train.tensors[0]), test.tensors[0])
    rows = {tuple(row.tolist()) for row in raw_train.tensors[0]}
    shared = sum(tuple(row.tolist()) in rows for row in raw_test.tensors[0])
    assert shared == 0


def test_the_order_of_batches_depends_on_the_seed_alone() -> None:
    train, _ = split_digits(seed=0)
    first = [labels for _, labels in batches(train, seed=3)]
    torch.manual_seed(99)
    again = [labels for _, labels in batches(train, seed=3)]
    other = [labels for _, labels in batches(train, seed=4)]
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(first, other, strict=True))
    assert {len(labels) for labels in first} == {64}
