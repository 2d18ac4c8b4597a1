"""The run directory: training writes it, everything else only reads it."""

from gradscope.records import FORMAT_VERSION
from gradscope.store.locate import find_run, find_runs
from gradscope.store.reader import read_run
from gradscope.store.remote import address_of, is_taken, place_of, writer_of
from gradscope.store.writer import RunWriter

__all__ = [
    "FORMAT_VERSION",
    "RunWriter",
    "address_of",
    "find_run",
    "find_runs",
    "is_taken",
    "place_of",
    "read_run",
    "writer_of",
]
