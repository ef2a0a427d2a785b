"""What models of counts have in common: bins, links, spike history and a start from the data."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from plssm.errors import DataError, PlssmError, ShapeError
from plssm.observations.base import ObservationModel
from plssm.observations.counts.history import HistoryBasis, SpikeHistory
from plssm.observations.counts.rates import make_link
from plssm.observations.counts.statistics import smoothed_counts, totals

if TYPE_CHECKING:
    from plssm.data import Dataset
    from plssm.data.batch import Modality

__all__ = ["CountModel", "copy_into", "known"]


class CountModel(ObservationModel):
    r"""Counts whose mean is a link of the predictor times the width of a bin.

    .. math:: \mu_i = \mathrm{link}(\eta_i) \, \Delta, \qquad
        \eta_i = W r(z_{k(i)}) + b + J n_i + \sum_{l \ge 1} K_l \, y_{i-l}

    A subclass says its distribution and, for filled predictors and counts, the derivatives of its
    log-density (``_terms``).

    Args:
        channels: Number N of channels.
        link: "exp" or "softplus".
        bin_seconds: Width Δ of a bin; with 1 rates are expected counts per bin, else in Hz.
        readout: "linear", "relu" or "identity" (see :class:`ObservationModel`).
        nuisance: Number R of nuisance regressors.
        bias: Whether there is an intercept b.
        history: Basis of the spike-history filters K, None for no history. It needs samples on
            the latent clock. Counts that are not known (masked, or before the trial) enter as
            the channel's mean count.
        coupling: Whether every channel is driven by the past of all channels, else by its own.

    Attributes:
        spike_history: The filters' basis and the expected counts ``[N]`` that stand for unknown
            past ones (zero until :meth:`refresh`); None without a history.
    """

    kinds: ClassVar[tuple[str, ...]] = ("count",)

    def __init__(
        self,
        channels: int,
        *,
        link: str = "exp",
        bin_seconds: float = 1.0,
        readout: str = "linear",
        nuisance: int = 0,
        bias: bool = True,
        history: HistoryBasis | None = None,
        coupling: bool = False,
    ) -> None:
        super().__init__(channels, readout=readout, nuisance=nuisance, bias=bias)
        name = type(self).__name__
        if not (math.isfinite(bin_seconds) and bin_seconds > 0):
            raise PlssmError(f"{name}: bin_seconds is {bin_seconds!r}, wanted seconds > 0")
        if history is not None and not isinstance(history, HistoryBasis):
            raise PlssmError(
                f"{name}: history is {history!r}, wanted a basis such as "
                "RaisedCosine(functions=3, longest_seconds=0.1), or None"
            )
        if coupling and history is None:
            raise PlssmError(f"{name}: coupling=True needs history=, the basis of its filters")
        self.link, self.bin_seconds = make_link(link), float(bin_seconds)
        self.history, self.coupling = history, bool(coupling)
        self.spike_history = (
            None if history is None else SpikeHistory(history, self.channels, self.coupling)
        )

    # ---- what a subclass says -----------------------------------------------------------------
    @abstractmethod
    def _terms(self, eta: Tensor, y: Tensor, positive: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density, gradient and negative second derivative in the predictors, all ``[...]``.

        Args:
            eta: Predictors, finite.
            y: Counts of the same shape.
            positive: Give a curvature >= 0 that is safe for Newton steps.
        """

    def derivatives(
        self, features: Tensor, m: Modality, *, positive: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density and derivatives in the predictors, in closed form (see the base class)."""
        with torch.no_grad():
            if bool(m.mask.all()):
                return self._terms(features, m.y.to(features.dtype), positive)
            eta = torch.where(m.mask, features, 0.0)
            y = torch.where(m.mask, m.y, self.fill).to(eta.dtype)
            value, gradient, curvature = self._terms(eta, y, positive)
            seen = m.mask.to(eta.dtype)
            return value * seen, gradient * seen, curvature * seen

    # ---- known parameters ---------------------------------------------------------------------
    @classmethod
    def _known(
        cls,
        weight: ArrayLike,
        bias: ArrayLike | None,
        nuisance_weight: ArrayLike | None,
        history_weight: ArrayLike | None = None,
        **options: object,
    ) -> Self:
        """Bound model with known parameters of the predictor."""
        w = known("weight", weight)
        if w.ndim != 2:
            raise ShapeError(f"weight is [channels, dim], got shape {tuple(w.shape)}")
        J = None if nuisance_weight is None else known("nuisance_weight", nuisance_weight)
        regressors = 0 if J is None else J.shape[-1]
        model = cls(len(w), nuisance=regressors, **options)
        model.bind(w.shape[1])
        if not model.readout.trainable and not torch.equal(w, model.weight):
            raise ShapeError("with an identity read-out weight must be [I 0]; use 'linear'")
        with torch.no_grad():
            model.weight.copy_(w)
            if bias is not None:
                copy_into("bias", model.bias, known("bias", bias))
            if J is not None:
                copy_into("nuisance_weight", model.nuisance_weight[:, :regressors], J)
        if history_weight is not None:
            model.history_weight = history_weight
        model.initialised = True
        return model

    # ---- checks -------------------------------------------------------------------------------
    def check(self, data: Dataset, name: str) -> None:
        """Refuse, with a spike history, data on their own clock and bins that are too wide.

        Args:
            data: The dataset.
            name: The modality in it.

        Raises:
            DataError: With the reason and the fix.
        """
        if self.history is None:
            return
        for trial in data.trials:
            if trial.clock.get(name) is not None:
                raise _own_clock(modality=name, trial=trial.name)
        lags = self.history.lags(data.dt)
        if self.history.size > lags:
            raise DataError(
                "the spike history has more functions than past bins",
                modality=name,
                got=f"{self.history.size} functions on {lags} bins of {data.dt:g} s",
                wanted="at most one function a bin",
                fix="take fewer functions, a longer history or shorter bins",
            )

    def check_training(self, data: Dataset, name: str) -> None:
        """Refuse data from which this model cannot be learned.

        The intercept of a channel that was observed and is silent throughout would run to minus
        infinity. A channel that was never observed is left as it starts.

        Args:
            data: The dataset.
            name: The modality in it.

        Raises:
            DataError: When the modality is missing throughout, or a channel is silent.
        """
        super().check_training(data, name)
        values = [np.asarray(trial.values[name]) for trial in data.trials]
        seen = sum(np.isfinite(v).sum(0) for v in values)
        silent = np.flatnonzero((seen > 0) & (sum(np.nansum(v, 0) for v in values) == 0))
        if silent.size:
            raise DataError(
                "a channel has no event in the training data",
                modality=name,
                axis=f"channel {silent[0]}",
                got="only zeros" + (f", like {silent.size - 1} more" if silent.size > 1 else ""),
                wanted="at least one count > 0",
                fix=f"drop the channel{'s' if silent.size > 1 else ''} {silent.tolist()}",
            )

    def encoding(self, m: Modality) -> Tensor:
        """Counts and their logarithms ``[B, n, 2 N]``, those of a channel side by side."""
        return torch.stack([m.y, torch.log1p(m.y)], dim=-1).flatten(-2)

    # ---- spike history ------------------------------------------------------------------------
    @property
    def n_covariates(self) -> int:
        """Number of columns of the covariate weight: nuisance, then filtered past counts."""
        return self.nuisance + (0 if self.spike_history is None else self.spike_history.columns)

    @property
    def covariate_mask(self) -> Tensor | None:
        """Which covariate weights ``[N, n_covariates]`` are free; None where all are."""
        if self.spike_history is None or self.coupling:
            return None
        own = self.spike_history.own
        return torch.cat([own.new_ones(self.channels, self.nuisance), own], dim=1)

    @property
    def history_weight(self) -> Tensor:
        """Weights of the history functions: ``[N, J]``, coupled ``[N target, N source, J]``."""
        return self._history().unpack(self.nuisance_weight[:, self.nuisance :])

    @history_weight.setter
    def history_weight(self, value: ArrayLike) -> None:
        packed = self._history().pack(known("history_weight", value))
        with torch.no_grad():
            self.nuisance_weight[:, self.nuisance :] = packed

    def history_filter(self, dt: float) -> Tensor:
        """Effect of one count on later predictors at lags of 1, ..., L bins.

        Args:
            dt: Seconds per bin.

        Returns:
            ``[L, N]`` of every channel on itself; coupled ``[L, N target, N source]``.
        """
        weight = self.history_weight
        return torch.einsum("lj,...j->l...", self.history.values(dt).to(weight), weight)

    def history_drive(
        self, counts: Tensor, *, past: Tensor | None = None, dt: float = 1.0
    ) -> Tensor:
        """Part of the predictors that comes from past counts.

        Args:
            counts: Counts ``[..., T, N]`` of consecutive bins; NaN where unknown.
            past: Counts of the bins before the first one ``[..., t, N]``, oldest first.
            dt: Seconds per bin.

        Returns:
            ``[..., T, N]``, to be added to predictors without history.
        """
        rows = self._history().filtered(counts, dt, past=past)
        return rows @ self._covariate_weight()[:, self.nuisance :].to(rows).mT

    def sample_sequence(
        self,
        features: Tensor,
        seed: int | torch.Generator = 0,
        *,
        past: Tensor | None = None,
        dt: float = 1.0,
    ) -> Tensor:
        """Draw counts bin after bin, each driven by the counts drawn before it.

        Args:
            features: Predictors without history ``[..., T, N]`` (see :meth:`features_along`).
            seed: Seed or generator; the global random state is left alone.
            past: Counts of the bins before the first one ``[..., t, N]``, oldest first; what is
                not given, or NaN, enters as its expected value.
            dt: Seconds per bin.

        Returns:
            ``[..., T, N]``.
        """
        if self.spike_history is None:
            return self.sample(features, seed)
        if isinstance(seed, torch.Generator):
            seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.spike_history.run(
                features,
                lambda eta: self.distribution(eta).sample(),
                self.history_filter(dt).to(features),
                past,
            )

    def expected_sequence(self, features: Tensor, *, dt: float = 1.0) -> Tensor:
        """Expected counts; each bin is driven by the expected counts before it.

        Args:
            features: Predictors without history ``[..., T, N]``.
            dt: Seconds per bin.

        Returns:
            ``[..., T, N]``.
        """
        if self.spike_history is None:
            return super().expected_sequence(features, dt=dt)
        kernel = self.history_filter(dt).to(features)
        return self.spike_history.run(
            features, lambda eta: self.distribution(eta).mean, kernel, None
        )

    def refresh(self, m: Modality) -> None:
        """Set the expected counts that stand for unknown past counts to the observed means.

        Nothing changes without a history, or while its weights are frozen.

        Args:
            m: The training data.
        """
        if self.spike_history is not None and self.nuisance_weight.requires_grad:
            self.spike_history.expect(*totals(m))

    def covariates(self, m: Modality) -> Tensor | None:
        """Nuisance regressors, then filtered past counts ``[B, n, n_covariates]``.

        Column R + n J + j is the past of channel n under function j.
        """
        if self.spike_history is None:
            return m.nuisance
        if m.clock is not None:
            raise _own_clock()
        counts = torch.where(m.mask, m.y, torch.nan)
        rows = self.spike_history.filtered(counts, m.dt)
        given = m.nuisance
        if given is None:
            given = rows.new_zeros((*rows.shape[:-1], self.nuisance))
        return torch.cat([given.to(rows), rows], dim=-1)

    def features(self, z: Tensor, nuisance: Tensor | None = None) -> Tensor:
        """Predictors at latent states (see the base class); other channels' past has no part."""
        if nuisance is None or self.spike_history is None:
            return super().features(z, nuisance)
        if nuisance.shape[-1] != self.n_covariates:
            raise ShapeError(
                f"{type(self).__name__} has {self.n_covariates} covariates with its spike "
                f"history, got {nuisance.shape[-1]}; take those of covariates(m)"
            )
        eta = super().features(z)
        return eta + nuisance.to(eta.dtype) @ self._covariate_weight().mT

    def features_along(
        self,
        z: Tensor,
        *,
        clock: Tensor | None = None,
        nuisance: Tensor | None = None,
        dt: float = 1.0,
    ) -> Tensor:
        """Predictors without history along latent paths (see the base class).

        The history of a simulation is drawn with it: :meth:`sample_sequence`.
        """
        if nuisance is not None:
            extra = self.n_covariates - self.nuisance
            nuisance = torch.nn.functional.pad(nuisance, (0, extra))
        return super().features_along(z, clock=clock, nuisance=nuisance, dt=dt)

    def _covariate_weight(self) -> Tensor:
        mask = self.covariate_mask
        return self.nuisance_weight if mask is None else self.nuisance_weight * mask

    def _history(self) -> SpikeHistory:
        if self.spike_history is None:
            raise PlssmError(f"{type(self).__name__} was built without history=")
        return self.spike_history

    # ---- learning -----------------------------------------------------------------------------
    def m_step(self, m: Modality, mean: Tensor, covariance: Tensor | None) -> None:
        """Raise the expected log-density over the free parameters (see the base class)."""
        self.refresh(m)
        super().m_step(m, mean, covariance)

    def init_from(self, m: Modality, z: Tensor) -> None:
        """Fit to a known latent path ``[B, T, M]``, from constant rates at the mean counts."""
        self.refresh(m)
        total, count = totals(m)
        rate = total.clamp_min(0.5) / (count.clamp_min(1) * self.bin_seconds)
        with torch.no_grad():
            for weight in (self.weight, self.nuisance_weight):
                if weight.requires_grad:
                    weight.zero_()
            if self.bias.requires_grad:
                start = self.link.predictor(rate).to(self.bias)
                self.bias.copy_(torch.where(count > 0, start, self.bias))
        super().init_from(m, z)

    def start_signal(self, m: Modality) -> Tensor:
        """Predictors of the smoothed counts ``[B, n, N]``, from which a fit can start."""
        return self.link.predictor(smoothed_counts(m) / self.bin_seconds)


def _own_clock(**where: str) -> DataError:
    return DataError(
        "a spike history needs one sample on every latent step",
        got="samples on their own clock",
        wanted="the latent clock",
        fix="bin the counts at dt, or build the model without history=",
        **where,
    )


def known(name: str, value: ArrayLike) -> Tensor:
    """A finite float64 tensor out of what a user handed in.

    Raises:
        PlssmError: When a value is not finite.
    """
    given = value.detach().cpu() if isinstance(value, Tensor) else value
    tensor = torch.from_numpy(np.array(np.asarray(given), dtype=np.float64))
    if not bool(torch.isfinite(tensor).all()):
        raise PlssmError(f"{name}: got NaN or infinite values, wanted finite numbers")
    return tensor


def copy_into(name: str, target: Tensor, value: Tensor) -> None:
    """Copy a value into a parameter of the same shape.

    Raises:
        ShapeError: When the shape differs.
    """
    if value.shape != target.shape:
        raise ShapeError(f"{name}: wanted shape {tuple(target.shape)}, got {tuple(value.shape)}")
    with torch.no_grad():
        target.copy_(value)
