"""Lyapunov spectrum: how fast neighbouring orbits part, direction by direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from plssm.errors import CapabilityError, PlssmError, ShapeError
from plssm.kernels.lyapunov import lyapunov_sums

__all__ = ["kaplan_yorke_dimension", "lyapunov_spectrum"]


def lyapunov_spectrum(
    dynamics: Any,
    *,
    steps: int,
    dt: float = 1.0,
    start: Any = None,
    inputs: Any = None,
    transient: int = 1000,
    warmup: int = 100,
    every: int = 1,
) -> np.ndarray:
    r"""Lyapunov exponents of the noise-free dynamics by repeated QR decomposition.

    .. math:: J_t Q_{t-1} = Q_t R_t, \qquad
        \lambda_i = \frac{1}{T \, dt} \sum_{t=1}^{T} \log |R_{t,ii}|

    with J_t taken at the state before the step. First the orbit runs `transient` steps to reach
    the attractor, then the tangent vectors `warmup` steps more to reach their own directions;
    neither counts. Exponents are nats per unit of `dt`: with `dt` the sampling step in seconds,
    nats per second.

    Piecewise-linear dynamics run compiled; anything else through its `step` and `jacobian`. A map
    without gates has the same jacobian everywhere, so its orbit is not followed. A direction the
    map collapses within one step has exponent -inf.

    Args:
        dynamics: A LatentDynamics, or any object with ``step(z)`` and ``jacobian(z)``, or a pair
            of such functions (``step(z, s)`` and ``jacobian(z, s)`` when there are inputs), on
            arrays [M].
        steps: Steps T that count.
        dt: Duration of one step.
        start: [M] first state; default the mean of the initial distribution.
        inputs: [K], constant; or [transient + warmup + steps, K]; or [steps, K], which is then
            repeated backwards for the steps that do not count. Row t is the input of the step
            arrived at. None: no input.
        transient: Steps of the orbit before anything is followed.
        warmup: Steps of the tangent vectors before anything counts.
        every: Steps between two decompositions; 1 is the most accurate.

    Returns:
        [M] exponents, descending.

    Raises:
        PlssmError: The orbit diverged (there is no attractor to measure: try another start, or
            a fit that does not diverge), or an option is out of range.
        ShapeError: `start` or `inputs` have the wrong shape.
        CapabilityError: No step or jacobian to call.

    References:
        Benettin et al. 1980, doi:10.1007/BF02128236. Geist, Parlitz and Lauterborn 1990,
        doi:10.1143/PTP.83.875.
    """
    _check_options(steps, dt, transient, warmup, every)
    state = _start(dynamics, start)
    drive = _drive(inputs, transient + warmup, steps, getattr(dynamics, "n_inputs", None))
    run = _Run(steps=steps, transient=transient, warmup=warmup, every=every)
    form = _relu_form(dynamics)
    if form is not None:
        logs = _compiled(form, state, drive, run)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            logs = _plain(_system(dynamics), state, drive, run)
    return np.sort(logs / (steps * dt))[::-1].copy()


def kaplan_yorke_dimension(exponents: Any) -> float:
    r"""Dimension of an attractor from its Lyapunov exponents.

    .. math:: D = j + \frac{\lambda_1 + \dots + \lambda_j}{|\lambda_{j+1}|}

    with j the largest number of leading exponents whose sum is not negative: 0 where all are
    negative (a fixed point), M where no sum is (volumes do not shrink).

    Args:
        exponents: [M], in any order and unit; -inf is allowed.

    Returns:
        Between 0 and M.

    Raises:
        ShapeError: `exponents` is not a vector, or holds NaN or +inf.

    References:
        Frederickson et al. 1983, doi:10.1016/0022-0396(83)90011-6.

    Example:
        >>> kaplan_yorke_dimension([0.5, 0.0, -1.0])
        2.5
    """
    array = np.asarray(exponents, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not (array < np.inf).all():
        raise ShapeError(
            f"kaplan_yorke_dimension: got {array.tolist()}, wanted a vector of exponents"
        )
    ordered = np.sort(array)[::-1]
    sums = np.cumsum(ordered)
    j = int((sums >= 0).sum())
    if j in (0, len(ordered)):
        return float(j)
    return float(j + sums[j - 1] / abs(ordered[j]))


@dataclass(frozen=True)
class _Run:
    """How long to run."""

    steps: int
    transient: int
    warmup: int
    every: int


@dataclass(frozen=True)
class _System:
    """A map and its jacobian on numpy arrays."""

    step: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    jacobian: Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def _compiled(form: Any, z: np.ndarray, drive: np.ndarray | None, run: _Run) -> np.ndarray:
    """Sum the logarithms of the growth factors in compiled code; returns [M]."""
    bias, transient = form.bias, run.transient
    if not form.outer.any():  # the same jacobian everywhere: any orbit will do
        z, bias, drive, transient = np.zeros_like(z), np.zeros_like(bias), None, 0
    logs, _, diverged = lyapunov_sums(
        form.linear,
        bias,
        form.outer,
        form.inner,
        form.offset,
        form.inputs,
        z,
        run.steps,
        drive=drive,
        transient=transient,
        warmup=run.warmup,
        every=run.every,
    )
    if diverged:
        raise _divergence(diverged)
    return logs


def _plain(system: _System, z: np.ndarray, drive: np.ndarray | None, run: _Run) -> np.ndarray:
    """Sum the logarithms of the growth factors in a plain loop; returns [M]."""
    tangent, logs = np.eye(len(z)), np.zeros(len(z))
    since = 0
    for t in range(run.transient + run.warmup + run.steps):
        s = None if drive is None else drive[t]
        if t >= run.transient:
            tangent = system.jacobian(z, s) @ tangent
            since += 1
            counted = t - run.transient - run.warmup + 1
            if since == run.every or counted in (0, run.steps):
                _require_finite(tangent, t)
                tangent, growth = np.linalg.qr(tangent)
                since = 0
                if counted > 0:
                    with np.errstate(divide="ignore"):
                        logs += np.log(np.abs(np.diag(growth)))
        z = system.step(z, s)
        _require_finite(z, t)
    return logs


def _require_finite(x: np.ndarray, t: int) -> None:
    """Refuse to go on with an orbit that left the finite numbers."""
    if not np.isfinite(x).all():
        raise _divergence(t + 1)


def _divergence(step: int) -> PlssmError:
    """Return the error that says the orbit diverged."""
    return PlssmError(
        f"lyapunov_spectrum: the orbit diverged at step {step}, so there is no attractor whose "
        "exponents could be measured. Start elsewhere (start=) or fit again."
    )


def _relu_form(dynamics: Any) -> Any:
    """Return the form the compiled loop needs, or None."""
    if not hasattr(dynamics, "relu_form"):
        return None
    try:
        return dynamics.relu_form()
    except CapabilityError:
        return None


def _system(dynamics: Any) -> _System:
    """Return step and jacobian as functions of numpy arrays."""
    if isinstance(dynamics, tuple) and len(dynamics) == 2:
        step, jacobian = dynamics
    else:
        step, jacobian = getattr(dynamics, "step", None), getattr(dynamics, "jacobian", None)
    if not (callable(step) and callable(jacobian)):
        raise CapabilityError(
            f"lyapunov_spectrum: {type(dynamics).__name__} has no step and jacobian to call; "
            "pass a LatentDynamics, an object with both, or a pair of functions"
        )
    convert = _torch_call if isinstance(dynamics, torch.nn.Module) else _numpy_call
    return _System(convert(step), convert(jacobian))


def _torch_call(function: Callable) -> Callable:
    """Call a torch function with arrays."""

    def call(z: np.ndarray, s: np.ndarray | None) -> np.ndarray:
        with torch.no_grad():
            out = function(torch.from_numpy(z), None if s is None else torch.from_numpy(s))
        return out.detach().numpy().astype(np.float64, copy=False)

    return call


def _numpy_call(function: Callable) -> Callable:
    """Call a function of arrays, with the input only if there is one."""

    def call(z: np.ndarray, s: np.ndarray | None) -> np.ndarray:
        return np.asarray(function(z) if s is None else function(z, s), dtype=np.float64)

    return call


def _start(dynamics: Any, start: Any) -> np.ndarray:
    """Return the first state [M]."""
    dim = getattr(dynamics, "dim", None)
    if start is None:
        initial = getattr(dynamics, "initial", None)
        if initial is None:
            raise PlssmError(
                "lyapunov_spectrum: these dynamics have no initial distribution; pass start=[M]"
            )
        start = initial.mean
    if isinstance(start, torch.Tensor):
        start = start.detach().cpu().numpy()
    state = np.array(start, dtype=np.float64)
    if state.ndim != 1 or state.size == 0 or (dim is not None and state.size != dim):
        wanted = "[M]" if dim is None else f"({dim},)"
        raise ShapeError(f"lyapunov_spectrum: start: got shape {state.shape}, wanted {wanted}")
    if not np.isfinite(state).all():
        raise PlssmError("lyapunov_spectrum: start must be finite")
    return state


def _drive(inputs: Any, before: int, steps: int, n_inputs: int | None) -> np.ndarray | None:
    """Return the inputs [before + steps, K] of every step."""
    if inputs is None:
        return None
    if isinstance(inputs, torch.Tensor):
        inputs = inputs.detach().cpu().numpy()
    drive = np.asarray(inputs, dtype=np.float64)
    total = before + steps
    if drive.ndim == 1:
        drive = np.tile(drive, (total, 1))
    rows, columns = drive.shape if drive.ndim == 2 else (-1, -1)
    if rows not in (total, steps) or (n_inputs is not None and columns != n_inputs):
        raise ShapeError(
            f"lyapunov_spectrum: inputs: got shape {np.shape(inputs)}, wanted [K], [{steps}, K] "
            f"or [{total}, K]" + ("" if n_inputs is None else f" with K = {n_inputs}")
        )
    if not np.isfinite(drive).all():
        raise PlssmError("lyapunov_spectrum: inputs must be finite")
    if rows == steps:
        drive = drive[np.arange(-before, steps) % steps]
    return np.ascontiguousarray(drive)


def _check_options(steps: int, dt: float, transient: int, warmup: int, every: int) -> None:
    """Refuse options out of range."""
    if not (dt > 0 and np.isfinite(dt)):
        raise PlssmError(f"lyapunov_spectrum: dt: got {dt}, wanted a positive number")
    for name, value, least in (
        ("steps", steps, 1),
        ("transient", transient, 0),
        ("warmup", warmup, 0),
        ("every", every, 1),
    ):
        if int(value) != value or value < least:
            raise PlssmError(
                f"lyapunov_spectrum: {name}: got {value}, "
                f"wanted a whole number of at least {least}"
            )
