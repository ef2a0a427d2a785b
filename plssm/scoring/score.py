"""What ``fit.score`` answers: forecasts, hidden entries, or decoding, by what is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from plssm.data import Dataset
from plssm.metrics.baselines import Baseline
from plssm.model import StateSpaceModel
from plssm.prediction.cross_modal import Infer
from plssm.scoring.entries import score_unseen
from plssm.scoring.forecasts import score_forecasts
from plssm.scoring.yardsticks import training_baselines

__all__ = ["score"]

FORECAST_DRAWS, ENTRY_DRAWS = 64, 200


def score(
    model: StateSpaceModel,
    infer: Infer,
    data: Dataset,
    *,
    trained: Mapping[str, Baseline] | None,
    steps: Sequence[int] = (1, 5, 10),
    given: Sequence[str] | None = None,
    warmup: int = 10,
    samples: int | None = None,
    seed: int = 0,
    causal: bool = False,
) -> pd.DataFrame:
    """Scores of a model on held-out data.

    Args:
        model: The model, float64.
        infer: Posterior of a model's latent paths given data.
        data: Held-out trials.
        trained: Training statistics by modality; None takes those of the data.
        steps: Horizons of forecasts, in latent steps.
        given: Modalities that may be looked at, where others are decoded.
        warmup: Latent steps before the first forecast.
        samples: Latent draws; by default 64 per forecast and 200 otherwise.
        seed: Seed of the draws.
        causal: Decode and fill in from data up to each step only.

    Returns:
        One row per modality (see ``Fit.score``).
    """
    if given is None:
        model.check(data)
    baselines = training_baselines(model, data.reveal()) if trained is None else trained
    if given is not None or any(len(trial.hidden) for trial in data.trials):
        return score_unseen(
            model,
            infer,
            data,
            given=given,
            baselines=baselines,
            samples=samples or ENTRY_DRAWS,
            seed=seed,
            causal=causal,
        )
    table = score_forecasts(
        model,
        infer,
        data,
        steps=steps,
        baselines=baselines,
        known=trained is not None,
        warmup=warmup,
        samples=samples or FORECAST_DRAWS,
        seed=seed,
    )
    smoothed = infer(model, data)
    table.insert(0, "evidence", float(smoothed.log_evidence.sum()))
    table.insert(1, "evidence_kind", smoothed.evidence_kind)
    return table
