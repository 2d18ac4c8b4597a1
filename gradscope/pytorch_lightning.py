"""GradScope for the pytorch_lightning package."""

from pytorch_lightning import Callback

from gradscope.callback import Observation


class GradScope(Observation, Callback):
    """Record what flows through every layer while a Trainer fits; see gradscope.callback.Observation."""
