"""Predictive distributions of observations, as mixtures over latent draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from plssm.errors import CapabilityError, PlssmError, ShapeError
from plssm.observations.base import ObservationModel
from plssm.prediction.classes import class_probabilities, has_classes
from plssm.prediction.predictors import GivenPredictors, Predictors

__all__ = ["Prediction"]

BLOCK = 4_000_000  # numbers of predictors or draws held at a time
DRAWS = 400  # least number of draws of y behind a band or a rank


class Prediction:
    r"""Predictive distribution of one modality: a mixture over latent draws.

    .. math:: p(y_i) = \frac1S \sum_{s=1}^S p(y_i \mid \eta_i^{(s)})

    Everything that is asked of it is computed in blocks of at most 4 million numbers; held are
    only the latent draws or predictors it was made of, and what is returned. Entries beyond the
    last sample of a trial are NaN.

    Labels and ordinal levels have ``probabilities``; the rule for their axes: the channel axis is
    left out where there is one channel. Their ``mean`` is the mean of the class number, which
    says little where classes have no order.

    Args:
        observation: The observation model.
        features: Its predictors for each latent draw ``[S, B, n, K]``.
        times: Times of the samples in seconds, ``[n]``, or ``[B, n]`` where trials differ.
        seed: Seed of the draws of y.

    Example:
        >>> import torch
        >>> from plssm.observations import Gaussian
        >>> model = Gaussian.from_parameters([[1.0]], noise=[0.25])
        >>> made = Prediction(model, torch.zeros(100, 1, 3, 1).double(), np.arange(3.0))
        >>> tuple(made.mean.shape), float(made.moments()[1][0, 0, 0])
        ((1, 3, 1), 0.25)
    """

    def __init__(
        self,
        observation: ObservationModel,
        features: Tensor | Predictors,
        times: np.ndarray,
        *,
        seed: int = 0,
    ) -> None:
        self._observation = observation
        given = isinstance(features, Tensor)
        self._predictors = GivenPredictors(features) if given else features
        self._seed = seed
        self.times = np.asarray(times, dtype=np.float64)
        self._samples: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Where a trial has a sample, ``[B, n]``, bool."""
        counts = torch.from_numpy(self._predictors.counts)
        return torch.arange(self._predictors.samples) < counts[:, None]

    @property
    def samples(self) -> Tensor:
        """One draw of y for each latent draw, ``[S, B, n, N]``."""
        if self._samples is None:
            self._samples = self.sample(self._predictors.draws, seed=self._seed)
        return self._samples

    @property
    def mean(self) -> Tensor:
        """Mean of the predictive distribution, ``[B, n, N]``."""
        if self.has_classes:
            return self.moments()[0]
        model = self._observation
        return self._collect(lambda eta, *_: model.distribution(eta).mean.mean(0)[None])[0]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance by the laws of total expectation and variance, each ``[B, n, N]``."""
        mean, variance = self._collect(lambda eta, *_: torch.stack(self._moments(eta)))
        return mean, variance

    def _moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if self.has_classes:
            p = class_probabilities(self._observation, features).mean(0)
            number = torch.arange(p.shape[-1], dtype=p.dtype)
            mean = p @ number
            return mean, p @ number.square() - mean.square()
        y = self._observation.distribution(features)
        mean, variance = y.mean, y.variance
        centre = mean.mean(0)
        return centre, variance.mean(0) + (mean - centre).square().mean(0)

    @property
    def has_classes(self) -> bool:
        """Whether y is one of a few classes or levels, each with its probability."""
        return has_classes(self._observation)

    @property
    def probabilities(self) -> Tensor:
        """Probability of each class, ``[B, n, K]``, or ``[B, n, N, K]`` with several channels.

        Raises:
            CapabilityError: If the modality has no classes.
        """
        p = self.class_probabilities()
        return p.squeeze(-2) if self._observation.channels == 1 else p

    @property
    def labels(self) -> Tensor:
        """Most probable class, ``[B, n]``, or ``[B, n, N]`` with several channels.

        Raises:
            CapabilityError: If the modality has no classes.
        """
        p = self.probabilities
        missing = torch.isnan(p).any(-1)
        return torch.where(missing, torch.nan, p.argmax(-1).to(p.dtype))

    def class_probabilities(self) -> Tensor:
        """Probability of each class of each channel, always ``[B, n, N, K]``.

        Raises:
            CapabilityError: If the modality has no classes.
        """
        if not self.has_classes:
            raise CapabilityError(
                f"{type(self._observation).__name__} describes numbers, not classes: it has no "
                "probabilities; use .mean, .interval() or .log_prob(y)."
            )
        model = self._observation
        return self._collect(lambda eta, *_: class_probabilities(model, eta).mean(0)[None])[0]

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Draw ``n`` observations ``[n, B, steps, N]``, cycling through the latent draws."""
        generator = torch.Generator().manual_seed(seed)
        return self._collect(lambda eta, *_: self._draw(eta, n, generator), draws=n)

    def _draw(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        index = torch.arange(n) % len(features)
        return self._observation.sample(features[index], seed=generator)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central band from quantiles of the draws, lower and upper edge ``[B, n, N]`` each.

        Raises:
            PlssmError: If ``level`` is not strictly between 0 and 1.
        """
        if not 0.0 < level < 1.0:
            raise PlssmError(f"interval: level must lie between 0 and 1, got {level}.")
        n, generator = self._many(), torch.Generator().manual_seed(self._seed)
        edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = self._collect(
            lambda eta, *_: self._draw(eta, n, generator).to(torch.float64).quantile(edges, dim=0),
            draws=n,
        )
        return low, high

    def log_prob(self, y: Tensor | np.ndarray) -> Tensor:
        """Log predictive density of observations ``[B, n, N]``, entry by entry; NaN stays NaN."""
        value = self._observed(y)

        def mixed(features: Tensor, trials: slice, samples: slice) -> Tensor:
            part = value[trials, samples]
            filled = torch.where(torch.isfinite(part), part, self._observation.fill)
            each = self._observation.distribution(features).log_prob(filled)
            return torch.logsumexp(each, 0, keepdim=True) - math.log(len(features))

        return torch.where(torch.isfinite(value), self._collect(mixed)[0], torch.nan)

    def cdf(self, y: Tensor | np.ndarray, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        r"""Probability of less than y, and of at most y; they differ where y is discrete.

        Exact for classes, and where y is continuous and its distribution has a distribution
        function; otherwise the places of y among at least 400 draws.

        Args:
            y: Observations ``[B, n, N]``; NaN stays NaN.
            seed: Seed of the draws; that of the prediction by default.

        Returns:
            :math:`F(y^-)` and :math:`F(y)`, each ``[B, n, N]``.
        """
        value, n = self._observed(y), self._many()
        generator = torch.Generator().manual_seed(self._seed if seed is None else seed)

        def exact(features: Tensor, trials: slice, samples: slice) -> Tensor:
            part = torch.nan_to_num(value[trials, samples], nan=self._observation.fill)
            if self.has_classes:
                p = class_probabilities(self._observation, features).mean(0)
                number = torch.arange(p.shape[-1], dtype=p.dtype)
                below = (p * (number < part[..., None])).sum(-1)
                return torch.stack([below, below + (p * (number == part[..., None])).sum(-1)])
            upto = self._observation.distribution(features).cdf(part).mean(0)
            return torch.stack([upto, upto])

        def ranked(features: Tensor, trials: slice, samples: slice) -> Tensor:
            draws, part = self._draw(features, n, generator), value[trials, samples]
            below, equal = (draws < part).sum(0), (draws == part).sum(0)
            return torch.stack([below, below + equal + 1]).to(torch.float64) / (n + 1)

        if self.has_classes or self._has_distribution_function():
            edges = self._collect(exact)
        else:
            edges = self._collect(ranked, draws=n)
        below, upto = torch.where(torch.isfinite(value), edges, torch.nan)
        return below, upto

    def _has_distribution_function(self) -> bool:
        """Whether y is continuous and its distribution can say how much lies below it."""
        if not set(self._observation.kinds) & {"continuous", "bold"}:
            return False
        origin = self._observation.bias.new_zeros((1, self._predictors.width))
        with torch.no_grad():
            known = self._observation.distribution(origin)
        return type(known).cdf is not Distribution.cdf

    def pit(self, y: Tensor | np.ndarray, *, seed: int = 0) -> Tensor:
        r"""Probability integral transform, uniform on (0, 1) for a calibrated prediction.

        .. math:: u = F(y^-) + v \, [F(y) - F(y^-)], \qquad v \sim U(0, 1)

        Args:
            y: Observations ``[B, n, N]``; NaN stays NaN.
            seed: Seed of v, and of the draws behind :meth:`cdf` where it needs some.

        Returns:
            ``[B, n, N]``.

        References:
            Czado, Gneiting and Held 2009, doi:10.1111/j.1541-0420.2009.01191.x.
        """
        below, upto = self.cdf(y, seed=seed)
        v = torch.from_numpy(np.random.default_rng(seed).random(tuple(below.shape)))
        return below + v * (upto - below)

    def _many(self) -> int:
        return max(self._predictors.draws, DRAWS)

    def _observed(self, y: Tensor | np.ndarray) -> Tensor:
        """Observations as ``[B, n, N]``; ``[B, n]`` will do for one channel."""
        value = torch.from_numpy(np.array(np.asarray(y), dtype=np.float64))
        if value.ndim == 2 and self._observation.channels == 1:
            value = value[..., None]
        wanted = (self._predictors.trials, self._predictors.samples, self._observation.channels)
        if tuple(value.shape) != wanted:
            raise ShapeError(
                f"Prediction: got observations {tuple(value.shape)}, wanted {wanted} (trials, "
                "samples, channels); pad shorter trials with NaN."
            )
        return value

    def _collect(self, function: Callable[..., Tensor], *, draws: int = 0) -> Tensor:
        """Put ``function(predictors, trials, samples) [L, b, n, ...]`` of all blocks together."""
        source = self._predictors
        each = max(draws, source.draws) * max(source.width, self._observation.channels)
        out: Tensor | None = None
        with torch.no_grad():
            for trials, samples, features in source.blocks(max(BLOCK // each, 1)):
                value = function(features, trials, samples)
                if not value.is_floating_point():
                    value = value.to(torch.float64)
                if out is None:
                    shape = (len(value), source.trials, source.samples, *value.shape[3:])
                    out = torch.full(shape, torch.nan, dtype=value.dtype)
                out[:, trials, samples] = value
        return out

    def __repr__(self) -> str:
        name, made = type(self._observation).__name__, self._predictors
        sizes = f"trials={made.trials}, samples={made.samples}, draws={made.draws}"
        return f"Prediction({name}, {sizes})"
