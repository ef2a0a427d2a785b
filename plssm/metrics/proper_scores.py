"""Proper scores of predictive distributions of numbers, and their spread against their errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

from plssm.errors import DataError
from plssm.metrics.arrays import as_floats, observed, same_shape
from plssm.metrics.gaussians import covariance_of, whiten
from plssm.metrics.measure import Measure

__all__ = [
    "energy_score",
    "ensemble_crps",
    "gaussian_crps",
    "gaussian_log_score",
    "spread_skill",
]


def gaussian_crps(*, truth: Any, mean: Any, sd: Any) -> Measure:
    r"""Continuous ranked probability score of Gaussian predictions: 0 is perfect.

    .. math:: \text{CRPS} = \sigma \left[ w (2 \Phi(w) - 1) + 2 \varphi(w) - \pi^{-1/2} \right],
        \qquad w = (y - m) / \sigma

    In the units of the data; with sd = 0 it is the absolute error.

    Args:
        truth: Observations ``[..., time or horizon, channel]`` or any shape; NaN = missing.
        mean: Predicted means, broadcast to truth.
        sd: Predicted standard deviations, broadcast to truth.

    Returns:
        The mean over observed entries, with ``per_step`` (axis before the last) and
        ``per_dimension`` (last axis) where truth has two axes or more. ``references`` has
        "calibrated", what would be expected if the truth were drawn from the predictions. +inf
        where a prediction of an observed entry is not finite.

    Raises:
        DataError: When nothing is observed, shapes disagree, or a deviation is negative.

    References:
        Gneiting & Raftery 2007, Strictly proper scoring rules, prediction, and estimation,
        doi:10.1198/016214506000001437.

    Example:
        >>> round(gaussian_crps(truth=[0.0, 1.0], mean=0.0, sd=1.0), 4)
        0.4181
    """
    y, seen, m, s = _gaussian(truth, mean, sd)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        w = (y - m) / s
        density = np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi)
        score = s * (w * special.erf(w / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    score = np.where(s == 0, np.abs(y - m), score)
    score = np.where(np.isfinite(m) & np.isfinite(s), score, math.inf)
    calibrated = float((s / math.sqrt(math.pi))[seen].mean())
    return _mean(score, seen, "continuous ranked probability score", calibrated)


def gaussian_log_score(
    *, truth: Any, mean: Any, sd: Any = None, covariance: Any = None
) -> Measure:
    r"""Mean log-density of the observed entries, in nats: larger is better.

    .. math:: \frac1n \sum_t \log N(y_t^o; m_t^o, S_t^{oo})

    with y^o the entries of a vector that were observed and n their number over all vectors. The
    negative is the negative log-likelihood per dimension.

    Args:
        truth: Observations ``[..., time or horizon, channel]`` or any shape; NaN = missing.
        mean: Predicted means, broadcast to truth.
        sd: Predicted standard deviations of independent entries, broadcast to truth.
        covariance: Or covariances over the last axis, ``[..., N, N]``, broadcast.

    Returns:
        Nats per observed entry, with ``per_step`` (axis before the last) and, for independent
        entries, ``per_dimension``. ``references`` has "calibrated", what would be expected if
        the truth were drawn from the predictions. -inf where a prediction is not finite or a
        deviation is zero.

    Raises:
        DataError: When nothing is observed, shapes disagree, a deviation is negative, a
            covariance is not positive definite, or not exactly one of both is given.

    References:
        Good 1952, Rational decisions, doi:10.1111/j.2517-6161.1952.tb00104.x.

    Example:
        >>> round(gaussian_log_score(truth=[0.0, 1.0], mean=0.0, sd=1.0), 4)
        -1.1689
    """
    if (sd is None) == (covariance is None):
        raise DataError("the spread is not clear", wanted="exactly one of sd and covariance")
    if covariance is not None:
        return _log_score_of_vectors(truth, mean, covariance)
    y, seen, m, s = _gaussian(truth, mean, sd)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_sd = np.log(s) + math.log(2 * math.pi) / 2
        score = -(((y - m) / s) ** 2) / 2 - log_sd
    score = np.where(np.isfinite(m) & np.isfinite(s) & (s > 0), score, -math.inf)
    calibrated = -float(log_sd[seen].mean()) - 0.5
    return _mean(score, seen, "log-density per entry", calibrated)


def ensemble_crps(*, truth: Any, samples: Any) -> Measure:
    r"""Fair continuous ranked probability score of an ensemble: 0 is perfect.

    .. math:: \text{CRPS} = \frac1n \sum_i |x_i - y|
        - \frac{1}{2 n (n - 1)} \sum_{i, j} |x_i - x_j|

    Its expectation does not depend on the number of members n if they are independent draws: it
    is the score of the distribution they come from. Single values can be negative.

    Args:
        truth: Observations ``[..., time or horizon, channel]`` or any shape; NaN = missing.
        samples: Draws from the predictive distribution, ``[S, ...]``, two or more.

    Returns:
        The mean over observed entries, with ``per_step`` and ``per_dimension`` as
        :func:`gaussian_crps`; +inf where a draw for an observed entry is not finite.

    Raises:
        DataError: When nothing is observed, shapes disagree, or there are fewer than two draws.

    References:
        Ferro 2014, Fair scores for ensemble forecasts, doi:10.1002/qj.2270.

    Example:
        >>> ensemble_crps(truth=[0.0], samples=[[-1.0], [1.0]]) + 0.0
        0.0
    """
    y = as_floats(truth, "truth")
    seen, draws = observed(y), _draws(samples, y)
    n = len(draws)
    rank = (2 * np.arange(1, n + 1) - n - 1).reshape(-1, *[1] * y.ndim)
    with np.errstate(invalid="ignore"):
        error = np.abs(draws - y).mean(0)
        apart = (rank * np.sort(draws, axis=0)).sum(0) / (n * (n - 1))
        score = np.where(np.isfinite(draws).all(0), error - apart, math.inf)
    return _mean(score, seen, "fair continuous ranked probability score", None, members=n)


def energy_score(*, truth: Any, samples: Any) -> Measure:
    r"""Fair energy score of an ensemble of vectors: 0 is perfect.

    .. math:: \text{ES} = \frac1n \sum_i \|x_i - y\|
        - \frac{1}{2 n (n - 1)} \sum_{i, j} \|x_i - x_j\|

    with norms over the last axis, of the observed entries where some are missing (the score of
    the marginal distribution). With one channel it is :func:`ensemble_crps`.

    Args:
        truth: Observations ``[..., N]``, such as ``[..., horizon, channel]``; NaN = missing.
        samples: Draws from the predictive distribution, ``[S, ..., N]``, two or more.

    Returns:
        The mean over vectors with an observed entry, with ``per_step`` (axis before the last);
        +inf where a draw for an observed entry is not finite.

    Raises:
        DataError: When nothing is observed, shapes disagree, or there are fewer than two draws.

    References:
        Gneiting & Raftery 2007, doi:10.1198/016214506000001437; Ferro 2014, doi:10.1002/qj.2270.

    Example:
        >>> energy_score(truth=[0.0, 0.0], samples=[[3.0, 4.0], [0.0, 0.0]]) + 0.0
        0.0
    """
    y = as_floats(truth, "truth")
    seen, draws = observed(y), _draws(samples, y)
    if y.ndim == 0:
        raise DataError("truth is not a vector", got="a number", wanted="[..., N]")
    n = len(draws)
    broken = np.asarray((~np.isfinite(draws) & seen).any((0, -1)))
    draws = np.where(seen & ~broken[..., None], draws, 0.0)
    centre = np.where(seen & ~broken[..., None], y, 0.0)
    error, apart = np.zeros(y.shape[:-1]), np.zeros(y.shape[:-1])
    for i in range(n):
        error += np.linalg.norm(draws[i] - centre, axis=-1)
        apart += np.linalg.norm(draws[i + 1 :] - draws[i], axis=-1).sum(0)
    score = np.where(broken, math.inf, error / n - apart / (n * (n - 1)))
    there = np.asarray(seen.any(-1, keepdims=True))
    whole = _mean(score[..., None], there, "fair energy score", None, members=n)
    whole.per_dimension = None
    return whole


def spread_skill(*, truth: Any, mean: Any = None, sd: Any = None, samples: Any = None) -> Measure:
    r"""Predicted spread over the error that was made: 1 is right, less is overconfident.

    .. math:: r = \frac{\sqrt{\langle s^2 \rangle}}{\sqrt{\langle (y - m)^2 \rangle}}, \qquad
        \text{times } \sqrt{(n + 1) / n} \text{ for an ensemble of } n

    with s² the unbiased variance of the ensemble, whose mean m errs by its own sampling error,
    too. The ratio is necessary for calibration, not sufficient: it averages over all origins.

    Args:
        truth: Observations ``[..., horizon, channel]`` or any shape; NaN = missing.
        mean: Predicted means, broadcast to truth.
        sd: Predicted standard deviations, broadcast to truth.
        samples: Or draws from the predictive distribution, ``[S, ...]``, two or more.

    Returns:
        The ratio over all observed entries, ``per_step`` for each horizon (axis before the last)
        and ``per_dimension``. ``settings`` has "spread" and "error". NaN where a prediction of
        an observed entry is not finite.

    Raises:
        DataError: When nothing is observed, shapes disagree, or it is not clear what was
            predicted.

    References:
        Fortin et al. 2014, Why should ensemble spread match the RMSE of the ensemble mean?,
        doi:10.1175/JHM-D-14-0008.1.

    Example:
        >>> spread_skill(truth=[2.0, -2.0], mean=0.0, sd=1.0) + 0.0
        0.5
    """
    if (samples is None) == (mean is None) or (mean is None) != (sd is None):
        raise DataError("what was predicted is not clear", wanted="mean and sd, or samples")
    members = None
    if samples is None:
        y, seen, m, s = _gaussian(truth, mean, sd)
        variance = s**2
    else:
        y = as_floats(truth, "truth")
        seen, draws = observed(y), _draws(samples, y)
        members = len(draws)
        with np.errstate(invalid="ignore"):
            m, variance = draws.mean(0), draws.var(0, ddof=1) * (members + 1) / members
    finite = np.isfinite(m) & np.isfinite(variance)
    squared, variance = np.where(finite, (y - m) ** 2, np.nan), np.where(finite, variance, np.nan)
    spread, error = (_averages(x, seen) for x in (variance, squared))
    settings = {
        "measure": "root mean predicted variance over root mean squared error",
        "count": int(seen.sum()),
        "spread": float(np.sqrt(spread[0])),
        "error": float(np.sqrt(error[0])),
    }
    if members is not None:
        settings["members"] = members
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.sqrt(np.float64(spread[0]) / error[0]))
        parts = [
            None if a is None or b is None else np.sqrt(a / b)
            for a, b in zip(spread[1:], error[1:], strict=True)
        ]
    return Measure(value, floor=1.0, settings=settings, per_step=parts[0], per_dimension=parts[1])


def _log_score_of_vectors(truth: Any, mean: Any, covariance: Any) -> Measure:
    """Log-density of vectors with their covariances, per observed entry."""
    y = as_floats(truth, "truth")
    seen, m = observed(y), same_shape(as_floats(mean, "mean"), y, "mean")
    if y.ndim == 0:
        raise DataError("truth is not a vector", got="a number", wanted="[..., N]")
    matrix = covariance_of(covariance, y.shape, "covariance")
    both = seen[..., :, None] & seen[..., None, :]
    finite = np.asarray(
        np.isfinite(np.where(seen, m, 0.0)).all(-1)
        & np.isfinite(np.where(both, matrix, 0.0)).all((-2, -1))
    )
    unit, log_det = whiten(y - m, matrix, seen & finite[..., None], "covariance")
    count = seen.sum(-1)
    constant = log_det + count * math.log(2 * math.pi)
    score = np.where(finite, -(np.nansum(unit**2, -1) + constant) / 2, -math.inf)
    per_step = None
    if y.ndim > 1:
        rows, counts = score.reshape(-1, y.shape[-2]).sum(0), count.reshape(-1, y.shape[-2]).sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            per_step = np.where(counts > 0, rows / counts, np.nan)
    expected = np.where(finite, -(count + constant) / 2, -math.inf)
    return Measure(
        score.sum() / count.sum(),
        references={"calibrated": float(expected.sum() / count.sum())},
        settings={"measure": "log-density per entry", "count": int(count.sum())},
        per_step=per_step,
    )


def _gaussian(
    truth: Any, mean: Any, sd: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Truth, what of it was observed, means and deviations, all of one shape."""
    y = as_floats(truth, "truth")
    seen = observed(y)
    m = same_shape(as_floats(mean, "mean"), y, "mean")
    s = same_shape(as_floats(sd, "sd"), y, "sd")
    if (seen & (s < 0)).any():
        raise DataError("sd is negative", got=f"{s[seen & (s < 0)][0]:g}", wanted="sd >= 0")
    return y, seen, m, s


def _draws(samples: Any, y: np.ndarray) -> np.ndarray:
    """Draws ``[S, ...]`` that fit the truth, two or more."""
    draws = as_floats(samples, "samples")
    if draws.shape[1:] != y.shape or draws.ndim != y.ndim + 1 or len(draws) < 2:
        raise DataError(
            "samples do not fit the truth",
            got=f"truth {y.shape}, samples {draws.shape}",
            wanted=f"{('S', *y.shape)}".replace("'", "") + " with S >= 2",
            fix="put the draws on the first axis",
        )
    return draws


def _averages(
    x: np.ndarray, seen: np.ndarray
) -> tuple[float, np.ndarray | None, np.ndarray | None]:
    """Means of observed entries: of all, by the axis before the last, by the last axis."""
    x = np.where(seen, x, 0.0)
    if x.ndim < 2:
        return float(x.sum() / seen.sum()), None, None
    out = []
    for axis in (-2, -1):
        others = tuple(i for i in range(x.ndim) if i != x.ndim + axis)
        count = seen.sum(others)
        out.append(np.where(count > 0, x.sum(others) / np.maximum(count, 1), np.nan))
    return float(x.sum() / seen.sum()), out[0], out[1]


def _mean(
    score: np.ndarray, seen: np.ndarray, name: str, calibrated: float | None, **settings: Any
) -> Measure:
    """Return the mean of the scores of observed entries with its parts."""
    value, per_step, per_dimension = _averages(score, seen)
    return Measure(
        value,
        references={} if calibrated is None else {"calibrated": calibrated},
        settings={"measure": name, "count": int(seen.sum()), **settings},
        per_step=per_step,
        per_dimension=per_dimension,
    )
