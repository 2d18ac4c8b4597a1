"""A deep multilayer perceptron whose every design decision is an option."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from gradscope.models.choices import check_choice, check_number, check_whole
from gradscope.models.initialization import SCHEMES, initialize
from gradscope.models.named_optimizers import OPTIMIZERS
from gradscope.models.pretraining import pretrain_layers

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "linear": nn.Identity,
}
NORMALIZATIONS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
}
TASKS = ("classification", "regression")


class Layer(nn.Module):
    """One hidden layer: h' = dropout(activation(normalization(W h + b))), or h + scale h' with a skip."""

    def __init__(self, linear: nn.Linear, normalization: str, activation: str, dropout: float, skip: float):
        super().__init__()
        self.linear = linear
        if normalization != "none":
            self.normalization = NORMALIZATIONS[normalization](linear.out_features)
        self.activation = ACTIVATIONS[activation]()
        if dropout:
            self.dropout = nn.Dropout(dropout)
        self.skip = skip

    def forward(self, h: Tensor) -> Tensor:
        """Map (batch, fan_in) to (batch, width)."""
        branch = h
        for module in self.children():
            branch = module(branch)
        return h + self.skip * branch if self.skip else branch


class DeepMLP(pl.LightningModule):
    """`depth` hidden layers of `width` units between `inputs` and `outputs`, and how they are trained.

    initialization: a scheme of `SCHEMES`, its weights multiplied by `gain` and its biases started at `bias`.
    residual: adds each layer's input to its output wherever the shapes agree; the branch is scaled by
    1/depth, so that He-initialised rectifiers at most multiply the sum by e, however deep. momentum: of
    "momentum" and "moving-average", and the first beta of Adam. clip_norm, clip_value: limits of the
    gradient's total norm or of its entries. pretraining_steps: steps that each hidden layer first learns as
    an autoencoder of the layers below (Bengio 2007), when `Trainer.fit` begins. ValueError: an option that
    cannot work.
    """

    def __init__(
        self,
        depth: int = 10,
        width: int = 64,
        activation: str = "relu",
        initialization: str = "he",
        gain: float = 1.0,
        bias: float = 0.0,
        normalization: str = "none",
        dropout: float = 0.0,
        residual: bool = False,
        optimizer: str = "sgd",
        learning_rate: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        pretraining_steps: int = 0,
        inputs: int = 64,
        outputs: int = 10,
        task: str = "classification",
    ):
        super().__init__()
        self.save_hyperparameters()
        _check(self.hparams)
        sizes = [inputs] + [width] * depth
        self.hidden = nn.Sequential()
        for fan_in, fan_out in pairwise(sizes):
            linear = nn.Linear(fan_in, fan_out)
            initialize(linear, initialization, gain, bias)
            skip = 1 / depth if residual and fan_in == fan_out else 0.0
            self.hidden.append(Layer(linear, normalization, activation, dropout, skip))
        self.output = nn.Linear(width, outputs)
        initialize(self.output, initialization, gain)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, ...) with `inputs` entries a sample to (batch, outputs): logits, or predictions."""
        return self.output(self.hidden(x.flatten(1)))  # type: ignore[no-any-return]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats, or for a regression the mean squared error."""
        if self.hparams["task"] == "classification":
            return functional.cross_entropy(output, target)
        return functional.mse_loss(output, target.reshape(output.shape))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the batch's loss."""
        x, target = batch
        loss = self.loss(self(x), target)
        self.log("loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log "test_loss", and of a classification "test_accuracy" (share of right answers)."""
        x, target = batch
        output = self(x)
        self.log("test_loss", self.loss(output, target))
        if self.hparams["task"] == "classification":
            self.log("test_accuracy", (output.argmax(1) == target).float().mean())

    def configure_optimizers(self) -> Optimizer:
        """Build the optimizer by its name."""
        options = self.hparams
        build = OPTIMIZERS[options["optimizer"]]
        rate, momentum, decay = options["learning_rate"], options["momentum"], options["weight_decay"]
        return build(self.parameters(), rate, momentum, decay)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the model's own limits; without any, by the Trainer's."""
        norm, value = self.hparams["clip_norm"], self.hparams["clip_value"]
        if norm is None and value is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if norm is not None:
            nn.utils.clip_grad_norm_(self.parameters(), norm)
        if value is not None:
            nn.utils.clip_grad_value_(self.parameters(), value)

    def setup(self, stage: str) -> None:
        """Pre-train the hidden layers, if asked to, before anything else of the training begins."""
        steps = self.hparams["pretraining_steps"]
        if stage == "fit" and steps:
            self.trainer.fit_loop.setup_data()
            batches: Any = self.trainer.train_dataloader
            data = torch.cat([x.flatten(1) for x, _ in batches])
            linears = [module for module in self.hidden.modules() if isinstance(module, nn.Linear)]
            pretrain_layers(linears, ACTIVATIONS[self.hparams["activation"]](), data, steps)


def _check(options: Mapping[str, Any]) -> None:
    """Refuse options that cannot work; ValueError names the option and what is allowed."""
    check_choice("activation", options["activation"], ACTIVATIONS)
    check_choice("initialization", options["initialization"], SCHEMES)
    check_choice("normalization", options["normalization"], NORMALIZATIONS)
    check_choice("optimizer", options["optimizer"], OPTIMIZERS)
    check_choice("task", options["task"], TASKS)
    for name in ("depth", "width", "inputs", "outputs"):
        check_whole(name, options[name])
    check_whole("pretraining_steps", options["pretraining_steps"], smallest=0)
    for name in ("dropout", "momentum"):
        check_number(name, options[name], "[0, 1)")
    for name in ("gain", "learning_rate", "weight_decay"):
        check_number(name, options[name], "[0, inf)")
    for name in ("clip_norm", "clip_value"):
        if options[name] is not None:
            check_number(name, options[name], "(0, inf)")
    check_number("bias", options["bias"])
    if options["pretraining_steps"] and (options["normalization"] != "none" or options["residual"]):
        raise ValueError('pretraining_steps works with normalization="none" and residual=False only')
