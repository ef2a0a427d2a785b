"""Coordinates of a state in which a piecewise-linear map with kinks on their axes predicts it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from plssm.data import Batch
from plssm.dynamics.base import PiecewiseLinear
from plssm.inference.hinge_placement import Features, Whitened
from plssm.inference.starts import StartPath

__all__ = ["FrameFit", "best_frames"]

EDGE = 0.02  # kinks begin with at least this share of the data on either side
UPDATES = (20, 100)  # of the coordinates: from each random start, then from the best of them
REFINED = 1 / 3  # share of the random starts that are refined to the end
PRECISE = 1e-7  # relative gain of an update that ends the refinement
ALIKE = 1e-3  # nats per step below which two optima count as one
SMALLEST = 1e-6  # floor of the residual variances
RIDGE = 1e-9  # of the regressions
ENOUGH = 5000  # steps that are regressed; of longer data every n-th


@dataclass(frozen=True)
class FrameFit:
    r"""How well a map predicts a state in given coordinates, and how that changes with them.

    .. math:: \ell(N, c) = \log|\det N| - \tfrac12 \sum_i \log \min_{\theta_i}
              \frac1n \sum_t (z_{t+1,i} - \theta_i y_t)^2, \qquad z = N x - c,

    with :math:`y = [z; \max(0, G z + g); 1; s]`: log density of a step under the best map, as a
    function of the coordinates alone (variable projection). At the best coefficients its gradient
    is that of the residuals with these coefficients held.

    Args:
        now: Whitened states x_t ``[n, k]``.
        following: Their successors ``[n, k]``.
        inputs: Inputs of the step arrived at ``[n, K]``.
        inner: G ``[P, k]``.
        offset: g ``[P]``.
        theta: Coefficients of the map ``[k, k + P + 1 + K]``; the frozen ones are known.
        free: Which of them are free.

    References:
        Golub & Pereyra (1973), SIAM J Numer Anal 10:413-432, doi:10.1137/0710036.
    """

    now: np.ndarray
    following: np.ndarray
    inputs: np.ndarray
    inner: np.ndarray
    offset: np.ndarray
    theta: np.ndarray
    free: np.ndarray

    @classmethod
    def of(cls, white: Whitened, dynamics: PiecewiseLinear, batch: Batch) -> FrameFit:
        """The steps of a whitened state, thinned where there are very many."""
        pairs = white.inside[:, :-1] & white.inside[:, 1:]
        every = -(-int(pairs.sum()) // ENOUGH) or 1
        mean = white.state.mean @ white.map.T
        now, following = (x[pairs][::every] for x in (mean[:, :-1], mean[:, 1:]))
        inputs = np.zeros((len(now), 0))
        if batch.inputs is not None and dynamics.n_inputs:
            inputs = batch.inputs.numpy()[:, 1:][pairs][::every]
        form = dynamics.relu_form()
        theta, free = (np.asarray(c.detach()) for c in dynamics.coefficients())
        return cls(now, following, inputs, form.inner, form.offset, theta, free.astype(bool))

    def loss(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log density of a step, and its gradient.

        Args:
            point: N, row by row, and c ``[k * k + k]``.
        """
        k, n = self.now.shape[1], len(self.now)
        frame, shift = point[: k * k].reshape(k, k), point[k * k :]
        z, after = self.now @ frame.T - shift, self.following @ frame.T - shift
        gates = z @ self.inner.T + self.offset
        y = np.concatenate([z, np.maximum(gates, 0.0), np.ones((n, 1)), self.inputs], axis=1)
        theta = self._regressed(y.T @ y / n, after.T @ y / n)
        error = after - y @ theta.T
        variance = (error**2).mean(0) + SMALLEST
        ahead = error / (variance * n)
        back = -ahead @ theta
        here = back[:, :k] + (back[:, k : k + len(self.offset)] * (gates > 0.0)) @ self.inner
        turned = here.T @ self.now + ahead.T @ self.following - np.linalg.pinv(frame).T
        value = 0.5 * np.log(variance).sum() - np.linalg.slogdet(frame)[1]
        return float(value), np.concatenate([turned.ravel(), -(here + ahead).sum(0)])

    def _regressed(self, gram: np.ndarray, crossed: np.ndarray) -> np.ndarray:
        """The coefficients that fit best, each row on its own."""
        theta = np.where(self.free, 0.0, self.theta)
        rest = crossed - theta @ gram
        ridge = RIDGE * max(np.trace(gram) / len(gram), 1e-12) * np.eye(len(gram))
        for row, free, wanted in zip(theta, self.free, rest, strict=True):
            if free.any():
                row[free] = np.linalg.solve((gram + ridge)[np.ix_(free, free)], wanted[free])
        return theta

    def start(self, rng: np.random.Generator) -> np.ndarray:
        """Random directions with kinks at random quantiles."""
        k = self.now.shape[1]
        frame = rng.standard_normal((k, k))
        frame /= np.linalg.norm(frame, axis=1, keepdims=True)
        shares = rng.uniform(EDGE, 1.0 - EDGE, k)
        along = self.now @ frame.T
        kinks = [np.quantile(a, q) for a, q in zip(along.T, shares, strict=True)]
        return np.concatenate([frame.ravel(), kinks])

    def refined(self, point: np.ndarray, updates: int) -> tuple[float, np.ndarray]:
        """A point further on its way to a local optimum: its loss, and where it is."""
        options = {"maxiter": updates, "ftol": PRECISE}
        found = minimize(self.loss, point, jac=True, method="L-BFGS-B", options=options)
        return (float(found.fun) if np.isfinite(found.fun) else np.inf), found.x


def best_frames(
    state: StartPath,
    batch: Batch,
    dynamics: PiecewiseLinear,
    *,
    count: int,
    candidates: int,
    rng: np.random.Generator,
) -> list[StartPath]:
    """The state in the coordinates in which the map predicts it best: different local optima.

    Args:
        state: The state, as many dimensions as the map has.
        batch: The trials.
        dynamics: The map; its coefficients are not used where they are free.
        count: Number of optima at most.
        candidates: Random starts, each refined to its optimum.
        rng: Source of the starts.

    Returns:
        Paths, best first. Coordinates have unit variance unless the map has coefficients that are
        known and not 0.
    """
    if not bool((batch.length > 1).any()):
        return []
    white = Whitened(state, batch.time_mask.numpy())
    fit, k = FrameFit.of(white, dynamics, batch), white.dim
    optima = [(0.0, fit.start(rng)) for _ in range(candidates)]
    for updates, share in zip(UPDATES, (REFINED, 1.0), strict=True):
        optima = [fit.refined(point, updates) for _, point in optima]
        optima = sorted(optima, key=lambda found: found[0])
        optima = optima[: max(round(share * len(optima)), 1)]
    paths: list[StartPath] = []
    last = -np.inf
    for loss, point in optima:
        if not np.isfinite(loss) or loss - last < ALIKE:
            continue
        weights, kinks = point[: k * k].reshape(k, k) @ white.map, point[k * k :]
        if not fit.theta[~fit.free].any():
            size = np.maximum((white.seen @ weights.T).std(0), 1e-12)
            weights, kinks = weights / size[:, None], kinks / size
        paths.append(Features(weights, kinks).of(white))
        last = loss
        if len(paths) == count:
            break
    return paths
