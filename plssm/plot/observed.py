"""Observations beside what the model says about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plssm.errors import PlssmError
from plssm.plot.canvas import (
    INK,
    MODEL,
    band,
    channel_label,
    channels_of,
    lighter,
    panels,
    shared_labels,
    to_array,
)
from plssm.plot.labels import class_probabilities

__all__ = ["forecast_fan", "observed_vs_predicted", "prediction"]


def observed_vs_predicted(
    times: Any,
    observed: Any,
    predicted: Any,
    low: Any = None,
    high: Any = None,
    *,
    channels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    unit: str = "",
    band_label: str = "95% band",
    title: str = "Observed and predicted",
    xlabel: str = "time (s)",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw observations, their predictive mean and its band, one panel a channel.

    Args:
        times: [n] seconds.
        observed: [n, N] or [n]; NaN = missing, left out. None draws the prediction alone.
        predicted: [n, N] or [n] predictive mean.
        low: [n, N] or [n] lower edge of the band; None draws no band.
        high: [n, N] or [n] upper edge.
        channels: Which channels; default the first eight.
        names: [N] channel names.
        unit: Unit of the observations.
        band_label: What the band is.
        title: Title.
        xlabel: Label of the time axis.
        ax: Axes to draw in, one per channel; default a new figure.

    Returns:
        The figure.

    Raises:
        PlssmError: The arrays do not have one length and one number of channels.
    """
    times = to_array(times)
    arrays = {"observed": observed, "predicted": predicted, "low": low, "high": high}
    arrays = {k: _columns(v, k, len(times)) for k, v in arrays.items() if v is not None}
    if len({v.shape for v in arrays.values()}) > 1 or ("low" in arrays) != ("high" in arrays):
        shapes = {k: v.shape for k, v in arrays.items()}
        raise PlssmError(f"plot: got shapes {shapes}, wanted one shape, and both edges of a band")
    chosen = channels_of(arrays["predicted"].shape[1], channels)
    figure, axes = panels(len(chosen), ax, title=title)
    for i, axis in zip(chosen, axes, strict=True):
        if "low" in arrays:
            band(axis, times, arrays["low"][:, i], arrays["high"][:, i], label=band_label)
        axis.plot(times, arrays["predicted"][:, i], color=MODEL, linewidth=1.4, label="predicted")
        if "observed" in arrays:
            axis.plot(
                times,
                arrays["observed"][:, i],
                color=INK,
                linewidth=0.6,
                alpha=0.8,
                marker=".",
                markersize=3,
                label="observed",
            )
        axis.set_ylabel(channel_label(names, i, unit))
    shared_labels(axes, xlabel)
    return figure


def prediction(
    made: Any,
    truth: Any = None,
    *,
    trial: int = 0,
    level: float = 0.95,
    title: str = "Prediction",
    **options: Any,
) -> Figure:
    """Draw a predictive distribution over time, beside the truth.

    Numbers, counts and rates are drawn as their mean and band, labels and ordinal levels as the
    probability of each class.

    Args:
        made: A :class:`plssm.prediction.Prediction`, as ``fit.predict`` returns it.
        truth: [B, n, N] (or [B, n]) what was observed; NaN = missing. None draws the prediction
            alone.
        trial: Which trial.
        level: Probability of the band.
        title: Title.
        **options: Of :func:`observed_vs_predicted`, or :func:`class_probabilities` for classes.

    Returns:
        The figure.

    Raises:
        PlssmError: There is no such trial, or the truth does not fit.
    """
    mask = to_array(made.mask) > 0
    if not 0 <= trial < len(mask):
        raise PlssmError(f"plot.prediction: got trial {trial}, wanted 0 to {len(mask) - 1}")
    keep = mask[trial]
    times = made.times if made.times.ndim == 1 else made.times[trial]
    seen = None if truth is None else to_array(truth)[trial]
    if seen is not None and len(seen) < len(keep):
        raise PlssmError(f"plot.prediction: got {len(seen)} samples of truth, wanted {len(keep)}")
    seen = None if seen is None else seen[: len(keep)][keep]
    if made.has_classes:
        p = to_array(made.class_probabilities())[trial, keep]
        return class_probabilities(times[keep], p, seen, title=title, **options)
    mean, low, high = (to_array(x)[trial, keep] for x in (made.mean, *made.interval(level)))
    options.setdefault("band_label", f"{level:.0%} band")
    return observed_vs_predicted(times[keep], seen, mean, low, high, title=title, **options)


def forecast_fan(
    times: Any,
    samples: Any,
    *,
    trial: int = 0,
    observed: Any = None,
    past_times: Any = None,
    past: Any = None,
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    channels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    unit: str = "",
    title: str = "Forecast",
    xlabel: str = "time (s)",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Draw a forecast as its median and central bands, one panel a channel.

    Args:
        times: [n] seconds.
        samples: [S, n, N] draws of the forecast, or [S, B, n, N] together with `trial`.
        trial: Which trial of [S, B, n, N].
        observed: [n, N] what happened, if it is known.
        past_times: [m] seconds of the data the forecast starts from.
        past: [m, N] those data.
        levels: Probabilities of the bands.
        channels: Which channels; default the first eight.
        names: [N] channel names.
        unit: Unit of the observations.
        title: Title.
        xlabel: Label of the time axis.
        ax: Axes to draw in, one per channel; default a new figure.

    Returns:
        The figure.

    Raises:
        PlssmError: The arrays do not fit each other.
    """
    times, draws = to_array(times), to_array(samples)
    draws = draws[:, trial] if draws.ndim == 4 else draws
    if draws.ndim != 3 or draws.shape[1] != len(times):
        raise PlssmError(
            f"plot.forecast_fan: got samples {draws.shape}, wanted [S, {len(times)}, N]"
        )
    chosen = channels_of(draws.shape[2], channels)
    figure, axes = panels(len(chosen), ax, title=title)
    for i, axis in zip(chosen, axes, strict=True):
        _fan(axis, times, draws[:, :, i], levels)
        if past is not None:
            before = to_array(past_times)
            axis.plot(before, _columns(past, "past", len(before))[:, i], color=INK, linewidth=0.9)
            axis.axvline(before[-1], color="0.6", linewidth=0.8, linestyle=":")
        if observed is not None:
            axis.plot(
                times,
                _columns(observed, "observed", len(times))[:, i],
                color=INK,
                linewidth=0.9,
                label="observed",
            )
        axis.set_ylabel(channel_label(names, i, unit))
    shared_labels(axes, xlabel)
    return figure


def _fan(axis: Axes, times: np.ndarray, draws: np.ndarray, levels: Sequence[float]) -> None:
    """Draw the bands of one channel, the widest first, and the median."""
    for k, level in enumerate(sorted(levels, reverse=True)):
        low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        shade = lighter(MODEL, 0.8 * (1 - k / len(levels)))
        band(axis, times, low, high, label=f"{level:.0%}", color=shade, alpha=1.0)
    axis.plot(times, np.median(draws, axis=0), color=MODEL, linewidth=1.4, label="median")


def _columns(x: Any, name: str, n: int) -> np.ndarray:
    """Return [n, N]."""
    array = to_array(x)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != n:
        raise PlssmError(f"plot: {name}: got shape {array.shape}, wanted [{n}, N]")
    return array
