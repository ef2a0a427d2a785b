"""Gaussian distribution of whole latent paths, for Pyro and for bounds written by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from plssm.kernels.gaussian_path import PathFactor, PathTerms, path_covariances, path_terms

__all__ = ["GaussianPath"]

_LOG_2PI = math.log(2.0 * math.pi)


class GaussianPath(TorchDistribution):
    r"""Gaussian over paths whose precision couples neighbouring steps only.

    .. math::
        Z \sim N(U^{-1} r, U^{-1}), \qquad
        \log q(Z) = -\tfrac12 (Z - \mu)^\top U (Z - \mu) + \tfrac12 \log|U|
        - \tfrac{T M}{2} \log 2\pi

    One sample, its density, entropy, mean and covariances cost time linear in the number of
    steps, and everything is differentiable in r and U. The work is done in float64; results have
    the precision that came in. What stands beyond a trial's end is never looked at: there samples
    and entropies are zero, and so are gradients. A trial whose precision is not positive
    definite gets zero paths and infinite log-densities.

    The density of the last sample is known without work, and its gradient is that of
    ``-|xi|^2 / 2 + log|U| / 2``, because what reaches the parameters through the sample cancels.
    Ask for it (and for the entropy) after drawing: then all share one backward pass.

    Args:
        shift: r [B, T, M].
        diag: Diagonal blocks U_tt [B, T, M, M], symmetric. Axes of length 1 are shared, which
            is faster than to expand them; so in `off`.
        off: Blocks U_{t,t+1} right of them [B, T-1, M, M]; None where the steps are independent.
        length: Number of steps of each trial [B], whole numbers; None is T for all.
        generator: Source of randomness; None is torch's own.
        validate_args: Whether values are checked for their shape.

    Raises:
        ValueError: If the shapes do not fit together.

    Example:
        >>> import torch
        >>> from plssm.inference.path_distribution import GaussianPath
        >>> diag = 2.0 * torch.eye(2).expand(3, 5, 2, 2)
        >>> off = -0.5 * torch.eye(2).expand(3, 4, 2, 2)
        >>> path = GaussianPath(torch.ones(3, 5, 2), diag, off)
        >>> path.rsample().shape, path.entropy().shape
        (torch.Size([3, 5, 2]), torch.Size([3]))
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        shift: Tensor,
        diag: Tensor,
        off: Tensor | None = None,
        length: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._work = _Work(shift, diag, off, length, generator)
        batch, steps, dim = shift.shape
        super().__init__(
            torch.Size([batch]), torch.Size([steps, dim]), validate_args=validate_args
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> GaussianPath:
        """The same distribution for more trials, or for several independent sets of all trials.

        Args:
            batch_shape: [*, B], or [*, n] where there is one trial only.

        Returns:
            The distribution; further leading axes are drawn and scored like samples.
        """
        new = self._get_checked_instance(GaussianPath, _instance)
        batch_shape, work = torch.Size(batch_shape), self._work
        if batch_shape[-1:] != self.batch_shape[-1:]:
            if len(batch_shape) == 0 or self.batch_shape[-1] != 1:
                raise ValueError(
                    f"expand: got {tuple(batch_shape)}, wanted {self.batch_shape[-1]} trials last"
                )
            work = work.repeated(batch_shape[-1])
        new._work = work
        super(GaussianPath, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        r"""Draws paths :math:`\mu + L^{-\top} \xi`, differentiable in r and U.

        Args:
            sample_shape: Leading axes S.

        Returns:
            [*S, B, T, M], zero beyond a trial's end.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        drawn = self._work.draw(math.prod(shape[:-3])).view(shape)
        self._work.remember(drawn)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of paths; entries beyond a trial's end do not count.

        Args:
            value: [*S, B, T, M].

        Returns:
            [*S, B].
        """
        wanted = self.batch_shape + self.event_shape
        shape = torch.broadcast_shapes(value.shape[:-3], wanted[:-3]) + wanted[-3:]
        if value.shape[-3:] != shape[-3:]:
            raise ValueError(f"value: got {tuple(value.shape)}, wanted {tuple(wanted)} last")
        work = self._work
        known = work.own_density(value)
        if known is None:
            known = work.density(value.expand(shape).reshape(-1, *shape[-3:]))
        return known.view(shape[:-2]).to(work.dtype)

    def entropy_terms(self) -> Tensor:
        r"""Entropies of every step given the next one, which add up to the entropy.

        .. math::
            H(z_t \mid z_{t+1}) = \tfrac{M}{2} (1 + \log 2\pi) - \tfrac12 \log|S_t|

        Returns:
            [B, T], zero beyond a trial's end.
        """
        work = self._work
        constant = 0.5 * self.event_shape[1] * (1.0 + _LOG_2PI)
        terms = constant * work.inside() - 0.5 * work.terms().pivots
        return terms.to(work.dtype).expand(self.batch_shape + self.event_shape[:1])

    def entropy(self) -> Tensor:
        """Entropy of every trial [B]."""
        work = self._work
        constant = 0.5 * self.event_shape[1] * (1.0 + _LOG_2PI)
        total = constant * work.lengths() - 0.5 * work.terms().pivots.sum(-1)
        return total.to(work.dtype).expand(self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """Mean path [B, T, M]."""
        return self._spread(self._work.terms().mean)

    def covariance(self) -> Tensor:
        """Covariances of the states [B, T, M, M], zero beyond a trial's end."""
        return self._spread(self._work.covariances()[0])

    def cross_covariance(self) -> Tensor:
        """Cov(z_t, z_{t+1}) of neighbouring states [B, T-1, M, M]."""
        return self._spread(self._work.covariances()[1])

    @property
    def variance(self) -> Tensor:
        """Variances of the states [B, T, M]."""
        return self.covariance().diagonal(dim1=-2, dim2=-1)

    def _spread(self, result: Tensor) -> Tensor:
        """A result in the precision that came in, for all axes of the batch."""
        return result.to(self._work.dtype).expand(*self.batch_shape, *result.shape[1:])


class _Work:
    """Parameters in float64, the factorisation, and what the last draw left behind."""

    def __init__(
        self,
        shift: Tensor,
        diag: Tensor,
        off: Tensor | None,
        length: Tensor | None,
        generator: torch.Generator | None,
    ) -> None:
        if shift.ndim != 3:
            raise ValueError(f"shift: got {tuple(shift.shape)}, wanted [B, T, M]")
        batch, steps, dim = shift.shape
        _check("diag", diag, (batch, steps, dim, dim), shared=True)
        if off is not None:
            _check("off", off, (batch, steps - 1, dim, dim), shared=True)
        if length is not None:
            _check("length", length, (batch,))
            if bool(((length < 1) | (length > steps)).any()):
                raise ValueError(f"length: got {length.tolist()}, wanted 1 to {steps} steps")
        self.dtype, self.generator, self.length = shift.dtype, generator, length
        self.shift, self.diag = shift.double(), diag.double()
        self.off = None if off is None else off.double()
        self.factor = PathFactor(self.shift, self.diag, self.off, length)
        self.found: PathTerms | None = None
        self.own: tuple[Tensor, int, Tensor] | None = None
        self.pair: tuple[Tensor, Tensor] | None = None

    def repeated(self, trials: int) -> _Work:
        """The only trial, several times."""
        shift, length = (
            None if x is None else x.expand(trials, *x.shape[1:])
            for x in (self.shift, self.length)
        )
        made = _Work(shift, self.diag, self.off, length, self.generator)
        made.dtype = self.dtype
        return made

    def learns(self) -> bool:
        """Whether results need a gradient in the parameters."""
        given = (self.shift, self.diag, self.off)
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)

    def _terms(self, **given: Tensor) -> PathTerms:
        return path_terms(self.factor, self.shift, self.diag, self.off, **given)

    def terms(self) -> PathTerms:
        """Those of the last draw, so that one backward pass serves all; new ones without any."""
        if self.found is None or (self.learns() and not self.found.pivots.requires_grad):
            self.found = self._terms()
        return self.found

    def draw(self, count: int) -> Tensor:
        """Samples [count, B, T, M]."""
        noise = torch.randn(
            count, *self.shift.shape, dtype=torch.float64, generator=self.generator
        )
        self.found = self._terms(noise=noise)
        return self.found.paths.to(self.dtype)

    def remember(self, drawn: Tensor) -> None:
        """Keeps the density of the samples just drawn."""
        density = self._density(self.found.pivots, self.found.squares)
        self.own = drawn, drawn._version, density

    def own_density(self, value: Tensor) -> Tensor | None:
        """Density of the last samples, if that is what the value is."""
        if self.own is None or self.own[0] is not value or self.own[1] != value._version:
            return None
        # samples drawn without gradients are constants, and then nothing cancels
        constant = value.grad_fn is None and (self.learns() or value.requires_grad)
        return None if constant else self.own[2]

    def density(self, value: Tensor) -> Tensor:
        """Density of paths [V, B, T, M]."""
        if self.found is None:
            self.found = self._terms(value=value.double())
            return self._density(self.found.pivots, self.found.forms)
        forms = self._terms(value=value.double()).forms
        return self._density(self.terms().pivots, forms)

    def _density(self, pivots: Tensor, forms: Tensor) -> Tensor:
        constant = 0.5 * self.shift.shape[2] * _LOG_2PI
        return 0.5 * (pivots.sum(-1) - forms) - constant * self.lengths()

    def lengths(self) -> Tensor:
        """Number of steps of each trial [B]."""
        batch, steps, _ = self.shift.shape
        if self.length is None:
            return torch.full((batch,), float(steps), dtype=torch.float64)
        return self.length.double()

    def inside(self) -> Tensor:
        """1 up to each trial's end [B, T]."""
        return (torch.arange(self.shift.shape[1]) < self.lengths()[:, None]).double()

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Of lag zero and one."""
        if self.pair is None or (self.learns() and not self.pair[0].requires_grad):
            self.pair = path_covariances(self.factor, self.diag, self.off)
        return self.pair


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], *, shared: bool = False) -> None:
    fits = tensor.ndim == len(shape) and all(
        got == wanted or (shared and axis < 2 and got == 1)
        for axis, (got, wanted) in enumerate(zip(tensor.shape, shape, strict=True))
    )
    if not fits:
        raise ValueError(f"{name}: got {tuple(tensor.shape)}, wanted {shape}")
