"""GradScope for the lightning package."""

from lightning.pytorch import Callback

from gradscope.callback import Observation


class GradScope(Observation, Callback):
    """Record what flows through every layer while a Trainer fits; see gradscope.callback.Observation."""
