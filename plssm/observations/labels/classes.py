"""Labels: one of K classes (softmax), and binary channels (logistic)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self, final

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from plssm.errors import ShapeError
from plssm.observations.labels.base import LevelModel, rows_and_regressors, set_predictors
from plssm.observations.labels.expectation import SoftmaxExpectation
from plssm.observations.labels.levels import LevelDistribution, pick

if TYPE_CHECKING:
    from plssm.data.batch import Modality

__all__ = ["Bernoulli", "Categorical"]


@final
class Categorical(LevelModel):
    r"""One channel of labels 0 .. K-1, softmax with the last class as reference.

    .. math:: p(y = k) = \frac{e^{\eta_k}}{1 + \sum_{j<K-1} e^{\eta_j}}, \quad k < K-1, \qquad
        p(y = K-1) = \frac{1}{1 + \sum_j e^{\eta_j}}

    Predictors are the K-1 log-odds against the last class. The log-density is concave in them, its
    negative Hessian is diag p - p p'. Moments are those of the class number; for labels the
    probabilities say more.

    Args:
        classes: Number K of classes.
        readout: "linear", "relu" or "identity" (the first K-1 latent states are the predictors).
        nuisance: Number R of nuisance regressors.
        bias: Whether the predictors have intercepts.

    References:
        Kramer et al. 2022, Reconstructing nonlinear dynamical systems from multi-modal time
        series, ICML 2022, arXiv:2111.02922;
        McCullagh & Nelder 1989, Generalized Linear Models, doi:10.1007/978-1-4899-3242-6.

    Example:
        >>> model = Categorical.from_parameters([[1.0, 0.0], [0.0, 1.0]], bias=[0.0, 0.5])
        >>> model.classes, model.channels, model.dim
        (3, 1, 2)
        >>> eta = model.features(torch.zeros(1, 2, dtype=torch.float64))
        >>> [round(p, 3) for p in model.probabilities(eta)[0, 0].tolist()]
        [0.274, 0.452, 0.274]
    """

    kinds: ClassVar[tuple[str, ...]] = ("label",)
    noun: ClassVar[str] = "class"
    mend: ClassVar[str] = "number the classes from 0, or build Categorical with more of them"
    point_expectation = SoftmaxExpectation

    def __init__(
        self, classes: int, *, readout: str = "linear", nuisance: int = 0, bias: bool = True
    ) -> None:
        if int(classes) != classes or classes < 2:
            raise ShapeError(f"Categorical: classes is {classes!r}, wanted a whole number >= 2")
        super().__init__(
            1, predictors=int(classes) - 1, readout=readout, nuisance=nuisance, bias=bias
        )
        self.levels = int(classes)

    @classmethod
    def from_parameters(
        cls,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        nuisance_weight: ArrayLike | None = None,
        readout: str = "linear",
    ) -> Self:
        """Model with known parameters.

        Args:
            weight: ``[K-1, M]``, one row for each class but the last.
            bias: Intercepts ``[K-1]``; None starts them at zero.
            nuisance_weight: ``[K-1, R]``.
            readout: "linear", "relu" or "identity" (then the weight is [I 0]).

        Returns:
            The model, bound to M latent states.

        Raises:
            ShapeError: When shapes disagree.
            PlssmError: When a value is not finite.
        """
        rows, nuisance = rows_and_regressors("Categorical", weight, nuisance_weight)
        model = cls(len(rows) + 1, readout=readout, nuisance=nuisance)
        set_predictors(model, rows, bias, nuisance_weight)
        return model

    @property
    def classes(self) -> int:
        """Number K of classes."""
        return self.levels

    @property
    def reference(self) -> int:
        """The class whose predictor is zero, the last one."""
        return self.levels - 1

    def distribution(self, features: Tensor) -> LevelDistribution:
        """Distribution of the class of each sample, batch shape ``[..., n, 1]``."""
        return LevelDistribution(_log_softmax(features)[..., None, :])

    @property
    def expected_kind(self) -> str:
        """Labels: classes have no mean."""
        return "label"

    def expected_sequence(self, features: Tensor, *, dt: float = 1.0) -> Tensor:  # noqa: ARG002
        """The most probable class of each sample, ``[..., n, 1]``.

        Args:
            features: Predictors ``[..., n, K-1]``.
            dt: Seconds per latent step.
        """
        return self.probabilities(features).argmax(-1).to(features.dtype)

    def masked_log_prob(self, features: Tensor, m: Modality) -> Tensor:
        """Log-density of each entry, zero where nothing was observed (see the base class)."""
        logits = _log_softmax(torch.where(m.mask, features, 0.0))
        return torch.where(m.mask, pick(logits, _filled(m)[..., 0].long())[..., None], 0.0)

    def derivatives(
        self, features: Tensor, m: Modality, *, positive: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Log-density and derivatives in the predictors (see the base class).

        .. math:: g = (c - p)_{1:K-1}, \qquad \Lambda = \mathrm{diag}\, p - p p'
        """
        with torch.no_grad():
            logits = _log_softmax(torch.where(m.mask, features, 0.0))
            label = _filled(m).long()
            value = torch.where(m.mask, pick(logits, label[..., 0])[..., None], 0.0)
            p = logits.exp() * m.mask
            hit = (label == torch.arange(self.predictors, device=label.device)) & m.mask
            gradient = hit.to(p.dtype) - p[..., :-1]
            others = p @ (1 - torch.eye(self.classes, dtype=p.dtype, device=p.device))
            diagonal = (p * others)[..., :-1]  # p (1 - p), without cancellation near p = 1
            if not self.coupled:
                return value, gradient, diagonal
            p = p[..., :-1]
            curvature = -p[..., :, None] * p[..., None, :]
            torch.diagonal(curvature, dim1=-2, dim2=-1).copy_(diagonal)
            return value, gradient, curvature

    def start_signal(self, m: Modality) -> Tensor:
        """Indicators of the classes, centred by their frequency, ``[B, n, K]``.

        With two classes a single column, the indicator of class 0 (whose predictor the model has).
        """
        label = _filled(m).long()
        one_hot = (label == torch.arange(self.classes, device=label.device)).to(m.y.dtype)
        weight = m.mask.to(one_hot.dtype)
        frequency = (one_hot * weight).sum((0, 1)) / weight.sum().clamp_min(1)
        signal = (one_hot - frequency) * weight
        return signal[..., :1] if self.classes == 2 else signal


@final
class Bernoulli(LevelModel):
    r"""Binary channels with a logistic link.

    .. math:: p(y_i = 1) = \sigma(\eta_i) = \frac{1}{1 + e^{-\eta_i}}

    The two-class case of :class:`Categorical` with the sign of the predictor turned round (there
    the predictor is that of class 0), for any number of independent channels: choices, licks,
    spikes in bins too short for two.

    Args:
        channels: Number N of channels.
        readout: "linear", "relu" or "identity".
        nuisance: Number R of nuisance regressors.
        bias: Whether the predictors have intercepts.

    References:
        McCullagh & Nelder 1989, Generalized Linear Models, doi:10.1007/978-1-4899-3242-6.

    Example:
        >>> model = Bernoulli.from_parameters([[2.0]], bias=[-1.0])
        >>> eta = model.features(torch.tensor([[0.5]], dtype=torch.float64))
        >>> model.probabilities(eta).tolist()
        [[[0.5, 0.5]]]
    """

    kinds: ClassVar[tuple[str, ...]] = ("label", "count")
    noun: ClassVar[str] = "value"
    mend: ClassVar[str] = "code the outcomes as 0 and 1, or use Categorical, Ordinal or counts"
    reference: ClassVar[int] = 0  # the level whose predictor is zero
    point_expectation = SoftmaxExpectation

    def __init__(
        self, channels: int, *, readout: str = "linear", nuisance: int = 0, bias: bool = True
    ) -> None:
        super().__init__(channels, readout=readout, nuisance=nuisance, bias=bias)
        self.levels = 2

    @classmethod
    def from_parameters(
        cls,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        nuisance_weight: ArrayLike | None = None,
        readout: str = "linear",
    ) -> Self:
        """Model with known parameters.

        Args:
            weight: ``[N, M]``.
            bias: Intercepts ``[N]``; None starts them at zero.
            nuisance_weight: ``[N, R]``.
            readout: "linear", "relu" or "identity" (then the weight is [I 0]).

        Returns:
            The model, bound to M latent states.

        Raises:
            ShapeError: When shapes disagree.
            PlssmError: When a value is not finite.
        """
        rows, nuisance = rows_and_regressors("Bernoulli", weight, nuisance_weight)
        model = cls(len(rows), readout=readout, nuisance=nuisance)
        set_predictors(model, rows, bias, nuisance_weight)
        return model

    def distribution(self, features: Tensor) -> LevelDistribution:
        """Distribution of each channel, batch shape ``[..., n, N]``."""
        both = torch.stack([-features, features], dim=-1)
        return LevelDistribution(functional.logsigmoid(both))

    def masked_log_prob(self, features: Tensor, m: Modality) -> Tensor:
        """Log-density of each entry, zero where nothing was observed (see the base class)."""
        eta = torch.where(m.mask, features, 0.0)
        signed = torch.where(_filled(m) > 0, eta, -eta)
        return torch.where(m.mask, functional.logsigmoid(signed), 0.0)

    def derivatives(
        self, features: Tensor, m: Modality, *, positive: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Log-density and derivatives in the predictors (see the base class).

        .. math:: g = y - \sigma(\eta), \qquad \Lambda = \sigma(\eta) \sigma(-\eta)
        """
        with torch.no_grad():
            eta = torch.where(m.mask, features, 0.0)
            y = _filled(m).to(eta.dtype)
            p = torch.sigmoid(eta)
            gradient = torch.where(m.mask, y - p, 0.0)
            curvature = torch.where(m.mask, p * torch.sigmoid(-eta), 0.0)
            return self.masked_log_prob(features, m), gradient, curvature


def _log_softmax(features: Tensor) -> Tensor:
    """Log-probabilities of all classes, the last of which has predictor zero."""
    return functional.log_softmax(functional.pad(features, (0, 1)), dim=-1)


def _filled(m: Modality) -> Tensor:
    """Observations with zeros where nothing was observed."""
    return torch.where(m.mask, m.y, 0.0)
