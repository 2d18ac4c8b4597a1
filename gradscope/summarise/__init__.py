"""Pure statistics: from tensors to a few numbers, kept on the device until they are packed."""

from gradscope.summarise.merge import MAGNITUDES, MOMENTS, merge_calls
from gradscope.summarise.rows import (
    count_between,
    live_units,
    magnitudes_of_rows,
    moments_of_padded,
    moments_of_rows,
    norms_of_rows,
    shares_below,
)
from gradscope.summarise.whole import (
    LARGE,
    SAMPLE,
    dense_entries,
    magnitudes_of_whole,
    moments_of_whole,
    norm_of_whole,
    numbers_of_whole,
    sample_of,
)

__all__ = [
    "LARGE",
    "MAGNITUDES",
    "MOMENTS",
    "SAMPLE",
    "count_between",
    "dense_entries",
    "live_units",
    "magnitudes_of_rows",
    "magnitudes_of_whole",
    "merge_calls",
    "moments_of_padded",
    "moments_of_rows",
    "moments_of_whole",
    "norm_of_whole",
    "norms_of_rows",
    "numbers_of_whole",
    "sample_of",
    "shares_below",
]
