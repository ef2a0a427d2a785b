"""Free runs of a rectified-linear map."""

from __future__ import annotations

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._relu_step import add_matrix_vector, dense, form_arrays, mean_step

__all__ = ["rollout", "rollout_plain"]


@compiled
def _run(form, start, drive, noise, out):
    """Iterates every start; drive and noise have zero steps where there are none."""
    trials, steps, size = out.shape
    pre = np.empty(form[6].size)
    for n in range(trials):
        z = start[n]
        for t in range(steps):
            new = out[n, t]
            mean_step(form, z, pre, new)
            if drive.shape[1] > 0:
                add_matrix_vector(form[7], drive[n, t], new)
            if noise.shape[1] > 0:
                for i in range(size):
                    new[i] += noise[n, t, i]
            z = new


def rollout(
    linear: np.ndarray,
    bias: np.ndarray,
    outer: np.ndarray,
    inner: np.ndarray,
    offset: np.ndarray,
    inputs: np.ndarray,
    start: np.ndarray,
    steps: int,
    drive: np.ndarray | None = None,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    r"""Iterates a rectified-linear map from many starts.

    .. math:: z_t = L z_{t-1} + b + O \max(0, I z_{t-1} + o) + C s_t + \epsilon_t

    A run that leaves the finite numbers goes on as inf and NaN.

    Args:
        linear: [M, M], L.
        bias: [M], b.
        outer: [M, P], O.
        inner: [P, M], I.
        offset: [P], o.
        inputs: [M, K], C.
        start: [n, M], z_0.
        steps: Number of steps.
        drive: [n, steps, K], inputs s_t of the steps arrived at.
        noise: [n, steps, M], what is added to each new state.

    Returns:
        [n, steps, M], the states after the start.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    form = form_arrays(linear, bias, outer, inner, offset, inputs)
    trials, size = len(start), form[3].size
    start = dense("start", start, (trials, size))

    def per_step(name, x, width):
        if x is None:
            return np.empty((trials, 0, width))
        return dense(name, x, (trials, steps, width))

    out = np.empty((trials, steps, size))
    _run(form, start, per_step("drive", drive, form[7].shape[0]), per_step("noise", noise, size),
         out)  # fmt: skip
    return out


def rollout_plain(
    linear: np.ndarray,
    bias: np.ndarray,
    outer: np.ndarray,
    inner: np.ndarray,
    offset: np.ndarray,
    inputs: np.ndarray,
    start: np.ndarray,
    steps: int,
    drive: np.ndarray | None = None,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    """Computes the same as `rollout` in plain numpy.

    Args:
        linear: [M, M].
        bias: [M].
        outer: [M, P].
        inner: [P, M].
        offset: [P].
        inputs: [M, K].
        start: [n, M].
        steps: Number of steps.
        drive: [n, steps, K], or None.
        noise: [n, steps, M], or None.

    Returns:
        [n, steps, M].
    """
    z, path = np.asarray(start, dtype=np.float64), []
    for t in range(steps):
        z = z @ linear.T + bias + np.maximum(z @ inner.T + offset, 0.0) @ outer.T
        z = z if drive is None else z + drive[:, t] @ inputs.T
        z = z if noise is None else z + noise[:, t]
        path.append(z)
    return np.stack(path, axis=1) if path else np.empty((len(z), 0, z.shape[1]))
