"""BOLD: a linear read-out of the latent path seen through the haemodynamic response."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, ClassVar, final

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from plssm.errors import CapabilityError, PlssmError, ShapeError
from plssm.observations.bold.convolution import convolve, convolved_covariance, correlate
from plssm.observations.bold.deconvolution import deconvolve, standardised
from plssm.observations.bold.hrf import DoubleGamma, LinearFilter, ResponseFunction
from plssm.observations.bold.hrf_fit import ResponseStatistics
from plssm.observations.bold.sample_band import SampleBand, lags_of
from plssm.observations.bold.scans import check_runs, check_scans
from plssm.observations.clock import scatter
from plssm.observations.gaussian_channels import GaussianChannels, Regression, finite, matrix
from plssm.observations.learning.expected_fit import maximise
from plssm.observations.learning.regressors import Coefficients
from plssm.observations.local import Local

if TYPE_CHECKING:
    from plssm.data import Dataset
    from plssm.data.batch import Modality

__all__ = ["BOLD"]

ROUNDS = 50  # of regression and response in turn, when both are fitted to a known path
LEARN = (False, "shared", "regions")
KERNELS = ("convolution", "states")


@final
class BOLD(GaussianChannels):
    r"""Regional BOLD signals: a linear read-out of the convolved latent path.

    .. math:: x_i = B \, (h * z)_{k(i)} + b + J n_i + \varepsilon_i, \qquad
        (h * z)_t = \sum_{l=0}^{L-1} h_l \, z_{t-l}, \qquad \varepsilon_i \sim N(0, \Gamma)

    with h the haemodynamic response sampled on the latent clock, z zero before the first step
    of a trial, n_i nuisance regressors and Gamma diagonal (variances). The log-density is
    quadratic in the path; its Hessian is block-banded and exact here. Slices that are taken one
    after another are samples with their own clock and masks.

    ``features``, ``feature_moments`` and ``predictive`` take the *seen* state (h * z) of a
    sample, ``features_at`` and ``features_along`` take paths; :meth:`seen_moments` leads from
    the moments of a path to those of the seen states.

    Args:
        channels: Number N of regions.
        tr_seconds: Repetition time, seconds between scans.
        nuisance: Number R of nuisance regressors (motion, drifts).
        hrf: The haemodynamic response; None is the canonical one.
        learn_hrf: False, "shared" (time to peak and undershoot of one response are learned) or
            "regions" (every region has its own). A given ``hrf`` says itself what is learned.
        kernel: How engines that go forward in time carry the past: "convolution" (exact, all
            steps of the response), or "states" (as few linear states per latent state).
        order: Number of these states per latent state.
        bias: Whether there is an intercept b.

    Raises:
        PlssmError: When an option is unknown or does not fit the others.

    References:
        Koppe et al. 2019, doi:10.1371/journal.pcbi.1007263;
        Friston et al. 1998, doi:10.1006/nimg.1997.0306.

    Example:
        >>> model = BOLD.from_parameters(B=[[1.0, 0.5]], noise=[0.1], tr_seconds=3.0)
        >>> model.channels, model.dim, model.memory(3.0), model.memory(0.375)
        (1, 2, 10, 85)
    """

    kinds: ClassVar[tuple[str, ...]] = ("bold",)

    def __init__(
        self,
        channels: int,
        *,
        tr_seconds: float,
        nuisance: int = 0,
        hrf: ResponseFunction | None = None,
        learn_hrf: bool | str = False,
        kernel: str = "convolution",
        order: int = 5,
        bias: bool = True,
    ) -> None:
        super().__init__(channels, nuisance=nuisance, bias=bias)
        if not 0 < tr_seconds < math.inf:
            raise PlssmError(f"BOLD: tr_seconds must be positive, got {tr_seconds!r}")
        for name, value, known in (("learn_hrf", learn_hrf, LEARN), ("kernel", kernel, KERNELS)):
            if value not in known:
                raise PlssmError(f"BOLD: {name} is {value!r}, choose one of {known}")
        if hrf is None:
            regions = self.channels if learn_hrf == "regions" else None
            hrf = DoubleGamma(learn=bool(learn_hrf), regions=regions)
        elif learn_hrf:
            raise PlssmError("BOLD: a given hrf says itself what is learned; leave learn_hrf out")
        if hrf.regions not in (None, self.channels):
            raise ShapeError(
                f"BOLD: the response is of {hrf.regions} regions, the model has {self.channels}"
            )
        self.tr_seconds, self.kernel, self.order = float(tr_seconds), kernel, int(order)
        self.hrf = copy.deepcopy(hrf)

    @classmethod
    def from_parameters(
        cls,
        B: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        noise: ArrayLike,
        tr_seconds: float,
        J: ArrayLike | None = None,
        hrf: ResponseFunction | None = None,
        **options: object,
    ) -> BOLD:
        """Model with known parameters.

        Args:
            B: Weight ``[N, M]``.
            bias: Intercept ``[N]``; None starts it at zero.
            noise: Variance of each region ``[N]`` or one for all.
            tr_seconds: Repetition time.
            J: Nuisance weight ``[N, R]``.
            hrf: The haemodynamic response; None is the canonical one.
            **options: Further arguments of the constructor.

        Returns:
            The model, bound to M latent states.

        Raises:
            ShapeError: When shapes disagree.
            PlssmError: When a value is not finite or a variance is not positive.
        """
        weight = matrix("B", B)
        J = None if J is None else finite("J", J)
        nuisance = 0 if J is None else J.shape[-1]
        model = cls(len(weight), tr_seconds=tr_seconds, nuisance=nuisance, hrf=hrf, **options)
        model.bind(weight.shape[1])
        model._take(weight, bias, J, noise, names=("bias", "J"))
        return model

    @property
    def quadratic(self) -> bool:
        """True: the log-density is quadratic in the latent path."""
        return True

    @property
    def shared(self) -> bool:
        """Whether all regions have the same response."""
        return self.hrf.regions is None

    def memory(self, dt: float) -> int:
        """Number of earlier latent steps a sample depends on: the length of the response."""
        return self.hrf.steps(dt) - 1

    def lag_weights(self, dt: float) -> Tensor:
        """Weights of the states z_t, z_{t-1}, ... in the predictors, ``[N, w+1, M]``."""
        h = self._kernel(dt)
        return h.expand(self.channels, -1)[..., None] * self.weight[:, None]

    def response(self, dt: float) -> LinearFilter:
        """Haemodynamic response as a linear filter of ``order`` states (A, b, c, d).

        Raises:
            CapabilityError: When every region has its own response.
        """
        return self.hrf.state_space(dt, self.order)

    def check(self, data: Dataset, name: str) -> None:
        """Refuse scans that do not fit the repetition time.

        Args:
            data: The dataset.
            name: The modality in it.

        Raises:
            DataError: With the reason and the fix.
        """
        check_scans(data, name, tr_seconds=self.tr_seconds)

    def check_training(self, data: Dataset, name: str) -> None:
        """Refuse to learn from data without scans, or with runs shorter than the response.

        Args:
            data: The dataset.
            name: The modality in it.

        Raises:
            DataError: With the reason and the fix.
        """
        super().check_training(data, name)
        check_runs(data, name, length_seconds=self.hrf.length_seconds)

    def interval(self, dt: float) -> int:
        """Latent steps between scans."""
        return max(round(self.tr_seconds / dt), 1)

    def _kernel(self, dt: float) -> Tensor:
        return self.hrf.kernel(dt).to(self.log_noise)

    def _convolved(self, z: Tensor, dt: float) -> Tensor:
        """What the scanner sees of a path: ``[..., T, M]`` or, by region, ``[..., T, N]``."""
        if self.dim != z.shape[-1]:
            raise ShapeError(f"BOLD reads {self.dim} latent states, got {z.shape[-1]}")
        return convolve(z, self._kernel(dt), weight=None if self.shared else self.weight)

    def _predictors(self, seen: Tensor, covariates: Tensor | None) -> Tensor:
        """Predictors from what :meth:`_convolved` gives at some samples."""
        if self.shared:
            return self.features(seen, covariates)
        return self._with_offset(seen, covariates)

    def _with_offset(self, eta: Tensor, covariates: Tensor | None) -> Tensor:
        eta = eta + self.bias
        if not self.nuisance or covariates is None:
            return eta
        if covariates.shape[-1] != self.nuisance:
            raise ShapeError(
                f"BOLD has {self.nuisance} nuisance regressors, the data have "
                f"{covariates.shape[-1]}"
            )
        return eta + covariates.to(eta.dtype) @ self.nuisance_weight.mT

    def features_at(self, m: Modality, z: Tensor) -> Tensor:
        """Predictors of the samples of a modality (see the base class)."""
        seen = self.at_samples(self._convolved(z, m.dt), m)
        return self._predictors(seen, self.covariates(m))

    def features_along(
        self,
        z: Tensor,
        *,
        clock: Tensor | None = None,
        nuisance: Tensor | None = None,
        dt: float = 1.0,
    ) -> Tensor:
        """Predictors at some steps of latent paths that are zero before their first step.

        Args:
            z: Latent paths ``[..., T, M]`` of consecutive steps.
            clock: Steps of the samples ``[n]``; None means every step.
            nuisance: Nuisance regressors ``[..., n, R]``; None leaves their part out.
            dt: Seconds per latent step.

        Returns:
            ``[..., n, N]``.
        """
        lags = self.hrf.steps(dt)
        if clock is not None and len(clock) * lags <= z.shape[-2]:  # a few samples of a long path
            before = nn.functional.pad(z, (0, 0, lags - 1, 0)).unfold(-2, lags, 1)  # a view
            oldest_first = self.lag_weights(dt).flip(1)
            eta = torch.einsum("...iml,nlm->...in", before[..., clock, :, :], oldest_first)
            return self._with_offset(eta, nuisance)
        seen = self._convolved(z, dt)
        return self._predictors(seen if clock is None else seen[..., clock, :], nuisance)

    def local(self, m: Modality, z: Tensor, *, positive: bool = False) -> Local:
        """Log-density, gradient and banded negative Hessian (see the base class), all exact.

        Args:
            m: The modality (samples ``[B, n, N]``).
            z: Latent path ``[B, T, M]``.
            positive: Changes nothing, the negative Hessian is positive semi-definite.

        Returns:
            The local expansion with curvature ``[B, T, w+1, M, M]``.
        """
        steps = z.shape[-2]
        with torch.no_grad():
            value, gradient, _ = self.derivatives(self.features_at(m, z), m)
            kernel = self._kernel(m.dt)
            if self.shared:
                score = correlate(scatter(gradient @ self.weight, m.clock, steps), kernel)
            else:
                score = correlate(scatter(gradient, m.clock, steps), kernel) @ self.weight
            band = SampleBand.of(m, kernel, steps)
            return Local(value.sum((-2, -1)), score, band.curvature(self.weight, self.noise))

    def _lagged(self, covariance: Tensor | None, dt: float) -> Tensor | None:
        return lags_of(covariance, self.hrf.steps(dt), dt=dt)

    def expected_log_prob(self, m: Modality, mean: Tensor, covariance: Tensor | None) -> Tensor:
        """Expected log-density under a Gaussian path, in closed form.

        Args:
            m: The modality (samples ``[B, n, N]``).
            mean: Latent mean ``[B, T, M]``.
            covariance: Cov(z_t, z_{t+l}) ``[B, T, w+1, M, M]``; None for a known path.

        Returns:
            ``[B]``.
        """
        with torch.no_grad():
            value = self.log_prob(m, mean)
            lagged = self._lagged(covariance, m.dt)
            if lagged is None:
                return value
            band = SampleBand.of(m, self._kernel(m.dt), mean.shape[1])
            return value - 0.5 * band.lost(lagged, self.weight, self.noise)

    def m_step(self, m: Modality, mean: Tensor, covariance: Tensor | None) -> None:
        """Raise the expected log-density over all parameters that are not frozen.

        Weight, intercept and nuisance weight by the normal equations of each region, then the
        response (if it is learned) by L-BFGS, then the noise. Without a learned response this is
        the maximum. The noise has a floor of 1e-5 of the region's variance (lower where it
        started lower).

        Args:
            m: The modality (samples ``[B, n, N]``).
            mean: Latent mean ``[B, T, M]``.
            covariance: Cov(z_t, z_{t+l}) ``[B, T, w+1, M, M]``; None for a known path.
        """
        with torch.no_grad():
            lagged = self._lagged(covariance, m.dt)
            parts = self._regressions(m, mean, lagged)
            self._update_coefficients(parts)
            if self._update_response(m, mean, lagged):
                parts = self._regressions(m, mean, lagged)
            self._update_noise(parts)

    def information(self, m: Modality, z: Tensor) -> tuple[Coefficients, Tensor]:
        """Information about weights, intercepts and nuisance weights (see the base class)."""
        with torch.no_grad():
            places = Coefficients(self, covariates=self.n_covariates > 0)
            grams = torch.cat([part.gram() for part in self._regressions(m, z, None)])
            return places, grams / self.noise.double()[:, None, None]

    def _regressions(self, m: Modality, mean: Tensor, lagged: Tensor | None) -> list[Regression]:
        """Regression of the channels on [h * z; 1; n], one for each kernel."""
        kernel, dim = self._kernel(m.dt), self.dim
        if self.shared:
            seen = convolve(mean, kernel)
        else:
            copies = mean.repeat(1, 1, self.channels)
            seen = convolve(copies, kernel.repeat_interleave(dim, 0))
        seen = self.at_samples(seen, m)
        y, mask = (part.flatten(0, 1).to(seen.dtype) for part in (m.y, m.mask))
        if lagged is None:
            spread = seen.new_zeros(1 if self.shared else self.channels, dim, dim)
        else:
            spread = SampleBand.of(m, kernel, mean.shape[1]).spread(lagged)
        if self.shared:
            return [Regression(y, mask, self._regressors(m, seen).flatten(0, 1), spread)]
        centre = self._regressors(m, seen.unflatten(-1, (self.channels, dim))).flatten(0, 1)
        each = (slice(n, n + 1) for n in range(self.channels))
        return [Regression(y[:, n], mask[:, n], centre[:, n].squeeze(1), spread[n]) for n in each]

    def _update_response(self, m: Modality, mean: Tensor, lagged: Tensor | None) -> bool:
        """Fit the free parameters of the response; whether there are any."""
        free = [p for p in self.hrf.parameters() if p.requires_grad]
        count = int(m.mask.sum())
        if not free or not count:
            return False
        offset = self._with_offset(torch.zeros_like(m.y), self.covariates(m))
        found = ResponseStatistics.of(
            m,
            m.y - offset,
            mean,
            lagged,
            self.weight,
            self.noise,
            lags=self.hrf.steps(m.dt),
            shared=self.shared,
        )
        maximise([lambda: found.value(self.hrf.kernel(m.dt))], free, count=count)
        return True

    def init_from(self, m: Modality, z: Tensor) -> None:
        """Fit the parameters to a known latent path ``[B, T, M]``."""
        self.m_step(m, z, None)
        if not any(p.requires_grad for p in self.hrf.parameters()):
            return
        value = self.log_prob(m, z).sum().item()
        for _ in range(ROUNDS):
            self.m_step(m, z, None)
            before, value = value, self.log_prob(m, z).sum().item()
            if value - before < 1e-6 * int(m.mask.sum()):
                return

    def start_signal(self, m: Modality) -> Tensor:
        """Deconvolved signals ``[B, n, N]``, in step with the latent path rather than delayed.

        Intercept and nuisance are regressed out, every region is standardised, and a Wiener
        filter on the grid of the scans undoes the response.
        """
        with torch.no_grad():
            known = self._regressors(m, m.y[..., :0].to(torch.float64))
            signal = deconvolve(
                m,
                standardised(m, known),
                self.hrf.kernel(self.tr_seconds),
                tr_seconds=self.tr_seconds,
            )
            return signal.to(self.log_noise.dtype)

    def seen_moments(
        self, mean: Tensor, covariance: Tensor | None, *, dt: float
    ) -> tuple[Tensor, Tensor]:
        r"""Moments of the convolved path at every step, from those of the path.

        .. math:: \mathrm{Cov}[(h * z)_t]
            = \sum_{l,l'} h_l h_{l'} \, \mathrm{Cov}(z_{t-l}, z_{t-l'})

        Args:
            mean: Latent mean ``[B, T, M]``, NaN beyond a trial's end.
            covariance: Cov(z_t, z_{t+l}) ``[B, T, w+1, M, M]``; None for a known path.
            dt: Seconds per latent step.

        Returns:
            Mean ``[B, T, M]`` and covariance ``[B, T, M, M]``, what :meth:`predictive` takes.

        Raises:
            CapabilityError: When every region has its own response.
        """
        if not self.shared:
            raise CapabilityError(
                "regions with responses of their own do not see one state; use features_along "
                "of drawn paths"
            )
        with torch.no_grad():
            kernel, lagged = self._kernel(dt), self._lagged(covariance, dt)
            seen = convolve(mean, kernel)
            if lagged is None:
                return seen, seen.new_zeros(*seen.shape, self.dim)
            spread = convolved_covariance(lagged, kernel)
            return seen, torch.where(torch.isfinite(seen)[..., None], spread, torch.nan)
