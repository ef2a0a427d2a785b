"""Encoders: networks that turn data of several modalities into evidence about single states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from plssm._config_capture import Configurable
from plssm.data import Batch, Modality
from plssm.errors import PlssmError
from plssm.inference.encoder_networks import make_network
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.observations.clock import scatter

__all__ = ["Encoder", "EncoderSize", "ModalityEncoder", "Potentials", "StepSamples", "on_steps"]

FAINT = -5.0  # log weight, at the start, of directions that the linear part says nothing about


class Potentials(NamedTuple):
    r"""Gaussian evidence about single states, :math:`\exp(r^\top z - \tfrac12 z^\top \Lambda z)`.

    Attributes:
        shift: r [B, T, M].
        precision: Lambda [B, T, M, M], positive semi-definite.
    """

    shift: Tensor
    precision: Tensor

    @classmethod
    def none(cls, like: Tensor, dim: int) -> Potentials:
        """Those that say nothing, for ``like [B, T, ...]``."""
        return cls(like.new_zeros(*like.shape[:2], dim), like.new_zeros(*like.shape[:2], dim, dim))


class EncoderSize(NamedTuple):
    """How large the network of one modality is.

    Attributes:
        channels: Channels N of the modality.
        columns: Columns K that are read of a sample, a multiple of N.
        nuisance: Nuisance regressors R.
        inputs: Inputs.
        leads: Later steps that the linear part reads as well (the memory of BOLD).
        rank: Directions of the state that a sample of one channel tells about.
    """

    channels: int
    columns: int
    nuisance: int
    inputs: int
    leads: int
    rank: int


class StepSamples(NamedTuple):
    """The samples of one modality on the latent clock.

    Attributes:
        x: What is read of them, means over the samples of a step, 0 where missing [B, T, K].
        count: Number of observed samples of each channel at each step [B, T, N].
        nuisance: Nuisance regressors, their means [B, T, R].
        inputs: Inputs [B, T, K].
        beside: Sums of the regressors over the samples in which a channel is observed, channel
            by channel [B, T, N R].
    """

    x: Tensor
    count: Tensor
    nuisance: Tensor
    inputs: Tensor
    beside: Tensor

    @property
    def covariates(self) -> Tensor:
        """Regressors and inputs side by side [B, T, R + K]."""
        return torch.cat([self.nuisance, self.inputs], dim=-1)

    @property
    def seen(self) -> Tensor:
        """Steps at which anything is observed, 0 or 1 [B, T, 1]."""
        return (self.count.sum(-1, keepdim=True) > 0).to(self.x.dtype)


def on_steps(
    observation: ObservationModel, m: Modality, inputs: Tensor | None, steps: int
) -> StepSamples:
    """Arranges the samples of a modality by latent step.

    Args:
        observation: Says what is read of a sample.
        m: The samples [B, n, N].
        inputs: Inputs [B, T, K], or None.
        steps: Latent steps T.

    Returns:
        The samples, before anything is standardised.
    """
    columns = observation.encoding(m)
    weight = m.mask.to(columns.dtype)
    wide = weight.repeat_interleave(columns.shape[-1] // weight.shape[-1], dim=-1)
    columns = torch.where(wide > 0, columns, 0.0)
    total, count = scatter(columns, m.clock, steps), scatter(weight, m.clock, steps)
    times = count.repeat_interleave(columns.shape[-1] // weight.shape[-1], dim=-1)
    none = columns.new_zeros(*total.shape[:2], 0)
    nuisance = beside = none
    if m.nuisance is not None:
        any_seen = m.mask.any(-1, keepdim=True).to(columns.dtype)
        known = scatter(m.nuisance * any_seen, m.clock, steps)
        nuisance = known / scatter(any_seen, m.clock, steps).clamp_min(1)
        each = weight[..., None] * m.nuisance[..., None, :]
        beside = scatter(each.flatten(-2), m.clock, steps)
    inputs = none if inputs is None else inputs
    return StepSamples(total / times.clamp_min(1), count, nuisance, inputs, beside)


class ModalityEncoder(nn.Module):
    r"""Evidence that the samples of one modality give about the state at their step.

    .. math:: r_t = W x_t + V m_t + U (m_t \otimes n_t) + f(x)_t
        + r^0_t + (\Lambda_t - \Lambda^0_t) c_t, \qquad
        \Lambda_t = \sum_j m_{jt} e^{a(x)_{jt}} \ell_j \ell_j^\top

    x are the standardised samples, m says what is observed, n are nuisance
    regressors. f and a come from a
    network over time; at the start they are 0 (a is -5 for M further directions), so that an
    encoder can begin where the linear part is exact: W = B' G^-1, l_n = B_n / g_n for Gaussian
    channels, whatever is missing. What is linear at the start can be held (:meth:`hold`): r^0 and
    Lambda^0, and the state c that they give with a prior; a precision that changes then leaves
    the state where it is. Nothing comes from steps without a sample.

    Args:
        size: The sizes.
        dim: Latent states M.
        network: "conv", "gru", "mlp", or "none".
        hidden: Width of the network.
    """

    def __init__(self, size: EncoderSize, dim: int, *, network: str, hidden: int) -> None:
        super().__init__()
        self.size, self.dim = size, dim
        self.rank = size.rank
        kinds = {"dtype": torch.float64}
        self.register_buffer("mean", torch.zeros(size.columns, **kinds))
        self.register_buffer("scale", torch.ones(size.columns, **kinds))
        read = (size.leads + 1) * (size.columns + size.channels * (1 + size.nuisance))
        self.linear = nn.Parameter(torch.zeros(dim, read, **kinds))
        own = size.channels * self.rank
        self.factors = nn.Parameter(torch.zeros(own + dim, dim, **kinds))
        with torch.no_grad():
            self.factors[own:] = torch.eye(dim, **kinds)
        self.log_weight = nn.Parameter(torch.zeros(own + dim, **kinds))
        with torch.no_grad():
            self.log_weight[own:] = FAINT
        self.register_buffer("held", torch.zeros(dim, read, **kinds))
        self.register_buffer("held_factors", torch.zeros(own + dim, dim, **kinds))
        self.register_buffer("prior_shift", torch.zeros(dim, **kinds))
        self.register_buffer("prior_precision", torch.eye(dim, **kinds))
        width = size.columns + size.channels + size.nuisance + size.inputs
        self.network = make_network(network, width, hidden, dim + own + dim)

    def standardised(self, found: StepSamples) -> StepSamples:
        """The samples in units of the training data, 0 where missing."""
        share = self.size.columns // self.size.channels
        seen = (found.count > 0).to(found.x.dtype).repeat_interleave(share, dim=-1)
        return found._replace(x=(found.x - self.mean) * self.scale * seen)

    @torch.no_grad()
    def learn_scale(self, found: StepSamples) -> None:
        """Takes mean and spread of every column from the steps at which it is observed."""
        share = self.size.columns // self.size.channels
        seen = (found.count > 0).repeat_interleave(share, dim=-1).to(torch.float64)
        total = seen.sum((0, 1)).clamp_min(1)
        self.mean.copy_((found.x * seen).sum((0, 1)) / total)
        variance = ((found.x - self.mean).square() * seen).sum((0, 1)) / total
        self.scale.copy_(torch.where(variance > 0, variance, 1.0).rsqrt())

    def regressors(self, found: StepSamples) -> Tensor:
        """What the linear part reads [B, T, C]: samples, masks, and masked regressors.

        Of this step and of later ones, where the observations have a memory.
        """
        now = torch.cat([found.x * _wide(found), found.count, found.beside], dim=-1)
        parts = [now]
        for lead in range(1, self.size.leads + 1):
            later = torch.zeros_like(now)
            later[:, :-lead] = now[:, lead:]
            parts.append(later)
        return torch.cat(parts, dim=-1)

    def forward(self, found: StepSamples, inside: Tensor, *, alone: bool = True) -> Potentials:
        """Returns the evidence.

        Args:
            found: The samples by latent step.
            inside: Which steps exist, 0 or 1 [B, T, 1].
            alone: Whether the linear part is wanted: it is all that the encoder says of the
                samples, otherwise it corrects what else is known of them.
        """
        found = self.standardised(found)
        there = found.seen * inside
        read = self.regressors(found)
        shift = read @ self.linear.T if alone else torch.zeros_like(there)
        log_weight = self.log_weight
        if self.network is not None:
            known = (found.count > 0).to(found.x.dtype)
            wide = torch.cat([found.x, known, found.nuisance, found.inputs], dim=-1)
            out = self.network(wide * inside, inside)
            shift = shift + out[..., : self.dim]
            log_weight = log_weight + 5.0 * torch.tanh(out[..., self.dim :] / 5.0)
        own = found.count.repeat_interleave(self.rank, dim=-1) * float(alone)
        count = torch.cat([own, there.expand(*own.shape[:2], self.dim)], dim=-1)
        precision = _squares(log_weight.exp() * count * inside, self.factors)
        if alone:
            shift = shift + self._held(read, count * inside, precision)
        return Potentials(shift * there, precision)

    def _held(self, read: Tensor, count: Tensor, precision: Tensor) -> Tensor:
        """What is held of the shift, with the precision at the state that it gives."""
        with torch.no_grad():
            shift, known = read @ self.held.T, _squares(count, self.held_factors)
            state = torch.linalg.solve(known + self.prior_precision, shift + self.prior_shift)
        return shift + ((precision - known) @ state[..., None])[..., 0]

    @torch.no_grad()
    def hold(self, path: Tensor, noise: Tensor) -> None:
        """Holds the linear part; what is learned beside it begins at zero.

        Args:
            path: States of the latent path, any number of them [n, M].
            noise: Covariance of what may be added to them [M, M].
        """
        centred = path - path.mean(0)
        spread = centred.T @ centred / len(path) + noise
        self.prior_precision.copy_(torch.linalg.inv(spread))
        self.prior_shift.copy_(self.prior_precision @ path.mean(0))
        self.held.copy_(self.linear)
        known = torch.where(self.log_weight > FAINT, (0.5 * self.log_weight).exp(), 0.0)
        self.held_factors.copy_(self.factors * known[:, None])
        self.linear.zero_()


def _squares(weight: Tensor, factors: Tensor) -> Tensor:
    """Sums of w l l' [B, T, M, M] for weights [B, T, J] and factors l [J, M]."""
    spread = (factors[:, :, None] * factors[:, None, :]).flatten(1)
    return (weight @ spread).unflatten(-1, factors.shape[1:] * 2)


def _wide(found: StepSamples) -> Tensor:
    """Number of samples behind each column, of which a step's mean was taken."""
    return found.count.repeat_interleave(found.x.shape[-1] // found.count.shape[-1], dim=-1)


class Encoder(Configurable, nn.Module):
    """Evidence about the latent path from every modality by itself; precisions add.

    A trial's evidence depends on no other trial, and a missing modality gives none.

    Args:
        sizes: For each modality the numbers of :class:`EncoderSize`.
        dim: Latent states M.
        network: "conv" (temporal convolutions), "gru" (a recurrent network in both directions),
            "mlp" (each step by itself) or "none" (the linear part alone).
        hidden: Width of the networks.
        seed: Seed of their start values.
    """

    def __init__(
        self,
        sizes: Mapping[str, list[int]],
        dim: int,
        *,
        network: str = "conv",
        hidden: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise PlssmError(f"Encoder: hidden is {hidden}, wanted >= 1.")
        self.dim = dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.modalities = nn.ModuleDict(
                {
                    name: ModalityEncoder(EncoderSize(*size), dim, network=network, hidden=hidden)
                    for name, size in sizes.items()
                }
            )

    @property
    def reach(self) -> int:
        """Steps on either side that the evidence of a step depends on, about."""
        reaches = [p.size.leads for p in self.modalities.values()]
        networks = [p.network for p in self.modalities.values() if p.network is not None]
        return max([*reaches, *(n.reach for n in networks), 0])

    @classmethod
    def for_model(
        cls,
        model: StateSpaceModel,
        batch: Batch,
        *,
        network: str = "conv",
        hidden: int = 32,
        seed: int = 0,
    ) -> Self:
        """An encoder of the modalities of a model, its samples standardised by training data.

        Args:
            model: The model.
            batch: Training trials.
            network: See the class.
            hidden: See the class.
            seed: See the class.
        """
        sizes, found = {}, {}
        for name, observation in model.observations.items():
            m = batch.modalities[name]
            found[name] = on_steps(observation, m, batch.inputs, batch.steps)
            leads = min(observation.memory(batch.dt), batch.steps - 1)
            rank = min(observation.predictors, model.dim) if observation.coupled else 1
            read = [part.shape[-1] for part in (found[name].x, *found[name][2:4])]
            sizes[name] = [observation.channels, *read, leads, rank]
        encoder = cls(sizes, model.dim, network=network, hidden=hidden, seed=seed)
        for name, samples in found.items():
            encoder.modalities[name].learn_scale(samples)
        return encoder

    def samples(self, model: StateSpaceModel, batch: Batch) -> dict[str, StepSamples]:
        """What is read of a batch, by the modalities that model, batch and encoder have."""
        return {
            name: on_steps(observation, batch.modalities[name], batch.inputs, batch.steps)
            for name, observation in model.observations.items()
            if name in self.modalities and name in batch.modalities
        }

    def forward(self, model: StateSpaceModel, batch: Batch) -> dict[str, Potentials]:
        """Returns the evidence of every modality of a batch, zero where it has no sample.

        Args:
            model: Its observation models say what is read of the samples; those it does not have
                are not looked at.
            batch: The trials, in the encoder's precision.
        """
        inside = batch.time_mask[..., None].to(next(self.parameters()).dtype)
        return {
            name: self.modalities[name](found, inside)
            for name, found in self.samples(model, batch).items()
        }
