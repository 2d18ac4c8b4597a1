"""Reference models, and a catalogue of training programs, healthy and ailing."""

from gradscope.models.classifier import Classifier
from gradscope.models.deep_mlp import DeepMLP
from gradscope.models.feature_net import FeatureNet
from gradscope.models.networks import ConvNet, Reader, Transformer
from gradscope.models.optimizers import MovingAverageSGD, WrittenAdam
from gradscope.models.pretraining import pretrain_layers
from gradscope.models.product import FlatProduct, ProductGate, ProductTree
from gradscope.models.programs import PROGRAMS, Program, Training
from gradscope.models.sawtooth import deep_sawtooth, flat_sawtooth
from gradscope.models.word_vectors import SkipGram

__all__ = [
    "PROGRAMS",
    "Classifier",
    "ConvNet",
    "DeepMLP",
    "FeatureNet",
    "FlatProduct",
    "MovingAverageSGD",
    "ProductGate",
    "ProductTree",
    "Program",
    "Reader",
    "SkipGram",
    "Training",
    "Transformer",
    "WrittenAdam",
    "deep_sawtooth",
    "flat_sawtooth",
    "pretrain_layers",
]
