"""Training of small maps by damped Gauss-Newton steps instead of gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from torch import Tensor, nn

from plssm.data import Batch
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.compiled_map import compiled_map, draw_windows
from plssm.inference.forced_readouts import teacher_signal
from plssm.inference.parts import make_part
from plssm.inference.updates import OwnUpdates
from plssm.kernels.forced_least_squares import ForcedLeastSquares, NormalEquations
from plssm.model import StateSpaceModel

if TYPE_CHECKING:
    from plssm.inference.forced_training import ForcedTraining

__all__ = ["GaussNewton", "LeastSquaresUpdates", "make_optimiser"]

TRIES = 10  # of a step, each four times as much damped as the one before
LESS, MORE = (
    3.0,
    4.0,
)  # how damping falls after a step that was good, and rises after one that was not
MOST = 3000  # parameters
RANGE = (1e-8, 1e8)  # of the damping
EVEN = 1e-3  # share of the mean curvature in the damping of every parameter


@dataclass(frozen=True)
class GaussNewton:
    r"""Levenberg-Marquardt: few updates that know how errors follow from all parameters together.

    .. math:: \Big(\tfrac2n J^\top J + \lambda D\Big)\, \delta = -\tfrac2n J^\top r

    r are the errors of forced paths, J their derivatives, D the diagonal of the curvature, and
    lambda is adapted so that the loss of the windows falls. An update costs as much as hundreds of
    gradients and is worth thousands of them, as long as the map has at most some hundred
    parameters (time grows with their square). It also fits what is wrong with a noisy teacher
    sooner. Training is in double precision.

    Maps of the family with a state for each channel (read-out "identity", BOLD of at most as many
    regions as states with a known response) can be trained this way, by GTF and sparse forcing.

    Args:
        updates: Number of updates.
        samples: Steps of data that an update looks at, cut into windows, which may overlap; where
            there are not as many windows each update looks at all of them.
        damping: lambda at the start.

    References:
        Marquardt 1963, An algorithm for least-squares estimation of nonlinear parameters,
        doi:10.1137/0111030; Hess et al. 2023 (the loss), arXiv:2306.04406.

    Example:
        >>> from plssm.inference import TeacherForcing
        >>> engine = TeacherForcing(optimiser=GaussNewton(updates=60))
        >>> engine.training().steps
        60
    """

    updates: int = 60
    samples: int = 20_000
    damping: float = 1e-2

    def __post_init__(self) -> None:
        whole = all(isinstance(n, int) and n >= 1 for n in (self.updates, self.samples))
        if not whole or not RANGE[0] <= self.damping <= RANGE[1]:
            raise PlssmError(
                f"GaussNewton: got {self}; wanted 1 or more updates and samples, whole numbers, "
                f"and a damping from {RANGE[0]:g} to {RANGE[1]:g}."
            )

    @torch.no_grad()
    def start(self, model: StateSpaceModel, batch: Batch, generator: torch.Generator) -> None:
        """Starts a fresh map by regression, where steps of this kind find their way.

        Maps with states that are not seen, or with more parameters than pairs of states can tell,
        are left as they are.

        Args:
            model: The model, with read-outs; changed in place.
            batch: Training trials.
            generator: Source of randomness.
        """
        signal = teacher_signal(model, batch)
        if not bool(signal.seen_states.all()):
            return
        states, known = signal.teacher(signal.y, signal.mask)
        whole = known.all(-1) & batch.time_mask
        pairs = whole[:, :-1] & whole[:, 1:]
        inputs = batch.inputs[:, 1:][pairs] if model.dynamics.n_inputs else None
        before, after = states[:, :-1][pairs], states[:, 1:][pairs]
        if before.numel() > sum(p.numel() for p in model.dynamics.parameters()):
            model.dynamics.regress_start(before, after, inputs, generator)


def make_optimiser(value: Any) -> GaussNewton | None:
    """Returns an optimiser from itself or from its settings; None is None.

    Raises:
        PlssmError: If it is neither.
    """
    if value is None:
        return None
    wanted = f"TeacherForcing: optimiser is {value!r}, wanted GaussNewton() or None (RAdam)."
    return make_part(value, GaussNewton, wanted)


@final
class LeastSquaresUpdates(OwnUpdates):
    """Gauss-Newton updates of a :class:`ForcedTraining`, each on windows of its own.

    Args:
        problem: The problem, in double precision.
        vector: Its parameters.
        settings: How many windows and how much damping.

    Raises:
        CapabilityError: If the loss is not a sum of squares that can be compiled.
    """

    def __init__(
        self, problem: ForcedTraining, vector: nn.Parameter, settings: GaussNewton
    ) -> None:
        name = type(problem.model.dynamics).__name__
        if vector.numel() > MOST:
            raise CapabilityError(
                f"GaussNewton: this {name} has {vector.numel()} parameters; time grows with their "
                f"square, and beyond {MOST} gradients are faster. Set optimiser=None."
            )
        found = compiled_map(problem, vector)
        if found is None:
            raise CapabilityError(
                f"GaussNewton cannot train this {name}: it needs a map of the PLRNN family on the "
                "CPU, without mean-centring, whose penalty is quadratic, and observations that "
                'each see one state (read-out "identity") through a response that is not learned. '
                "Set optimiser=None."
            )
        self.problem, self.damping = problem, settings.damping
        steps = problem.windows.steps - 1
        self.squares = ForcedLeastSquares(**found._asdict(), steps=steps)
        self.batch = -(-settings.samples // steps)
        starts = problem.windows.starts
        self._all = starts.numpy()[None] if len(starts) <= self.batch else None
        self.batch = min(self.batch, len(starts))

    def update(self, vector: Tensor, progress: float, generator: torch.Generator) -> float | None:
        """Makes an update (see the base class)."""
        problem, squares = self.problem, self.squares
        draws = draw_windows(problem, self.batch, np.array([progress]), generator)
        squares.take(draws if self._all is None else draws._replace(starts=self._all))
        at = vector.detach().numpy()
        found = squares.equations(at)
        sizes = (found.value, *found.gradient, *found.curvature.diagonal())
        if not np.isfinite(sizes).all():
            return None
        at[:] = self._better(at, found)
        problem.adapt(torch.from_numpy(squares.teacher))
        return found.value

    def _better(self, at: np.ndarray, found: NormalEquations) -> np.ndarray:
        """Parameters of lower loss; the same ones where no step of those tried has it."""
        scale, began = found.curvature.diagonal().copy(), self.damping
        scale += EVEN * max(scale.mean(), np.finfo(float).tiny)
        for _ in range(TRIES):
            damped = found.curvature.copy()
            damped[np.diag_indices(at.size)] += self.damping * scale
            try:
                factor = cho_factor(damped, overwrite_a=True, check_finite=False)
            except LinAlgError:
                self._damp(MORE)
                continue
            step = cho_solve(factor, found.gradient, check_finite=False)
            tried = self.squares.bounded(at - step)
            if self.squares.value(tried) < found.value:  # NaN is not
                self._damp(1.0 / LESS)
                return tried
            self._damp(MORE)
        self.damping = began  # the next windows may be better ones
        self._damp(MORE)
        return at

    def _damp(self, factor: float) -> None:
        self.damping = float(np.clip(self.damping * factor, *RANGE))

    def went_back(self) -> None:
        """Takes smaller steps from now on."""
        self._damp(100.0)

    def state(self) -> dict[str, float]:
        """Returns the damping."""
        return {"damping": self.damping}

    def restore(self, state: dict[str, float]) -> None:
        """Takes back the damping."""
        self.damping = state["damping"]
