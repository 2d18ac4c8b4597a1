"""Pure statistics: from tensors to a few numbers, kept on the device until they are packed."""

from gradscope.summarise.cosine import Between, mean_cosine
from gradscope.summarise.entries import (
    dense_entries,
    real_entries,
    stored_entries,
    stored_size,
    stored_values,
)
from gradscope.summarise.merge import MAGNITUDES, MOMENTS, OUTPUTS, merge_calls
from gradscope.summarise.rows import (
    count_between,
    live_units,
    magnitudes_of_rows,
    moments_of_padded,
    moments_of_rows,
    norms_of_rows,
    shares_below,
)

__all__ = [
    "MAGNITUDES",
    "MOMENTS",
    "OUTPUTS",
    "Between",
    "count_between",
    "dense_entries",
    "live_units",
    "magnitudes_of_rows",
    "mean_cosine",
    "merge_calls",
    "moments_of_padded",
    "moments_of_rows",
    "norms_of_rows",
    "real_entries",
    "shares_below",
    "stored_entries",
    "stored_size",
    "stored_values",
]
