"""Textbook networks as a beginner writes them (held out): tables, digits, rows, words, and their mistakes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import sklearn.datasets as datasets
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.verdicts import networks as net
from benchmarks.verdicts.data import Pair, digits, images, table
from benchmarks.verdicts.program import Program, Setup
from benchmarks.verdicts.tasks import adam, adamw, classify, regress, sgd, trained

Build = Callable[[], nn.Module]
ROW, LETTERS = 12, 4  # words of a snippet, width of a word's code


def _wine(
    fit: dict[str, Any] | None = None,
    scaled: bool = True,
    output: nn.Module | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    **network: Any,
) -> Setup:
    """Tell three vineyards apart with a small perceptron."""
    model = net.mlp((13, 32, 32, 3), output=output, **network)
    options = {"optimizer": adam(3e-3), "steps": 200, "batch_size": 32, **(fit or {})}
    return classify(model, table("wine", scaled), loss=loss, **options)


def _cancer(
    fit: dict[str, Any] | None = None,
    output: nn.Module | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.binary_cross_entropy_with_logits,
    threshold: float = 0.0,
    **network: Any,
) -> Setup:
    """Tell benign from malign with one output, as (N, 1) of floats."""
    inputs, targets = table("breast_cancer")
    model = net.mlp((30, 32, 32, 1), output=output, **network)
    options = {"optimizer": adam(2e-3), "steps": 200, "batch_size": 32, **(fit or {})}
    return classify(model, (inputs, targets[:, None].float()), loss=loss, threshold=threshold, **options)


def _imbalanced() -> Setup:
    """Find one digit in ten, with the rare class weighing nine times as much."""
    inputs, targets = digits()
    wanted = (targets == 8).float()[:, None]
    loss = partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor(9.0))
    return classify(net.mlp((64, 32, 1)), (inputs, wanted), adam(3e-3), loss, steps=600)


@cache
def _raw_diabetes() -> Pair:
    """Return the features, standardised, and the disease's progress as it was measured: 25 to 346."""
    return table("diabetes")[0], torch.tensor(datasets.load_diabetes().target)[:, None].float()


def _diabetes(fit: dict[str, Any] | None = None, raw: bool = False, **network: Any) -> Setup:
    """Predict how far the disease will go."""
    data = _raw_diabetes() if raw else table("diabetes")
    options = {"optimizer": adam(3e-3), "steps": 250, "batch_size": 32, **(fit or {})}
    return regress(net.mlp((10, 32, 32, 1), **network), data, **options)


def _raw_images() -> Pair:
    """Return the digits as they ship: levels of ink from 0 to 16."""
    inputs, targets = datasets.load_digits(return_X_y=True)
    return torch.tensor(inputs).float().view(-1, 1, 8, 8), torch.tensor(targets)


def _digits(
    build: Build,
    fit: dict[str, Any] | None = None,
    data: Callable[[], Pair] = images,
    optimize: Callable[[Any], list[nn.Parameter]] = trained,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Setup:
    """Read digits; optimize: what the optimizer is given."""
    model = build()
    options = {"optimizer": adam(3e-3), "steps": 200, "batch_size": 48, **(fit or {})}
    return classify(model, data(), loss=loss, parameters=optimize(model), **options)


class _LeNet(nn.Module):
    """Two convolutions with pooling and two linear layers, as LeCun's (1998)."""

    def __init__(
        self,
        activation: Build = nn.Tanh,
        initialise: net.Initialise | None = None,
        norm: Callable[[int], nn.Module] | None = None,
        output: nn.Module | None = None,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in ((1, 6), (6, 16)):
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), *([norm(fan_out)] if norm else [])]
            layers += [activation(), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(64, 48), activation(), nn.Linear(48, 32), activation(), nn.Linear(32, 10)
        )
        self.output = output or nn.Identity()
        net.initialised(self, initialise)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.output(self.classifier(self.features(pictures).flatten(1)))


class _VGG(nn.Module):
    """Convolutions of one width in a plain stack, pooled twice (Simonyan 2015)."""

    def __init__(
        self,
        depth: int = 4,
        initialise: net.Initialise | None = net.he,
        norm: Callable[[int], nn.Module] | None = None,
        dropout: float = 0.0,
        activation: Build = nn.ReLU,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(depth):
            layers += [nn.Conv2d(12 if level else 1, 12, 3, padding=1), *([norm(12)] if norm else [])]
            layers += [activation()]
            layers += [nn.MaxPool2d(2)] if level in (0, depth // 2) else []
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(48, 10))
        net.initialised(self, initialise)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.classifier(self.features(pictures).flatten(1))


class _ResNet(nn.Module):
    """A stem, blocks of two normalised convolutions with a skip, and a head (He 2016).

    zero_last: blocks start as the identity (Goyal 2017); cut: the head reads a detached copy.
    """

    def __init__(self, blocks: int = 2, zero_last: bool = False, cut: bool = False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.blocks = nn.Sequential(*(net.Residual(self._branch(zero_last)) for _ in range(blocks)))
        self.fc, self.cut = nn.Linear(12, 10), cut

    def _branch(self, zero_last: bool) -> nn.Module:
        last = nn.BatchNorm2d(12)
        if zero_last:
            nn.init.zeros_(last.weight)
        first = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        second = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        return nn.Sequential(first, nn.BatchNorm2d(12), nn.ReLU(), second, last)

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.blocks(self.stem(pictures)).mean((2, 3))
        return self.fc(features.detach() if self.cut else features)


def _rows() -> Pair:
    """Return the digits as sequences of eight rows."""
    inputs, targets = digits()
    return inputs.view(-1, 8, 8), targets


def _lstm(forget: float = 0.0) -> nn.Module:
    """Return an LSTM that reads a digit row by row; forget: bias of its forget gates."""
    cell = nn.LSTM(8, 32, batch_first=True)
    with torch.no_grad():
        cell.bias_hh_l0[32:64] = forget
    return net.Recurrent(cell, 10)


def _gru() -> nn.Module:
    return net.Recurrent(nn.GRU(8, 32, batch_first=True), 10)


def _rnn(deviation: float) -> nn.Module:
    """Return a plain tanh network whose weights are all drawn from N(0, deviation²)."""
    cell = nn.RNN(8, 32, batch_first=True)
    for weight in cell.parameters():
        nn.init.normal_(weight, 0, deviation)
    return net.Recurrent(cell, 10)


@cache
def _snippets() -> tuple[Tensor, Tensor, int]:
    """Return snippets of 12 words of scikit-learn's descriptions, which of 5 each is from, and the words."""
    names = ("digits", "breast_cancer", "wine", "diabetes", "iris")
    texts = [getattr(datasets, f"load_{name}")().DESCR.lower().split() for name in names]
    known = {word: code for code, word in enumerate(sorted({word for text in texts for word in text}))}
    rows = [torch.tensor([known[word] for word in text]).unfold(0, ROW, 1) for text in texts]
    targets = [torch.full((len(row),), code) for code, row in enumerate(rows)]
    return torch.cat(rows), torch.cat(targets), len(known)


class _Bag(nn.Module):
    """The mean of the words' codes and a linear layer (Joulin 2017)."""

    def __init__(self, words: int, width: int, initialise: net.Initialise | None = None):
        super().__init__()
        self.embedding, self.fc = nn.EmbeddingBag(words, width), nn.Linear(width, 5)
        if initialise:
            initialise(self.embedding.weight)
            initialise(self.fc.weight)

    def forward(self, words: Tensor) -> Tensor:
        return self.fc(self.embedding(words))


def _words(
    fit: dict[str, Any] | None = None,
    width: int = LETTERS,
    optimize: Callable[[Any], list[nn.Parameter]] = trained,
    initialise: net.Initialise | None = None,
) -> Setup:
    """Tell what a snippet of text is from."""
    inputs, targets, words = _snippets()
    model = _Bag(words, width, initialise)
    options = {"optimizer": adam(1e-2), "steps": 400, "batch_size": 64, **(fit or {})}
    return classify(model, (inputs, targets), parameters=optimize(model), **options)


class _Autoencoder(nn.Module):
    """Press digits through 16 numbers."""

    def __init__(self, output: nn.Module):
        super().__init__()
        self.encoder = net.mlp((64, 48, 16), output=nn.ReLU())
        self.decoder = net.mlp((16, 48, 64), output=output)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decoder(self.encoder(inputs))


def _autoencoder(output: Build = nn.Sigmoid, unit: bool = True) -> Setup:
    """Rebuild digits; unit: ink from 0 to 1, otherwise standardised."""
    pictures = _raw_images()[0].flatten(1) / 16 if unit else digits()[0]
    return regress(_Autoencoder(output()), (pictures, pictures), adam(5e-3), steps=400)


def _by_hand(answers: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of probabilities, with a bare logarithm."""
    return -answers.log().gather(1, targets[:, None]).mean()


def _one_hot(answers: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(answers, F.one_hot(targets, answers.shape[1]).to(answers.dtype))


def _sum(answers: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(answers, targets, reduction="sum")


def _only_fc(model: Any) -> list[nn.Parameter]:
    return list(model.fc.parameters())


def _small_head() -> nn.Module:
    """Return a perceptron whose last layer starts at zero."""
    model = net.mlp((64, 64, 64, 10))
    nn.init.zeros_(model[-1].weight)
    return model


def _biased(first: float = 0.0, second: float = 0.0, width: int = 64) -> nn.Module:
    """Return a perceptron of two hidden layers, whose biases start at `first` and at `second`."""
    model = net.mlp((64, width, width, 10))
    nn.init.constant_(model[0].bias, first)
    nn.init.constant_(model[2].bias, second)
    return model


def _deep(depth: int, activation: Build, initialise: net.Initialise | None, **options: Any) -> nn.Module:
    return net.mlp((64, *(depth * [32]), 10), activation, initialise, **options)


WINE, CANCER, DIABETES = "everyday-wine", "everyday-cancer", "everyday-diabetes"
LENET, VGG, RESNET, ROWS = "everyday-lenet", "everyday-vgg", "everyday-resnet", "everyday-lstm"
WORDS, AUTOENCODER, MLP = "everyday-words", "everyday-autoencoder", "everyday-perceptron"
PLAIN = {"optimizer": sgd(0.1)}
PROGRAMS = (
    Program("everyday-wine", _wine, target=1.0),
    Program("everyday-cancer", _cancer, target=0.98),
    Program("everyday-diabetes", _diabetes, target=0.5),
    Program("everyday-perceptron", partial(_digits, _biased, data=digits), target=0.97),
    Program("everyday-lenet", partial(_digits, _LeNet), target=0.95),
    Program("everyday-vgg", partial(_digits, _VGG), target=0.96),
    Program("everyday-resnet", partial(_digits, _ResNet), target=0.95),
    Program("everyday-lstm", partial(_digits, _lstm, {"optimizer": adam(5e-3)}, _rows), target=0.93),
    Program("everyday-words", _words, target=0.93),
    Program("everyday-autoencoder", _autoencoder, target=0.75),
    Program("everyday-cancer-descent-at-1", partial(_cancer, {"optimizer": sgd(1.0)}), CANCER),
    Program("everyday-one-digit-in-ten", _imbalanced, target=0.97),
    Program(
        "everyday-raw-ink-with-batchnorm",
        partial(_digits, partial(_LeNet, norm=nn.BatchNorm2d), data=_raw_images),
        LENET,
    ),
    Program(
        "everyday-wine-batches-of-four",
        partial(_wine, {"optimizer": sgd(0.02), "batch_size": 4, "steps": 400}),
        WINE,
    ),
    Program("everyday-resnet-from-identity", partial(_digits, partial(_ResNet, 3, True)), RESNET),
    Program("everyday-head-from-zero", partial(_digits, _small_head, data=digits), MLP),
    Program(
        "everyday-dropout-of-half",
        partial(_digits, partial(_VGG, dropout=0.5), {"steps": 300}),
        VGG,
    ),
    Program(
        "everyday-sigmoids-with-batchnorm",
        partial(_digits, partial(_LeNet, nn.Sigmoid, net.glorot, nn.BatchNorm2d), {"optimizer": adam(1e-2)}),
        LENET,
    ),
    Program(
        "everyday-many-silent-units", partial(_digits, partial(_biased, -4.0, 0.0, 256), data=digits), MLP
    ),
    Program(
        "everyday-lstm-remembering",
        partial(_digits, partial(_lstm, 3.0), {"optimizer": adam(5e-3)}, _rows),
        ROWS,
    ),
    Program(
        "everyday-gru-clipped", partial(_digits, _gru, {"optimizer": adam(5e-3), "clip": 1.0}, _rows), ROWS
    ),
    Program(
        "everyday-squared-error-of-classes",
        partial(_digits, _biased, {"steps": 300}, digits, loss=_one_hot),
        MLP,
    ),
    Program(
        "everyday-wine-as-it-is",
        partial(_wine, PLAIN, scaled=False),
        WINE,
        ("unscaled-input",),
        ("0",),
    ),
    Program(
        "everyday-cancer-rate-of-30",
        partial(_cancer, {"optimizer": adam(30.0)}),
        CANCER,
        ("learning-rate-too-high",),
    ),
    Program(
        "everyday-cancer-rate-of-1e-6",
        partial(_cancer, {"optimizer": adam(1e-6)}),
        CANCER,
        ("learning-rate-too-low",),
    ),
    Program(
        "everyday-diabetes-raw-targets",
        partial(_diabetes, {"optimizer": adam(1e-3)}, raw=True),
        DIABETES,
        ("output-mismatch", "learning-rate-too-low"),
        ("4",),
    ),
    Program(
        "everyday-diabetes-summed-descent",
        partial(_diabetes, {"optimizer": sgd(0.1), "loss": _sum}),
        DIABETES,
        ("learning-rate-too-high", "loss-divergence", "exploding-gradient", "non-finite"),
    ),
    Program(
        "everyday-softmax-of-one-output",
        partial(_cancer, output=nn.Softmax(1), loss=F.binary_cross_entropy, threshold=0.5),
        CANCER,
        ("zero-gradient", "output-mismatch"),
        ("5", "4"),
    ),
    Program(
        "everyday-answers-through-relu",
        partial(_diabetes, output=nn.ReLU()),
        DIABETES,
        ("output-mismatch", "dead-units"),
        ("5", "4"),
    ),
    Program(
        "everyday-logarithm-of-softmax",
        partial(_wine, scaled=False, output=nn.Softmax(1), loss=_by_hand),
        WINE,
        ("non-finite", "unscaled-input"),
    ),
    Program(
        "everyday-lenet-of-sigmoids",
        partial(_digits, partial(_LeNet, nn.Sigmoid), PLAIN),
        LENET,
        ("vanishing-gradient", "vanishing-signal", "poor-initialization"),
        ("features*", "classifier*"),
    ),
    Program(
        "everyday-vgg-of-14-as-it-comes",
        partial(_digits, partial(_VGG, 14, None), {"optimizer": sgd(0.05, momentum=0.9)}),
        VGG,
        ("vanishing-signal", "vanishing-gradient", "poor-initialization"),
        ("features*",),
    ),
    Program(
        "everyday-vgg-of-normals",
        partial(_digits, partial(_VGG, 8, net.normal(1.0)), {"optimizer": sgd(0.05, momentum=0.9)}),
        VGG,
        ("exploding-signal", "exploding-gradient", "poor-initialization", "non-finite"),
        ("features*", "classifier*"),
    ),
    Program(
        "everyday-wine-all-zeros",
        partial(_wine, initialise=net.constant(0.0)),
        WINE,
        ("zero-gradient", "symmetric-weights", "poor-initialization"),
        ("?",),
    ),
    Program(
        "everyday-resnet-gradients-pile-up",
        partial(_digits, _ResNet, {"optimizer": sgd(0.1, momentum=0.9), "zero_gradients": False}),
        RESNET,
        ("gradient-not-zeroed",),
    ),
    Program(
        "everyday-resnet-only-head-optimized",
        partial(_digits, _ResNet, optimize=_only_fc),
        RESNET,
        ("not-optimized",),
        ("stem*", "blocks*"),
    ),
    Program(
        "everyday-resnet-cut-from-head",
        partial(_digits, partial(_ResNet, cut=True)),
        RESNET,
        ("missing-gradient",),
        ("stem*", "blocks*"),
    ),
    Program(
        "everyday-hidden-biases-of-minus-20",
        partial(_digits, partial(_biased, -20.0, -20.0), data=digits),
        MLP,
        ("dead-units", "zero-gradient", "poor-initialization"),
        ("0", "1", "2", "3"),
    ),
    Program(
        "everyday-rnn-of-normals-of-3",
        partial(_digits, partial(_rnn, 3.0), {"optimizer": adam(2e-3)}, _rows),
        ROWS,
        ("saturated-activation", "poor-initialization", "exploding-gradient"),
        ("cell",),
    ),
    Program(
        "everyday-words-decay",
        partial(_words, {"optimizer": adamw(1e-2, weight_decay=20.0)}),
        WORDS,
        ("excessive-weight-decay",),
    ),
    Program(
        "everyday-autoencoder-below-nought-by-sigmoid",
        partial(_autoencoder, unit=False),
        AUTOENCODER,
        ("output-mismatch", "saturated-activation"),
        ("decoder.3", "decoder.2", "decoder"),
    ),
    Program(
        "everyday-batches-of-two-normalised",
        partial(
            _digits,
            partial(_deep, 4, nn.ReLU, net.he, norm=nn.BatchNorm1d),
            {"batch_size": 2, "steps": 400},
            digits,
        ),
        MLP,
        ("degenerate-normalization",),
        ("1", "4", "7", "10"),
    ),
    Program(
        "everyday-epsilon-of-10",
        partial(_digits, _LeNet, {"optimizer": adam(3e-3, eps=10.0)}),
        LENET,
        ("epsilon-floor", "learning-rate-too-low"),
    ),
    Program(
        "everyday-clipped-to-1e-4",
        partial(_digits, _LeNet, PLAIN | {"clip": 1e-4}),
        LENET,
        ("over-clipping",),
    ),
)
