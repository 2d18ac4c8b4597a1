"""Recurrent networks (tuning): recall of a sequence's first symbol, and digits read row by row."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import digits, recall
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, classify, rmsprop, sgd


def _recall(
    kind: type[nn.RNNBase], length: int = 20, fit: dict[str, Any] | None = None, **cell: Any
) -> Setup:
    model = net.Recurrent(kind(5, 24, batch_first=True, **cell), 4)
    return classify(
        model, recall(length), **{"optimizer": adam(1e-2), "steps": 200, "batch_size": 32, **(fit or {})}
    )


def _rows(kind: type[nn.RNNBase], fit: dict[str, Any] | None = None, **cell: Any) -> Setup:
    inputs, targets = digits()
    model = net.Recurrent(kind(8, 32, batch_first=True, **cell), 10)
    return classify(
        model, (inputs.view(-1, 8, 8), targets), **{"optimizer": adam(1e-2), "steps": 200, **(fit or {})}
    )


def _gain(gain: float, length: int, fit: dict[str, Any] | None = None, nonlinearity: str = "tanh") -> Setup:
    """Make the recurrent matrix `gain` times orthogonal; bias to zero."""
    cell = nn.RNN(5, 24, batch_first=True, nonlinearity=nonlinearity)
    net.scaled(net.orthogonal, gain)(cell.weight_hh_l0)
    nn.init.zeros_(cell.bias_hh_l0)
    nn.init.zeros_(cell.bias_ih_l0)
    options = {"optimizer": adam(3e-3), "steps": 200, "batch_size": 32, **(fit or {})}
    return classify(net.Recurrent(cell, 4), recall(length), **options)


def _forget(bias: float, length: int = 20) -> Setup:
    """Bias the forget gates of an LSTM (Jozefowicz 2015)."""
    cell = nn.LSTM(5, 24, batch_first=True)
    with torch.no_grad():
        cell.bias_hh_l0[24:48] = bias
    return classify(net.Recurrent(cell, 4), recall(length), adam(1e-2), steps=200, batch_size=32)


class _Unrolled(nn.Module):
    """A cell called once a time step, as many write their own recurrent networks."""

    def __init__(self, activation: nn.Module, gated: bool):
        super().__init__()
        self.read, self.carry = nn.Linear(5, 24), nn.Linear(24, 24, bias=False)
        self.gate = nn.Linear(29, 24) if gated else None
        self.activation, self.head = activation, nn.Linear(24, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        state = torch.zeros(len(inputs), 24)
        for row in inputs.unbind(1):
            new = self.activation(self.read(row) + self.carry(state))
            if self.gate is not None:
                keep = torch.sigmoid(self.gate(torch.cat([row, state], 1)) + 2)
                new = keep * state + (1 - keep) * new
            state = new
        return self.head(state)


def _unrolled(activation: nn.Module, gated: bool = False, length: int = 12, lr: float = 1e-2) -> Setup:
    return classify(_Unrolled(activation, gated), recall(length), adam(lr), steps=200, batch_size=32)


REF, ROWS = "recurrent-gru-recall", "recurrent-lstm-rows"
VANISHED = ("vanishing-gradient", "vanishing-signal", "poor-initialization")
PROGRAMS = (
    Program("recurrent-forget-bias-2", partial(_forget, 2.0), target=0.95),
    Program(REF, partial(_recall, nn.GRU, 10), target=0.95),
    Program("recurrent-lstm-recall", partial(_recall, nn.LSTM, 6, {"steps": 300}), REF),
    Program("recurrent-rnn-orthogonal", partial(_gain, 1.0, 20), REF),
    Program("recurrent-irnn", partial(_gain, 1.0, 12, nonlinearity="relu"), REF),
    Program(ROWS, partial(_rows, nn.LSTM), target=0.93),
    Program("recurrent-gru-rows", partial(_rows, nn.GRU), ROWS),
    Program("recurrent-rnn-rows", partial(_rows, nn.RNN, {"optimizer": adam(3e-3), "steps": 300}), ROWS),
    Program("recurrent-bidirectional", partial(_rows, nn.GRU, bidirectional=True), ROWS),
    Program("recurrent-two-layers", partial(_rows, nn.LSTM, num_layers=2), ROWS),
    Program("recurrent-lstm-clipped", partial(_rows, nn.LSTM, {"clip": 1.0}), ROWS),
    Program("recurrent-rmsprop", partial(_rows, nn.GRU, {"optimizer": rmsprop(3e-3)}), ROWS),
    Program("recurrent-unrolled-gated", partial(_unrolled, nn.Tanh(), True), target=0.95),
    Program(
        "recurrent-vanishing-50",
        partial(_recall, nn.RNN, 50, {"optimizer": adam(3e-3)}),
        "recurrent-rnn-orthogonal",
        VANISHED,
    ),
    Program("recurrent-contracting", partial(_gain, 0.3, 20), "recurrent-rnn-orthogonal", VANISHED),
    Program(
        "recurrent-exploding-relu",
        partial(_gain, 2.5, 40, {"optimizer": sgd(0.01)}, nonlinearity="relu"),
        "recurrent-irnn",
        ("exploding-gradient", "exploding-signal", "poor-initialization"),
        ("cell",),
    ),
    Program(
        "recurrent-saturated",
        partial(_gain, 30.0, 20),
        "recurrent-rnn-orthogonal",
        ("saturated-activation", "exploding-gradient", "poor-initialization"),
        ("cell",),
    ),
    Program("recurrent-forget-bias-minus-8", partial(_forget, -8.0), "recurrent-forget-bias-2", VANISHED),
    Program(
        "recurrent-unrolled-sigmoid",
        partial(_unrolled, nn.Sigmoid(), length=20),
        "recurrent-unrolled-gated",
        VANISHED,
    ),
    Program(
        "recurrent-lr-1", partial(_rows, nn.LSTM, {"optimizer": adam(1.0)}), ROWS, ("learning-rate-too-high",)
    ),
    Program(
        "recurrent-lr-1e-6",
        partial(_rows, nn.GRU, {"optimizer": adam(1e-6)}),
        ROWS,
        ("learning-rate-too-low",),
    ),
    Program(
        "recurrent-over-clipped",
        partial(_rows, nn.GRU, {"optimizer": sgd(0.1), "clip": 1e-3}),
        ROWS,
        ("over-clipping",),
    ),
)
