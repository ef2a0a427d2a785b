"""The prior of a mode search as flat arrays for the compiled passes."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np

from plssm.kernels import _mode_loops as loops
from plssm.kernels._blocks import padded
from plssm.kernels.chain import checked, joint_bases, strides
from plssm.linalg.block_tridiagonal import dense, trial_lengths

__all__ = ["HingeMap", "PackedPrior", "pack_prior", "with_terms"]


class HingeMap(Protocol):
    """F(z) = linear z + bias + outer relu(inner z + offset), float64 arrays."""

    linear: np.ndarray
    bias: np.ndarray
    outer: np.ndarray
    inner: np.ndarray
    offset: np.ndarray
    identity_gates: bool


class PackedPrior(NamedTuple):
    """What `search_modes` needs of the prior, checked and as flat arrays."""

    hinge: loops.Hinges
    chain: loops.Chain
    length: np.ndarray


def pack_prior(
    form: HingeMap,
    drive: np.ndarray,
    precision: np.ndarray,
    initial_mean: np.ndarray,
    initial_precision: np.ndarray,
    length: np.ndarray | None = None,
) -> PackedPrior:
    """Checks the prior of `search_modes` and makes its arrays flat.

    Args:
        form: The map F.
        drive: [B, T-1, M].
        precision: [M, M].
        initial_mean: [B, M].
        initial_precision: [M, M].
        length: [B], number of steps of each trial; all T when None.

    Returns:
        The prior, for several searches.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    drive = dense(drive)
    if drive.ndim != 3:
        raise ValueError(f"drive must be [B, T-1, M], got {drive.shape}")
    n, m, steps = drive.shape[0], drive.shape[2], drive.shape[1] + 1
    hinge = _hinges(form, m)
    precision = checked("precision", precision, (m, m))
    initial_precision = checked("initial_precision", initial_precision, (m, m))
    drift = drive + form.bias
    chain = loops.Chain(
        joint_bases(precision, initial_precision).reshape(-1),
        _gated_bases(hinge, precision, initial_precision).reshape(-1),
        precision.reshape(-1),
        initial_precision.reshape(-1),
        checked("initial_mean", initial_mean, (n, m)).reshape(-1),
        drift.reshape(-1),
        _pulls(hinge, precision, drift).reshape(-1),
        np.zeros(0),
        np.zeros(0),
        0,
        0,
        steps,
        len(hinge.offset),
        0.0,
    )
    return PackedPrior(hinge, chain, trial_lengths(length, n, steps))


def with_terms(
    packed: PackedPrior, information: np.ndarray, score: np.ndarray, pin: float
) -> PackedPrior:
    """The chain with observation terms, checked."""
    hinge, chain, length = packed
    m = math.isqrt(chain.precision.size)
    shape = (len(length), chain.steps, m)
    information = checked("information", information, (*shape, m), shared=True)
    trial_stride, step_stride = strides(information, len(length), chain.steps)
    chain = chain._replace(
        score=checked("score", score, shape).reshape(-1),
        information=information.reshape(-1),
        trial_stride=trial_stride,
        step_stride=step_stride,
        pin=float(pin),
    )
    return PackedPrior(hinge, chain, length)


def _gated_bases(
    hinge: loops.Hinges, precision: np.ndarray, initial_precision: np.ndarray
) -> np.ndarray:
    """Joint rows from which the blocks for hinges on the states are put together."""
    if not hinge.identity:
        return np.zeros((0, 0))
    m, w = len(precision), padded(len(precision))
    A, W = hinge.linear.reshape(m, m), hinge.outer.reshape(m, m)
    pull, push = A.T @ precision, W.T @ precision
    bases = np.zeros((5, m, 2 * w))
    bases[0, :, :m], bases[1, :, :m] = precision + pull @ A, initial_precision + pull @ A
    bases[:2, :, w : w + m] = -pull
    bases[2, :, :m], bases[3, :, :m], bases[4, :, :m] = pull @ W, push @ A, push @ W
    bases[4, :, w : w + m] = -push
    return bases


def _pulls(hinge: loops.Hinges, precision: np.ndarray, drift: np.ndarray) -> np.ndarray:
    """What the drift adds to the right-hand sides, for hinges on the states."""
    if not hinge.identity:
        return np.zeros(0)
    A, W = (x.reshape(precision.shape) for x in (hinge.linear, hinge.outer))
    return drift @ np.hstack([precision, -precision @ A, -precision @ W])


def _hinges(form: HingeMap, m: int) -> loops.Hinges:
    """Packs the map into flat blocks of M hinges."""
    gates = form.outer.shape[1]
    blocks = max(1, -(-gates // m))
    inner, outer, offset = np.zeros((blocks * m, m)), np.zeros((m, blocks * m)), None
    inner[:gates], outer[:, :gates] = form.inner, form.outer
    offset = np.zeros(blocks * m)
    offset[:gates] = form.offset
    offset[gates:] = -1.0
    inner_t = inner.reshape(blocks, m, m).transpose(0, 2, 1)
    by_hinge = np.ascontiguousarray(outer.T).reshape(blocks, m, m)
    return loops.Hinges(
        np.array(form.linear, dtype=np.float64).reshape(-1),
        np.array(form.linear.T, dtype=np.float64, order="C").reshape(-1),
        inner.reshape(-1),
        np.ascontiguousarray(inner_t).reshape(-1),
        np.ascontiguousarray(by_hinge.transpose(0, 2, 1)).reshape(-1),
        by_hinge.reshape(-1),
        offset,
        bool(form.identity_gates) and gates == m,
    )
