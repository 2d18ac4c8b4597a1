"""The lecture's models against what is known exactly: sawtooth, product, optimizers, word vectors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradscope import models
from gradscope.models.feature_net import FeatureNet, class_selectivity, linear_cka, linear_probe
from gradscope.models.optimizers import MovingAverageSGD, WrittenAdam
from gradscope.models.pretraining import pretrain_layers
from gradscope.models.product import FlatProduct, ProductGate, ProductTree, softplus_derivative
from gradscope.models.sawtooth import count_pieces, deep_sawtooth, flat_sawtooth, sawtooth
from gradscope.models.word_vectors import context_pairs, index_words, solve_analogies, train_skip_gram


@pytest.mark.parametrize("folds", range(1, 11))
def test_both_sawtooths_are_the_formula_and_have_every_piece(folds: int) -> None:
    x = torch.linspace(0, 1, 2**12 + 1, dtype=torch.float64).unsqueeze(1)
    tent = x
    for _ in range(folds):
        tent = 1 - (1 - 2 * tent).abs()
    for network in (deep_sawtooth(folds), flat_sawtooth(folds)):
        assert count_pieces(network) == 2**folds
        assert torch.equal(network.double()(x), tent)
    assert torch.equal(sawtooth(x, folds), tent)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_pieces_of_a_random_layer_are_its_kinks_plus_one(units: int, seed: int) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(1, units), nn.ReLU(), nn.Linear(units, 1)).double()
    kinks = -network[0].bias / network[0].weight[:, 0]
    inside = ((kinks > 0) & (kinks < 1)).sum().item()
    assert count_pieces(network, tolerance=1e-9) == inside + 1


def test_pieces_of_a_random_deep_network_match_a_dense_grid() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    x = torch.linspace(-3, 3, 60_001, dtype=torch.float64).unsqueeze(1)
    slopes = network(x).detach()[:, 0].diff() / x[:, 0].diff()
    changed = (slopes.diff().abs() > 1e-6).int()
    runs = int(((changed[1:] == 1) & (changed[:-1] == 0)).sum() + changed[0])
    assert count_pieces(network, -3, 3, tolerance=1e-6) == runs + 1


def test_pieces_of_another_layer_are_refused() -> None:
    with pytest.raises(TypeError, match="not Tanh"):
        count_pieces(nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)))


def test_a_product_gate_misses_what_its_taylor_series_says() -> None:
    x, y = torch.tensor(0.1, dtype=torch.float64), torch.tensor(-0.07, dtype=torch.float64)
    got = ProductGate().double()(torch.stack([x, y]))
    assert got.item() == pytest.approx((x * y * (1 - (x**2 + y**2) / 12)).item(), rel=1e-4)


@pytest.mark.parametrize("inputs", [2, 4, 8])
def test_products_become_exact_as_the_inputs_shrink(inputs: int) -> None:
    torch.manual_seed(0)
    signs = 2 * torch.rand(500, inputs, dtype=torch.float64) - 1
    for build in (lambda scale: ProductTree(inputs, scale), lambda scale: FlatProduct(inputs)):
        errors = []
        for scale in (0.2, 0.1):
            exact = (scale * signs).prod(dim=1)
            got = build(scale).double()(scale * signs).detach()
            errors.append(((got - exact).norm() / exact.norm()).item())
        assert 3 < errors[0] / errors[1] < 5
    assert ProductTree(inputs).neurons == 4 * (inputs - 1)
    assert FlatProduct(inputs).hidden.out_features == 2**inputs


def test_derivatives_of_softplus_match_autograd() -> None:
    for order in (2, 4, 6, 8):
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        value = nn.functional.softplus(x)
        value = -torch.nn.functional.logsigmoid(-x)
        for _ in range(order):
            (value,) = torch.autograd.grad(value, x, create_graph=True)
        assert softplus_derivative(order) == pytest.approx(value.item(), rel=1e-9)


@pytest.mark.parametrize("inputs", [0, 1, 3, 6])
def test_a_tree_of_another_size_is_refused(inputs: int) -> None:
    with pytest.raises(ValueError, match="2, 4, 8"):
        ProductTree(inputs)


def descend(optimizer: torch.optim.Optimizer, weight: nn.Parameter, steps: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        weight.grad = 10 ** torch.linspace(-6, 3, weight.numel(), dtype=torch.float64) * torch.randn(
            weight.shape, generator=generator, dtype=torch.float64
        )
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_moving_average_momentum_is_torchs_at_a_smaller_rate(momentum: float) -> None:
    ours, theirs = (nn.Parameter(torch.ones(50, dtype=torch.float64)) for _ in range(2))
    left = descend(MovingAverageSGD([ours], lr=0.1, momentum=momentum), ours)
    right = descend(torch.optim.SGD([theirs], lr=0.1 * (1 - momentum), momentum=momentum), theirs)
    assert ((left - right).abs() <= 1e-12 * (1 + right.abs())).all()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [False, True])
def test_written_adam_is_torchs(decay: float, decoupled: bool) -> None:
    ours, theirs = (nn.Parameter(torch.ones(50, dtype=torch.float64)) for _ in range(2))
    left = descend(WrittenAdam([ours], lr=0.01, weight_decay=decay, decoupled=decoupled), ours)
    build = torch.optim.AdamW if decoupled else torch.optim.Adam
    right = descend(build([theirs], lr=0.01, weight_decay=decay), theirs)
    assert ((left - right).abs() <= 1e-12 * (1 + right.abs())).all()


def test_written_optimizers_skip_missing_gradients_and_evaluate_closures() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for build in (MovingAverageSGD, WrittenAdam):
        optimizer = build([used, unused], lr=0.1)

        def closure() -> torch.Tensor:
            used.grad = None
            loss = used.square().sum()
            loss.backward()
            return loss

        before = used.detach().clone()
        assert optimizer.step(closure).item() == pytest.approx(before.square().sum().item())
        assert (used < before).all()
        assert (unused == 1).all()


def test_momentum_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="less than 1"):
        MovingAverageSGD([nn.Parameter(torch.ones(1))], momentum=1.0)


def test_an_autoencoder_learns_to_reconstruct_what_fits_into_its_layer() -> None:
    torch.manual_seed(0)
    data = torch.randn(500, 3) @ torch.randn(3, 12)
    layers = [nn.Linear(12, 8), nn.Linear(8, 6)]
    before = [layer.weight.detach().clone() for layer in layers]
    errors = pretrain_layers(layers, torch.tanh, data, steps=400)
    assert len(errors) == 2
    assert max(errors) < 0.3
    assert all((layer.weight != old).any() for layer, old in zip(layers, before, strict=True))


def test_words_are_counted_and_paired_within_the_window() -> None:
    vocabulary, numbered, counts = index_words([["b", "a", "c"], ["a", "b", "a"]])
    assert vocabulary == ["a", "b", "c"]
    assert numbered == [[1, 0, 2], [0, 1, 0]]
    assert counts.tolist() == [3, 2, 1]
    assert context_pairs([[1, 0, 2]], window=1).tolist() == [[1, 0], [0, 1], [0, 2], [2, 0]]


def test_an_analogy_of_exact_offsets_is_solved_and_exclusion_leaves_words_out() -> None:
    vectors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 1]])
    question = torch.tensor([[0, 1, 2]])
    assert solve_analogies(vectors, question, exclude=True).item() == 3
    near_c = torch.tensor([[1.0, 0.0], [0.99, 0.1], [0.0, 1.0], [-1.0, 0.2]])
    assert solve_analogies(near_c, question, exclude=False).item() == 2
    assert solve_analogies(near_c, question, exclude=True).item() == 3


def test_skip_gram_brings_words_of_like_contexts_together() -> None:
    torch.manual_seed(0)
    vocabulary, numbered, counts = index_words([["cat", "purrs"], ["tiger", "purrs"], ["car", "rolls"]] * 30)
    vectors = train_skip_gram(context_pairs(numbered, 1), counts, dimension=8, steps=300, batch_size=128)
    unit = nn.functional.normalize(vectors)
    cat, tiger, car = (unit[vocabulary.index(word)] for word in ("cat", "tiger", "car"))
    assert cat @ tiger > cat @ car + 0.2


def test_probe_reads_a_linear_class_and_cka_ignores_rotation_and_scale() -> None:
    torch.manual_seed(0)
    labels = torch.randint(10, (400,))
    x = 3 * nn.functional.one_hot(labels, 20).float() + 0.3 * torch.randn(400, 20)
    assert (linear_probe(x[:300], labels[:300], x[300:]) == labels[300:]).all()
    rotation = torch.linalg.qr(torch.randn(20, 20)).Q
    assert linear_cka(x, 7 * x @ rotation + 1) == pytest.approx(1.0, abs=1e-4)
    assert linear_cka(x, torch.randn(400, 20)) < 0.2
    assert class_selectivity(x[:, :10], labels) > 0.8 > 0.1 > class_selectivity(torch.randn(400, 5), labels)


def test_the_reference_models_are_exported() -> None:
    assert all(hasattr(models, name) for name in models.__all__)
    assert {"DeepMLP", "FeatureNet", "SkipGram", "ProductTree", "deep_sawtooth"} <= set(models.__all__)


def test_feature_net_names_its_stages_in_order() -> None:
    network = FeatureNet()
    features = network.features(torch.rand(2, 1, 16, 16))
    assert list(features) == ["pixels", "conv 1", "conv 2", "conv 3", "dense"]
    assert network(torch.rand(2, 1, 16, 16)).shape == (2, 10)
    assert math.prod(features["conv 1"].shape[1:]) == 2048
