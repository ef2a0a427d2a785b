r"""Gaussian paths with block-tridiagonal precision: samples, densities, covariances, gradients.

.. math::
    Z \sim N(U^{-1} r, U^{-1}), \quad U = L L^\top, \quad S_t = L_{tt} L_{tt}^\top, \quad
    I_t = L_{tt}^{-1}, \quad G_t = S_t^{-1} U_{t,t+1}

Forward, :math:`S_t = U_{tt} - U_{t-1,t}^\top G_{t-1}`, and :math:`y = L^{-1} r` is carried along.
Backward in time, :math:`\mu_t = I_t^\top y_t - G_t \mu_{t+1}`, and a sample from noise :math:`\xi`
is :math:`z = \mu + e` with :math:`e_t = I_t^\top \xi_t - G_t e_{t+1}`.

The adjoint, with gradients :math:`\bar z^s` in the samples, :math:`\bar\mu` in the mean and
:math:`\bar\ell_t` in :math:`\log|S_t|`: one solve of :math:`L f^s = \bar z^s` forward in time
(and of :math:`L f^0 = \bar\mu`), and backward

.. math::
    \kappa_t^s = I_t^\top f_t^s, \quad
    w_t = I_t^\top \Big( f_t^0 + \textstyle\sum_s f_t^s \Big) - G_t w_{t+1}, \\
    P_t = I_t^\top \Big( \bar\ell_t 1 + \tfrac12 \textstyle\sum_s
    \mathrm{sym}_{\le}(f_t^s \xi_t^{s\top}) \Big) I_t - \textstyle\sum_s
    \mathrm{sym}(\kappa_t^s e_t^{s\top}) + G_t P_{t+1} G_t^\top, \\
    \bar U_{tt} = P_t - \mathrm{sym}(w_t \mu_t^\top), \quad
    \bar U_{t,t+1} = -2 G_t P_{t+1} - \textstyle\sum_s \kappa_t^s e_{t+1}^{s\top}
    - w_t \mu_{t+1}^\top - \mu_t w_{t+1}^\top, \quad \bar r = w,

where :math:`\mathrm{sym}_{\le}(A)` repeats the lower triangle of A above its diagonal. Without
samples and with :math:`\bar\ell = 1` the recursion for P is that of the covariances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from plssm.kernels._blocks import padded
from plssm.kernels._path_loops import (
    adjoint_trials,
    draw_trials,
    quadratic_trials,
    select_trials,
)
from plssm.kernels._path_tangent import tangent_trials
from plssm.kernels._threads import over_trials

__all__ = ["PathFactor", "PathTerms", "gaussian_path_plain", "path_covariances", "path_terms"]


class PathTerms(NamedTuple):
    """What densities and samples of paths are made of."""

    pivots: Tensor  # [B, T], log |S_t|, zero beyond a trial's end
    mean: Tensor  # [B, T, M]
    paths: Tensor  # [S, B, T, M], samples
    forms: Tensor  # [V, B], (z - mean)' U (z - mean) of given paths
    squares: Tensor  # [S, B], sums of squares of the noise up to each trial's end


class PathFactor:
    """Numbers of the factorised precision of a batch, worked out at the first call of `draw`.

    Args:
        shift: r [B, T, M].
        diag: U_tt [B or 1, T or 1, M, M], symmetric; axes of length 1 are shared.
        off: U_{t,t+1} [B or 1, T-1 or 1, M, M], or None where the steps are independent.
        length: [B]; all T when None.
    """

    def __init__(
        self, shift: Tensor, diag: Tensor, off: Tensor | None, length: Tensor | None
    ) -> None:
        self.shape = tuple(shift.shape)
        batch, steps, self.dim = self.shape
        ends = np.full(batch, steps) if length is None else length.detach().cpu().numpy()
        self.coupled = off is not None
        if self.coupled:
            self.length = ends.astype(np.int64)
            self.strides = (*_strides(diag, steps), *_strides(off, steps - 1))
        else:  # every step is a trial of its own
            self.length = (np.arange(steps) < ends[:, None]).reshape(-1).astype(np.int64)
            diag = diag.expand(batch, steps, self.dim, self.dim)
            self.strides = (self.dim**2, 0, 0, 0)
        self.diag, self.off = array(diag), array(off) if self.coupled else np.empty(0)
        self.y = np.array(shift.detach().numpy(), dtype=np.float64, order="C").reshape(-1)
        self.kept = np.empty(batch * steps * 2 * self.dim * padded(self.dim))
        self.pivots = np.empty(batch * steps)
        self.status = np.zeros(len(self.length), dtype=np.int64)
        self.fresh = True

    def draw(self, noise: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws samples.

        Args:
            noise: [S, B, T, M], flat.
            samples: S.

        Returns:
            The mean and the samples' differences from it [1 + S, B, T, M], the samples
            [S, B, T, M], and sums of squares of the noise [S, trials], all flat.
        """
        paths = np.empty((1 + samples) * self.y.size)
        drawn = np.empty(samples * self.y.size)
        norms = np.empty(samples * len(self.length))
        self.run(
            draw_trials, self.fresh, self.kept, self.diag, self.off, self.strides, self.y,
            self.pivots, noise, paths, drawn, norms,
        )  # fmt: skip
        self.fresh = False
        return paths, drawn, norms

    def run(self, kernel: Callable, *arguments: np.ndarray | int | bool | tuple) -> None:
        """Calls a kernel on all trials."""
        arguments = (*arguments, self.length, self.status)
        over_trials(kernel, arguments, length=self.length, m=self.dim)


def path_terms(
    factor: PathFactor,
    shift: Tensor,
    diag: Tensor,
    off: Tensor | None,
    *,
    noise: Tensor | None = None,
    value: Tensor | None = None,
) -> PathTerms:
    """Log pivots, mean, samples and quadratic forms, with one adjoint for all of them.

    A trial whose factorisation failed has zero paths and log pivots of -inf from the failed step
    on. No result and no gradient depends on what lies beyond a trial's end.

    Args:
        factor: Made from the same tensors; keeps the factorisation for further calls.
        shift: r [B, T, M], float64.
        diag: U_tt [B or 1, T or 1, M, M], symmetric; so is the gradient.
        off: U_{t,t+1} [B or 1, T-1 or 1, M, M], or None.
        noise: xi [S, B, T, M], one sample for each.
        value: Paths [V, B, T, M] for quadratic forms.

    Returns:
        The terms.
    """
    empty = shift.new_empty(0, *shift.shape)
    noise = empty if noise is None else noise
    value = empty if value is None else value
    return PathTerms(*_Terms.apply(shift, diag, off, value, noise, factor))


class _Terms(torch.autograd.Function):
    """The compiled passes and their adjoint."""

    @staticmethod
    def forward(ctx, shift, diag, off, value, noise, factor):
        ctx.set_materialize_grads(False)
        ctx.shapes = diag.shape, off.shape if factor.coupled else None
        ctx.factor, ctx.noise, ctx.sizes = factor, array(noise), (len(noise), len(value))
        samples, shape = len(noise), factor.shape
        ctx.paths, drawn, squares = factor.draw(ctx.noise, samples)
        mean = ctx.paths[: factor.y.size]
        ctx.away, ctx.product = np.empty(value.numel()), np.empty(value.numel())
        forms = np.zeros(len(value) * len(factor.length))
        if len(value):
            factor.run(
                quadratic_trials, array(value), mean, factor.diag, factor.off, factor.strides,
                ctx.away, ctx.product, forms,
            )  # fmt: skip
        each = len(factor.length) // shape[0]
        squares = torch.from_numpy(squares).view(samples, shape[0], each).sum(-1)
        ctx.mark_non_differentiable(squares)
        return (
            torch.from_numpy(factor.pivots.copy()).view(shape[:2]),
            torch.from_numpy(mean.copy()).view(shape),
            torch.from_numpy(drawn).view(samples, *shape),
            torch.from_numpy(forms).view(len(value), shape[0], each).sum(-1),
            squares,
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, in_pivots, in_mean, in_paths, in_forms, _):
        shape, values = ctx.factor.shape, ctx.sizes[1]
        in_forms = in_forms[..., None, None] if values and in_forms is not None else None
        lefts = rights = in_value = None
        if in_forms is not None:
            away, product, mean = (
                torch.from_numpy(x).view(-1, *shape)
                for x in (ctx.away, ctx.product, ctx.paths[: ctx.factor.y.size])
            )
            in_value = -2.0 * in_forms * product
            lefts, rights = -in_forms * away, away + 2.0 * mean
        if not any(ctx.needs_input_grad[:3]):
            return None, None, None, in_value, None, None
        shift, diag, off = _adjoint(ctx, in_pivots, in_mean, in_paths, lefts, rights)
        if lefts is not None:
            shift += 2.0 * lefts.sum(0)
        return shift, diag, off, in_value, None, None


def _adjoint(
    ctx: Any,
    in_pivots: Tensor | None,
    in_mean: Tensor | None,
    in_paths: Tensor | None,
    lefts: Tensor | None,
    rights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients in shift, diag and off, without what the quadratic forms add to that in shift."""
    factor, empty = ctx.factor, np.empty(0)
    batch, steps, m = factor.shape
    samples = 0 if in_paths is None else ctx.sizes[0]
    cotangents = torch.empty(1 + samples, batch, steps, m, dtype=torch.float64)
    if in_mean is not None:
        cotangents[0] = in_mean
    if samples:
        cotangents[1:] = in_paths
    if in_pivots is None:
        in_pivots = torch.zeros(batch, steps, dtype=torch.float64)
    shift = torch.empty(batch, steps, m, dtype=torch.float64)
    like_diag, like_off = ctx.shapes
    rows = [like_diag[1] if factor.coupled else steps, like_off[1] if factor.coupled else 0]
    diag, off = (torch.empty(batch, n, m, m, dtype=torch.float64) for n in rows)
    each = (1, 0) if not factor.coupled else rows
    factor.run(
        adjoint_trials, factor.kept, ctx.noise if samples else empty, ctx.paths, array(cotangents),
        int(in_mean is None), array(in_pivots), empty if lefts is None else array(lefts),
        empty if rights is None else array(rights), array(shift), array(diag), each[0],
        array(off), each[1],
    )  # fmt: skip
    return shift, _summed(diag, like_diag), _summed(off, like_off) if factor.coupled else None


def path_covariances(
    factor: PathFactor, diag: Tensor, off: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Covariances Cov(z_t) [B, T, M, M] and Cov(z_t, z_{t+1}) [B, T-1, M, M], differentiable.

    Args:
        factor: Made from the same tensors.
        diag: U_tt [B or 1, T or 1, M, M].
        off: U_{t,t+1} [B or 1, T-1 or 1, M, M], or None.

    Returns:
        Both, zero beyond a trial's end and in a trial whose factorisation failed.
    """
    return _Covariances.apply(diag, off, factor)


class _Covariances(torch.autograd.Function):
    """Selected inverse; its adjoint is its derivative in the direction of the gradient."""

    @staticmethod
    def forward(ctx, diag, off, factor):
        if factor.fresh:
            factor.draw(np.empty(0), 0)
        batch, steps, m = factor.shape
        covariance = torch.empty(batch, steps, m, m, dtype=torch.float64)
        cross = torch.zeros(batch, steps - 1, m, m, dtype=torch.float64)
        lagged = array(cross) if factor.coupled else np.empty(0)
        factor.run(select_trials, factor.kept, array(covariance), lagged)
        ctx.factor = factor
        ctx.shapes = diag.shape, off.shape if factor.coupled else None
        ctx.save_for_backward(covariance)
        return covariance, cross

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, in_covariance, in_cross):
        factor, (covariance,) = ctx.factor, ctx.saved_tensors
        diag = torch.empty_like(covariance)
        off = torch.zeros(in_cross.shape, dtype=torch.float64) if factor.coupled else None
        along = 0.5 * (in_covariance + in_covariance.mT)
        factor.run(
            tangent_trials, factor.kept, array(covariance), array(along),
            array(0.5 * in_cross) if factor.coupled else np.empty(0), array(diag),
            array(off) if factor.coupled else np.empty(0),
        )  # fmt: skip
        like_diag, like_off = ctx.shapes
        return _summed(diag, like_diag), _summed(off, like_off) if factor.coupled else None, None


def gaussian_path_plain(
    shift: Tensor, diag: Tensor, off: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain twin of `path_terms` for trials of equal length: a loop over time.

    Args:
        shift: r [B, T, M].
        diag: U_tt [B, T, M, M].
        off: U_{t,t+1} [B, T-1, M, M].
        noise: [S, B, T, M].

    Returns:
        Log pivots [B, T], mean [B, T, M] and samples [S, B, T, M].
    """
    lowers, couplings, ys = [], [], []
    before, offs = None, [*off.unbind(1), None]
    for block, coupling, right in zip(diag.unbind(1), offs, shift.unbind(1), strict=True):
        if before is not None:
            block = block - before.mT @ before
            right = right - (before.mT @ ys[-1][..., None])[..., 0]
        lower = torch.linalg.cholesky(block)
        lowers.append(lower)
        ys.append(torch.linalg.solve_triangular(lower, right[..., None], upper=False)[..., 0])
        if coupling is not None:
            before = torch.linalg.solve_triangular(lower, coupling, upper=False)
            couplings.append(before)
    wanted, z, path = torch.cat([torch.zeros_like(shift)[None], noise]).unbind(2), None, []
    for t in reversed(range(len(lowers))):
        right = wanted[t] + ys[t]
        if z is not None:
            right = right - (couplings[t] @ z[..., None])[..., 0]
        z = torch.linalg.solve_triangular(lowers[t].mT, right[..., None], upper=True)[..., 0]
        path.append(z)
    both = torch.stack(path[::-1], dim=2)
    pivots = [2.0 * x.diagonal(dim1=-2, dim2=-1).log().sum(-1) for x in lowers]
    return torch.stack(pivots, dim=1), both[0], both[1:]


def _summed(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A gradient summed over the axes that are shared."""
    axes = [i for i, n in enumerate(shape[:2]) if n == 1 and gradient.shape[i] != 1]
    return gradient.sum(axes, keepdim=True) if axes else gradient


def _strides(blocks: Tensor, steps: int) -> tuple[int, int]:
    """Distances between trials and steps in memory, zero where they are shared."""
    size = blocks.shape[2] * blocks.shape[3]
    between = size if blocks.shape[1] == steps and steps > 1 else 0
    return (size * blocks.shape[1] if len(blocks) > 1 else 0), between


def array(tensor: Tensor) -> np.ndarray:
    """A float64 tensor as a flat array, shared where it is contiguous."""
    return tensor.detach().contiguous().numpy().reshape(-1)
