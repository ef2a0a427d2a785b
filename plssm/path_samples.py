"""Posteriors that are draws: whole paths, and states of a filter."""

from __future__ import annotations

from abc import ABC
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from plssm.errors import CapabilityError, PlssmError
from plssm.posterior import EvidenceKind, Posterior

__all__ = ["PathSamples", "StateSamples"]


def _blank(array: np.ndarray, length: np.ndarray, *, axis: int, last: int = 0) -> Tensor:
    """A tensor of the array with NaN beyond each trial's end; time is the axis after the trial."""
    out = np.array(array, dtype=np.float64)
    beyond = np.arange(out.shape[axis + 1]) >= (np.asarray(length) - last)[:, None]
    out[(slice(None),) * axis + (beyond,)] = np.nan
    return torch.from_numpy(out)


class _Samples(Posterior, ABC):
    """What posteriors made of draws have in common."""

    def __init__(
        self,
        draws: np.ndarray,
        *,
        length: np.ndarray,
        log_evidence: np.ndarray,
        evidence_error: np.ndarray,
        evidence_kind: EvidenceKind,
        effective: np.ndarray,
        status: tuple[str, ...],
    ) -> None:
        self._length = np.asarray(length, dtype=np.int64)
        self._draws = _blank(draws, self._length, axis=1)
        self.length = torch.from_numpy(self._length.copy())
        self.log_evidence = torch.from_numpy(np.array(log_evidence, dtype=np.float64))
        self.evidence_error = torch.from_numpy(np.array(evidence_error, dtype=np.float64))
        self.effective = _blank(effective, self._length, axis=0)
        self.evidence_kind = evidence_kind
        self.status = status

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central pointwise band between two quantiles of the draws.

        Args:
            level: Probability inside the band, between 0 and 1.

        Returns:
            Lower and upper edge, each ``[B, T, M]``.

        Raises:
            PlssmError: If ``level`` is not strictly between 0 and 1.
        """
        if not 0.0 < level < 1.0:
            raise PlssmError(f"interval: level must lie between 0 and 1, got {level}.")
        filled = np.nan_to_num(self._draws.numpy())
        edges = np.quantile(filled, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        low, high = (_blank(edge, self._length, axis=0) for edge in edges)
        return low, high


class PathSamples(_Samples):
    r"""Equally likely draws of whole latent paths.

    .. math:: p(Z \mid Y) \approx \frac1S \sum_{s=1}^S \delta(Z - Z^{(s)})

    Args:
        paths: The draws ``[S, B, T, M]``.
        length: Latent steps of each trial ``[B]``.
        log_evidence: Log evidence of each trial ``[B]``.
        evidence_error: Its standard error ``[B]``; NaN where it is not known.
        evidence_kind: What ``log_evidence`` is.
        effective: Effective number of particles at each step ``[B, T]``.
        status: How the sampler of each trial fared.

    Attributes:
        paths: The draws ``[S, B, T, M]``; NaN beyond a trial's end.
        mean: Their mean ``[B, T, M]``.

    Example:
        >>> paths = np.array([0.0, 2.0, 4.0]).reshape(3, 1, 1, 1)
        >>> posterior = PathSamples(paths, length=[1], log_evidence=[0.0])
        >>> posterior.mean.item(), posterior.covariance().item()
        (2.0, 4.0)
    """

    def __init__(
        self,
        paths: np.ndarray,
        *,
        length: np.ndarray,
        log_evidence: np.ndarray,
        evidence_error: np.ndarray | None = None,
        evidence_kind: EvidenceKind = "particle",
        effective: np.ndarray | None = None,
        status: tuple[str, ...] = (),
    ) -> None:
        count, trials, steps, _ = paths.shape
        super().__init__(
            paths,
            length=length,
            log_evidence=log_evidence,
            evidence_error=np.full(trials, np.nan) if evidence_error is None else evidence_error,
            evidence_kind=evidence_kind,
            effective=np.full((trials, steps), count) if effective is None else effective,
            status=status,
        )
        self.mean = self._draws.mean(0)

    @property
    def paths(self) -> Tensor:
        """The draws ``[S, B, T, M]``; NaN beyond a trial's end."""
        return self._draws

    @cached_property
    def _apart(self) -> Tensor:
        return (self._draws - self.mean) / max(len(self._draws) - 1, 1) ** 0.5

    def covariance(self) -> Tensor:
        """Covariance of each latent state, ``[B, T, M, M]``; NaN beyond a trial's end."""
        return torch.einsum("sbti,sbtj->btij", self._apart, self._apart)

    def cross_covariance(self) -> Tensor:
        r"""Covariance of neighbours :math:`\mathrm{Cov}(z_t, z_{t+1})`, ``[B, T-1, M, M]``."""
        return torch.einsum("sbti,sbtj->btij", self._apart[:, :, :-1], self._apart[:, :, 1:])

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Draw ``n`` of the paths, ``[n, B, T, M]``; NaN beyond a trial's end.

        Up to as many as there are, all are different; beyond that they repeat.
        """
        rng = np.random.default_rng(seed)
        count = len(self._draws)
        rounds = [rng.permutation(count) for _ in range(-(-n // count))]
        chosen = np.concatenate([*rounds, np.empty(0, dtype=np.int64)])[:n]
        return self._draws[torch.from_numpy(chosen)]


class StateSamples(_Samples):
    r"""Draws of a filter's states, equally likely in every step.

    .. math:: p(z_t \mid y_{1:t}) \approx \frac1S \sum_{s=1}^S \delta(z_t - z_t^{(s)})

    Mean and covariance are those of all weighted particles.

    Args:
        states: Draws ``[S, B, T, M]``, of every step on its own.
        mean: Filtered mean ``[B, T, M]``.
        covariance: Filtered covariance ``[B, T, M, M]``.
        length: Latent steps of each trial ``[B]``.
        log_evidence: Log evidence of each trial ``[B]``.
        evidence_error: Its standard error ``[B]``; NaN where it is not known.
        evidence_kind: What ``log_evidence`` is.
        effective: Effective number of particles at each step ``[B, T]``.
        status: How the filter of each trial fared.
        histories: Draws of the last K states up to each step ``[S, B, T, K, M]``, oldest first;
            None where only the newest is known.
    """

    def __init__(
        self,
        states: np.ndarray,
        *,
        mean: np.ndarray,
        covariance: np.ndarray,
        length: np.ndarray,
        log_evidence: np.ndarray,
        evidence_error: np.ndarray,
        evidence_kind: EvidenceKind,
        effective: np.ndarray,
        status: tuple[str, ...] = (),
        histories: np.ndarray | None = None,
    ) -> None:
        super().__init__(
            states,
            length=length,
            log_evidence=log_evidence,
            evidence_error=evidence_error,
            evidence_kind=evidence_kind,
            effective=effective,
            status=status,
        )
        self.mean = _blank(mean, self._length, axis=0)
        self._covariance = _blank(covariance, self._length, axis=0)
        joint = None if histories is None else _blank(histories, self._length, axis=1)
        self._histories = self._draws[..., None, :] if joint is None else joint

    def covariance(self) -> Tensor:
        """Filtered covariance of each latent state, ``[B, T, M, M]``."""
        return self._covariance

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
        rng = np.random.default_rng(seed)
        count, trials, steps = self._histories.shape[:3]
        every = np.tile(np.arange(count)[:, None, None], (1, trials, steps))
        rounds = [rng.permuted(every, axis=0) for _ in range(-(-n // count))]
        chosen = torch.from_numpy(np.concatenate([*rounds, every[:0]])[:n])
        return self._histories[chosen, torch.arange(trials)[:, None], torch.arange(steps)]

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Draw ``n`` independent states per step, ``[n, B, T, M]``.

        The filter gives marginals only, so draws of different steps are independent.
        """
        return self.histories(n, seed=seed)[..., -1, :]
