"""The one table that all scores go into."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

__all__ = ["score_table"]

ALWAYS = ("values", "log_likelihood", "r2", "coverage_95", "pit_ks")
ORDER = (
    "values",
    "log_likelihood",
    "r2",
    "bits_per_spike",
    "accuracy",
    "balanced_accuracy",
    "majority",
    "brier",
    "rps",
    "coverage_95",
    "pit_ks",
)


def score_table(rows: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Rows by modality as a table; NaN where a score does not apply to the kind of data.

    Args:
        rows: Scores of each modality.

    Returns:
        One row per modality, the columns that always exist and those that some modality has.
    """
    found = list(dict.fromkeys(name for row in rows.values() for name in row))
    first = [name for name in ORDER if name in ALWAYS or name in found]
    columns = first + [name for name in found if name not in ORDER]
    table = pd.DataFrame(
        {name: [row.get(name, np.nan) for row in rows.values()] for name in columns},
        index=pd.Index(rows, name="modality"),
    )
    return table
