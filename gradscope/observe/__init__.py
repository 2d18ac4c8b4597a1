"""Observe a model while it trains, on torch alone: what is watched, when, and what is read of it."""

from gradscope.observe.recorder import Recorder, Sink

__all__ = ["Recorder", "Sink"]
