"""Is a filter consistent? Innovations that should be white, and errors as large as predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from plssm.errors import DataError
from plssm.metrics.arrays import as_floats, observed, same_shape
from plssm.metrics.gaussians import covariance_of, noise_covariance, whiten
from plssm.metrics.measure import Measure

__all__ = ["gaussian_innovations", "nees", "nis", "standardised_innovations"]

LEVEL = 0.95


def gaussian_innovations(
    y: Any,
    predicted_mean: Any,
    *,
    predicted_covariance: Any,
    weight: Any,
    bias: Any = 0.0,
    noise: Any,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Innovations of a linear read-out and their covariances, from one-step predictions.

    .. math:: v_t = y_t - (B m_{t|t-1} + b), \qquad S_t = B P_{t|t-1} B^\top + R

    Args:
        y: Observations ``[B, T, N]`` or ``[T, N]``; NaN = missing.
        predicted_mean: m, mean of the state given the past, ``[B, T, M]``, such as
            ``FilteredMarginals.predicted_mean``; NaN beyond the end of a trial.
        predicted_covariance: P, its covariance, ``[B, T, M, M]``.
        weight: B, ``[N, M]``.
        bias: b, ``[N]`` or a number.
        noise: R: a number, ``[N]`` variances or an ``[N, N]`` covariance.

    Returns:
        v, the shape of y, NaN where y or the prediction is missing, and S ``[..., N, N]``.

    Raises:
        DataError: When shapes disagree or the noise is no covariance.

    References:
        Anderson & Moore 1979, Optimal Filtering, chapter 5.

    Example:
        >>> v, S = gaussian_innovations(
        ...     [[1.0]], [[0.5]], predicted_covariance=[[[1.0]]], weight=[[1.0]], noise=0.25)
        >>> v.tolist(), S.tolist()
        ([[0.5]], [[[1.25]]])
    """
    data, m = as_floats(y, "y"), as_floats(predicted_mean, "predicted_mean")
    matrix = as_floats(weight, "weight")
    if data.ndim not in (2, 3) or m.shape[:-1] != data.shape[:-1]:
        raise DataError(
            "predictions do not fit the data",
            got=f"y {data.shape}, predicted_mean {m.shape}",
            wanted="[B, T, N] and [B, T, M], or [T, N] and [T, M]",
            fix="observe every latent step, with NaN where nothing was seen",
        )
    n = data.shape[-1]
    if matrix.shape != (n, m.shape[-1]):
        raise DataError("weight has the wrong shape", got=matrix.shape, wanted=(n, m.shape[-1]))
    p = covariance_of(predicted_covariance, m.shape, "predicted_covariance")
    offset = as_floats(bias, "bias")
    if offset.shape not in ((), (n,)):
        raise DataError("bias has the wrong shape", got=offset.shape, wanted=f"a number or ({n},)")
    return data - (m @ matrix.T + offset), matrix @ p @ matrix.T + noise_covariance(
        noise, n, "noise"
    )


def standardised_innovations(innovations: Any, covariance: Any, *, mask: Any = None) -> np.ndarray:
    r"""Innovations in units of their own prediction: white and of variance one if it is right.

    .. math:: e_t = (S_t^{oo})^{-1/2} v_t^o

    with the symmetric root, and o the channels observed at t: the others are marginalised.

    Args:
        innovations: v, ``[B, T, N]`` or ``[T, N]``; NaN = missing.
        covariance: S, ``[..., N, N]``; one for all is broadcast.
        mask: True where observed, broadcast to v; None: where v is not NaN.

    Returns:
        e, the shape of v, NaN where missing.

    Raises:
        DataError: When nothing is observed, shapes disagree, or a covariance is not positive
            definite.

    Example:
        >>> standardised_innovations([[2.0, float("nan")]], [[4.0, 1.0], [1.0, 9.0]]).tolist()
        [[1.0, nan]]
    """
    v, seen = _vectors(innovations, mask, "innovations")
    return whiten(v, covariance_of(covariance, v.shape, "covariance"), seen, "covariance")[0]


def nis(innovations: Any, covariance: Any, *, mask: Any = None) -> Measure:
    r"""Normalised innovation squared per degree of freedom: 1 is right, more is overconfident.

    .. math:: \frac{1}{n} \sum_t v_t^\top S_t^{-1} v_t, \qquad
        \sum_t v_t^\top S_t^{-1} v_t \sim \chi^2_n

    with n the number of observed entries; missing ones are marginalised. Innovations of the right
    model are independent over time, so that the interval holds for the whole recording.

    Args:
        innovations: v, ``[B, T, N]`` or ``[T, N]``; NaN = missing.
        covariance: S, ``[..., N, N]``; one for all is broadcast.
        mask: True where observed, broadcast to v; None: where v is not NaN.

    Returns:
        The mean per degree of freedom. ``settings`` has "total", "low_95" and "high_95" (two-sided
        95 % interval of the total), "entries", "p_value" (two-sided) and "consistent" (whether
        the total is inside). ``per_step`` [T] is the mean of each time over trials,
        ``per_dimension`` [N] the mean square of the standardised innovations of each channel.

    Raises:
        DataError: When nothing is observed, shapes disagree, or a covariance is not positive
            definite.

    References:
        Bar-Shalom, Li & Kirubarajan 2001, Estimation with Applications to Tracking and
        Navigation, section 5.4.

    Example:
        >>> score = nis([[1.0, 2.0]], [[1.0, 0.0], [0.0, 4.0]])
        >>> float(score), score.settings["entries"], score.settings["consistent"]
        (1.0, 2, True)
    """
    v, seen = _vectors(innovations, mask, "innovations")
    unit, _ = whiten(v, covariance_of(covariance, v.shape, "covariance"), seen, "covariance")
    return _normalised(unit, "normalised innovation squared")


def nees(
    *,
    truth: Any,
    mean: Any,
    covariance: Any,
    readout: Any = None,
    offset: Any = 0.0,
    mask: Any = None,
) -> Measure:
    r"""Normalised estimation error squared of states per degree of freedom: 1 is right.

    .. math:: \frac{1}{n} \sum_t e_t^\top (B P_t B^\top)^{-1} e_t, \qquad e_t = x_t - (B m_t + c)

    States of a fitted model have coordinates of their own: an alignment x = B z + c maps them to
    those of the truth. Without one B is the identity.

    Errors of neighbouring times are not independent, so the interval of the total is right only
    for entries that are (one time, many trials; or times far apart). ``settings["within"]``
    needs independent trials only.

    Args:
        truth: True states x, ``[B, T, N]`` or ``[T, N]``; NaN = unknown.
        mean: Estimates m, ``[B, T, M]``.
        covariance: Their covariances P, ``[B, T, M, M]``; one for all is broadcast.
        readout: B, ``[N, M]`` with N <= M; None: the identity.
        offset: c, ``[N]`` or a number.
        mask: True where to compare, broadcast to truth; None: where truth and mean are not NaN.

    Returns:
        The mean per degree of freedom, with what :func:`nis` returns and
        ``settings["within"]``: the share of times whose mean over trials is inside its own 95 %
        interval.

    Raises:
        DataError: When nothing is known, shapes disagree, or B P B' is not positive definite.

    References:
        Bar-Shalom, Li & Kirubarajan 2001, Estimation with Applications to Tracking and
        Navigation, section 5.4.

    Example:
        >>> float(nees(truth=[[1.0, 2.0]], mean=[[0.0, 0.0]], covariance=[[1.0, 0.0], [0.0, 4.0]]))
        1.0
    """
    x, m = as_floats(truth, "truth"), as_floats(mean, "mean")
    if m.ndim == 0 or m.shape[:-1] != x.shape[:-1]:
        raise DataError("mean does not fit the truth", got=f"truth {x.shape}, mean {m.shape}",
                        wanted="[B, T, N] and [B, T, M]")  # fmt: skip
    p = covariance_of(covariance, m.shape, "covariance")
    if readout is not None:
        matrix = as_floats(readout, "readout")
        if matrix.shape != (x.shape[-1], m.shape[-1]):
            raise DataError("readout has the wrong shape", got=matrix.shape,
                            wanted=(x.shape[-1], m.shape[-1]))  # fmt: skip
        m, p = m @ matrix.T, matrix @ p @ matrix.T
    elif m.shape != x.shape:
        raise DataError(
            "truth and mean have different states",
            axis="state",
            got=f"{x.shape[-1]} and {m.shape[-1]}",
            fix="pass readout=[N, M], which maps estimates to the coordinates of the truth",
        )
    error = x - (m + as_floats(offset, "offset"))
    error, seen = _vectors(error, mask, "truth - mean")
    unit, _ = whiten(error, p, seen, "covariance")
    score = _normalised(unit, "normalised estimation error squared")
    total, count = _by_time(unit)
    total, count = total[count > 0], count[count > 0]
    low, high = _interval(count)
    score.settings["within"] = float(((low <= total) & (total <= high)).mean())
    score.settings["assumes"] = "the interval of the total: independent entries"
    return score


def _vectors(x: Any, mask: Any, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors ``[..., T, N]`` and which entries count."""
    v = as_floats(x, role)
    if v.ndim not in (2, 3):
        raise DataError(f"{role}: wrong number of axes", got=v.shape, wanted="[B, T, N] or [T, N]")
    if mask is None:
        return v, observed(v, role)
    seen = same_shape(as_floats(mask, "mask"), v, "mask") > 0
    kept = np.where(seen, v, np.nan)
    return kept, observed(kept, role)


def _interval(count: Any) -> tuple[Any, Any]:
    """Two-sided interval of a chi-square variable."""
    law = stats.chi2(count)
    return law.ppf((1 - LEVEL) / 2), law.ppf((1 + LEVEL) / 2)


def _by_time(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squares and numbers of entries, [T], over trials and channels."""
    rows = unit.reshape(-1, *unit.shape[-2:])
    return np.nansum(rows**2, (0, 2)), (~np.isnan(rows)).sum((0, 2))


def _normalised(unit: np.ndarray, name: str) -> Measure:
    """Mean square of what should have variance one, against its chi-square distribution."""
    total, count = float(np.nansum(unit**2)), int((~np.isnan(unit)).sum())
    low, high = _interval(count)
    below = float(stats.chi2(count).cdf(total))
    above = float(stats.chi2(count).sf(total))
    by_time, times = _by_time(unit)
    rows = unit.reshape(-1, unit.shape[-1])
    channels = (~np.isnan(rows)).sum(0)
    with np.errstate(invalid="ignore"):
        per_step, per_dimension = by_time / times, np.nansum(rows**2, 0) / channels
    return Measure(
        total / count,
        floor=1.0,
        settings={
            "measure": f"{name} per degree of freedom",
            "total": total,
            "low_95": float(low),
            "high_95": float(high),
            "entries": count,
            "p_value": min(2 * min(below, above), 1.0),
            "consistent": bool(low <= total <= high),
        },
        per_step=per_step,
        per_dimension=per_dimension,
    )
