"""Newton steps on the map of EM: M-steps that know how the path follows the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from plssm.data import Batch
from plssm.dynamics.base import PiecewiseLinear
from plssm.dynamics.relu_form import ReluForm
from plssm.inference.normal_equations import NormalEquations
from plssm.posterior import GaussianChain

__all__ = ["MapInformation", "NewtonMove", "NewtonSteps", "newton_move"]

BEGIN = 0.1  # nats per observed value; an EM iteration that gains less is followed by Newton steps
PRODUCTS = 10  # of the information with a direction, in one step
ENOUGH = 1e-2  # share of the first residual, in squared length, at which a step is exact enough
REACH, SHORTEST = 4.0, 2.0  # of a step, in lengths of the EM step: at first, and at least
FAITHFUL, DOUBTFUL = 0.6, 0.25  # shares of the predicted gain that lengthen and shorten the reach
FLAT = 1e-7  # curvature, as a share of the complete data's, that counts as none
LEAST = 1e-9  # nats per observed value that a step must promise


@final
class MapInformation:
    r"""Information of the data about the coefficients of a map, as products with directions.

    .. math:: S = H_{\theta\theta} - H_{\theta z} U^{-1} H_{z \theta}

    :math:`H_{\theta\theta}` is the information of the complete data, the matrix of the M-step. EM
    takes the path for known with it; what is subtracted is the part that is lost because the path
    follows the map, to first order by :math:`dz = -U^{-1} H_{z\theta} d\theta`. Of the mixed
    derivatives

    .. math:: H_{z\theta} d\theta = -\sum_t E_t^\top P_t \, d\theta\, y_{t-1}, \qquad
              E_t\, dz = dz_t - J_{t-1} dz_{t-1}

    the terms with residuals are left out (Gauss-Newton), so that S is positive semi-definite.

    Args:
        equations: What the M-step solves, at the coefficients before it.
        dynamics: The map.
        posterior: The posterior path at these coefficients.
        slope: Slopes of the hinges ``[B, T-1, P]``.
        batch: The trials.

    References:
        Louis (1982), J R Stat Soc B 44:226-233, doi:10.1111/j.2517-6161.1982.tb01203.x.
    """

    def __init__(
        self, equations: NormalEquations, dynamics: PiecewiseLinear, posterior: GaussianChain,
        slope: np.ndarray, batch: Batch,
    ) -> None:  # fmt: skip
        self.equations, self._posterior, self._slope = equations, posterior, slope
        form, theta = dynamics.relu_form(), equations.theta
        dim, units = dynamics.dim, slope.shape[2]
        self._linear, self._outer = theta[:, :dim], theta[:, dim : dim + units]
        self._inner = None if form.identity_gates else form.inner
        self._precision = equations.terms[0].precision
        self._first = equations.terms[-1].precision  # matters where inputs act on z_1 only
        driven = batch.inputs.numpy() if batch.inputs is not None and dynamics.n_inputs else None
        self._y = _regressors(form, posterior, slope, driven, at_start=dynamics.input_at_start)

    def shift(self, move: np.ndarray) -> np.ndarray:
        """How far the path follows a move of the coefficients, to first order.

        Args:
            move: ``[M, K]``.

        Returns:
            ``[B, T, M]``.
        """
        pull = self._weigh(self._y @ move.T)
        ahead = pull[:, 1:]
        pull[:, :-1] -= ahead @ self._linear + self._back(ahead @ self._outer)
        return self._posterior.solve(pull)

    def lost(self, shift: np.ndarray) -> np.ndarray:
        """What the complete data's information loses to a shift of the path ``[M, K]``."""
        error = shift.copy()
        error[:, 1:] -= shift[:, :-1] @ self._linear.T + self._ahead(shift) @ self._outer.T
        width = self._y.shape[2]
        lost = self._weigh(error).reshape(-1, error.shape[2]).T @ self._y.reshape(-1, width)
        return np.where(self.equations.free, lost, 0.0)

    def _weigh(self, error: np.ndarray) -> np.ndarray:
        """Errors of the steps times their precisions, in an array of its own."""
        weighed = error @ self._precision
        weighed[:, 0] = error[:, 0] @ self._first
        return weighed

    def _ahead(self, shift: np.ndarray) -> np.ndarray:
        """Changes of the rectified gates."""
        before = shift[:, :-1]
        return self._slope * (before if self._inner is None else before @ self._inner.T)

    def _back(self, pull: np.ndarray) -> np.ndarray:
        """The transpose of the same."""
        pull = self._slope * pull
        return pull if self._inner is None else pull @ self._inner


def _regressors(
    form: ReluForm, posterior: GaussianChain, slope: np.ndarray, inputs: np.ndarray | None, *,
    at_start: bool,
) -> np.ndarray:  # fmt: skip
    """What predicts each step, [z; hinges; 1; s] of the step before, 0 beyond a trial's end.

    The first step is predicted by inputs only, if at all: ``[B, T, K]``.
    """
    path = posterior.arrays()[0]
    trials, steps, dim = path.shape
    units = slope.shape[2]
    y = np.zeros((trials, steps, dim + units + 1 + form.inputs.shape[1]))
    y[:, 1:, :dim] = path[:, :-1]
    if units:
        y[:, 1:, dim : dim + units] = slope * form.gates(path[:, :-1])
    y[:, 1:, dim + units] = 1.0
    if inputs is not None:
        first = 0 if at_start else 1
        y[:, first:, dim + units + 1 :] = inputs[:, first:]
    y[np.arange(steps) >= posterior.length.numpy()[:, None]] = 0.0
    return y


@final
@dataclass(frozen=True)
class NewtonMove:
    """A step of the coefficients, and how the path is expected to follow.

    Attributes:
        move: Of the coefficients ``[M, K]``.
        shift: Of the path ``[B, T, M]``.
        gain: Nats that it promises.
        length: Its length in lengths of the EM step.
        limited: Whether it ends at the reach.
    """

    move: np.ndarray
    shift: np.ndarray
    gain: float
    length: float
    limited: bool


def newton_move(information: MapInformation, em: np.ndarray, reach: float) -> NewtonMove | None:
    r"""Solve :math:`S\, d\theta = g` by conjugate gradients, begun along the EM step.

    .. math:: d\theta = \arg\max_d\; g^\top d - \tfrac12 d^\top S d, \qquad
              |d|_H \le \text{reach} \cdot |d_{EM}|_H, \qquad g = H d_{EM}

    Lengths are those of the information H of the complete data, which also preconditions; the
    first direction is the EM step. A step that would leave the reach ends there (Steihaug), and
    one that finds no curvature any more where it is. What H says nothing about is that of EM.

    Args:
        information: S, and H within it.
        em: The step of EM ``[M, K]``.
        reach: Longest step, in lengths of the EM step.

    Returns:
        The step, or None where EM has none left.

    References:
        Steihaug (1983), SIAM J Numer Anal 20:626-637, doi:10.1137/0720042.
        Jamshidian & Jennrich (1993), J Am Stat Assoc 88:221-228,
        doi:10.1080/01621459.1993.10594313.
    """
    gradient = information.equations.times(em)
    size = float((gradient * em).sum())
    if not (np.isfinite(size) and size > 0.0):
        return None
    direction = information.equations.solve(gradient)
    move, times_move, known_move = np.zeros_like(em), np.zeros_like(em), np.zeros_like(em)
    shift, limit, limited = 0.0, size * reach**2, False
    residual, rest, unseen = gradient, size, em - direction
    for number in range(PRODUCTS):
        follows, times = information.shift(direction), information.equations.times(direction)
        known = times - information.lost(follows)
        curvature, width = float((direction * known).sum()), float((direction * times).sum())
        if not curvature > FLAT * width:
            if number:
                break
            known, curvature = times, width  # the EM step itself
        step = rest / curvature
        square, along = float((move * times_move).sum()), float((direction * times_move).sum())
        limited = square + 2 * step * along + step**2 * width >= limit
        if limited:
            step = (np.sqrt(max(along**2 + width * (limit - square), 0.0)) - along) / width
        move, shift = move + step * direction, shift + step * follows
        times_move, known_move = times_move + step * times, known_move + step * known
        if limited:
            break
        residual = residual - step * known
        turned = information.equations.solve(residual)
        rest, before = float((residual * turned).sum()), rest
        if rest < ENOUGH * size:
            break
        direction = turned + (rest / before) * direction
    gain = float((gradient * move).sum() - 0.5 * (move * known_move).sum())
    length = float(np.sqrt((move * times_move).sum() / size))
    if not (np.isfinite(move).all() and np.isfinite(shift).all() and gain > 0.0):
        return None
    return NewtonMove(move + unseen, shift, gain, length, limited)


@final
class NewtonSteps:
    """Newton steps within a reach that is learned from how well they keep their promises.

    They begin once EM itself gains little: far from the data's maximum its first steps are long
    ones, and safe. What other parameters gain in the same iterations counts as gained by the
    steps, too, where such are learned: then only steps that lose show that they are too long.

    Args:
        values: Number of observed values.

    Attributes:
        begun: Whether they have.
    """

    def __init__(self, values: int) -> None:
        self._values, self.begun = values, False
        self._reach, self._last = REACH, None

    def after(self, information: MapInformation, em: np.ndarray) -> NewtonMove | None:
        """The step to take instead of that of EM; None for the latter.

        Args:
            information: At the coefficients before.
            em: The step of EM ``[M, K]``.
        """
        step = newton_move(information, em, self._reach)
        self._last = step if step and step.gain > LEAST * self._values else None
        return self._last

    def gained(self, nats: float) -> None:
        """Learn what the last step of any kind gained."""
        self.begun |= nats < BEGIN * self._values
        last, self._last = self._last, None
        if last is None:
            return
        if nats < DOUBTFUL * last.gain:
            self._reach = max(0.5 * last.length, SHORTEST)
        elif last.limited and nats > FAITHFUL * last.gain:
            self._reach *= 2.0

    def forget(self) -> None:
        """Learn that the last step was no good."""
        if self._last is not None:
            self._reach, self._last = max(0.25 * self._last.length, SHORTEST), None
