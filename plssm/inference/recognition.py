"""Recognition models: from data to a Gaussian distribution of the latent path."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import final

import torch
from torch import Tensor, nn

from plssm._config_capture import Configurable
from plssm.data import Batch
from plssm.errors import PlssmError
from plssm.inference.chains import (
    LinearChain,
    PathTerms,
    chain_mean,
    couple,
    linearised,
    times,
    uncoupled,
)
from plssm.inference.encoders import Encoder, Potentials
from plssm.inference.expanded_path import expand_along, find_path
from plssm.inference.free_evidence import FreeEvidence
from plssm.model import StateSpaceModel

__all__ = ["EXPERTS", "PathTerms", "Recognition", "cholesky_factor"]


CHAINS = ("laplace", "model", "learned", "none")
EXPERTS = ("product", "mixture")
REFINED = 2  # times the map is linearised anew around the mean of the path


@final
class Recognition(Configurable, nn.Module):
    r"""Gaussian path that an encoder's evidence and a linear chain give together.

    .. math:: q(Z) \propto q(z_1) \prod_t N(z_t; A_q z_{t-1} + b_q + C_q s_t, Q_q)
        \prod_t \exp\Big( \sum_m r^{(m)\top}_t z_t
        - \tfrac12 z_t^\top \Lambda^{(m)}_t z_t \Big)

    The chain is one of four. "laplace": the model's own map and observation models, expanded along
    the path that a guarded Newton search finds; with silent networks this is the Laplace
    approximation, which they correct as they learn. The others know the data through the encoder
    alone. "model": the model's own map, linearised along the path that the evidence gives.
    "learned": one linear chain for all times and states, as published. "none": that of "model"
    with its steps made independent, :math:`\prod_t N(z_t; \mu_t, U_{tt}^{-1})`: mean field.

    Args:
        encoder: Gives the evidence of every modality, or free evidence.
        dim: Latent states M.
        inputs: Inputs K.
        chain: "laplace", "model", "learned" or "none".
        experts: "product" (the evidence of all modalities adds, one path) or "mixture" (a path
            for every modality by itself, see :meth:`mixture`).

    References:
        Archer et al. (2015), Black box variational inference for state space models,
        arXiv:1511.07367; Kramer et al. (2022), Reconstructing nonlinear dynamical systems from
        multi-modal time series, ICML, arXiv:2111.02922; Shi et al. (2019), Variational
        mixture-of-experts autoencoders, NeurIPS, arXiv:1911.03393.
    """

    def __init__(
        self, encoder: Encoder | FreeEvidence, dim: int, *, inputs: int = 0, chain: str = "model",
        experts: str = "product",
    ) -> None:  # fmt: skip
        super().__init__()
        if chain not in CHAINS:
            raise PlssmError(f"Recognition: chain is {chain!r}, wanted one of {CHAINS}.")
        if experts not in EXPERTS:
            raise PlssmError(f"Recognition: experts is {experts!r}, wanted one of {EXPERTS}.")
        self.encoder, self.dim, self.chain, self.experts = encoder, dim, chain, experts
        kind = {"dtype": torch.float64}
        self.initial_mean = nn.Parameter(torch.zeros(dim, **kind))
        self.initial_factor = nn.Parameter(torch.zeros(dim, dim, **kind))
        self.A = nn.Parameter(0.9 * torch.eye(dim, **kind))
        self.b = nn.Parameter(torch.zeros(dim, **kind))
        self.C = nn.Parameter(torch.zeros(dim, inputs, **kind))
        self.factor = nn.Parameter(torch.zeros(dim, dim, **kind))
        self.typical_mean = nn.Parameter(torch.zeros(dim, **kind))
        self.typical_precision = nn.Parameter(torch.eye(dim, **kind))

    def forward(
        self,
        model: StateSpaceModel,
        batch: Batch,
        start: Tensor | None = None,
        row: Tensor | None = None,
    ) -> PathTerms:
        """Returns the Gaussian path of every trial, the product of all evidence.

        Args:
            model: Its observation models say what is read of the samples.
            batch: The trials.
            start: First step of each trial in its recording [B], where windows are given.
            row: Number of each trial [B], where evidence is free.
        """
        if self.chain == "laplace" and isinstance(self.encoder, Encoder):
            return self.expanded(model, batch, start)
        return self._path(model, batch, self.evidence(model, batch, row), start)

    def mixture(
        self, model: StateSpaceModel, batch: Batch, start: Tensor | None = None
    ) -> tuple[dict[str, PathTerms], Tensor]:
        """Returns a Gaussian path for each modality by itself, and their weights [B, E].

        Modalities with data in a trial weigh the same there, others nothing; where there are no
        data at all, every path is the chain's.

        Args:
            model: As of :meth:`forward`.
            batch: The trials.
            start: As of :meth:`forward`.
        """
        found = self.encoder.samples(model, batch)
        if not found:
            nothing = self._path(model, batch, self.evidence(model, batch), start)
            return {"": nothing}, torch.ones(len(batch), 1).to(self.initial_mean)
        there = [batch.modalities[name].mask.flatten(1).any(1) for name in found]
        weight = torch.stack(there, dim=1).to(self.initial_mean)
        weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, 1.0)
        paths = {name: self.forward(model.only(name), batch, start) for name in found}
        return paths, weight / weight.sum(1, keepdim=True)

    def _path(
        self, model: StateSpaceModel, batch: Batch, evidence: Potentials, start: Tensor | None
    ) -> PathTerms:
        """Evidence and chain together."""
        if self.chain == "learned":
            return couple(evidence, self.learned_chain(batch, start), batch.length)
        path = self.point(model, batch, evidence, start)
        whole = couple(evidence, self.model_chain(model, batch, path, start), batch.length)
        return uncoupled(whole) if self.chain == "none" else whole

    @torch.no_grad()
    def point(
        self, model: StateSpaceModel, batch: Batch, evidence: Potentials, start: Tensor | None
    ) -> Tensor:
        """The path around which the map is linearised [B, T, M]."""
        path = chain_mean(evidence, self.learned_chain(batch, start), batch.length)
        for _ in range(REFINED):
            path = chain_mean(evidence, self.model_chain(model, batch, path, start), batch.length)
        return path

    def expanded(self, model: StateSpaceModel, batch: Batch, start: Tensor | None) -> PathTerms:
        """The Laplace approximation of the model around its path, corrected by the networks.

        The expansions are held: gradients reach the networks, and what they say of modalities
        with a memory, which are not expanded.
        """
        encoder = self.encoder
        inside = batch.time_mask[..., None].to(self.initial_mean.dtype)
        found = encoder.samples(model, batch)
        tied = [n for n in found if not model.observations[n].memory(batch.dt)]
        first = [n for n in tied if model.observations[n].quadratic] or tied
        whole = {n: encoder.modalities[n](x, inside) for n, x in found.items() if n not in tied}
        rest = total(whole, batch, self.initial_mean)
        begin = {n: encoder.modalities[n](found[n], inside) for n in first}
        evidence = total({**begin, **whole}, batch, self.initial_mean)
        path = self.point(model, batch, evidence, start)
        held = Potentials(rest.shift.detach(), rest.precision.detach())

        def chain(z: Tensor) -> LinearChain:
            return self.model_chain(model, batch, z, start)

        path = find_path(model, batch, path, held, tied, chain, start)
        with torch.no_grad():
            around = Potentials(*map(torch.add, expand_along(model, batch, path, tied), held))
            fixed = couple(around, chain(path), batch.length)
            shift = times(fixed, path)
        diag, shift = fixed.diag + rest.precision - held.precision, shift + rest.shift - held.shift
        for name in tied:
            extra, precision = encoder.modalities[name](found[name], inside, alone=False)
            shift = shift + extra + (precision @ path[..., None])[..., 0]
            diag = diag + precision
        return PathTerms(shift, diag, fixed.off, fixed.length)

    def learned_chain(self, batch: Batch, start: Tensor | None) -> LinearChain:
        """The linear chain for all times."""
        steps = batch.steps - 1
        drive = self.b.expand(len(batch), steps, self.dim)
        if self.C.shape[1] and batch.inputs is not None:
            drive = drive + batch.inputs[:, 1:].to(drive) @ self.C.T
        root = cholesky_factor(self.factor)
        own = self.initial_precision()
        first = own.expand(len(batch), -1, -1), (own @ self.initial_mean).expand(len(batch), -1)
        return LinearChain(self.A, drive, root @ root.T, *self._first(first, start))

    def model_chain(
        self, model: StateSpaceModel, batch: Batch, path: Tensor, start: Tensor | None
    ) -> LinearChain:
        """The model's own chain, linearised along a path."""
        dynamics = model.dynamics
        jacobian, offset = linearised(dynamics, path, batch.inputs)
        own = dynamics.initial.noise.precision
        mean = dynamics.first_mean(batch.inputs).expand(len(batch), -1)
        first = own.expand(len(batch), -1, -1), mean @ own
        precision = dynamics.noise.precision
        return LinearChain(jacobian, offset, precision, *self._first(first, start))

    def evidence(
        self, model: StateSpaceModel, batch: Batch, row: Tensor | None = None
    ) -> Potentials:
        """Returns what all modalities together say about single states."""
        if isinstance(self.encoder, FreeEvidence):
            shift, precision = self.encoder.potentials(row)
            return Potentials(shift[:, : batch.steps], precision[:, : batch.steps])
        return total(self.encoder(model, batch), batch, self.initial_mean)

    def initial_precision(self) -> Tensor:
        """Precision of the first state of a learned chain [M, M]."""
        root = cholesky_factor(self.initial_factor)
        return root @ root.T

    def _first(self, own: tuple[Tensor, Tensor], start: Tensor | None) -> tuple[Tensor, Tensor]:
        """Precision [B, M, M], shift [B, M] of first states; inside a recording the typical."""
        precision, shift = own
        if start is None or not bool((start > 0).any()):
            return precision, shift
        inner = start > 0
        known = self.typical_precision.detach()
        typical = known @ self.typical_mean.detach()
        precision = torch.where(inner[:, None, None], known, precision)
        return precision, torch.where(inner[:, None], typical, shift)


def cholesky_factor(raw: Tensor) -> Tensor:
    """A lower triangular matrix with a positive diagonal, from any square one."""
    return raw.tril(-1) + torch.diag(raw.diagonal().exp())


def total(found: Mapping[str, Potentials], batch: Batch, like: Tensor) -> Potentials:
    """The sum of the evidence of several modalities, or of none."""
    none = torch.zeros(len(batch), batch.steps, 1).to(like)
    return reduce(
        lambda a, b: Potentials(a.shift + b.shift, a.precision + b.precision),
        found.values(),
        Potentials.none(none, len(like)),
    )
