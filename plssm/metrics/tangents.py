"""Products of Jacobians along paths, and the covariances they carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from plssm.errors import CapabilityError, DataError, ShapeError
from plssm.metrics.arrays import as_floats
from plssm.metrics.gaussians import checked_covariances, noise_covariance

__all__ = [
    "TransportedCovariance",
    "is_array",
    "jacobians_along",
    "start_covariances",
    "tangent_product",
    "transported_covariance",
]


@dataclass(frozen=True)
class TransportedCovariance:
    r"""What a linearised map predicts for k = 1 .. K steps ahead of every origin.

    .. math:: P_k = \Phi_k P_0 \Phi_k^\top + Q_k, \qquad Q_k = J_k Q_{k-1} J_k^\top + Q

    Args:
        tangent: Products of Jacobians Phi_k ``[..., K, M, M]``.
        covariance: P_k ``[..., K, M, M]``.
        noise: Accumulated process noise Q_k ``[..., K, M, M]``.
        log_volume: Half the log-determinant of P_k ``[..., K]``; -inf where it is singular.

    Example:
        >>> ahead = transported_covariance(np.full((3, 1, 1), 2.0), covariance=1.0)
        >>> (ahead.log_volume / np.log(2)).round(6).tolist()
        [1.0, 2.0, 3.0]
    """

    tangent: np.ndarray
    covariance: np.ndarray
    noise: np.ndarray
    log_volume: np.ndarray

    def noise_share(self) -> np.ndarray:
        """Return the share of the predicted variance that is process noise, ``[..., K]``.

        NaN where nothing is uncertain or the path diverged.
        """
        noise, total = (np.einsum("...ii->...", x) for x in (self.noise, self.covariance))
        with np.errstate(invalid="ignore"):
            return noise / total


def tangent_product(
    dynamics: Any, origins: Any = None, *, steps: int | None = None, inputs: Any = None
) -> np.ndarray:
    r"""Products of the Jacobians along noise-free paths, from every origin at once.

    .. math:: \Phi_k = J_{t+k-1} \cdots J_{t+1} J_t, \qquad J_t = \partial F / \partial z \,|_{z_t}

    Args:
        dynamics: A LatentDynamics; or any object with ``step(z, s)`` and ``jacobian(z, s)``, or a
            pair of such functions, on arrays ``[S, M]`` (called without s when there are no
            inputs); or Jacobians J ``[..., K, M, M]`` themselves.
        origins: States z_t ``[M]`` or ``[S, M]``; None with Jacobians.
        steps: K; None with Jacobians means all of them.
        inputs: ``[K, n]``, or ``[S, K, n]``; row k is the input of the step arrived at.

    Returns:
        Phi_1 .. Phi_K, ``[..., K, M, M]``. Not finite where the path diverged.

    Raises:
        DataError: When it is not clear where or how far to go, or origins are not finite.
        ShapeError: When arrays, or what the map returns, have the wrong shape.
        CapabilityError: When there is no step or no jacobian to call.

    Example:
        >>> tangent_product((lambda z: 2 * z, lambda z: [[2.0]]), [1.0], steps=3).ravel().tolist()
        [2.0, 4.0, 8.0]
    """
    jacobians = jacobians_along(dynamics, origins, steps=steps, inputs=inputs)
    products = np.empty_like(jacobians)
    product = np.eye(jacobians.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(jacobians.shape[-3]):
            product = jacobians[..., k, :, :] @ product
            products[..., k, :, :] = product
    return products


def transported_covariance(
    dynamics: Any,
    origins: Any = None,
    *,
    covariance: Any,
    noise: Any = 0.0,
    steps: int | None = None,
    inputs: Any = None,
) -> TransportedCovariance:
    r"""Covariances that the Jacobians of a map carry ahead from every origin: an EKF, open loop.

    .. math:: P_{k} = J_{t+k-1} P_{k-1} J_{t+k-1}^\top + Q

    Roots are carried, not covariances, so that volumes stay accurate as long as the deviations of
    all directions, not their variances, are within the 16 digits of a number.

    Args:
        dynamics: As for :func:`tangent_product`.
        origins: States ``[M]`` or ``[S, M]``; None with Jacobians.
        covariance: P_0 at the origins: a number, ``[M]`` variances, ``[M, M]`` or ``[S, M, M]``.
        noise: Q: a number, ``[M]`` or ``[M, M]``.
        steps: K; None with Jacobians means all of them.
        inputs: As for :func:`tangent_product`.

    Returns:
        Tangent products, covariances, accumulated noise and log-volumes.

    Raises:
        DataError: As :func:`tangent_product`; or what should be a covariance is none.
        ShapeError: As :func:`tangent_product`.
        CapabilityError: As :func:`tangent_product`.

    Example:
        >>> halving = (lambda z: z / 2, lambda z: [[0.5]])
        >>> ahead = transported_covariance(halving, [1.0], covariance=4.0, noise=1.0, steps=2)
        >>> ahead.covariance.ravel().round(4).tolist(), ahead.noise_share().round(4).tolist()
        ([2.0, 1.5], [0.5, 0.8333])
    """
    jacobians = jacobians_along(dynamics, origins, steps=steps, inputs=inputs)
    *batch, count, m, _ = jacobians.shape
    q = noise_covariance(noise, m, "noise")
    root, q_root = _root(start_covariances(covariance, tuple(batch), m)), _root(q)
    accumulated, product = np.zeros((m, m)), np.eye(m)
    blank = np.full(jacobians.shape, np.nan)
    out = TransportedCovariance(
        blank, blank.copy(), blank.copy(), np.full((*batch, count), np.nan)
    )
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for k in range(count):
            jacobian = jacobians[..., k, :, :]
            product = jacobian @ product
            accumulated = jacobian @ accumulated @ _turned(jacobian) + q
            stacked = np.concatenate(
                [_turned(jacobian @ root), np.broadcast_to(_turned(q_root), (*batch, m, m))], -2
            )
            finite = np.isfinite(stacked).all((-2, -1), keepdims=True)
            upper = np.asarray(np.linalg.qr(np.where(finite, stacked, 0.0), mode="r"))
            root = np.where(finite, _turned(upper), np.nan)
            out.tangent[..., k, :, :] = product
            out.noise[..., k, :, :] = accumulated
            out.covariance[..., k, :, :] = root @ _turned(root)
            out.log_volume[..., k] = np.log(np.abs(np.einsum("...ii->...i", root))).sum(-1)
    return out


def start_covariances(covariance: Any, batch: tuple[int, ...], size: int) -> np.ndarray:
    """Covariances at the origins, ``[M, M]`` or ``[..., M, M]``.

    Args:
        covariance: A number, ``[M]``, ``[M, M]`` or ``[..., M, M]``.
        batch: Leading axes of the origins.
        size: M.

    Raises:
        DataError: When the shape does not fit or a matrix is no covariance.
    """
    array = as_floats(covariance, "covariance")
    if array.ndim < 3:
        return noise_covariance(array, size, "covariance")
    if array.shape != (*batch, size, size):
        raise DataError(
            "covariance has the wrong shape",
            got=array.shape,
            wanted=f"{(size, size)} or {(*batch, size, size)}",
        )
    return checked_covariances(array, "covariance")


def is_array(dynamics: Any) -> bool:
    """Whether Jacobians are given in place of a map."""
    return isinstance(dynamics, (np.ndarray, torch.Tensor, list))


def jacobians_along(
    dynamics: Any, origins: Any = None, *, steps: int | None = None, inputs: Any = None
) -> np.ndarray:
    """Jacobians along noise-free paths, ``[..., K, M, M]``; arguments of `tangent_product`."""
    if is_array(dynamics):
        return _given(dynamics, origins, steps)
    step, jacobian = _functions(dynamics)
    if origins is None or steps is None:
        raise DataError("there is nowhere to go", wanted="origins=[S, M] and steps=K")
    z = as_floats(origins, "origins")
    single, dim = z.ndim == 1, getattr(dynamics, "dim", None)
    z = z[None] if single else z
    if z.ndim != 2 or not z.size or (dim is not None and z.shape[1] != dim):
        raise ShapeError(f"origins: got shape {np.shape(origins)}, wanted [S, {dim or 'M'}]")
    if not np.isfinite(z).all():
        raise DataError("origins are not finite", fix="leave out what is missing")
    _check_steps(steps)
    drive, out = _drive(inputs, len(z), int(steps)), []
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(int(steps)):
            s = None if drive is None else drive[:, k]
            out.append(_shaped(jacobian(z, s), (*z.shape, z.shape[1]), "jacobian"))
            z = _shaped(step(z, s), z.shape, "step")
    path = np.stack(out, axis=-3)
    return path[0] if single else path


def _given(jacobians: Any, origins: Any, steps: int | None) -> np.ndarray:
    """Read Jacobians that are given."""
    array = as_floats(jacobians, "jacobians")
    if array.ndim < 3 or array.shape[-1] != array.shape[-2] or not array.size:
        raise ShapeError(f"jacobians: got shape {array.shape}, wanted [..., K, M, M]")
    if origins is not None and np.shape(origins) != (*array.shape[:-3], array.shape[-1]):
        raise ShapeError(
            f"jacobians and origins do not fit: got {array.shape} and {np.shape(origins)}, "
            "wanted [S, K, M, M] and [S, M]"
        )
    if steps is None:
        return array
    _check_steps(steps)
    if steps > array.shape[-3]:
        raise ShapeError(f"jacobians: got {array.shape[-3]} steps, wanted {steps} or more")
    return array[..., : int(steps), :, :]


def _functions(dynamics: Any) -> tuple[Callable, Callable]:
    """Step and jacobian on arrays ``[S, M]``."""
    if isinstance(dynamics, tuple) and len(dynamics) == 2:
        step, jacobian = dynamics
    else:
        step, jacobian = getattr(dynamics, "step", None), getattr(dynamics, "jacobian", None)
    if not (callable(step) and callable(jacobian)):
        raise CapabilityError(
            f"{type(dynamics).__name__} has no step and jacobian to call; pass a LatentDynamics, "
            "an object with both, a pair of functions, or Jacobians [S, K, M, M]"
        )
    if not isinstance(dynamics, torch.nn.Module):
        return _numpy_call(step), _numpy_call(jacobian)
    like = next(iter(dynamics.parameters()), torch.zeros((), dtype=torch.float64))
    return _torch_call(step, like), _torch_call(jacobian, like)


def _torch_call(function: Callable, like: torch.Tensor) -> Callable:
    """Call a torch function with arrays."""

    def call(z: np.ndarray, s: np.ndarray | None) -> Any:
        with torch.no_grad():
            tensors = [None if x is None else torch.from_numpy(x.copy()).to(like) for x in (z, s)]
            return function(*tensors)

    return call


def _numpy_call(function: Callable) -> Callable:
    """Call a function of arrays, with the input only if there is one."""
    return lambda z, s: function(z) if s is None else function(z, s)


def _shaped(x: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """What a map returned, broadcast over the origins."""
    array = as_floats(x, name)
    try:
        return np.array(np.broadcast_to(array, shape))
    except ValueError as error:
        raise ShapeError(
            f"{name} returned shape {array.shape} for {shape[0]} states, wanted {shape}; "
            "it is called with all origins at once"
        ) from error


def _drive(inputs: Any, origins: int, steps: int) -> np.ndarray | None:
    """Inputs ``[S, K, n]``."""
    if inputs is None:
        return None
    drive = as_floats(inputs, "inputs")
    if drive.ndim == 2:
        drive = np.broadcast_to(drive, (origins, *drive.shape))
    if drive.ndim != 3 or drive.shape[0] != origins or drive.shape[1] < steps:
        raise ShapeError(
            f"inputs: got shape {np.shape(inputs)}, wanted [{steps}, n] or [{origins}, {steps}, n]"
        )
    return drive


def _check_steps(steps: int) -> None:
    if int(steps) != steps or steps < 1:
        raise DataError("steps is out of range", got=steps, wanted="a whole number >= 1")


def _root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric root of positive semidefinite matrices."""
    values, axes = np.linalg.eigh(matrix)
    return (axes * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ _turned(axes)


def _turned(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -2, -1)
