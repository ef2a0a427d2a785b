"""Recognition models: from data to a Gaussian distribution of the latent path."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from plssm._config_capture import Configurable
from plssm.data import Batch
from plssm.inference.encoders import Encoder, Potentials
from plssm.inference.free_evidence import FreeEvidence
from plssm.model import StateSpaceModel

__all__ = ["PathTerms", "Recognition", "cholesky_factor"]


class PathTerms(NamedTuple):
    r"""A Gaussian path :math:`N(U^{-1} r, U^{-1})` by its blocks.

    Attributes:
        shift: r [B, T, M].
        diag: U_tt [B, T, M, M].
        off: U_{t,t+1} [B, T-1, M, M]; None where steps are independent.
        length: Steps of each trial [B].
    """

    shift: Tensor
    diag: Tensor
    off: Tensor | None
    length: Tensor


@final
class Recognition(Configurable, nn.Module):
    r"""Gaussian path that an encoder's evidence and a linear chain give together.

    .. math:: q(Z) \propto q(z_1) \prod_t N(z_t; A_q z_{t-1} + b_q + C_q s_t, Q_q)
        \prod_t \exp\Big( \sum_m r^{(m)\top}_t z_t
        - \tfrac12 z_t^\top \Lambda^{(m)}_t z_t \Big)

    The precision is block-tridiagonal: :math:`U_{tt} = \Lambda_t + Q^{-1} + A^\top Q^{-1} A`,
    :math:`U_{t,t+1} = -A^\top Q^{-1}`. Without the chain (mean field) steps are independent under
    a diagonal Gaussian.

    Args:
        encoder: Gives the evidence of every modality, or free evidence.
        dim: Latent states M.
        inputs: Inputs K.
        chain: Whether steps are coupled.

    References:
        Archer et al. (2015), Black box variational inference for state space models,
        arXiv:1511.07367; Kramer et al. (2022), Reconstructing nonlinear dynamical systems from
        multi-modal time series, ICML, arXiv:2111.02922.
    """

    def __init__(self, encoder: Encoder, dim: int, *, inputs: int = 0, chain: bool = True) -> None:
        super().__init__()
        self.encoder, self.dim, self.chain = encoder, dim, chain
        kind = {"dtype": torch.float64}
        self.initial_mean = nn.Parameter(torch.zeros(dim, **kind))
        self.initial_factor = nn.Parameter(torch.zeros(dim, dim, **kind))
        self.register_buffer("typical_mean", torch.zeros(dim, **kind))
        self.register_buffer("typical_precision", torch.eye(dim, **kind))
        if chain:
            self.A = nn.Parameter(0.9 * torch.eye(dim, **kind))
            self.b = nn.Parameter(torch.zeros(dim, **kind))
            self.C = nn.Parameter(torch.zeros(dim, inputs, **kind))
            self.factor = nn.Parameter(torch.zeros(dim, dim, **kind))

    def forward(
        self,
        model: StateSpaceModel,
        batch: Batch,
        start: Tensor | None = None,
        row: Tensor | None = None,
    ) -> PathTerms:
        """Returns the Gaussian path of every trial.

        Args:
            model: Its observation models say what is read of the samples.
            batch: The trials.
            start: First step of each trial in its recording [B], where windows are given.
            row: Number of each trial [B], where evidence is free.
        """
        return self.couple(self.evidence(model, batch, row), batch, start)

    def evidence(
        self, model: StateSpaceModel, batch: Batch, row: Tensor | None = None
    ) -> Potentials:
        """Returns what all modalities together say about single states."""
        if isinstance(self.encoder, FreeEvidence):
            shift, precision = self.encoder.potentials(row)
            return Potentials(shift[:, : batch.steps], precision[:, : batch.steps])
        found = list(self.encoder(model, batch).values())
        if not found:
            like = torch.zeros(len(batch), batch.steps, 1).to(self.initial_mean)
            return Potentials.none(like, self.dim)
        shift, precision = found[0]
        for other in found[1:]:
            shift, precision = shift + other.shift, precision + other.precision
        return Potentials(shift, precision)

    def couple(self, evidence: Potentials, batch: Batch, start: Tensor | None) -> PathTerms:
        """Returns the evidence under the chain (or under the diagonal Gaussian)."""
        first, mean = self._first(len(batch), start)
        if not self.chain:
            base = self.initial_precision()
            shift = evidence.shift + base @ self.initial_mean
            return PathTerms(shift, evidence.precision + base, None, batch.length)
        steps, length = batch.steps, batch.length
        root = cholesky_factor(self.factor)
        precision, pull = root @ root.T, (root @ root.T) @ self.A  # Q^-1, Q^-1 A
        drive = self.b.expand(len(batch), steps, self.dim)
        if self.C.shape[1] and batch.inputs is not None:
            drive = drive + batch.inputs.to(drive) @ self.C.T
        arrived = torch.arange(steps) > 0
        leaves = torch.arange(steps) < length[:, None] - 1
        diag = evidence.precision + (self.A.T @ pull) * leaves[..., None, None]
        diag = diag + precision * arrived[:, None, None]
        diag = diag + first[:, None] * ~arrived[:, None, None]
        shift = evidence.shift + (drive @ precision) * arrived[:, None]
        back = torch.cat([drive[:, 1:] @ pull, torch.zeros_like(drive[:, :1])], dim=1)
        shift = shift - back * leaves[..., None] + mean[:, None] * ~arrived[:, None]
        off = (-pull.T).expand(len(batch), steps - 1, self.dim, self.dim)
        return PathTerms(shift, diag, off, length)

    def initial_precision(self) -> Tensor:
        """Precision of a first state [M, M]; of every state where they are independent."""
        root = cholesky_factor(self.initial_factor)
        return root @ root.T

    def _first(self, count: int, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """Precision [B, M, M], shift [B, M] of first states; inside a recording the typical."""
        own = self.initial_precision()
        precision, shift = own.expand(count, -1, -1), (own @ self.initial_mean).expand(count, -1)
        if start is None or not bool((start > 0).any()):
            return precision, shift
        inner = start > 0
        typical = self.typical_precision @ self.typical_mean
        precision = torch.where(inner[:, None, None], self.typical_precision, precision)
        return precision, torch.where(inner[:, None], typical, shift)


def cholesky_factor(raw: Tensor) -> Tensor:
    """A lower triangular matrix with a positive diagonal, from any square one."""
    return raw.tril(-1) + torch.diag(raw.diagonal().exp())
