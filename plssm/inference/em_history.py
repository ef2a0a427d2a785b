"""The history of a fit by EM: one row per E-step."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor

from plssm.inference.free_selection import FREE_SCORE, KEPT, FreeSelection
from plssm.inference.laplace import LaplaceResult
from plssm.inference.stages import Stage

__all__ = ["history", "row_of"]

MEASURES = "evidence joint logdet process_noise solves pinned status seconds"
COLUMNS = f"restart stage iteration {MEASURES}".split()


def row_of(
    restart: int, stage: Stage, iteration: int, result: LaplaceResult, noise: Tensor,
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """The row of one E-step.

    Args:
        restart: Number of the start.
        stage: The stage.
        iteration: Number of the M-steps of the stage before it.
        result: What the E-step found.
        noise: Variances of the process noise.
        seconds: Time of the M-step and of all E-steps that its parameters took.
    """
    noise, joint = float(noise.detach().mean()), float(result.joint.sum())
    found = (result.evidence, joint, float(result.logdet.sum()), noise, result.solves,
             result.pinned, "+".join(sorted(set(result.status))))  # fmt: skip
    return dict(zip(COLUMNS, (restart, stage.name, iteration, *found, seconds), strict=True))


def history(rows: list[dict[str, Any]], selection: FreeSelection | None) -> pd.DataFrame:
    """All rows as a table, where free runs were compared with their scores and what was kept.

    Args:
        rows: The rows.
        selection: What compared free runs; None without.
    """
    if selection is None:
        return pd.DataFrame(rows, columns=COLUMNS)
    rows = [row | {KEPT: row is selection.row} for row in rows]
    return pd.DataFrame(rows, columns=[*COLUMNS, FREE_SCORE, KEPT])
