"""Predictive distributions of observations: of what is hidden, unseen or still to come."""

from __future__ import annotations

from plssm.prediction.ahead import forecast
from plssm.prediction.cross_modal import Infer, given_names, infer_given, predict
from plssm.prediction.predictive import Prediction

__all__ = ["Infer", "Prediction", "forecast", "given_names", "infer_given", "predict"]
