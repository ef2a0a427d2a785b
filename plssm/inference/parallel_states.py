"""Extended Kalman filter and smoother for long series, by scans over all steps at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from plssm.data import Batch
from plssm.inference.augmented_states import LagStates
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.filter_options import FilterOptions
from plssm.inference.filter_terms import filter_terms
from plssm.inference.filtering import evidence_kind
from plssm.kernels.innovation_filter import FilterPass
from plssm.kernels.parallel_smoother import parallel_filter, parallel_smoother
from plssm.model import StateSpaceModel
from plssm.posterior import FilteredMarginals, GaussianMarginals

__all__ = ["parallel_posterior"]

SWEEPS = 100  # runs until the filtered path stays
PASSES = 50  # linearisations of the smoother
SETTLED = 1e-8  # largest move of a path between two runs, in posterior sd


@torch.no_grad()
def parallel_posterior(
    model: StateSpaceModel, batch: Batch, *, causal: bool
) -> FilteredMarginals | GaussianMarginals:
    """Iterated extended Kalman filter or smoother whose every pass is a scan over time.

    Map and data are linearised along the path of the pass before. Passes of the filter settle on
    the extended Kalman filter: a step is right as soon as those before it are. From there passes
    of the smoother go on to a mode of the path (iterated extended Kalman smoother). Scans run on
    the graphics processor where torch finds one. Observation terms that are not concave are
    expanded with negative curvature counted as zero.

    Args:
        model: Model with float64 parameters and a ReLU form, whose data have no memory.
        batch: Trials, float64.
        causal: Whether to stop at the filter.

    Returns:
        Filtered or smoothed marginals; ``status`` says whether the path settled.

    Raises:
        CapabilityError: If an observation remembers earlier states.

    References:
        Saerkkae and Garcia-Fernandez 2021, doi:10.1109/TAC.2020.2976316. Yaghoobi, Corenflos,
        Hassan and Saerkkae 2021, arXiv:2102.00514.
    """
    options = FilterOptions(parallel=True)
    options.refuse(model, batch)
    scans = _Scans.of(model, batch)
    z = torch.zeros(len(batch), batch.steps, model.dim, dtype=torch.float64)
    for _ in range(SWEEPS):
        found = scans.filtered(z)
        z, moved = found.mean, scans.moved(found, z)
        if bool((moved < SETTLED).all()):
            break
    for _ in range(0 if causal else PASSES):
        found = scans.smoothed(z)
        z, moved = found.mean, scans.moved(found, z)
        if bool((moved < SETTLED).all()):
            break
    kind = evidence_kind(model, scans.prior, options)
    status = tuple("stationary" if m < SETTLED else "max_passes" for m in moved.tolist())
    run = found.run
    if causal:
        return FilteredMarginals(
            mean=found.mean, filtered_covariance=found.covariance,
            predicted_mean=run.predicted_mean.cpu(),
            predicted_covariance=run.predicted_covariance.cpu(), length=batch.length,
            log_evidence=found.evidence, evidence_kind=kind, status=status,
        )  # fmt: skip
    return GaussianMarginals(
        mean=found.mean, marginal_covariance=found.covariance, lag_covariance=found.cross,
        length=batch.length, log_evidence=found.evidence, evidence_kind=kind, status=status,
    )  # fmt: skip


class _Found(NamedTuple):
    """What a pass along a path found: moments [B, T, ...], log evidence [B], the filter's run."""

    mean: Tensor
    covariance: Tensor
    cross: Tensor
    evidence: Tensor
    run: FilterPass


@dataclass(frozen=True)
class _Scans:
    """A batch of trials, ready to be filtered along paths.

    Attributes:
        model: The model.
        batch: The trials.
        prior: Their prior.
        states: Their states, which carry nothing along.
        device: Where scans run.
    """

    model: StateSpaceModel
    batch: Batch
    prior: ChainPrior
    states: LagStates
    device: torch.device

    @classmethod
    def of(cls, model: StateSpaceModel, batch: Batch) -> _Scans:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        prior = ChainPrior.of(model.dynamics, batch)
        return cls(model, batch, prior, LagStates(model, batch.dt), device)

    def moved(self, found: _Found, z: Tensor) -> Tensor:
        """How far the path [B, T, M] moved in each trial [B], in sd; infinite if it broke down."""
        sd = found.covariance.diagonal(dim1=2, dim2=3).clamp_min(1e-300).sqrt()
        apart = ((found.mean - z).abs() / sd).where(self.batch.time_mask[..., None], 0.0)
        return torch.nan_to_num(apart, nan=torch.inf).amax((1, 2))

    def filtered(self, z: Tensor) -> _Found:
        """Filters what is linearised along a path [B, T, M]."""
        _, run, evidence = self._run(z)
        none = z.new_zeros(0)
        return _Found(run.filtered_mean.cpu(), run.filtered_covariance.cpu(), none, evidence, run)

    def smoothed(self, z: Tensor) -> _Found:
        """Filters and smooths what is linearised along a path [B, T, M]."""
        jacobian, run, evidence = self._run(z)
        found = parallel_smoother(jacobian, run, length=self.batch.length)
        return _Found(*(x.cpu() for x in found), evidence, run)

    def _run(self, z: Tensor) -> tuple[Tensor, FilterPass, Tensor]:
        """Jacobians along a path, the filter's run, and its evidence."""
        prior, form, before = self.prior, self.prior.form, z[:, :-1].numpy()
        concave = all(o.concave for o in self.model.observations.values())
        terms = filter_terms(self.model, self.batch, self.states, z, exact=concave)
        slope = (form.gates(before) > 0).astype(np.float64)
        shape = (*before.shape, prior.dim)
        jacobian = np.broadcast_to(form.jacobian(slope) if slope.shape[-1] else form.linear, shape)
        offset = (form.regional_bias(slope) if slope.shape[-1] else form.bias) + prior.drive
        first = np.linalg.inv(prior.initial_precision)
        arrays = (
            jacobian, offset, np.linalg.inv(prior.precision), prior.initial_mean,
            np.broadcast_to(first, (len(z), *first.shape)),
        )  # fmt: skip
        tensors = [torch.from_numpy(np.array(a)).to(self.device) for a in arrays]
        tensors += [terms.score.to(self.device), terms.information.to(self.device)]
        run = parallel_filter(*tensors, length=self.batch.length)
        gained = (run.increment.cpu() + terms.constant).where(self.batch.time_mask, 0.0)
        return tensors[0], run, gained.sum(1)
