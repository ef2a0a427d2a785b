"""Plain numpy twin of the compiled mode search, all trials of one length: for the tests."""

from __future__ import annotations

import numpy as np

from plssm.kernels.chain import solve_chain

__all__ = ["objective_twin", "search_twin"]


def _residual(form, drive, z):
    """Noise of every transition of the paths."""
    step = z[:, :-1] @ form.linear.T + form.bias
    step += np.maximum(z[:, :-1] @ form.inner.T + form.offset, 0.0) @ form.outer.T
    return z[:, 1:] - step - drive


def objective_twin(form, drive, precision, initial_mean, initial_precision, information, score, z):
    """Log joint density of each trial without constants."""
    first, e = z[:, 0] - initial_mean, _residual(form, drive, z)
    curved = (information @ z[..., None])[..., 0]
    value = ((score - 0.5 * curved) * z).sum((1, 2))
    value -= 0.5 * ((first @ initial_precision) * first).sum(1)
    return value - 0.5 * ((e @ precision) * e).sum((1, 2))


def search_twin(
    form,
    drive,
    precision,
    initial_mean,
    initial_precision,
    information,
    score,
    slope,
    *,
    pin,
    flips=4,
    max_solves=60,
):
    """Path with the best slopes, these slopes, and whether each trial became stationary."""
    shape = (*score.shape, score.shape[-1])
    rest = (precision, initial_mean, initial_precision)
    pinned = np.zeros(slope.shape, dtype=bool)
    best, value = slope.copy(), np.full(len(score), -np.inf)
    moved = np.ones(len(score), dtype=bool)
    for count in range(max_solves):
        held = pin * pinned
        springs = np.einsum("btp,pi,pj->btij", held, form.inner, form.inner)
        pulls = -(held * form.offset) @ form.inner
        total = np.array(np.broadcast_to(information, shape))
        total[:, :-1] += springs
        pulled = score.copy()
        pulled[:, :-1] += pulls
        z = _maximise(form, drive, rest, total, pulled, slope)
        gate = z[:, :-1] @ form.inner.T + form.offset
        left = np.where(pinned, pin * gate, 0.0)
        kink = (_residual(form, drive, z) @ precision) @ form.outer
        on, right = (gate > 0).astype(float), left + kink
        up = pinned & (right > 1e-14 * pin) & (right >= -left)
        down = pinned & (left < -1e-14 * pin) & ~up
        crossed = ~pinned & (on != slope)
        fraction = np.where(pinned, np.clip(left / np.where(kink < 0, -kink, 1.0), 0, 1), on)
        now = objective_twin(form, drive, *rest, information, score, z)
        changed = (crossed | up | down).any((1, 2))
        take = moved & (~changed | (now > value))
        best[take], value[take] = fraction[take], now[take]
        moved &= changed
        slope = np.where(crossed, on, np.where(up, 1.0, np.where(down, 0.0, slope)))
        pinned = pinned & ~up & ~down
        if count + 1 >= flips:
            pinned |= crossed
            slope = np.where(pinned, 0.0, slope)
        if not moved.any():
            break
    return _maximise(form, drive, rest, information, score, best), best, ~moved


def _maximise(form, drive, rest, information, score, slope):
    """Maximum for fixed slopes."""
    jacobian = form.linear + (form.outer * slope[..., None, :]) @ form.inner
    offset = form.bias + (slope * form.offset) @ form.outer.T + drive
    return solve_chain(jacobian, offset, *rest, information, score)[0]
