"""The run directory: training writes it, everything else only reads it."""

from gradscope.records import FORMAT_VERSION
from gradscope.store.locate import find_run, find_runs
from gradscope.store.reader import read_run
from gradscope.store.writer import RunWriter

__all__ = ["FORMAT_VERSION", "RunWriter", "find_run", "find_runs", "read_run"]
