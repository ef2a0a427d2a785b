"""Mode search without a path to start from."""

from __future__ import annotations

import numpy as np

from plssm.inference.chain_prior import ChainPrior
from plssm.inference.mode_search import SWEEPS, ChainMode, find_mode
from plssm.inference.quadratic_chain import QuadraticTerms
from plssm.kernels.gaussian_filter import FilterResult, gaussian_filter
from plssm.kernels.moment_filter import moment_filter

__all__ = ["cold_mode", "filter_chain", "moment_chain"]


def filter_chain(prior: ChainPrior, terms: QuadraticTerms) -> FilterResult:
    """Piecewise-linear extended Kalman filter of a chain with quadratic observation terms.

    Args:
        prior: The latent prior of B trials.
        terms: Their observation terms.
    """
    form, trials, dim = prior.form, len(prior.length), prior.dim
    drive = np.concatenate([np.zeros((trials, 1, dim)), prior.drive], axis=1)
    return gaussian_filter(
        form.linear,
        form.bias,
        form.outer,
        form.inner,
        form.offset,
        np.eye(dim),
        np.linalg.inv(prior.precision),
        prior.initial_mean,
        np.linalg.inv(prior.initial_precision),
        terms.information,
        terms.score,
        prior.length,
        drive=drive,
    )


def moment_chain(prior: ChainPrior, terms: QuadraticTerms) -> FilterResult:
    """As :func:`filter_chain`, with the map's exact moments in the place of its linearisation.

    Args:
        prior: The latent prior of B trials.
        terms: Their observation terms.
    """
    form = prior.form
    drive = np.concatenate([np.zeros((len(prior.length), 1, prior.dim)), prior.drive], axis=1)
    return moment_filter(
        form.linear, form.bias, form.outer, form.inner, form.offset,
        np.linalg.inv(prior.precision), prior.initial_mean,
        np.linalg.inv(prior.initial_precision), terms.information, terms.score, drive,
        prior.length,
    )  # fmt: skip


def cold_mode(prior: ChainPrior, terms: QuadraticTerms, *, max_solves: int) -> ChainMode:
    """Best mode found from two starts: the filtered path, and every hinge half on.

    The log joint of a piecewise-linear chain has many local maxima, some of them very poor, so a
    search that starts anywhere is not safe. The filtered path is near the data and the dynamics;
    where the filter went astray, the half-on start is better. The choice is made by the log joint,
    trial by trial.

    Args:
        prior: The latent prior of B trials.
        terms: Their observation terms.
        max_solves: Give up on a trial after about this many linear solves.
    """
    if not prior.form.outer.shape[1]:
        return find_mode(prior, terms, max_solves=max_solves)
    halfway = find_mode(prior, terms, max_solves=SWEEPS)
    if terms.memory:
        return find_mode(prior, terms, halfway.path, max_solves=max_solves)
    filtered = filter_chain(prior, terms).filtered_mean
    usable = np.isfinite(filtered).all((1, 2))
    start = np.where(usable[:, None, None], filtered, halfway.path)
    found = find_mode(prior, terms, start, max_solves=max_solves)
    better = halfway.value > found.value + 1e-9 * (1 + np.abs(found.value))
    if not better.any():
        return found
    start = np.where(better[:, None, None], halfway.path, found.path)
    return find_mode(prior, terms, start, max_solves=max_solves)
