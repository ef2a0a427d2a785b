"""Ordinal scales: levels in order, by cumulative logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from plssm.errors import DataError, ShapeError
from plssm.observations.labels.base import (
    LevelModel,
    finite,
    put,
    rows_and_regressors,
    set_predictors,
)
from plssm.observations.labels.levels import LevelDistribution, pick

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["Ordinal"]

SHARE = 0.5  # count added to every level before thresholds are read off frequencies
TINY_GAP = -20.0  # log gap below which log(1 - exp(-gap)) is a series


class Ordinal(LevelModel):
    r"""Channels of ordered levels 0 .. K-1, by cumulative logits.

    .. math:: P(y_i \le k) = F_{ik} = \sigma(\theta_{ik} - \eta_i), \qquad
        \theta_{i1} < \dots < \theta_{i,K-1}, \qquad
        \theta_{i,k} = \theta_{i,k-1} + e^{b_{ik}}

    The thresholds take the place of an intercept: the predictor has none. The log-density is
    concave in the predictor; its derivatives are F_k + F_{k-1} - 1 and
    -(f_k + f_{k-1}), f = F (1 - F).

    Args:
        channels: Number N of channels.
        levels: Number K of levels, the same for all channels.
        readout: "linear", "relu" or "identity".
        nuisance: Number R of nuisance regressors.

    References:
        McCullagh 1980, Regression models for ordinal data,
        doi:10.1111/j.2517-6161.1980.tb01109.x;
        Brenner et al. 2024, Integrating multimodal data for joint generative modeling of complex
        dynamics, ICML 2024, arXiv:2212.07892.

    Example:
        >>> model = Ordinal.from_parameters([[1.0]], thresholds=[[-1.0, 1.0]])
        >>> eta = model.features(torch.zeros(1, 1, dtype=torch.float64))
        >>> [round(p, 4) for p in model.probabilities(eta)[0, 0].tolist()]
        [0.2689, 0.4621, 0.2689]
    """

    kinds: ClassVar[tuple[str, ...]] = ("ordinal",)
    noun: ClassVar[str] = "level"
    mend: ClassVar[str] = "number the levels from 0, or build Ordinal with more of them"

    def __init__(
        self, channels: int, levels: int, *, readout: str = "linear", nuisance: int = 0
    ) -> None:
        if int(levels) != levels or levels < 2:
            raise ShapeError(f"Ordinal: levels is {levels!r}, wanted a whole number >= 2")
        super().__init__(channels, readout=readout, nuisance=nuisance, bias=False)
        self.levels = int(levels)
        even = torch.arange(1, self.levels, dtype=torch.float64) / self.levels
        thresholds = torch.logit(even).expand(self.channels, -1)
        self._attach("first_threshold", thresholds[:, 0].clone(), True)
        self._attach("log_gaps", thresholds.diff(dim=-1).log(), self.levels > 2)

    @classmethod
    def from_parameters(
        cls,
        weight: ArrayLike,
        thresholds: ArrayLike,
        *,
        nuisance_weight: ArrayLike | None = None,
        readout: str = "linear",
    ) -> Self:
        """Model with known parameters.

        Args:
            weight: ``[N, M]``.
            thresholds: ``[N, K-1]``, increasing along the last axis.
            nuisance_weight: ``[N, R]``.
            readout: "linear", "relu" or "identity" (then the weight is [I 0]).

        Returns:
            The model, bound to M latent states.

        Raises:
            ShapeError: When shapes disagree.
            PlssmError: When a value is not finite.
            DataError: When thresholds are not in order.
        """
        rows, nuisance = rows_and_regressors("Ordinal", weight, nuisance_weight)
        cuts = finite("thresholds", thresholds)
        if cuts.ndim != 2 or len(cuts) != len(rows) or not cuts.shape[1]:
            raise ShapeError(
                f"Ordinal: thresholds are [channels, levels - 1] for {len(rows)} channels, "
                f"got shape {tuple(cuts.shape)}"
            )
        model = cls(len(rows), cuts.shape[1] + 1, readout=readout, nuisance=nuisance)
        set_predictors(model, rows, None, nuisance_weight)
        model.thresholds = cuts
        return model

    @property
    def thresholds(self) -> Tensor:
        """Thresholds in increasing order ``[N, K-1]``; may be set."""
        steps = torch.cat([self.first_threshold[:, None], self.log_gaps.exp()], dim=-1)
        return steps.cumsum(-1)

    @thresholds.setter
    def thresholds(self, value: ArrayLike | Tensor) -> None:
        cuts = finite("thresholds", value)
        gaps = cuts.diff(dim=-1)
        if bool((gaps <= 0).any()):
            channel = int((gaps <= 0).any(-1).nonzero()[0, 0])
            raise DataError(
                "thresholds are not in increasing order",
                axis=f"channel {channel}",
                got=[round(c, 6) for c in cuts[channel].tolist()],
                wanted="each larger than the one before",
                fix="sort them",
            )
        if cuts.shape != (self.channels, self.levels - 1):
            raise ShapeError(
                f"thresholds: wanted shape {(self.channels, self.levels - 1)}, "
                f"got {tuple(cuts.shape)}"
            )
        put("first_threshold", self.first_threshold, cuts[:, 0])
        put("log_gaps", self.log_gaps, gaps.log())

    def distribution(self, features: Tensor) -> LevelDistribution:
        """Distribution of the level of each channel, batch shape ``[..., n, N]``."""
        distance = self.thresholds - features[..., None]
        logits = (
            functional.pad(functional.logsigmoid(distance), (0, 1))
            + functional.pad(functional.logsigmoid(-distance), (1, 0))
            + self._log_widths()
        )
        return LevelDistribution(logits)

    def masked_log_prob(self, features: Tensor, m: Modality) -> Tensor:
        r"""Log-density of each entry, zero where nothing was observed (see the base class).

        .. math:: \log(F_k - F_{k-1}) = \log \sigma(\theta_k - \eta)
            + \log \sigma(\eta - \theta_{k-1}) + \log(1 - e^{\theta_{k-1} - \theta_k})

        which has no cancellation, however far out the predictor is.
        """
        eta = torch.where(m.mask, features, 0.0)
        level, lower, upper = self._around(m)
        value = functional.logsigmoid(upper - eta) + functional.logsigmoid(eta - lower)
        return torch.where(m.mask, value + pick(self._log_widths(), level), 0.0)

    def derivatives(
        self, features: Tensor, m: Modality, *, positive: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Log-density and derivatives in the predictors (see the base class).

        .. math:: g = F_k + F_{k-1} - 1, \qquad \Lambda = f_k + f_{k-1}
        """
        with torch.no_grad():
            eta = torch.where(m.mask, features, 0.0)
            _, lower, upper = self._around(m)
            above, below = torch.sigmoid(eta - upper), torch.sigmoid(lower - eta)
            gradient = below - above
            curvature = above * torch.sigmoid(upper - eta) + below * torch.sigmoid(eta - lower)
            value = self.masked_log_prob(features, m)
            return value, *(torch.where(m.mask, x, 0.0) for x in (gradient, curvature))

    def init_from(self, m: Modality, z: Tensor) -> None:
        """Fit the parameters to a known latent path, thresholds from the level frequencies first.

        Args:
            m: The modality.
            z: Latent path ``[B, T, M]``.
        """
        with torch.no_grad():
            cuts = self._frequency_thresholds(m).to(self.first_threshold)
            if self.first_threshold.requires_grad:
                self.first_threshold.copy_(cuts[:, 0])
            if self.log_gaps.requires_grad:
                self.log_gaps.copy_(cuts.diff(dim=-1).log())
        super().init_from(m, z)

    def _frequency_thresholds(self, m: Modality) -> Tensor:
        """Logits of the cumulative shares of the levels ``[N, K-1]``.

        Half an observation is added to every level, so that levels that never occur get a place.
        """
        level = torch.where(m.mask, m.y, -1.0).long().flatten(0, 1)
        count = torch.stack([(level == k).sum(0) for k in range(self.levels)], dim=-1) + SHARE
        share = count.to(torch.float64) / count.sum(-1, keepdim=True)
        return torch.logit(share.cumsum(-1)[:, :-1])

    def _log_widths(self) -> Tensor:
        """Logarithm of 1 - exp(-gap) for each level ``[N, K]``, 0 for the two outer ones."""
        b = self.log_gaps
        small = b < TINY_GAP
        gap = b.exp()
        exact = torch.log(-torch.expm1(-torch.where(small, 1.0, gap)))
        width = torch.where(small, b - 0.5 * gap, exact)
        return functional.pad(width, (1, 1))

    def _around(self, m: Modality) -> tuple[Tensor, Tensor, Tensor]:
        """Level of each entry and the thresholds below and above it, each ``[B, n, N]``."""
        level = torch.where(m.mask, m.y, 0.0).long()
        cuts = self.thresholds
        end = cuts.new_full((self.channels, 1), torch.inf)
        edges = torch.cat([-end, cuts, end], dim=-1)
        return level, pick(edges, level), pick(edges, level + 1)
