r"""Differentiable extended Kalman filter of maps with one layer of hinges.

.. math::
    m^-_t = F(m_{t-1}) + s_t, \quad P^-_t = J P_{t-1} J^\top + \Sigma, \quad
    P_t = (I + P^-_t R_t)^{-1} P^-_t, \quad m_t = m^-_t + P_t g_t, \quad g_t = q_t - R_t m^-_t

    \ell_t = q_t^\top m^-_t - \tfrac12 m^{-\top}_t R_t m^-_t + \tfrac12 g_t^\top P_t g_t
    - \tfrac12 \log |I + P^-_t R_t|

or with m^- and P^- the exact mean and covariance of F's values under N(m_{t-1}, P_{t-1}).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from plssm.kernels._filter_lanes import LANES
from plssm.kernels._filter_passes import adjoint_groups, forward_groups
from plssm.kernels._moment_twin import matched_moments
from plssm.kernels._threads import over_trials

__all__ = ["FilterPass", "Hinges", "filter_plain", "innovation_filter"]

PAIR = 100  # multiplications that the moments of two hinges are worth


class Hinges(NamedTuple):
    r"""A piecewise-linear map :math:`F(z) = L z + b + O \max(0, I z + o)` in tensors.

    Attributes:
        linear: L [D, D].
        bias: b [D].
        outer: O [D, P]; P may be 0.
        inner: I [P, D].
        offset: o [P].
    """

    linear: Tensor
    bias: Tensor
    outer: Tensor
    inner: Tensor
    offset: Tensor

    def __call__(self, z: Tensor, t: int = 0) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Returns F(z) [B, D] and its Jacobian [B, D, D] at states z [B, D] of any step."""
        gates = z @ self.inner.T + self.offset
        after = z @ self.linear.T + self.bias + gates.relu() @ self.outer.T
        on = (gates > 0).to(z.dtype)
        return after, self.linear + (self.outer * on[:, None, :]) @ self.inner


class FilterPass(NamedTuple):
    """What the filter knows at every step; zeros beyond a trial's end.

    Attributes:
        increment: l_t [B, T], log of the integral of exp(q'z - z'Rz/2) under the prediction.
        predicted_mean: m^-_t [B, T, D].
        predicted_covariance: P^-_t [B, T, D, D].
        filtered_mean: m_t [B, T, D].
        filtered_covariance: P_t [B, T, D, D].
    """

    increment: Tensor
    predicted_mean: Tensor
    predicted_covariance: Tensor
    filtered_mean: Tensor
    filtered_covariance: Tensor


def filter_plain(
    step: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    noise: Tensor,
    first_mean: Tensor,
    first_covariance: Tensor,
    score: Tensor,
    information: Tensor,
    drive: Tensor,
    *,
    length: Tensor | None = None,
    updates: Tensor | None = None,
    third: Tensor | None = None,
    matched: bool = False,
) -> FilterPass:
    """Plain twin: a loop over time, for any map, on any device.

    Args:
        step: Returns F(z) and its Jacobian, given z and the number of the step arrived at, such
            as :class:`Hinges`.
        noise: Sigma [D, D], may be singular.
        first_mean: [B, D], of the first state before its data.
        first_covariance: [B, D, D].
        score: q [B, T, D]; zero where nothing is observed.
        information: R [B or 1, T or 1, D, D]; zero where nothing is observed.
        drive: s [B, T, D]; the first one is not used.
        length: [B]; all T when None.
        updates: bool [T], whether a step's data change the state; all when None. Increments are
            taken either way, so that a filter without updates gives the open-loop prediction.
        third: dR_ij/dz_k [B, T, D, D, D] where terms were expanded around the filtered mean itself
            (q changes by dR z, the constant by -z'dR z/2), so that gradients know that the point
            moves with the parameters.
        matched: Whether mean and covariance of the map's values are carried exactly, instead of
            by its Jacobian at the mean; `step` must be :class:`Hinges` then.

    Returns:
        Moments and increments.
    """
    batch, steps, dim = score.shape
    information = information.expand(batch, steps, dim, dim)
    inside = torch.ones(batch, steps, dtype=torch.bool)
    if length is not None:
        inside = torch.arange(steps) < length[:, None]
    m, p, out = first_mean, first_covariance, []
    for t in range(steps):
        before, before_cov = m, p
        if t:
            if matched:
                before, before_cov = matched_moments(*step, m, p)
            else:
                before, jacobian = step(m, t)
                before_cov = jacobian @ p @ jacobian.mT
            before, before_cov = before + drive[:, t], before_cov + noise
        at = None if third is None else third[:, t]
        after, after_cov, gained = _update(before, before_cov, score[:, t], information[:, t], at)
        out.append((gained, before, before_cov, after, after_cov))
        m, p = (after, after_cov) if updates is None or updates[t] else (before, before_cov)
    return FilterPass(*(_blank(torch.stack(x, 1), inside) for x in zip(*out, strict=True)))


def _update(
    mean: Tensor, covariance: Tensor, q: Tensor, r: Tensor, third: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and log increment of one update in canonical form."""
    after = mean + _apply(_posterior(covariance, r), q - _apply(r, mean))
    constant = 0.0
    if third is not None:  # zero, but not its derivative
        point = after.detach()
        change = torch.einsum("bijk,bk->bij", third, after - point)
        r, q = r + change, q + _apply(change, point)
        constant = -0.5 * (point * _apply(change, point)).sum(-1)
    posterior = _posterior(covariance, r)
    g = q - _apply(r, mean)
    value = ((q - 0.5 * _apply(r, mean)) * mean).sum(-1) + 0.5 * (g * _apply(posterior, g)).sum(-1)
    eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    return after, posterior, value + constant - 0.5 * torch.linalg.slogdet(eye + covariance @ r)[1]


def _posterior(covariance: Tensor, r: Tensor) -> Tensor:
    """(I + P R)^-1 P, made symmetric."""
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    posterior = torch.linalg.solve(eye + covariance @ r, covariance)
    return 0.5 * (posterior + posterior.mT)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _blank(values: Tensor, inside: Tensor) -> Tensor:
    """Zeros beyond a trial's end."""
    return torch.where(inside.view(*inside.shape, *[1] * (values.ndim - 2)), values, 0.0)


def innovation_filter(
    hinges: Hinges,
    noise: Tensor,
    first_mean: Tensor,
    first_covariance: Tensor,
    score: Tensor,
    information: Tensor,
    drive: Tensor,
    *,
    length: Tensor | None = None,
    updates: Tensor | None = None,
    third: Tensor | None = None,
    matched: bool = False,
) -> FilterPass:
    """Does what `filter_plain` does for hinges, compiled, on the CPU, with a written adjoint.

    All matrices but those of the hinges must be symmetric, and so are their gradients: the
    symmetric parts of what automatic differentiation of the twin gives. Only once
    differentiable. Worked out in float64, with the time steps of eight trials side by side.
    Nothing depends on what lies beyond a trial's end.

    Args:
        hinges: The map.
        noise: Sigma [D, D], may be singular.
        first_mean: [B, D].
        first_covariance: [B, D, D], may be singular.
        score: q [B, T, D].
        information: R [B or 1, T or 1, D, D].
        drive: s [B, T, D].
        length: [B]; all T when None.
        updates: bool [T]; all when None.
        third: dR_ij/dz_k [B, T, D, D, D], symmetric in i and j, or None. It gets no gradient.
        matched: Whether mean and covariance of the map's values are carried exactly, instead of
            by its Jacobian at the mean.

    Returns:
        Moments and increments in the precision of the arguments. Where an indefinite R leaves no
        positive definite posterior (`filter_plain` goes on with a meaningless one), the trial's
        increments are NaN from there on, and gradients with them; other trials stay as they are.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    tensors = (*hinges, noise, first_mean, first_covariance, score, information, drive)
    kind = functools.reduce(torch.promote_types, (x.dtype for x in tensors))
    _check(hinges, tensors[5:], third)
    found = _Filter.apply(*(x.double() for x in tensors), (length, updates, third, matched))
    return FilterPass(*(x.to(kind) for x in found))


def _check(hinges: Hinges, others: tuple[Tensor, ...], third: Tensor | None) -> None:
    """Refuses shapes that do not fit together."""
    batch, steps, d = others[3].shape
    p = len(hinges.offset)
    few = others[4].shape[:2]
    lead = tuple(n if n == 1 else want for n, want in zip(few, (batch, steps), strict=True))
    wanted = {
        "linear": (d, d), "bias": (d,), "outer": (d, p), "inner": (p, d), "offset": (p,),
        "noise": (d, d), "first_mean": (batch, d), "first_covariance": (batch, d, d),
        "score": (batch, steps, d), "information": (*lead, d, d), "drive": (batch, steps, d),
        "third": (batch, steps, d, d, d),
    }  # fmt: skip
    given = (*hinges, *others, *(() if third is None else (third,)))
    for (name, shape), x in zip(wanted.items(), given, strict=False):
        if tuple(x.shape) != shape:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, wanted {shape}")


def _copy(x: Tensor) -> np.ndarray:
    """A copy, so that a change of the argument does not reach the adjoint."""
    return x.clone(memory_format=torch.contiguous_format).numpy()


class _Run:
    """Arguments as the compiled passes read them: trials last, filled up to whole groups."""

    def __init__(self, tensors: tuple[Tensor, ...], options: tuple, *, keep: bool) -> None:
        linear, bias, outer, inner, offset, noise, mean, covariance, score, information, drive = (
            x.detach() for x in tensors
        )
        length, updates, third, matched = options
        self.matched = True if matched else None
        self.batch, self.steps, self.dim = score.shape
        self.groups = -(-self.batch // LANES)
        self.wide = self.groups * LANES
        self.shared = information.shape[:2]
        linear = torch.cat([linear, bias[:, None]], 1)
        inner = torch.cat([inner, offset[:, None]], 1)
        self.maps = tuple(_copy(x).reshape(-1) for x in (linear, outer, inner, noise))
        self.start = tuple(self.lanes(x[:, None]) for x in (mean, covariance))
        self.signals = tuple(self.lanes(x) for x in (score, information, drive))
        self.length = np.zeros(self.wide, dtype=np.int64)
        self.length[: self.batch] = self.steps if length is None else length.detach().numpy()
        np.minimum(self.length, self.steps, out=self.length)
        self.updates = np.ones(self.steps, dtype=bool)
        if updates is not None:
            self.updates[:] = updates.detach().numpy()
        self.third = np.empty((0, 0, 0, 0))
        if third is not None:
            shape = (self.batch, self.steps, self.dim**2, self.dim)
            self.third = third.detach().double().contiguous().numpy().reshape(shape)
        many = self.dim * (self.dim + 1) * LANES
        keep = keep and not self.matched
        self.kept = torch.empty(self.groups, self.steps if keep else 1, many, dtype=score.dtype)
        self.kept = self.kept.numpy()

    def lanes(self, x: Tensor) -> np.ndarray:
        """A signal [B, T, ...] as [T, rows, B]; axes of length 1 stay."""
        x = x.reshape(*x.shape[:2], -1).permute(1, 2, 0)
        if x.shape[2] in (1, self.wide) and self.batch != 1:
            return _copy(x)
        whole = x.new_zeros(*x.shape[:2], self.wide)
        whole[..., : self.batch] = x
        return whole.numpy()

    def empty(self, steps: int, rows: int) -> np.ndarray:
        """Room for a signal."""
        return torch.empty(steps, rows, self.wide, dtype=torch.float64).numpy()

    def trials(self, x: np.ndarray, *shape: int) -> Tensor:
        """Back to [B, T, ...], as a view."""
        return torch.from_numpy(x).view(len(x), *shape, self.wide).movedim(-1, 0)[: self.batch]

    def call(self, kernel: Callable, *arguments) -> None:
        """Runs a kernel on all groups, shared between threads."""
        ends = self.length.reshape(self.groups, LANES).max(1)
        many = self.dim * (self.dim + 1) ** 2 + self.dim * len(self.maps[1])
        many += (PAIR if self.matched else 0) * (len(self.maps[1]) // self.dim) ** 2
        over_trials(kernel, arguments, length=ends * (many * LANES), m=1)


class _Filter(torch.autograd.Function):
    """The compiled passes."""

    @staticmethod
    def forward(ctx, *arguments):
        ctx.set_materialize_grads(False)
        *tensors, options = arguments
        run = _Run(tensors, options, keep=any(ctx.needs_input_grad))
        d, steps = run.dim, run.steps
        run.out = tuple(run.empty(steps, n) for n in (1, d, d * d, d, d * d))
        run.call(
            forward_groups, run.maps, run.start, run.signals, run.updates, run.length, run.out,
            run.kept, run.matched,
        )  # fmt: skip
        ctx.run = run
        shapes = ((), (d,), (d, d), (d,), (d, d))
        found = [run.trials(x, *shape) for x, shape in zip(run.out, shapes, strict=True)]
        ctx.save_for_backward(*found)
        return tuple(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *given):
        run, needs = ctx.run, ctx.needs_input_grad
        _ = ctx.saved_tensors  # refuses results that were changed in place: the adjoint reads them
        d, steps = run.dim, run.steps
        nothing = np.empty((0, 0, 0))
        given = tuple(nothing if x is None else run.lanes(x) for x in given)
        rows = run.signals[1].shape[0]
        sums = tuple(np.zeros((run.groups, x.size)) for x in run.maps)
        start = run.empty(1, d), run.empty(1, d * d)
        signals = run.empty(steps, d), run.empty(rows, d * d), run.empty(steps, d)
        run.call(
            adjoint_groups, run.maps, run.signals, run.updates, run.length, run.out, run.kept,
            run.matched, run.third, given, (any(needs[:5]), needs[9]), sums, start, signals,
        )  # fmt: skip
        linear, outer, inner, noise = (torch.from_numpy(x.sum(0)) for x in sums)
        linear, inner = linear.view(d, d + 1), inner.view(-1, d + 1)
        to_information = run.trials(signals[1], d, d)
        if run.shared[0] == 1:
            to_information = to_information.sum(0, keepdim=True)
        found = (
            linear[:, :d], linear[:, d], outer.view(-1, d).mT, inner[:, :d], inner[:, d],
            noise.view(d, d), run.trials(start[0], d)[:, 0], run.trials(start[1], d, d)[:, 0],
            run.trials(signals[0], d), to_information, run.trials(signals[2], d), None,
        )  # fmt: skip
        return tuple(x if need else None for x, need in zip(found, needs, strict=True))
