"""Particle filter of a rectified-linear map with quadratic terms, and backward draws, compiled."""

from __future__ import annotations

import math

import numpy as np

from plssm.kernels._compile import compiled
from plssm.kernels._relu_step import dense, form_arrays, mean_step

__all__ = [
    "backward_draws",
    "backward_draws_plain",
    "effective_size",
    "particle_steps",
    "particle_steps_plain",
    "resampled",
    "systematic",
]

_LOOSE = {"contract", "reassoc", "nsz"}
_NEVER = -1e300  # log weight of a particle that cannot be, e.g. because its path overflowed
_NEGLIGIBLE = 40.0  # log ratio to the best candidate below which none is drawn


@compiled
def _effective(weight):
    """Largest log weight, log mean weight and effective sample size (between 1 and P)."""
    best = _NEVER
    for value in weight:
        best = max(best, value)
    total, squares = 0.0, 0.0
    for value in weight:
        part = math.exp(value - best)
        total += part
        squares += part * part
    return best, best + math.log(total / weight.size), total * total / squares


@compiled
def _choose(weight, best, place, chosen):
    """Systematic resampling: particle j is the one whose share holds (place + j) / P."""
    total = 0.0
    for value in weight:
        total += math.exp(value - best)
    scale = total / weight.size
    here, held = 0, math.exp(weight[0] - best)
    for j in range(weight.size):
        target = (place + j) * scale
        while held <= target and here < weight.size - 1:
            here += 1
            held += math.exp(weight[here] - best)
        chosen[j] = here


@compiled(fastmath=_LOOSE)
def _quadratic(x, linear, matrix):
    """Value of linear'x - x'(matrix)x / 2."""
    value = 0.0
    for i in range(x.size):
        bent = 0.0
        for j in range(x.size):
            bent += matrix[i, j] * x[j]
        value += x[i] * (linear[i] - 0.5 * bent)
    return value


@compiled(fastmath=_LOOSE)
def _add_product(matrix, x, out):
    """Adds A x to out."""
    for i in range(out.size):
        value = 0.0
        for j in range(x.size):
            value += matrix[i, j] * x[j]
        out[i] += value


@compiled
def _resample(weight, promise, share, rng, ahead, before, chosen):
    """Resamples by weight times promise, but for a share by weight alone; gathers ahead."""
    count = weight.size
    best, mean, _ = _effective(weight + promise)
    if share > 0.0:
        own, own_mean, _ = _effective(weight)
        odds = np.empty(count)
        for p in range(count):
            wanted = math.exp(weight[p] + promise[p] - mean) * (1.0 - share)
            odds[p] = math.log(wanted + share * math.exp(weight[p] - own_mean))
        _choose(odds, odds.max(), rng.random(), chosen)
    else:
        _choose(weight + promise, best, rng.random(), chosen)
    held, hoped = weight.copy(), promise.copy()
    for j in range(count):
        p = chosen[j]
        before[j] = ahead[p]
        promise[j] = hoped[p]
        weight[j] = held[p] - odds[p] if share > 0.0 else mean - hoped[p]
    ahead[:] = before


@compiled
def _run(form, drive, guide, terms, careful, threshold, z, weight, rng, paths, weights, effective):
    gain, shift, root, slope, bend, level = guide
    left, bent = terms
    share, known, curved, plain = careful
    count, size = z.shape
    ahead, before, noise = (
        np.empty((count, size)),
        np.empty((count, size)),
        np.empty((count, size)),
    )
    gates, promise = np.empty(form[6].size), np.empty(count)
    chosen = np.empty(count, dtype=np.int64)
    for t in range(drive.shape[0]):
        k = t if gain.shape[0] > 1 else 0
        for p in range(count):
            mean_step(form, z[p], gates, ahead[p])
            for i in range(size):
                ahead[p, i] += drive[t, i]
            value = level[t] + _quadratic(ahead[p], slope[t], bend[k])
            promise[p] = value if abs(value) < -_NEVER else _NEVER
        effective[t] = _effective(weight + promise)[2]
        if effective[t] < threshold * count:
            _resample(weight, promise, share, rng, ahead, before, chosen)
        for p in range(count):
            for i in range(size):
                noise[p, i] = rng.standard_normal()
        for p in range(count):
            if share > 0.0 and rng.random() < share:
                z[p] = ahead[p]
                _add_product(plain, noise[p], z[p])
            else:
                z[p] = shift[t]
                _add_product(gain[k], ahead[p], z[p])
                _add_product(root[k], noise[p], z[p])
        for p in range(count):
            value = promise[p]
            if left.shape[0] > 0:
                value = _quadratic(z[p], left[t], bent[t if bent.shape[0] > 1 else 0])
            if share > 0.0:  # over the density of the proposal relative to the dynamics
                ratio = _quadratic(z[p], known[t], curved[t if curved.shape[0] > 1 else 0])
                ratio += math.log1p(-share) - promise[p]
                floor = math.log(share)
                value -= max(ratio, floor) + math.log1p(math.exp(-abs(ratio - floor)))
            value += weight[p]
            weight[p] = value if value > _NEVER else _NEVER
            if weight[p] == _NEVER:  # its path may have overflowed
                z[p] = 0.0
        paths[t] = z
        weights[t] = weight


def _arranged(z, weight, drive, guide, terms, careful):
    """Checked copies of the arrays of a run, and room for its results."""
    count, size = np.shape(z)
    steps = len(drive)
    rows, square = (steps, size), (steps, size, size)
    names = ("gain", "shift", "root", "slope", "bend", "level")
    wanted = (square, rows, square, rows, square, (steps,))
    guide = tuple(
        dense(n, x, w, shared=int(w == square))
        for n, x, w in zip(names, guide, wanted, strict=True)
    )
    none = np.empty((0, size)), np.empty((0, size, size))
    if terms is not None:
        terms = dense("score", terms[0], rows), dense("information", terms[1], square, shared=1)
    if careful is None:
        careful = 0.0, *none, np.empty((0, 0))
    else:
        share, score, information, root = careful
        careful = (
            float(share), dense("guide score", score, rows),
            dense("guide information", information, square, shared=1),
            dense("root", root, (size, size)),
        )  # fmt: skip
    out = np.empty((steps, count, size)), np.empty((steps, count)), np.empty(steps)
    start = np.array(z, dtype=np.float64), np.array(weight, dtype=np.float64)
    return start, dense("drive", drive, rows), guide, terms or none, careful, out


def particle_steps(
    form: tuple[np.ndarray, ...],
    z: np.ndarray,
    weight: np.ndarray,
    rng: np.random.Generator,
    *,
    drive: np.ndarray,
    guide: tuple[np.ndarray, ...],
    terms: tuple[np.ndarray, np.ndarray] | None = None,
    careful: tuple[float, np.ndarray, np.ndarray, np.ndarray] | None = None,
    threshold: float = 0.5,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Moves weighted particles through n steps with a shared Gaussian guide in every step.

    .. math:: \log Z_t(f) = k_t + a_t^\top f - f^\top H_t f / 2, \quad f = F(z), \qquad
              z \leftarrow G_t f + g_t + Y_t \xi, \qquad
              w \leftarrow w \, Z_t(f) \, e^{\ell_t(z) - \psi_t(z)}

    The guide is a quadratic psi, the observation terms l are quadratic. Particles are resampled
    (systematically, by w Z) before they move when the effective sample size falls below a share
    of their number. Where the guide is not l itself, a share of resampling and of moves leaves it
    out of account, which bounds the weights. The mean weight estimates the evidence.

    Args:
        form: linear [M, M], bias [M], outer [M, P], inner [P, M] and offset [P] of the map.
        z: Particles [N, M].
        weight: Their log weights [N].
        rng: Source of randomness; it moves on.
        drive: What is added to the map's values [n, M].
        guide: G [n or 1, M, M], g [n, M], Y [n or 1, M, M], a [n, M], H [n or 1, M, M], k [n].
        terms: Score [n, M] and information [n or 1, M, M] of l; None where the guide is l.
        careful: Share that does without the guide, score and information of psi, and a root of
            the process noise [M, M]; None for a guide that is l, or nothing.
        threshold: Share of effective particles below which they are resampled.

    Returns:
        Particles [n, N, M] and log weights [n, N] after every step, and the effective sample
        size by which resampling is decided in every step [n].

    Raises:
        ValueError: If the shapes do not fit together.

    References:
        Pitt and Shephard 1999, doi:10.1080/01621459.1999.10474153;
        Hesterberg 1995, doi:10.1080/00401706.1995.10484303 (defensive mixtures).
    """
    size = np.shape(z)[1]
    arrays = form_arrays(*form, np.empty((size, 0)))
    start, drive, guide, terms, careful, out = _arranged(z, weight, drive, guide, terms, careful)
    _run(arrays, drive, guide, terms, careful, float(threshold), *start, rng, *out)
    return out


def systematic(weight: np.ndarray, place: float, count: int) -> np.ndarray:
    """Systematic resampling: which particle each of the new ones is.

    Args:
        weight: Log weights [N].
        place: A number between 0 and 1.
        count: How many are wanted.

    Returns:
        Particles, in ascending order [count], int64.
    """
    held = np.cumsum(np.exp(weight - weight.max()))
    target = (place + np.arange(count)) * (held[-1] / count)
    return np.minimum(np.searchsorted(held, target, side="right"), len(held) - 1)


def particle_steps_plain(
    form: tuple[np.ndarray, ...],
    z: np.ndarray,
    weight: np.ndarray,
    rng: np.random.Generator,
    *,
    drive: np.ndarray,
    guide: tuple[np.ndarray, ...],
    terms: tuple[np.ndarray, np.ndarray] | None = None,
    careful: tuple[float, np.ndarray, np.ndarray, np.ndarray] | None = None,
    threshold: float = 0.5,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the same as `particle_steps`, from the same random numbers, in plain numpy.

    Args:
        form: The map.
        z: [N, M].
        weight: [N].
        rng: Source of randomness.
        drive: [n, M].
        guide: The six arrays.
        terms: The two arrays, or None.
        careful: Share and three arrays, or None.
        threshold: Share of the particles.

    Returns:
        Particles, log weights and effective sample sizes.
    """
    linear, bias, outer, inner, offset = form
    count, size = z.shape
    share = 0.0 if careful is None else careful[0]
    paths, weights, effective = [], [], []
    for t in range(len(drive)):
        gain, shift, root, slope, bend, level = (_at(part, t) for part in guide)
        f = z @ linear.T + bias + np.maximum(z @ inner.T + offset, 0) @ outer.T + drive[t]
        promise = level + f @ slope - 0.5 * ((f @ bend) * f).sum(1)
        effective.append(effective_size(weight + promise))
        if effective[-1] < threshold * count:
            chosen, weight = resampled(weight, promise, share, rng)
            f, promise = f[chosen], promise[chosen]
        noise = rng.standard_normal((count, size))
        z = f @ gain.T + shift + noise @ root.T
        if share:
            z = np.where((rng.random(count) < share)[:, None], f + noise @ careful[3].T, z)
        value = promise if terms is None else _value(z, _at(terms[0], t), _at(terms[1], t))
        if share:
            ratio = _value(z, _at(careful[1], t), _at(careful[2], t)) - promise
            value = value - np.logaddexp(ratio + np.log1p(-share), np.log(share))
        weight = weight + value
        paths.append(z)
        weights.append(weight)
    return np.array(paths), np.array(weights), np.array(effective)


def _at(part: np.ndarray, t: int) -> np.ndarray:
    return part[t if len(part) > 1 else 0]


def _value(z: np.ndarray, score: np.ndarray, information: np.ndarray) -> np.ndarray:
    return z @ score - 0.5 * ((z @ information) * z).sum(1)


def resampled(
    weight: np.ndarray, promise: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Resamples one filter by weight times promise, but for a share by weight alone.

    Args:
        weight: Log weights [N].
        promise: What the next step promises, in logs [N].
        share: Share that is resampled by weight alone.
        rng: Source of randomness.

    Returns:
        Which particles there are now [N], and their log weights, which keep the evidence [N].
    """
    wanted = weight + promise
    odds = np.exp(wanted - wanted.max())
    odds /= odds.sum()
    if share:
        own = np.exp(weight - weight.max())
        odds = (1 - share) * odds + share * own / own.sum()
    with np.errstate(divide="ignore"):
        odds = np.log(odds)
    chosen = systematic(odds, rng.random(), len(weight))
    return chosen, weight[chosen] - odds[chosen] - np.log(len(weight))


def effective_size(weight: np.ndarray) -> np.ndarray:
    """Effective sample size of log weights [..., N], [...]."""
    w = np.exp(weight - weight.max(-1, keepdims=True))
    return w.sum(-1) ** 2 / (w**2).sum(-1)


@compiled(fastmath=_LOOSE)
def _scores(candidates, weight, x, score):
    """Log weight minus half the squared distance to x; the largest of them."""
    for p in range(weight.size):
        score[p] = weight[p]
    for m in range(x.size):
        row, value = candidates[m], x[m]
        for p in range(weight.size):
            apart = value - row[p]
            score[p] -= 0.5 * apart * apart
    best = score[0]
    for p in range(1, weight.size):
        best = max(best, score[p])
    return best


@compiled
def _draw(candidates, weight, x, place, out):
    score = np.empty(weight.size)
    for s in range(len(x)):
        best = _scores(candidates, weight, x[s], score)
        total = 0.0
        for p in range(weight.size):
            if score[p] > best - _NEGLIGIBLE:
                total += math.exp(score[p] - best)
            score[p] = total
        out[s] = min(np.searchsorted(score, place[s] * total, side="right"), weight.size - 1)


def backward_draws(
    candidates: np.ndarray, weight: np.ndarray, x: np.ndarray, place: np.ndarray
) -> np.ndarray:
    r"""Draws a particle for each later state, in proportion to weight times transition density.

    .. math:: P(i \mid x_s) \propto w_i \, e^{-|x_s - u_i|^2 / 2}

    Args:
        candidates: Where the particles lead to, in units of the noise, u [M, N] (transposed).
        weight: Their log weights [N].
        x: Later states in the same units [S, M].
        place: Numbers between 0 and 1 [S].

    Returns:
        Which particle each of them comes from [S], int64.

    References:
        Godsill, Doucet and West 2004, doi:10.1198/016214504000000151.
    """
    size, count = np.shape(candidates)
    out = np.empty(len(x), dtype=np.int64)
    _draw(
        dense("candidates", candidates, (size, count)), dense("weight", weight, (count,)),
        dense("x", x, (len(x), size)), dense("place", place, (len(x),)), out,
    )  # fmt: skip
    return out


def backward_draws_plain(
    candidates: np.ndarray, weight: np.ndarray, x: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """Computes the same as `backward_draws` in plain numpy.

    Args:
        candidates: [M, N].
        weight: [N].
        x: [S, M].
        place: [S].

    Returns:
        Particles [S].
    """
    score = weight - 0.5 * ((x[:, :, None] - candidates) ** 2).sum(1)
    held = np.exp(score - score.max(1, keepdims=True)).cumsum(1)
    return (held > (place * held[:, -1])[:, None]).argmax(1)
