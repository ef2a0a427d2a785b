"""Encoders that turn data of several modalities into a teacher signal with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from plssm._config_capture import Configurable
from plssm.data import Batch
from plssm.errors import PlssmError
from plssm.inference.encoders import StepSamples, on_steps
from plssm.model import StateSpaceModel

__all__ = ["Belief", "TeacherEncoder"]

WIDTHS = (11, 7)  # steps that the two convolutions see
SURE, RANGE = 2.0, 6.0  # log precision of each modality at the start, and how far it may go


class Belief(NamedTuple):
    r"""What an encoder says about the states of single steps, :math:`q(z_t) = N(m_t, V_t)`.

    Attributes:
        mean: m [B, T, K].
        precision: Diagonal of the inverse of V [B, T, K], at least 1.
        known: Steps with a sample of any modality (of a lasting encoder: with one within reach),
            bool [B, T].
    """

    mean: Tensor
    precision: Tensor
    known: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Returns states [B, T, K] made of unit noise [B, T, K]; differentiable."""
        return self.mean + noise * self.precision.rsqrt()

    def entropy(self) -> Tensor:
        r"""Returns the entropy of each step in nats [B, T].

        .. math:: H(q_t) = \tfrac12 \sum_k \log (2 \pi e V_{tkk})
        """
        return 0.5 * (1 + math.log(2 * math.pi) - self.precision.log()).sum(-1)


class TeacherEncoder(Configurable, nn.Module):
    r"""Convolutions over time, one network for each modality, whose precisions add.

    .. math:: q(z_t) = N\Big( \frac{\sum_m \lambda^{(m)}_t \circ \mu^{(m)}_t}
        {1 + \sum_m \lambda^{(m)}_t}, \frac1{1 + \sum_m \lambda^{(m)}_t} \Big)

    mu and lambda of a modality depend on its samples within 8 steps (of a causal encoder: on those
    of this step and the 16 before it), and are nothing where it has no sample (of a lasting one:
    where none is within reach); the one is a unit Gaussian, which is what remains where nothing is
    observed. A trial depends on no other.

    Args:
        sizes: For each modality channels, columns read of a sample, and covariates.
        states: Number K of states.
        hidden: Width of the networks; multiples of 16 are fast.
        causal: Whether later samples are not looked at.
        lasting: Whether steps without a sample are told from those within reach.
        seed: Seed of their start values.

    Attributes:
        reach: Steps on which a belief depends before its own (and after it, if not causal).

    References:
        Brenner, Hess, Koppe and Durstewitz 2024, Integrating multimodal data for joint generative
        modeling of complex dynamics, ICML, arXiv:2212.07892.
    """

    def __init__(
        self, sizes: Mapping[str, list[int]], states: int, *, hidden: int = 16,
        causal: bool = False, lasting: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if hidden < 1:
            raise PlssmError(f"TeacherEncoder: hidden is {hidden}, wanted >= 1.")
        self.reach = sum(width - 1 for width in WIDTHS) // (1 if causal else 2)
        self.ahead = 0 if causal else self.reach
        self.lasting = lasting
        self.states, shape = states, (states, hidden, causal)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.modalities = nn.ModuleDict(
                {name: _ModalityEncoder(*size, *shape) for name, size in sizes.items()}
            )

    @classmethod
    def for_model(
        cls, model: StateSpaceModel, batch: Batch, states: int, *, hidden: int = 16,
        causal: bool = False, lasting: bool = False, seed: int = 0,
    ) -> Self:  # fmt: skip
        """An encoder of the modalities of a model; samples are standardised by training data.

        Args:
            model: The model.
            batch: Training trials.
            states: Number K of states.
            hidden: See the class.
            causal: See the class.
            lasting: See the class.
            seed: See the class.
        """
        found = _samples(model, batch, model.observations)
        sizes = {
            name: [s.count.shape[-1], s.x.shape[-1], s.covariates.shape[-1]]
            for name, s in found.items()
        }
        options = {"hidden": hidden, "causal": causal, "lasting": lasting, "seed": seed}
        encoder = cls(sizes, states, **options)
        for name, samples in found.items():
            encoder.modalities[name].learn_scale(samples)
        return encoder

    def forward(self, model: StateSpaceModel, batch: Batch) -> Belief:
        """Returns what the data say about the states.

        Args:
            model: Its observation models say what is read of a sample; modalities that model or
                batch do not have give nothing.
            batch: The trials, in the encoder's precision.
        """
        return self.believe(self.features(model, batch), batch.time_mask)

    def features(self, model: StateSpaceModel, batch: Batch) -> dict[str, Tensor]:
        """Returns what is read of every modality, which does not depend on parameters.

        Args:
            model: See :meth:`forward`.
            batch: The trials.

        Returns:
            By modality [B, T, C]; the last column is 1 where the modality has a sample, else 0.
        """
        return {
            name: self.modalities[name].features(found)
            for name, found in _samples(model, batch, self.modalities).items()
        }

    def believe(self, features: Mapping[str, Tensor], inside: Tensor) -> Belief:
        """Returns what features say about the states.

        Args:
            features: By modality [B, T, C].
            inside: Which steps exist [B, T], bool.
        """
        like = next(self.parameters())
        within = inside[:, None].to(like.dtype)
        shift = like.new_zeros(len(inside), self.states, inside.shape[1])
        precision, known = torch.ones_like(shift), torch.zeros_like(within)
        for name, x in features.items():
            there = self._told(x[..., -1][:, None] * within) * within
            mean, own = self.modalities[name](x, within)
            own = own * there
            shift, precision, known = shift + own * mean, precision + own, known + there
        return Belief((shift / precision).mT, precision.mT, known[:, 0] > 0)

    def _told(self, seen: Tensor) -> Tensor:
        """Steps at which a modality is listened to, from those with a sample, 0 or 1 [B, 1, T]."""
        if not self.lasting:
            return seen
        around = nn.functional.pad(seen, (self.reach, self.ahead))
        return nn.functional.max_pool1d(around, self.reach + self.ahead + 1, stride=1)


class _ModalityEncoder(nn.Module):
    """The network of one modality.

    Args:
        channels: N.
        columns: Columns that are read of a sample, a multiple of N.
        covariates: R.
        states: K.
        hidden: Width.
        causal: Whether later samples are not looked at.
    """

    def __init__(
        self, channels: int, columns: int, covariates: int, states: int, hidden: int,
        causal: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        kind, (first, second) = {"dtype": torch.float64}, WIDTHS
        self.causal = causal
        self.share = columns // channels
        self.read = nn.Linear(columns + channels + covariates + 1, hidden, **kind)
        wide = 1 if causal else 2
        self.first = nn.Conv1d(hidden, hidden, first, padding=(first - 1) // wide, **kind)
        self.second = nn.Conv1d(hidden, hidden, second, padding=(second - 1) // wide, **kind)
        self.last = nn.Linear(2 * hidden, 2 * states, **kind)
        with torch.no_grad():
            self.last.weight[:states] *= 4.0
            self.last.weight[states:] = 0.0
            self.last.bias.zero_()
        self.register_buffer("centre", torch.zeros(columns, **kind))
        self.register_buffer("scale", torch.ones(columns, **kind))

    @torch.no_grad()
    def learn_scale(self, found: StepSamples) -> None:
        """Takes mean and spread of every column from the steps at which it is observed."""
        seen = (found.count > 0).to(found.x.dtype).repeat_interleave(self.share, dim=-1)
        total = seen.sum((0, 1)).clamp_min(1)
        centre = (found.x * seen).sum((0, 1)) / total
        variance = ((found.x - centre).square() * seen).sum((0, 1)) / total
        self.centre.copy_(centre)
        self.scale.copy_(torch.where(variance > 0, variance, 1.0).rsqrt())

    def features(self, found: StepSamples) -> Tensor:
        """Returns standardised samples, masks, covariates, and whether there is a sample."""
        seen = (found.count > 0).to(found.x.dtype)
        x = (found.x - self.centre) * self.scale * seen.repeat_interleave(self.share, dim=-1)
        return torch.cat([x, seen, found.covariates, found.seen], dim=-1)

    def forward(self, x: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
        """Returns means and precisions [B, K, T].

        Args:
            x: Features [B, T, C].
            within: Which steps exist, 0 or 1 [B, 1, T].
        """
        read = (self.read.weight @ x.mT + self.read.bias[:, None]) * within
        steps = read.shape[-1]
        smooth = self.first(read)[..., :steps] * within
        bent = nn.functional.silu(self.second(nn.functional.silu(smooth))[..., :steps])
        out = self.last.weight @ torch.cat([smooth, bent], dim=1) + self.last.bias[:, None]
        mean, sure = out.chunk(2, dim=1)
        return mean, (SURE + RANGE * torch.tanh(sure / RANGE)).exp()


def _samples(
    model: StateSpaceModel, batch: Batch, names: Mapping[str, object]
) -> dict[str, StepSamples]:
    """What is read of a batch, by the modalities that names, model and batch have."""
    return {
        name: on_steps(observation, batch.modalities[name], batch.inputs, batch.steps)
        for name, observation in model.observations.items()
        if name in names and name in batch.modalities
    }
