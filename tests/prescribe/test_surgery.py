"""Surgery on real models: it works, keeps what it doesn't touch, and refuses what makes no sense."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope.errors import SurgeryRefused
from gradscope.prescribe import Clipping, TrainingChange, surgery
from gradscope.records import Remedy
from tests.prescribe.models import Block, ConvNet, FunctionalMLP, Lit, Recurrent, Transformer, mlp, patients

PATIENTS = ("mlp", "functional", "conv", "resnet", "lstm", "transformer", "lightning")
ACTIONS: dict[str, dict[str, Any]] = {
    "activation": {"do": "replace-activation", "to": "gelu"},
    "initialize": {"do": "initialize", "scheme": "own"},
    "orthogonal": {"do": "initialize", "scheme": "orthogonal"},
    "lsuv": {"do": "initialize", "scheme": "lsuv"},
    "batch-norm": {"do": "normalize", "norm": "batch"},
    "layer-norm": {"do": "normalize", "norm": "layer"},
    "group-norm": {"do": "normalize", "norm": "group"},
    "residual": {"do": "residual"},
    "widen": {"do": "widen", "factor": 2},
    "no-batch-norm": {"do": "replace-norm", "norm": "group"},
    "epsilon": {"do": "set-epsilon", "eps": 1e-3},
    "training": {"do": "train", "rate": 0.1},
}
ALL = frozenset(ACTIONS)
# What makes no sense, and so must be refused.
REFUSED: dict[str, frozenset[str]] = {
    "mlp": frozenset({"no-batch-norm", "epsilon"}),
    "functional": frozenset({"widen", "no-batch-norm", "epsilon"}),
    "conv": frozenset({"no-batch-norm", "epsilon"}),
    "resnet": frozenset(),
    "lstm": frozenset({"widen", "no-batch-norm", "epsilon"}),
    "transformer": frozenset(
        {"batch-norm", "layer-norm", "group-norm", "residual", "widen", "no-batch-norm"}
    ),
    "lightning": frozenset({"no-batch-norm", "epsilon"}),
}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("patient", PATIENTS)
@pytest.mark.parametrize("name", ACTIONS)
def test_each_surgery_on_each_architecture(patient: str, name: str) -> None:
    model, batch = patients()[patient]
    before, text = state(model), str(model)
    expected = model.eval()(batch)
    if name in REFUSED[patient]:
        with pytest.raises(SurgeryRefused) as reason:
            surgery.apply(ACTIONS[name], model, batch)
        assert len(str(reason.value)) > 20
        assert "\n" not in str(reason.value)
    else:
        treated = surgery.apply(ACTIONS[name], model, batch)
        assert type(treated) is type(model)
        output = treated.train()(batch)
        assert output.shape == expected.shape
        output.float().square().mean().backward()
        assert all(p.grad is not None for p in treated.parameters() if p.numel() != 3)
        if name != "no-batch-norm":
            assert set(before) <= set(treated.state_dict())
        again = pickle.loads(pickle.dumps(treated)).eval()
        assert torch.equal(again(batch), treated.eval()(batch))
        twice = surgery.apply({"do": "initialize", "scheme": "own"}, treated, batch)
        assert twice.eval()(batch).shape == expected.shape
    assert str(model) == text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.eval()(batch), expected)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_modules_of_the_output_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid())
    treated = surgery.apply({"do": "replace-activation", "to": "relu", "from": ["sigmoid"]}, model)
    assert [type(module) for module in treated] == [nn.Linear, nn.ReLU, nn.Linear, nn.Sigmoid]


def test_functions_are_replaced_and_the_output_stays() -> None:
    model = FunctionalMLP().eval()
    batch = torch.randn(5, 8)
    treated = surgery.apply({"do": "replace-activation", "to": "relu", "from": ["sigmoid"]}, model, batch)
    hidden = functional.relu(model.fc2(functional.relu(model.fc1(batch))))
    assert torch.allclose(treated.eval()(batch), torch.sigmoid(model.fc3(hidden)))


def test_dropout_in_a_rewritten_forward_follows_the_mode() -> None:
    model, batch = FunctionalMLP(), torch.randn(64, 8)
    treated = surgery.apply({"do": "replace-activation", "to": "relu"}, model)
    assert torch.equal(treated.eval()(batch), treated(batch))
    assert not torch.equal(treated.train()(batch), treated(batch))


def test_a_rewritten_forward_says_that_it_knows_no_mask() -> None:
    treated = surgery.apply({"do": "replace-activation", "to": "relu"}, FunctionalMLP())
    with pytest.raises(AssertionError, match="mask"):
        treated(torch.randn(2, 8), torch.ones(2, 12))


def test_a_shared_activation_stays_shared() -> None:
    model = nn.ModuleDict()
    shared = nn.ReLU()
    model["a"], model["b"] = nn.Sequential(nn.Linear(2, 2), shared), nn.Sequential(shared, nn.Linear(2, 2))
    treated = surgery.apply({"do": "replace-activation", "to": "elu", "layers": ["a.1"]}, model)
    assert isinstance(treated["a"][1], nn.ELU)
    assert treated["a"][1] is treated["b"][0]


def test_gates_keep_their_bounds() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.gate, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.tanh(self.value(x)) + x * torch.sigmoid(self.gate(x)))

    model, batch = Gated(), torch.randn(3, 4)
    treated = surgery.apply({"do": "replace-activation", "to": "relu"}, model)
    expected = model.out(torch.relu(model.value(batch)) + batch * torch.sigmoid(model.gate(batch)))
    assert torch.allclose(treated(batch), expected)


def test_transformer_layers_keep_their_function_as_an_attribute() -> None:
    model = Transformer()
    tokens = torch.randint(0, 11, (2, 5))
    treated = surgery.apply({"do": "replace-activation", "to": "gelu", "from": ["relu"]}, model)
    assert all(layer.activation is functional.gelu for layer in treated.encoder.layers)
    assert not torch.allclose(treated.eval()(tokens), model.eval()(tokens))


def test_code_that_torch_fx_cannot_follow_is_refused_with_the_place() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.sigmoid(self.a(x))
            return self.b(x) if x.sum() > 0 else x

    with pytest.raises(SurgeryRefused, match=r"Branching \(.*test_surgery.py:\d+\)") as reason:
        surgery.apply({"do": "replace-activation", "to": "relu", "from": ["sigmoid"]}, Branching())
    assert "write torch.nn.functional.relu(x) there for sigmoid" in str(reason.value)


def test_code_that_differs_between_training_and_evaluation_is_refused() -> None:
    class TwoFaced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            return self.b(x) if self.training else self.b(x * 2)

    with pytest.raises(SurgeryRefused, match="training and evaluation"):
        surgery.apply({"do": "replace-activation", "to": "elu"}, TwoFaced())


def test_norms_stand_before_activations_and_never_at_the_output() -> None:
    treated = surgery.apply({"do": "normalize", "norm": "batch"}, mlp(depth=4), torch.randn(3, 16))
    kinds = [type(module).__name__ for module in treated.modules() if not list(module.children())]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 3 + ["Linear"]


class HeadFirst(nn.Module):
    """Registers its layers in another order than it calls them, inside a module that does so too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.last = nn.Sigmoid()
        self.act2, self.act1 = nn.Tanh(), nn.Tanh()
        self.second, self.first = nn.Linear(6, 8), nn.Linear(5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.head(self.act2(self.second(self.act1(self.first(x))))))


def test_surgery_goes_by_execution_and_not_by_registration() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tail, self.net = nn.Linear(3, 2), HeadFirst()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tail(self.net(x))

    batch = torch.randn(7, 5)
    treated = surgery.apply({"do": "normalize", "norm": "batch"}, HeadFirst(), batch)
    norms = {name for name, module in treated.named_modules() if isinstance(module, nn.BatchNorm1d)}
    assert norms == {"first_norm", "second_norm"}
    with pytest.raises(SurgeryRefused, match="output"):
        surgery.apply({"do": "normalize", "norm": "batch", "layers": ["head"]}, HeadFirst(), batch)
    relu = surgery.apply({"do": "replace-activation", "to": "relu"}, HeadFirst(), batch)
    assert [type(m) for m in (relu.act1, relu.act2, relu.last)] == [nn.ReLU, nn.ReLU, nn.Sigmoid]
    inner = surgery.apply({"do": "normalize", "norm": "layer"}, Outer(), batch)
    assert {name for name, m in inner.named_modules() if isinstance(m, nn.LayerNorm)} == {
        "net.first_norm", "net.second_norm", "net.head_norm",
    }  # fmt: skip
    wide = surgery.apply({"do": "widen", "factor": 2}, HeadFirst(), batch)
    assert (wide.first.out_features, wide.second.out_features, wide.head.out_features) == (12, 16, 3)


def test_norms_can_be_taken_away_but_not_out_of_torchs_own_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.GroupNorm(2, 2), nn.Linear(2, 1)).eval()
    treated = surgery.apply({"do": "replace-norm", "norm": "none", "layers": ["1"]}, model, torch.randn(3, 4))
    assert isinstance(treated[1], nn.Identity)
    assert not treated[1].training
    with pytest.raises(SurgeryRefused, match="needs its norms"):
        surgery.apply(
            {"do": "replace-norm", "norm": "none", "layers": ["encoder.layers.0.norm1"]}, Transformer()
        )


@pytest.mark.parametrize("scheme", ["own", "he", "xavier", "lecun", "orthogonal"])
def test_sixteen_bit_weights_can_be_drawn_anew(scheme: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        for model in (mlp(), Recurrent()):
            treated = surgery.apply({"do": "initialize", "scheme": scheme}, model.to(dtype))
            assert {parameter.dtype for parameter in treated.parameters()} == {dtype}
            assert all(parameter.isfinite().all() for parameter in treated.parameters())


def test_norms_suit_convolutions() -> None:
    for norm, kind in {"batch": nn.BatchNorm2d, "layer": nn.GroupNorm, "group": nn.GroupNorm}.items():
        treated = surgery.apply({"do": "normalize", "norm": norm}, ConvNet())
        assert sum(isinstance(module, kind) for module in treated.modules()) == 3


@pytest.mark.parametrize(
    ("action", "model", "reason"),
    [
        ({"do": "normalize", "norm": "batch", "layers": ["rnn"]}, Recurrent(), "recurrent"),
        ({"do": "normalize", "norm": "layer", "layers": ["head.2"]}, Recurrent(), "output"),
        ({"do": "normalize", "norm": "layer", "layers": ["nowhere"]}, Recurrent(), "no module 'nowhere'"),
        ({"do": "normalize", "norm": "magic"}, mlp(), "known are batch, layer, group"),
        ({"do": "replace-activation", "to": "magic"}, mlp(), "known are relu"),
        ({"do": "replace-activation", "to": "relu", "layers": ["0"]}, mlp(), "Linear, not an activation"),
        ({"do": "initialize", "scheme": "magic"}, mlp(), "known are own"),
        ({"do": "initialize", "scheme": "lsuv"}, mlp(), "batch"),
        ({"do": "initialize", "scheme": "he"}, nn.Sequential(nn.ReLU()), "no linear"),
        ({"do": "residual", "layers": ["0"]}, mlp(inputs=3), "changes the shape"),
        ({"do": "residual"}, nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), "projection"),
        ({"do": "widen", "factor": 0.5}, mlp(), "whole number"),
        ({"do": "widen", "factor": 2}, Transformer(), "follows from the width"),
        ({"do": "freeze", "parameters": ["nowhere"]}, mlp(), "no parameter 'nowhere'"),
        ({"do": "magic"}, mlp(), "unknown operation 'magic'"),
        ({}, mlp(), "by hand"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    action: dict[str, Any], model: nn.Module, reason: str
) -> None:
    with pytest.raises(SurgeryRefused, match=reason):
        surgery.apply(action, model)


def test_a_batch_shows_what_the_structure_does_not() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    sequence = torch.randn(3, 5, 4)
    with pytest.raises(SurgeryRefused, match="doesn't run"):
        surgery.apply({"do": "normalize", "norm": "batch"}, model, sequence)
    assert surgery.apply({"do": "normalize", "norm": "layer"}, model, sequence)(sequence).shape == (3, 5, 2)


def test_initialisation_follows_each_layers_own_activation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 400), nn.Tanh(), nn.Linear(400, 400), nn.SELU(),
        nn.Linear(400, 100),
    )  # fmt: skip
    treated = surgery.apply({"do": "initialize", "scheme": "own"}, model)
    variances = [400 * float(treated[index].weight.detach().var()) for index in (0, 2, 4, 6)]
    assert variances == pytest.approx([2.0, 1.0, 1.0, 1.6], rel=0.05)  # Xavier at the end: 2 / (400 + 100)
    assert not any(treated[index].bias.any() for index in (0, 2, 4, 6))


def test_lsuv_gives_every_layer_unit_variance() -> None:
    torch.manual_seed(0)
    model, batch = mlp(depth=12, width=64, activation=nn.Tanh), torch.randn(256, 64)
    treated = surgery.apply({"do": "initialize", "scheme": "lsuv"}, model, batch)
    x = batch
    for module in treated:
        x = module(x)
        if isinstance(module, nn.Linear):
            assert float(x.detach().var()) == pytest.approx(1.0, abs=0.06)


def test_recurrences_become_orthogonal_and_their_forget_gates_open() -> None:
    treated = surgery.apply({"do": "initialize", "scheme": "own"}, Recurrent())
    for gate in treated.rnn.weight_hh_l1.detach().split(10):
        assert torch.allclose(gate @ gate.T, torch.eye(10), atol=1e-5)
    assert torch.equal(
        treated.rnn.bias_ih_l0.detach(), torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(10)
    )


def test_tied_weights_stay_tied_and_are_not_drawn_anew() -> None:
    model = Transformer()
    treated = surgery.apply({"do": "initialize", "scheme": "own"}, model)
    assert treated.decode.weight is treated.embed.weight
    assert torch.equal(treated.embed.weight, model.embed.weight)


def test_skips_keep_the_gradient_of_a_vanishing_network() -> None:
    torch.manual_seed(0)
    model, batch = mlp(depth=40, width=32), torch.randn(64, 32)

    def share(net: nn.Module) -> float:
        net(batch).square().mean().backward()
        norms = [float(p.grad.norm()) for name, p in net.named_parameters() if name.endswith("weight")]
        return norms[0] / norms[-1]

    treated = surgery.apply({"do": "residual"}, model)
    assert share(model) < 1e-8
    assert share(treated) > 1e-3


def test_widening_keeps_the_gain() -> None:
    torch.manual_seed(0)
    model = surgery.apply({"do": "initialize", "scheme": "he"}, mlp(depth=6, width=64))
    treated = surgery.apply({"do": "widen", "factor": 4}, model, torch.randn(2, 64))
    assert treated[2].weight.shape == (256, 256)
    assert treated[2].in_features == treated[2].out_features == 256
    assert 256 * float(treated[2].weight.detach().var()) == pytest.approx(
        64 * float(model[2].weight.detach().var()), rel=0.1
    )


def test_widening_convolutions_and_their_norms() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 25, 6), nn.ReLU(),
        nn.LayerNorm(6), nn.Linear(6, 2),
    )  # fmt: skip
    treated = surgery.apply({"do": "widen", "factor": 3}, model, torch.randn(2, 3, 5, 5))
    assert treated[1].num_features == 12
    assert treated[4].in_features == 300


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_device_and_mode_are_kept(dtype: torch.dtype) -> None:
    model = mlp().to(dtype).eval()
    model[0].weight.requires_grad_(False)
    for name in ("activation", "initialize", "layer-norm", "residual", "widen"):
        treated = surgery.apply(ACTIONS[name], model)
        assert {p.dtype for p in treated.parameters()} == {dtype}
        assert not any(module.training for module in treated.modules())
        assert not treated[0].weight.requires_grad
    prelu = surgery.apply({"do": "replace-activation", "to": "prelu"}, model)
    assert {p.dtype for p in prelu.parameters()} == {dtype}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*:UserWarning")
def test_a_lightning_module_that_is_being_trained_is_copied_without_its_trainer() -> None:
    model = Lit(mlp(inputs=16))
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(4, 16), torch.randn(4, 4)), batch_size=2
    )
    trainer = pl.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, data)
    treated = surgery.apply(ACTIONS["layer-norm"], model)
    assert model.trainer is trainer
    assert treated._trainer is None
    assert isinstance(treated, Lit)
    assert treated.training_step((torch.randn(2, 16), torch.randn(2, 4)), 0) > 0


def test_a_lightning_module_with_layers_of_its_own() -> None:
    class Own(Lit):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 4))
            self.last = nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.sigmoid(self.net(x)))

    batch = torch.randn(3, 4)
    treated = surgery.apply({"do": "replace-activation", "to": "relu"}, Own(), batch)
    assert torch.allclose(treated(batch), treated.last(torch.relu(treated.net(batch))))


def test_combined_actions_and_repeated_surgery() -> None:
    action = {"do": "all", "actions": [ACTIONS["activation"], ACTIONS["layer-norm"], ACTIONS["training"]]}
    batch = torch.randn(3, 8)
    treated = surgery.apply(action, FunctionalMLP(), batch)
    again = surgery.apply({"do": "replace-activation", "to": "tanh"}, treated, batch)
    x = torch.tanh(again.fc2_norm(again.fc2(torch.tanh(again.fc1_norm(again.fc1(batch))))))
    assert torch.allclose(again.eval()(batch), torch.sigmoid(again.fc3(x)), atol=1e-6)


def test_a_remedy_and_its_action_are_the_same_to_surgery() -> None:
    remedy = Remedy("activation", "t", "w", "c", "e", ACTIONS["activation"])
    assert str(surgery.apply(remedy, mlp())) == str(surgery.apply(ACTIONS["activation"], mlp()))


def test_blocks_called_by_a_parent_keep_their_skips() -> None:
    model, batch = Block(4).eval(), torch.randn(2, 4, 6, 6)
    treated = surgery.apply({"do": "replace-norm", "norm": "group"}, model, batch)
    assert isinstance(treated.bn1, nn.GroupNorm)
    assert torch.equal(treated.bn1.weight, model.bn1.weight)


# Changes of the training


def optimizer_of(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[2].weight], "lr": 0.2}],
        lr=0.1,
        **options,
    )


def test_change_of_rate_keeps_or_replaces_the_groups_own() -> None:
    optimizer = optimizer_of(mlp(), momentum=0.9)
    factor = surgery.change_optimizer(TrainingChange(rate_factor=0.1), optimizer)
    assert [group["lr"] for group in factor.param_groups] == pytest.approx([0.01, 0.02])
    fixed = surgery.change_optimizer(TrainingChange(rate=0.5), optimizer)
    assert [group["lr"] for group in fixed.param_groups] == [0.5, 0.5]
    assert {group["momentum"] for group in fixed.param_groups} == {0.9}
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_change_of_optimizer() -> None:
    change = TrainingChange(optimizer="AdamW", rate=1e-3, weight_decay=0.1, options={"eps": 1e-12})
    changed = surgery.change_optimizer(change, optimizer_of(mlp()))
    assert type(changed) is torch.optim.AdamW
    assert {(g["lr"], g["weight_decay"], g["eps"]) for g in changed.param_groups} == {(1e-3, 0.1, 1e-12)}
    with pytest.raises(SurgeryRefused, match="no 'Magic'"):
        surgery.change_optimizer(TrainingChange(optimizer="Magic"), optimizer_of(mlp()))


def test_forgotten_parameters_join() -> None:
    model = mlp()
    model[4].weight.requires_grad_(False)
    changed = surgery.change_optimizer(TrainingChange(all_parameters=True), optimizer_of(model), model)
    known = [id(p) for group in changed.param_groups for p in group["params"]]
    assert len(known) == len(set(known))
    assert set(known) == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("algorithm", ["norm", "value", "adaptive", "none"])
def test_clipping(algorithm: Any) -> None:
    model = mlp()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    before = copy.deepcopy([parameter.grad for parameter in model.parameters()])
    surgery.clip_gradients(Clipping(algorithm, 0.5), model.parameters())
    after = [parameter.grad for parameter in model.parameters()]
    if algorithm == "norm":
        assert float(torch.cat([g.flatten() for g in after]).norm()) == pytest.approx(0.5, rel=1e-4)
    elif algorithm == "value":
        assert all(float(g.abs().max()) == 0.5 for g in after)
    elif algorithm == "adaptive":
        rows = model[0].weight.grad.norm(dim=1) / model[0].weight.norm(dim=1)
        assert torch.allclose(rows, torch.tensor(0.5))
    else:
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_warm_up_reaches_the_full_rate() -> None:
    optimizer = optimizer_of(mlp())
    schedule = surgery.warm_up(optimizer, 4)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.025, 0.04375, 0.0625, 0.08125, 0.1, 0.1])


def test_attention_is_drawn_anew_where_it_is_named() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    with torch.no_grad():
        layer.self_attn.in_proj_weight.mul_(100)
    action = {"do": "initialize", "scheme": "xavier", "layers": ["self_attn"]}
    changed: Any = surgery.apply(action, layer, torch.randn(2, 3, 16))
    assert float(changed.self_attn.in_proj_weight.detach().abs().max()) < 1
    assert torch.equal(changed.linear1.weight, layer.linear1.weight)


def test_torchs_recurrence_gets_another_nonlinearity() -> None:
    model = nn.RNN(4, 4, nonlinearity="relu")
    changed: Any = surgery.apply(
        {"do": "replace-activation", "to": "tanh", "layers": ["0"]}, nn.Sequential(model)
    )
    assert changed[0].mode == "RNN_TANH"
    assert float(changed(100 * torch.randn(3, 2, 4))[0].detach().abs().max()) <= 1
    assert model.mode == "RNN_RELU"
    with pytest.raises(SurgeryRefused, match="tanh and relu"):
        surgery.apply({"do": "replace-activation", "to": "elu", "layers": ["0"]}, nn.Sequential(model))


def test_an_activation_of_the_users_own_can_be_replaced_by_name() -> None:
    class Exponential(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp()

    model = nn.Sequential(nn.Linear(4, 4), Exponential(), nn.Linear(4, 1))
    changed: Any = surgery.apply({"do": "replace-activation", "to": "relu", "layers": ["1"]}, model)
    assert isinstance(changed[1], nn.ReLU)


def test_everything_is_drawn_anew_that_is_born_with_weights() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    usual = model[0].weight.detach().clone()
    with torch.no_grad():
        for parameter in (*model[1].parameters(), *model[2].parameters()):
            parameter.fill_(7.0)
    drawn: Any = surgery.apply({"do": "initialize", "scheme": "own", "everything": True}, model)
    assert torch.equal(drawn[0].weight, usual)  # of a usual size: learned words are not thrown away
    assert torch.equal(drawn[1].weight, torch.ones(8))
    assert drawn[2].weight.std() > 0.1
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    again: Any = surgery.apply({"do": "initialize", "scheme": "own", "everything": True}, model)
    assert again[0].weight.std() > 1e-3
    attending = nn.MultiheadAttention(8, 2)
    nn.init.zeros_(attending.in_proj_weight)
    whole = nn.Sequential(nn.Linear(8, 8))
    whole.attend = attending
    attended: Any = surgery.apply({"do": "initialize", "scheme": "own", "everything": True}, whole)
    assert attended.attend.in_proj_weight.std() > 0
