"""What is known about the latent path once the data have been seen."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from plssm.errors import CapabilityError, PlssmError
from plssm.linalg.banded import BandedFactor
from plssm.linalg.block_tridiagonal import ChainFactor

__all__ = [
    "ChainMixture",
    "EvidenceKind",
    "FilteredMarginals",
    "GaussianChain",
    "GaussianMarginals",
    "Posterior",
]

EvidenceKind = Literal[
    "exact", "laplace", "laplace (majorised)", "ekf", "moments", "elbo", "importance", "particle",
    "tempered",
]  # fmt: skip


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))


def _blank(array: np.ndarray, length: np.ndarray, *, last: int = 0) -> np.ndarray:
    """Copy ``array [B, T, ...]`` with NaN from step ``length - last`` of each trial on."""
    out = np.array(array, dtype=np.float64)
    beyond = np.arange(out.shape[1])[None, :] >= (np.asarray(length) - last)[:, None]
    out[beyond] = np.nan
    return out


class Posterior(ABC):
    """Distribution of the latent path of every trial, given data and parameters.

    Attributes:
        mean: Posterior mean ``[B, T, M]``; NaN beyond a trial's end.
        length: Number of latent steps of each trial ``[B]``.
        log_evidence: Log marginal likelihood of each trial's data ``[B]``, in nats.
        evidence_kind: What ``log_evidence`` is: ``"exact"``, ``"laplace"``, ``"ekf"``, ...
    """

    mean: Tensor
    length: Tensor
    log_evidence: Tensor
    evidence_kind: EvidenceKind

    @abstractmethod
    def covariance(self) -> Tensor:
        """Covariance of each latent state, ``[B, T, M, M]``; NaN beyond a trial's end."""

    @abstractmethod
    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Draw ``n`` latent paths, ``[n, B, T, M]``; NaN beyond a trial's end."""

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        r"""Central pointwise band :math:`m \pm q_{(1+level)/2}\,\sqrt{\mathrm{diag}\,P}`.

        Args:
            level: Probability inside the band, between 0 and 1.

        Returns:
            Lower and upper edge, each ``[B, T, M]``.

        Raises:
            PlssmError: If ``level`` is not strictly between 0 and 1.
        """
        if not 0.0 < level < 1.0:
            raise PlssmError(f"interval: level must lie between 0 and 1, got {level}.")
        deviation = torch.diagonal(self.covariance(), dim1=-2, dim2=-1).clamp_min(0).sqrt()
        half = float(ndtri(0.5 + level / 2)) * deviation
        return self.mean - half, self.mean + half

    def __repr__(self) -> str:
        trials, steps, dim = self.mean.shape
        return (
            f"{type(self).__name__}(trials={trials}, steps={steps}, dim={dim}, "
            f"log_evidence={self._evidence_text()} [{self.evidence_kind}])"
        )

    def _evidence_text(self) -> str:
        return f"{float(self.log_evidence.sum()):.4g}"


class GaussianChain(Posterior):
    r"""Gaussian path whose precision is block-banded in time.

    .. math:: q(Z) = \mathcal N(Z;\, Z^*, U^{-1}), \qquad U_{st} = 0 \text{ for } |s-t| > w

    The smoothed posterior of a linear-Gaussian model (where it is exact) and the global Laplace
    approximation of every other one. w is 1 unless a modality remembers earlier states (BOLD).

    Args:
        mean: Posterior mean ``[B, T, M]``.
        factor: Cholesky factor of the precision.
        length: Latent steps of each trial ``[B]``.
        log_evidence: Log evidence of each trial ``[B]``, or a function that returns it, which is
            called when somebody asks for it.
        evidence_kind: What ``log_evidence`` is.
        status: How the mode search of each trial stopped.
    """

    def __init__(
        self,
        mean: np.ndarray,
        factor: ChainFactor | BandedFactor,
        *,
        length: np.ndarray,
        log_evidence: np.ndarray | Callable[[], np.ndarray],
        evidence_kind: EvidenceKind,
        status: tuple[str, ...] = (),
    ) -> None:
        self._length = np.asarray(length, dtype=np.int64)
        self.mean = _tensor(_blank(mean, self._length))
        self.length = torch.from_numpy(self._length.copy())
        self._evidence = log_evidence
        self.evidence_kind = evidence_kind
        self.status = status
        self._factor = factor
        self._path = np.ascontiguousarray(mean, dtype=np.float64)
        self._covariances: tuple[np.ndarray, np.ndarray] | None = None
        self._lags: np.ndarray | None = None

    @cached_property
    def log_evidence(self) -> Tensor:
        """Log evidence of each trial ``[B]``, in nats."""
        if callable(self._evidence):
            self._evidence = self._evidence()  # what it was made from is no longer needed
        return _tensor(self._evidence)

    def _evidence_text(self) -> str:
        return "(not computed yet)" if callable(self._evidence) else super()._evidence_text()

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, covariance and cross-covariance as plain arrays, 0 beyond a trial's end.

        Returns:
            Arrays ``[B, T, M]``, ``[B, T, M, M]`` and ``[B, T-1, M, M]``; not to be written to.
        """
        if self._covariances is None:
            if isinstance(self._factor, BandedFactor):
                self._lags = self._factor.covariances()
                self._covariances = self._lags[:, :, 0], self._lags[:, :-1, 1]
            else:
                self._covariances = self._factor.covariances()
        return self._path, *self._covariances

    def lagged(self, w: int) -> np.ndarray:
        r"""Covariances :math:`\mathrm{Cov}(z_t, z_{t+l})` of up to w steps.

        Args:
            w: Largest lag.

        Returns:
            Array ``[B, T, w+1, M, M]``, 0 where t + l is beyond a trial's end.
        """
        _, covariance, cross = self.arrays()
        if self._lags is not None and w < self._lags.shape[2]:
            return self._lags[:, :, : w + 1]
        if self._lags is not None:
            raise CapabilityError(
                f"covariances up to lag {w} were asked for, the posterior holds "
                f"{self._lags.shape[2] - 1}; draw paths with sample(n) instead."
            )
        return _markov_lags(covariance, cross, w)

    def solve(self, v: np.ndarray) -> np.ndarray:
        r"""Covariance of the whole path times a vector, :math:`U^{-1} v`, ``[B, T, M]``."""
        return np.asarray(self._factor.solve(v))

    def moved(self, step: np.ndarray) -> GaussianChain:
        """The same Gaussian around another path.

        Args:
            step: What is added to the mean ``[B, T, M]``; 0 beyond a trial's end.
        """
        chain = copy.copy(self)
        chain._path = np.ascontiguousarray(self._path + step)
        chain.mean = _tensor(_blank(chain._path, self._length))
        return chain

    def covariance(self) -> Tensor:
        """Covariance of each latent state, ``[B, T, M, M]``; NaN beyond a trial's end."""
        return _tensor(_blank(self.arrays()[1], self._length))

    def cross_covariance(self) -> Tensor:
        r"""Covariance of neighbours :math:`\mathrm{Cov}(z_t, z_{t+1})`, ``[B, T-1, M, M]``."""
        return _tensor(_blank(self.arrays()[2], self._length, last=1))

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Draw ``n`` exact latent paths, ``[n, B, T, M]``; NaN beyond a trial's end."""
        noise = np.random.default_rng(seed).standard_normal((n, *self.mean.shape))
        deviation = np.asarray(self._factor.sample(noise))
        return self.mean[None] + _tensor(deviation)


def _markov_lags(covariance: np.ndarray, cross: np.ndarray, w: int) -> np.ndarray:
    r"""Lags of a Markov chain: :math:`V_{t,t+l} = V_{t,t+1} V_{t+1}^{-1} V_{t+1,t+l}`."""
    trials, steps, dim = covariance.shape[:3]
    out = np.zeros((trials, steps, w + 1, dim, dim))
    out[:, :, 0] = covariance
    if w == 0 or steps == 1:
        return out
    gain = cross @ np.linalg.pinv(covariance[:, 1:], hermitian=True)
    for lag in range(1, min(w, steps - 1) + 1):
        last = steps - lag
        out[:, :last, lag] = gain[:, :last] @ out[:, 1 : last + 1, lag - 1]
    return out


class ChainMixture(Posterior):
    r"""Mixture of Gaussian paths, one for each modality that a mixture of experts has data of.

    .. math:: q(Z) = \sum_e w_e\, \mathcal N(Z;\, m_e, U_e^{-1}), \qquad
        \mathrm{Cov} = \sum_e w_e \big( P_e + (m_e - \bar m)(m_e - \bar m)^\top \big)

    Bands (:meth:`interval`) are those of a Gaussian with the moments of the mixture.

    Args:
        components: Gaussian paths of the same trials.
        weight: Their weights in every trial ``[B, E]``; rows add up to one.
        log_evidence: Log evidence of each trial ``[B]``.
        evidence_kind: What ``log_evidence`` is.
    """

    def __init__(
        self,
        components: Sequence[GaussianChain],
        weight: np.ndarray,
        *,
        log_evidence: np.ndarray,
        evidence_kind: EvidenceKind,
    ) -> None:
        self.components, self.weight = tuple(components), _tensor(weight)
        self.length = components[0].length
        self.status = components[0].status
        self.log_evidence = _tensor(log_evidence)
        self.evidence_kind = evidence_kind
        self.mean = self._average([c.mean for c in self.components])

    def _average(self, values: Sequence[Tensor]) -> Tensor:
        """Weighted mean of what the components have, [B, ...]."""
        total = torch.zeros_like(values[0])
        for weight, value in zip(self.weight.T, values, strict=True):
            total = total + weight.reshape(-1, *[1] * (value.ndim - 1)) * value
        return total

    def covariance(self) -> Tensor:
        """Covariance of each latent state, ``[B, T, M, M]``; NaN beyond a trial's end."""
        apart = [c.mean - self.mean for c in self.components]
        between = [a[..., :, None] * a[..., None, :] for a in apart]
        within = [c.covariance() for c in self.components]
        return self._average([p + b for p, b in zip(within, between, strict=True)])

    def cross_covariance(self) -> Tensor:
        r"""Covariance of neighbours :math:`\mathrm{Cov}(z_t, z_{t+1})`, ``[B, T-1, M, M]``."""
        apart = [c.mean - self.mean for c in self.components]
        between = [a[:, :-1, :, None] * a[:, 1:, None, :] for a in apart]
        within = [c.cross_covariance() for c in self.components]
        return self._average([p + b for p, b in zip(within, between, strict=True)])

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Draw ``n`` exact latent paths, ``[n, B, T, M]``; NaN beyond a trial's end."""
        rng = np.random.default_rng(seed)
        place = torch.from_numpy(rng.random((n, len(self.length), 1)))
        last = len(self.components) - 1
        which = (place > self.weight.cumsum(1)).sum(-1).clamp_max(last)[..., None, None]
        out = torch.empty((n, *self.mean.shape), dtype=torch.float64)
        for e, component in enumerate(self.components):
            drawn = component.sample(n, seed=int(rng.integers(2**62)))
            out = torch.where(which == e, drawn, out)
        return out


@dataclass(repr=False)
class FilteredMarginals(Posterior):
    r"""Causal marginals :math:`p(z_t \mid y_{1:t})` of a Gaussian filter.

    Args:
        mean: Filtered mean ``[B, T, M]``.
        filtered_covariance: Filtered covariance ``[B, T, M, M]``.
        predicted_mean: One-step prediction :math:`E[z_t | y_{1:t-1}]`, ``[B, T, M]``.
        predicted_covariance: Its covariance ``[B, T, M, M]``.
        length: Latent steps of each trial ``[B]``.
        log_evidence: Log evidence of each trial ``[B]``.
        evidence_kind: ``"exact"`` for a linear-Gaussian model, otherwise ``"ekf"``, or
            ``"moments"`` where moments were matched.
        joint: Mean ``[B, T, K M]`` and covariance ``[B, T, K M, K M]`` of the last K latent
            states, newest first; None where the filter keeps only the newest.
    """

    mean: Tensor
    filtered_covariance: Tensor
    predicted_mean: Tensor
    predicted_covariance: Tensor
    length: Tensor
    log_evidence: Tensor
    evidence_kind: EvidenceKind = "ekf"
    status: tuple[str, ...] = field(default=())
    joint: tuple[np.ndarray, np.ndarray] | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "filtered_covariance", "predicted_mean", "predicted_covariance"):
            setattr(self, name, _tensor(_blank(np.asarray(getattr(self, name)), self.length)))
        self.length = torch.as_tensor(self.length, dtype=torch.int64)
        self.log_evidence = torch.as_tensor(self.log_evidence, dtype=torch.float64)

    def covariance(self) -> Tensor:
        """Filtered covariance of each latent state, ``[B, T, M, M]``."""
        return self.filtered_covariance

    def cross_covariance(self) -> Tensor:
        """Refused: a filter does not know how neighbouring states covary.

        Raises:
            CapabilityError: Always; ask for the smoothed posterior (``causal=False``).
        """
        raise CapabilityError(
            "a filtered posterior has marginals only; use causal=False for cross-covariances."
        )

    def histories(self, n: int, *, seed: int = 0) -> Tensor:
        """Draw the last latent states before and at each step, ``[n, B, T, K, M]``, oldest first.

        Draws of one step are joint over its K states; steps before the trial are zero. Draws of
        different steps are independent.

        Args:
            n: Number of draws.
            seed: Seed of the draws.
        """
        dim = self.mean.shape[-1]
        if self.joint is None:
            return self.sample(n, seed=seed)[..., None, :]
        mean, covariance = (torch.from_numpy(a) for a in self.joint)
        trials, steps, size = mean.shape
        out = torch.empty((n, trials, steps, size // dim, dim), dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        for b in range(trials):
            values, vectors = torch.linalg.eigh(covariance[b])
            root = vectors * values.clamp_min(0).sqrt()[:, None, :]
            noise = torch.randn((n, steps, size), generator=generator, dtype=torch.float64)
            draws = mean[b] + torch.einsum("tij,stj->sti", root, noise)
            out[:, b] = draws.unflatten(-1, (-1, dim)).flip(-2)
            out[:, b, int(self.length[b]) :] = torch.nan
        return out

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Draw ``n`` independent states per step, ``[n, B, T, M]``.

        The filter gives marginals only, so draws of different steps are independent.
        """
        noise = _tensor(np.random.default_rng(seed).standard_normal((n, *self.mean.shape)))
        filled = torch.nan_to_num(self.filtered_covariance)
        eye = 1e-12 * torch.eye(filled.shape[-1], dtype=filled.dtype)
        root = torch.linalg.cholesky(filled + eye * (1 + filled.diagonal(dim1=-2, dim2=-1).max()))
        return self.mean[None] + torch.einsum("btij,nbtj->nbti", root, noise)


@dataclass(repr=False)
class GaussianMarginals(Posterior):
    r"""Smoothed marginals :math:`p(z_t \mid y_{1:T})` of a Gaussian smoother.

    Args:
        mean: Smoothed mean ``[B, T, M]``.
        marginal_covariance: Smoothed covariance ``[B, T, M, M]``.
        lag_covariance: Cov(z_t, z_{t+1}) ``[B, T-1, M, M]``.
        length: Latent steps of each trial ``[B]``.
        log_evidence: Log evidence of each trial ``[B]``.
        evidence_kind: ``"exact"`` for a linear-Gaussian model, otherwise ``"ekf"``, or
            ``"moments"`` where moments were matched.
        status: How the smoother of each trial stopped.
    """

    mean: Tensor
    marginal_covariance: Tensor
    lag_covariance: Tensor
    length: Tensor
    log_evidence: Tensor
    evidence_kind: EvidenceKind = "ekf"
    status: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        length = np.asarray(self.length)
        self.mean = _tensor(_blank(np.asarray(self.mean), length))
        self.marginal_covariance = _tensor(_blank(np.asarray(self.marginal_covariance), length))
        self.lag_covariance = _tensor(_blank(np.asarray(self.lag_covariance), length, last=1))
        self.length = torch.as_tensor(self.length, dtype=torch.int64)
        self.log_evidence = torch.as_tensor(self.log_evidence, dtype=torch.float64)

    def covariance(self) -> Tensor:
        """Covariance of each latent state, ``[B, T, M, M]``."""
        return self.marginal_covariance

    def cross_covariance(self) -> Tensor:
        r"""Covariance of neighbours :math:`\mathrm{Cov}(z_t, z_{t+1})`, ``[B, T-1, M, M]``."""
        return self.lag_covariance

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Refused: marginals do not say how distant states covary.

        Raises:
            CapabilityError: Always; ask for ``method="laplace"``.
        """
        raise CapabilityError(
            "this posterior holds marginals, not whole paths; use method='laplace' to draw paths."
        )
