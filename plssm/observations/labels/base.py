"""What labels, binary channels and ordinal scales share: a finite number of levels."""

from __future__ import annotations

from abc import ABC
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from plssm.errors import DataError, PlssmError, ShapeError
from plssm.observations.base import ObservationModel

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from plssm.data import Dataset
    from plssm.data.batch import Modality

__all__ = [
    "LevelModel",
    "finite",
    "put",
    "rows_and_regressors",
    "set_predictors",
    "with_unseen_levels",
]


class LevelModel(ObservationModel, ABC):
    """Observation model of channels with the levels 0 .. K-1.

    A level that never occurs in the training data would get probability zero, by parameters that
    run to infinity. M-step and start therefore see it once in each channel where it is missing, at
    the average latent state: the fit is a penalised one, and such levels stay possible. Where all
    levels occur nothing is added.

    Attributes:
        levels: Number K of levels.
        noun: What a level is called in messages.
        mend: What to do about data with levels beyond those of the model.
    """

    noun: ClassVar[str]
    mend: ClassVar[str]
    levels: int

    @property
    def concave(self) -> bool:
        """Whether the log-density is concave in the predictors: always."""
        return True

    def probabilities(self, features: Tensor) -> Tensor:
        """Probability of each level.

        Args:
            features: Predictors ``[..., n, predictors]``.

        Returns:
            ``[..., n, N, K]``.
        """
        return self.distribution(features).probs

    def check(self, data: Dataset, name: str) -> None:
        """Refuse levels beyond those of the model, hidden entries included.

        Args:
            data: The dataset.
            name: The modality in it.

        Raises:
            DataError: Naming the trial, the first fault and the fix.
        """
        for trial in data.trials:
            for values in (trial.values[name], trial.hidden.get(name)):
                if values is None:
                    continue
                good = (values >= 0) & (values < self.levels) & (values == np.floor(values))
                wrong = np.argwhere(~np.isnan(values) & ~good)
                if not len(wrong):
                    continue
                sample, channel = wrong[0]
                raise DataError(
                    f"{self.noun} out of range",
                    modality=name,
                    trial=trial.name,
                    axis=f"sample {sample}, channel {channel}",
                    got=f"{values[sample, channel]:g}",
                    wanted=f"whole numbers from 0 to {self.levels - 1}",
                    fix=self.mend,
                )

    def check_training(self, data: Dataset, name: str) -> None:
        """Refuse training data in which a channel never changes.

        Args:
            data: The dataset.
            name: The modality in it.

        Raises:
            DataError: Naming the channel, the only level it has and the fix.
        """
        super().check_training(data, name)
        stacked = np.concatenate([trial.values[name] for trial in data.trials])
        for channel, column in enumerate(stacked.T):
            seen = np.unique(column[~np.isnan(column)])
            if len(seen) > 1:
                continue
            raise DataError(
                f"only one {self.noun} in the training data" if len(seen) else "no observed value",
                modality=name,
                axis=f"channel {channel}",
                got=f"{self.noun} {seen[0]:g} everywhere" if len(seen) else "NaN everywhere",
                wanted="at least two that occur",
                fix="train on trials where it varies, or leave it out of the model",
            )

    def encoding(self, m: Modality) -> Tensor:
        """Indicators of the levels ``[B, n, N K]``, those of a channel side by side."""
        level = torch.arange(self.levels, device=m.y.device)
        return (m.y[..., None] == level).to(m.y.dtype).flatten(-2)

    def m_step(self, m: Modality, mean: Tensor, covariance: Tensor | None) -> None:
        """Raise the expected log-density, with unseen levels seen once (see the base class).

        Args:
            m: The modality (samples ``[B, n, N]``).
            mean: Latent mean ``[B, T, M]``.
            covariance: Latent covariance ``[B, T, M, M]``; None for a known path.
        """
        more = with_unseen_levels(self, m, mean, covariance)
        if more is None:
            super().m_step(m, mean, covariance)
            return
        before = float(self.expected_log_prob(m, mean, covariance).sum())
        kept = [p.detach().clone() for p in self.parameters()]
        super().m_step(*more)
        if float(self.expected_log_prob(m, mean, covariance).sum()) < before:
            with torch.no_grad():
                for p, old in zip(self.parameters(), kept, strict=True):
                    p.copy_(old)

    def init_from(self, m: Modality, z: Tensor) -> None:
        """Fit to a known latent path ``[B, T, M]``, with unseen levels seen once."""
        more = with_unseen_levels(self, m, z, None)
        if more is not None:
            m, z, _ = more
        super().init_from(m, z)


def with_unseen_levels(
    model: LevelModel, m: Modality, mean: Tensor, covariance: Tensor | None
) -> tuple[Modality, Tensor, Tensor | None] | None:
    """Data with one more observation of every level that a channel lacks.

    The observations stand after the end of the first trial, at the average of the latent states
    (and nuisance regressors) of the observed samples.

    Args:
        model: The observation model.
        m: The modality (samples ``[B, n, N]``).
        mean: Latent mean ``[B, T, M]``.
        covariance: Latent covariance ``[B, T, M, M]`` or None.

    Returns:
        Modality, mean and covariance with further samples and latent steps; None where every
        channel with data has all levels.
    """
    level = torch.where(m.mask, m.y, -1.0).long().flatten(0, 1)
    seen = torch.stack([(level == k).any(0) for k in range(model.levels)])
    lacking = ~seen & seen.any(0)
    unseen = lacking.any(1).nonzero()[:, 0]
    extra = len(unseen)
    if not extra:
        return None
    trials, samples, channels = m.y.shape
    steps, rows = mean.shape[1], m.mask.any(-1)
    grid = torch.arange(max(samples, extra), device=m.y.device)
    clock = grid[:samples].expand(trials, -1) if m.clock is None else m.clock
    y = unseen.to(m.y.dtype)[None, :, None].expand(trials, extra, channels)
    mask = torch.zeros_like(y, dtype=torch.bool)
    mask[0] = lacking[unseen]
    nuisance = m.nuisance
    if nuisance is not None:
        nuisance = _with_average(nuisance, nuisance[rows].mean(0), extra)
    more = replace(
        m,
        y=torch.cat([torch.where(m.mask, m.y, 0.0), y], 1),
        mask=torch.cat([m.mask, mask], 1),
        clock=torch.cat([clock, (steps + grid[:extra]).expand(trials, -1)], 1),
        nuisance=nuisance,
    )
    centre = model.at_samples(mean, m)[rows].mean(0)
    if covariance is not None:
        covariance = _with_average(covariance, torch.zeros_like(covariance[0, 0]), extra)
    return more, _with_average(mean, centre, extra), covariance


def _with_average(values: Tensor, average: Tensor, extra: int) -> Tensor:
    """Append the same entry several times along the second axis."""
    shape = (values.shape[0], extra, *values.shape[2:])
    return torch.cat([values, average.expand(shape)], dim=1)


def finite(name: str, value: ArrayLike | Tensor) -> Tensor:
    """A parameter given by a user as a float64 tensor of its own.

    Args:
        name: What the error message calls it.
        value: Numbers.

    Raises:
        PlssmError: When a value is not finite.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    tensor = torch.from_numpy(np.array(value, dtype=np.float64))
    if not bool(torch.isfinite(tensor).all()):
        raise PlssmError(f"{name}: got NaN or infinite values, wanted finite numbers")
    return tensor


def put(name: str, target: Tensor, value: ArrayLike | Tensor) -> None:
    """Copy a parameter given by a user into its place.

    Args:
        name: What the error message calls it.
        target: The parameter or buffer.
        value: Numbers of the same shape.

    Raises:
        ShapeError: When the shape is another one.
    """
    tensor = finite(name, value)
    if tensor.shape != target.shape:
        raise ShapeError(f"{name}: wanted shape {tuple(target.shape)}, got {tuple(tensor.shape)}")
    with torch.no_grad():
        target.copy_(tensor)


def rows_and_regressors(
    model: str, weight: ArrayLike | Tensor, nuisance_weight: ArrayLike | Tensor | None
) -> tuple[Tensor, int]:
    """Weight ``[K, M]`` that a user gives to a model, and the number of nuisance regressors.

    Args:
        model: Name of the model's class.
        weight: ``[K, M]``.
        nuisance_weight: ``[K, R]`` or None.

    Raises:
        ShapeError: When an array does not have two axes.
        PlssmError: When a value is not finite.
    """
    rows = finite("weight", weight)
    known = None if nuisance_weight is None else finite("nuisance_weight", nuisance_weight)
    for name, value, axes in (("weight", rows, "dim"), ("nuisance_weight", known, "regressors")):
        if value is not None and value.ndim != 2:
            shape = tuple(value.shape)
            raise ShapeError(f"{model}: {name} is [predictors, {axes}], got shape {shape}")
    return rows, 0 if known is None else known.shape[1]


def set_predictors(
    model: ObservationModel,
    weight: Tensor,
    bias: ArrayLike | Tensor | None,
    nuisance_weight: ArrayLike | Tensor | None,
) -> None:
    """Bind a fresh model and give it known predictors.

    Args:
        model: The model; changed in place.
        weight: ``[K, M]`` ([I 0] for an identity read-out).
        bias: ``[K]``; None leaves zeros.
        nuisance_weight: ``[K, R]``; None when there are no regressors.

    Raises:
        ShapeError: When shapes disagree.
    """
    model.bind(weight.shape[1])
    if not model.readout.trainable and not torch.equal(weight, model.weight):
        raise ShapeError("with an identity read-out weight must be [I 0]; use readout='linear'")
    put("weight", model.weight, weight)
    for name, value in (("bias", bias), ("nuisance_weight", nuisance_weight)):
        if value is not None:
            put(name, getattr(model, name), value)
    model.initialised = True
