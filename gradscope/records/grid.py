"""From a tidy table to a grid of one statistic: steps down, layers or parameters across."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class Places:
    """Where the rows of a tidy table go in its (steps, names) form: found once, used for every statistic."""

    steps: pd.Index
    names: pd.Index
    known: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def places(statistics: pd.DataFrame, key: str, names: list[str], steps: pd.DataFrame) -> Places:
    """Find the place of each row; rows for unknown steps or names have none."""
    import numpy as np
    import pandas as pd

    index = pd.Index(steps["step"].to_numpy(), name="step")
    rows = index.get_indexer(pd.Index(statistics["step"]))
    labels = pd.Categorical(statistics[key])
    # a code of -1, no label, finds the -1 at the end
    columns = np.append(pd.Index(names).get_indexer(labels.categories), -1)[labels.codes]
    known = (rows >= 0) & (columns >= 0)
    return Places(index, pd.Index(names, name=key), known, rows[known], columns[known])


def spread(statistics: pd.DataFrame, places: Places, column: str) -> pd.DataFrame:
    """Spread a tidy column into (steps, names), NaN where nothing was recorded."""
    import numpy as np
    import pandas as pd

    grid = np.full((len(places.steps), len(places.names)), np.nan)
    if column in statistics:
        values = statistics[column].to_numpy(dtype="float64")
        grid[places.rows, places.columns] = values[places.known]
    return pd.DataFrame(grid, index=places.steps, columns=places.names)
