"""Sound (held out): raw waveforms, spectrograms and learned filters tell tones, chirps and clicks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, classify, regress, sgd

LENGTH, RATE = 256, 8000  # samples of a clip, samples a second


@cache
def _clips(noise: float = 0.2, unit: float = 1.0, level: float = 0.0) -> Pair:
    """Return clips (640, 1, 256) of deviation about 0.7 that fall silent in their last quarter, and their
    classes: low tone, high tone, rising chirp, falling chirp, clicks.

    noise: deviation of what is added to the sound; the clip is multiplied by `unit`, raised by `level`.
    """
    random = torch.Generator().manual_seed(101)
    classes = torch.arange(640) % 5
    time = torch.arange(LENGTH) / LENGTH
    start = torch.rand(640, 1, generator=random)
    low, high = 10 + 3 * torch.rand(640, 1, generator=random), 40 + 6 * torch.rand(640, 1, generator=random)
    turns = [low * time, high * time, low * time + 20 * time**2, high * time - 20 * time**2, 8 * time]
    sines = torch.stack([(2 * math.pi * (turn + start)).sin() for turn in turns])
    sines[4] = torch.where(sines[4] > 0.95, 3.0, -0.2)
    sound = sines[classes, torch.arange(640)] + noise * torch.randn(640, LENGTH, generator=random)
    heard = (time < 0.75).float()
    return (unit * heard * sound + level)[:, None], classes


@cache
def _pitches(hertz: bool = False) -> Pair:
    """Return clips (640, 1, 256) of one tone and its pitch (640, 1): octaves about the middle, or Hertz."""
    random = torch.Generator().manual_seed(102)
    octave = 2 * torch.rand(640, 1, generator=random) - 1
    cycles = 24 * 2**octave
    time = torch.arange(LENGTH) / LENGTH
    sound = (2 * math.pi * (cycles * time + torch.rand(640, 1, generator=random))).sin()
    sound = sound + 0.1 * torch.randn(640, LENGTH, generator=random)
    return sound[:, None], cycles * RATE / LENGTH if hertz else octave / octave.std()


class _Listener(nn.Module):
    """Convolutions along time, the mean over time, and a head; `front` prepares the clips."""

    def __init__(
        self,
        front: nn.Module | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        norm: Callable[[int], nn.Module] | None = None,
        initialise: net.Initialise | None = net.he,
        outputs: int = 5,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.front = front or nn.Identity()
        layers: list[nn.Module] = []
        for fan_in, fan_out, size, stride in ((1, 12, 16, 4), (12, 16, 8, 2), (16, 24, 4, 2)):
            layers += [nn.Conv1d(fan_in, fan_out, size, stride), *([norm(fan_out)] if norm else [])]
            layers.append(activation())
        self.body, self.dropout = nn.Sequential(*layers), nn.Dropout(dropout)
        self.head = nn.Linear(24, outputs)
        net.initialised(self, initialise)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.dropout(self.body(self.front(clips)).mean(2)))


def _listen(
    fit: dict[str, Any] | None = None,
    prepare: Callable[[_Listener], object] = lambda model: None,
    sound: dict[str, float] | None = None,
    **network: Any,
) -> Setup:
    """Classify clips; sound: of the data; prepare: changes the model."""
    model = _Listener(**network)
    prepare(model)
    return classify(model, _clips(**(sound or {})), **{"optimizer": adam(3e-3), "steps": 200, **(fit or {})})


def _pitch(hertz: bool, fit: dict[str, Any] | None = None) -> Setup:
    model = _Listener(outputs=1)
    return regress(model, _pitches(hertz), **{"optimizer": adam(3e-3), "steps": 200, **(fit or {})})


def _standardised(model: _Listener) -> None:
    """Let BatchNorm bring the clips to unit scale."""
    model.front = nn.BatchNorm1d(1)


class _Spectrogram(nn.Module):
    """Turn clips (batch, 1, 256) into (batch, 33, frames): the logarithm of the power, plus a floor."""

    def __init__(self, floor: float):
        super().__init__()
        self.floor = floor
        self.register_buffer("window", torch.hann_window(64))

    def forward(self, clips: Tensor) -> Tensor:
        window: Any = self.window
        waves = torch.stft(clips[:, 0], 64, 32, window=window, center=False, return_complex=True)
        return (waves.abs().square() + self.floor).log()


class _Standardise(nn.Module):
    """Standardise over some axes by hand."""

    def __init__(self, *axes: int):
        super().__init__()
        self.axes = axes

    def forward(self, inputs: Tensor) -> Tensor:
        spread = inputs.std(self.axes, keepdim=True, unbiased=False)
        return (inputs - inputs.mean(self.axes, keepdim=True)) / (spread + 1e-5)


def _see(floor: float, fit: dict[str, Any] | None = None) -> Setup:
    """Classify spectrograms as if their frequencies were channels."""
    body = nn.Sequential(nn.Conv1d(33, 24, 3), nn.ReLU(), nn.AdaptiveMaxPool1d(2), nn.Flatten())
    model = nn.Sequential()
    model.front, model.scale = _Spectrogram(floor), _Standardise(1, 2)
    model.body, model.head = body, nn.Linear(48, 5)
    return classify(model, _clips(), **{"optimizer": adam(3e-3), "steps": 150, **(fit or {})})


class _Bands(nn.Module):
    """Band-pass filters of learned middle frequency and width (Ravanelli 2018), and the size of what passes.

    safety: what is added under the root, whose slope at silence is infinite.
    """

    def __init__(self, safety: float, bands: int = 12):
        super().__init__()
        self.middle = nn.Parameter(torch.linspace(0.02, 0.4, bands)[:, None])
        self.width = nn.Parameter(torch.full((bands, 1), 3.0))
        self.safety = safety

    def forward(self, clips: Tensor) -> Tensor:
        time = torch.arange(-16, 16).float()
        turn, window = 2 * math.pi * self.middle * time, (-0.5 * (self.width * time / 16).square()).exp()
        parts = (
            nn.functional.conv1d(clips, (window * f(turn))[:, None], stride=8) for f in (torch.cos, torch.sin)
        )
        return (sum(part.square() for part in parts) + self.safety).sqrt()


def _filtered(safety: float) -> Setup:
    bands = _Bands(safety)
    layers = [
        bands,
        nn.Conv1d(12, 16, 5, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(3),
        nn.Flatten(),
        nn.Linear(48, 5),
    ]
    return classify(nn.Sequential(*layers), _clips(), adam(5e-3), steps=150)


def _deep(levels: int, initialise: net.Initialise | None, activation: Callable[[], nn.Module]) -> Setup:
    """Stack convolutions without skip or normalisation."""
    layers: list[nn.Module] = [nn.Conv1d(1, 12, 16, 8), activation()]
    for _ in range(levels):
        layers += [nn.Conv1d(12, 12, 3, padding=1), activation()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 5))
    return classify(net.initialised(model, initialise), _clips(), adam(3e-3), steps=200)


REF, SEEN, OCTAVES = "audio-waveform", "audio-spectrogram", "audio-octaves"
MOMENTUM = {"optimizer": sgd(0.05, momentum=0.9)}
PROGRAMS = (
    Program("audio-waveform", _listen, target=0.97),
    Program("audio-batchnorm", partial(_listen, norm=nn.BatchNorm1d), REF),
    Program(
        "audio-16-bit-batchnorm",
        partial(_listen, prepare=_standardised, sound={"unit": 1e4, "level": 300.0}),
        REF,
    ),
    Program(
        "audio-cosine-to-zero",
        partial(_listen, {"schedule": lambda step: 0.5 + 0.5 * math.cos(math.pi * step / 200)}),
        REF,
    ),
    Program("audio-momentum", partial(_listen, MOMENTUM), REF),
    Program("audio-half-dropped", partial(_listen, dropout=0.5, activation=nn.GELU), REF),
    Program("audio-loud-noise", partial(_listen, sound={"noise": 1.0}), REF),
    Program("audio-batches-of-4", partial(_listen, {"batch_size": 4, "steps": 500}), REF),
    Program("audio-spectrogram", partial(_see, 1e-4), target=0.97),
    Program("audio-filters", partial(_filtered, 1e-6), target=0.97),
    Program("audio-octaves", partial(_pitch, False), target=0.9),
    Program("audio-octaves-plainly", partial(_pitch, False, {"optimizer": sgd(0.05)}), OCTAVES),
    Program("audio-deep-he-6", partial(_deep, 6, net.he, nn.ReLU), REF),
    Program(
        "audio-16-bit-integers",
        partial(_listen, {"optimizer": sgd(0.05)}, sound={"unit": 1e4}),
        REF,
        ("unscaled-input",),
        ("body.0", "body.1", "front"),
    ),
    Program(
        "audio-twice-divided",
        partial(_listen, {"optimizer": sgd(0.05)}, sound={"unit": 3e-5}),
        REF,
        ("vanishing-signal", "unscaled-input"),
        ("body.*", "front"),
    ),
    Program("audio-logarithm-of-silence", partial(_see, 0.0), SEEN, ("non-finite",), ("front",)),
    Program("audio-root-of-silence", partial(_filtered, 0.0), "audio-filters", ("non-finite",), ("0",)),
    Program(
        "audio-standardised-over-channels",
        partial(_listen, front=_Standardise(1)),
        REF,
        ("degenerate-normalization", "vanishing-signal"),
        ("front",),
    ),
    Program(
        "audio-hertz",
        partial(_pitch, True, {"optimizer": sgd(0.05)}),
        "audio-octaves-plainly",
        ("output-mismatch", "exploding-gradient", "learning-rate-too-high", "loss-divergence", "non-finite"),
    ),
    Program(
        "audio-rate-halved-each-step",
        partial(_listen, {"schedule": lambda step: 0.5**step}),
        REF,
        ("learning-rate-too-low",),
    ),
    Program(
        "audio-deep-default-16",
        partial(_deep, 16, None, nn.ReLU),
        "audio-deep-he-6",
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
    ),
    Program(
        "audio-momentum-0.999",
        partial(_listen, {"optimizer": sgd(0.3, momentum=0.999)}),
        "audio-momentum",
        ("learning-rate-too-high", "loss-divergence"),
    ),
)
