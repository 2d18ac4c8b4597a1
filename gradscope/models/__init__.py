"""Reference models, and a catalogue of training programs, healthy and ailing."""

from gradscope.models.classifier import Classifier
from gradscope.models.deep_mlp import DeepMLP
from gradscope.models.programs import PROGRAMS, Program, Training

__all__ = ["PROGRAMS", "Classifier", "DeepMLP", "Program", "Training"]
