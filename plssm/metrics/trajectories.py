"""What the measures accept as a trajectory, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plssm.errors import DataError

__all__ = ["UNAVAILABLE", "as_trials", "blocks_of", "pairs_of", "trial_pair"]

UNAVAILABLE = "floor unavailable at this length"


def as_trials(x: Any, *, role: str) -> list[np.ndarray]:
    """Turn an array, a tensor or a list of trials into a list of [T_i, N] float64 arrays.

    Args:
        x: [T], [T, N], [B, T, N], or a list of trials [T_i] or [T_i, N]; numpy or torch.
        role: "truth" or "pred", for the error messages.

    Returns:
        One [T_i, N] array per trial, NaN padding still in place.

    Raises:
        DataError: Nothing in it, more than three axes, or trials with different channels.
    """
    if _is_list_of_arrays(x):
        trials = [_matrix(_numpy(v, role), role) for v in x]
    else:
        array = _numpy(x, role)
        trials = list(array) if array.ndim == 3 else [_matrix(array, role)]
    sizes = sorted({t.shape[1] for t in trials})
    if len(sizes) > 1:
        raise DataError(
            f"the trials of {role} have different numbers of channels",
            axis="channel",
            got=sizes,
            wanted="one number",
            fix="pass trials of one recording",
        )
    if not trials or sum(t.size for t in trials) == 0:
        raise DataError(f"{role} is empty", got=[t.shape for t in trials], wanted="[T, N]")
    return trials


def trial_pair(truth: Any, pred: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read truth and pred, cut the NaN padding off, and check that they can be compared.

    A stretch of NaN at the end of a trial of `truth` is padding. In `pred` it is padding only
    where the same trial of `truth` is padded too: anywhere else it is a diverged orbit, and stays.

    Args:
        truth: Trajectory or trials, see `as_trials`.
        pred: Trajectory or trials, see `as_trials`.

    Returns:
        Trials of the truth, all finite, and trials of the prediction.

    Raises:
        DataError: Empty, different channels, or a truth that is not finite.
    """
    padded_truth, padded_pred = as_trials(truth, role="truth"), as_trials(pred, role="pred")
    n, n_pred = padded_truth[0].shape[1], padded_pred[0].shape[1]
    if n != n_pred:
        raise DataError(
            "truth and pred have different numbers of channels",
            axis="channel",
            got=f"truth {n}, pred {n_pred}",
            wanted="the same channels",
            fix="compare both in observation space",
        )
    several = _has_trials(truth)
    ends = [_end(t) if several else len(t) for t in padded_truth]
    truths = [t[:end] for t, end in zip(padded_truth, ends, strict=True)]
    _check_truth(truths)
    return [t for t in truths if len(t)], _unpad(padded_pred, padded_truth, ends)


def blocks_of(trials: list[np.ndarray], length: int) -> list[np.ndarray]:
    """Cut every trial into consecutive blocks of one length; remainders are left out.

    Args:
        trials: Arrays [T_i, N].
        length: Length of a block.

    Returns:
        Blocks [length, N] in order.
    """
    return [t[i : i + length] for t in trials for i in range(0, len(t) - length + 1, length)]


def pairs_of(blocks: Sequence, most: int) -> list[tuple[Any, Any]]:
    """Pair blocks that lie far apart: block i with block i + n // 2, at most `most` pairs.

    Args:
        blocks: The blocks in temporal order.
        most: Largest number of pairs.

    Returns:
        Pairs of blocks; none if there are fewer than two blocks.
    """
    apart = len(blocks) // 2
    if apart == 0:
        return []
    firsts = list(range(len(blocks) - apart))
    if len(firsts) > most:
        firsts = [int(i) for i in np.linspace(0, firsts[-1], most)]
    return [(blocks[i], blocks[i + apart]) for i in firsts]


def _numpy(x: Any, role: str) -> np.ndarray:
    """Convert to a float64 array, from torch as well."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().numpy()
    try:
        return np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{role} is not numeric", got=type(x).__name__, wanted="an array [T, N]"
        ) from error


def _matrix(x: np.ndarray, role: str) -> np.ndarray:
    """Return one trial as [T, N]."""
    if x.ndim == 1:
        return x[:, None]
    if x.ndim != 2:
        raise DataError(
            f"{role} has the wrong number of axes",
            got=x.shape,
            wanted="[T, N], [trials, T, N] or a list of [T_i, N]",
        )
    return x


def _is_list_of_arrays(x: Any) -> bool:
    """Say whether x is a list of trials rather than nested numbers."""
    return (
        isinstance(x, (list, tuple))
        and len(x) > 0
        and all(hasattr(v, "shape") for v in x)
        and all(len(v.shape) > 0 for v in x)
    )


def _has_trials(x: Any) -> bool:
    """Say whether x may carry NaN padding."""
    return _is_list_of_arrays(x) or len(np.shape(x)) == 3


def _end(trial: np.ndarray) -> int:
    """Return one past the last row with any number in it."""
    rows = np.flatnonzero(~np.isnan(trial).all(axis=1))
    return int(rows[-1]) + 1 if len(rows) else 0


def _unpad(
    preds: list[np.ndarray], padded_truth: list[np.ndarray], ends: list[int]
) -> list[np.ndarray]:
    """Cut the NaN tail of pred where the truth of the same trial is padded at the same place."""
    if len(preds) != len(padded_truth):
        return preds
    cut = []
    for pred, truth, end in zip(preds, padded_truth, ends, strict=True):
        padding = len(pred) == len(truth) and np.isnan(pred[end:]).all()
        cut.append(pred[:end] if padding else pred)
    return [p for p in cut if len(p)]


def _check_truth(trials: list[np.ndarray]) -> None:
    """Refuse a truth without rows or with missing or infinite entries."""
    if not sum(len(t) for t in trials):
        raise DataError("truth is empty: every entry is NaN", wanted="a finite trajectory")
    for i, trial in enumerate(trials):
        bad = np.argwhere(~np.isfinite(trial))
        if len(bad):
            raise DataError(
                "truth has missing or infinite entries",
                trial=i,
                axis="time",
                got=f"{len(bad)} of them, the first at step {bad[0][0]}, channel {bad[0][1]}",
                wanted="a finite trajectory",
                fix="cut the truth to a complete stretch; only prediction_error skips "
                "missing entries",
            )
