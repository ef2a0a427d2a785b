"""The innovation likelihood of a batch: filter runs whose expansions have settled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from plssm.data import Batch
from plssm.inference.augmented_states import AugmentedStates
from plssm.inference.filter_form import FilterForm
from plssm.inference.filter_terms import FilterTerms, filter_terms
from plssm.kernels.innovation_filter import FilterPass
from plssm.model import StateSpaceModel

__all__ = ["GIVEN_UP", "SETTLED", "Innovations", "innovations"]

SETTLED = 1e-7  # largest move of the filtered path between two sweeps, in filtered sd
LARGEST = 1e12  # variance of a prediction that says nothing any more
LOST = 1e-3  # rounding error of a log-density, in nats, beyond which it says nothing
GIVEN_UP = 1e-3  # move beyond which an expansion says nothing about the filter's evidence


class Innovations(NamedTuple):
    """A filter's run and what went into it.

    Attributes:
        increment: log p(y_t | y_1..t-1) [B, T], zeros beyond a trial's end.
        run: The filter's moments.
        terms: The data's terms, expanded around the filtered states.
        moved: How far each trial's filtered path still moved in the last sweep [B], in filtered
            sd; infinite where it is not finite, or so far away that rounding errors rule the
            increments.
    """

    increment: Tensor
    run: FilterPass
    terms: FilterTerms
    moved: Tensor

    @property
    def settled(self) -> Tensor:
        """Trials whose increments are those of the filter, bool [B]."""
        return (self.moved <= GIVEN_UP) & self.increment.detach().isfinite().all(1)


def innovations(
    model: StateSpaceModel,
    batch: Batch,
    states: AugmentedStates,
    form: FilterForm,
    *,
    point: Tensor | None = None,
    updates: Tensor | None = None,
    sweeps: int = 12,
) -> Innovations:
    r"""One-step-ahead log-densities of all steps, differentiable in the parameters.

    .. math:: \log p(y_t | y_{1:t-1}) \approx \log \int p(y_t | z)\,
        \mathcal N(z; m^-_t, P^-_t) \, dz

    by Laplace's method, exact for Gaussian observations. Terms are expanded around the filtered
    path itself: sweeps without gradients find it, one with gradients follows. The gradient is that
    of the settled path (the expansion moves with the parameters), not of the last sweep alone; it
    is exact where the path has settled. Curvature is the exact one, but at steps whose posterior
    it would leave improper (log-densities that are not concave): there negative one counts as
    zero, and gradients are nearly those of the filter with that curvature.

    Args:
        model: The model.
        batch: The trials.
        states: Joined states, of what the observations need of the past.
        form: The prior on them.
        point: Where the first sweep expands [B, T, D]; zeros when None.
        updates: bool [T], whether a step's data change the state; all when None.
        sweeps: Sweeps at most; later ones go half the way.
    """
    shape = (len(batch), batch.steps, states.size)
    dtype = form.first_mean.dtype
    quadratic = all(o.quadratic for o in model.observations.values())
    z = torch.zeros(shape, dtype=dtype)  # quadratic terms are the same around any point
    z = z if point is None or quadratic else point
    moved = torch.full((shape[0],), 0.0 if quadratic else torch.inf, dtype=dtype)
    with torch.no_grad():
        for sweep in range(0 if quadratic else sweeps):
            terms = _terms(model, batch, states, form, z, updates)
            run = form.run(terms.score, terms.information, updates=updates)
            move = run.filtered_mean - z
            variance = run.filtered_covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300)
            inside = batch.time_mask[..., None]
            far = torch.where(inside, move.abs() / variance.sqrt(), 0.0).amax((1, 2))
            moved = torch.where(far.isfinite(), far, torch.inf)
            good = moved.isfinite()[:, None, None]
            z = torch.where(good, z + (move if sweep < sweeps // 2 else 0.5 * move), z)
            if bool((moved <= SETTLED).all()):
                break
    terms = _terms(model, batch, states, form, z, updates)
    run = form.run(terms.score, terms.information, updates=updates, third=terms.third)
    bad = ~run.increment.detach().isfinite().all(1)
    if bool(bad.any()) and not all(o.concave for o in model.observations.values()):
        safe = filter_terms(model, batch, states, z, exact=False)
        terms = _chosen(terms, safe, ~bad[:, None].expand(shape[:2]))
        run = form.run(terms.score, terms.information, updates=updates, third=terms.third)
    increment = torch.where(batch.time_mask, terms.constant + run.increment, 0.0)
    return Innovations(
        increment, run, terms, torch.where(_cancelled(run, terms), torch.inf, moved)
    )


@torch.no_grad()
def _cancelled(run: FilterPass, terms: FilterTerms) -> Tensor:
    """Trials whose states have gone so far that log-densities are lost in rounding [B], bool."""
    far = run.predicted_mean.square().amax((1, 2))
    error = torch.finfo(far.dtype).eps * far * terms.information.abs().amax((1, 2, 3))
    return ~(error < LOST)


def _terms(
    model: StateSpaceModel, batch: Batch, states: AugmentedStates, form: FilterForm, z: Tensor,
    updates: Tensor | None,
) -> FilterTerms:  # fmt: skip
    """Terms with exact curvature, at steps whose posterior it leaves proper."""
    exact = filter_terms(model, batch, states, z, exact=True)
    if all(o.concave for o in model.observations.values()):
        return exact
    safe = filter_terms(model, batch, states, z, exact=False)
    with torch.no_grad():
        covariance = form.run(safe.score, safe.information, updates=updates).predicted_covariance
        covariance = torch.nan_to_num(covariance).clamp(-LARGEST, LARGEST)
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp_min(0.0).sqrt()[..., None, :]
        bent = torch.nan_to_num(root.mT @ exact.information @ root)
        eye = torch.eye(bent.shape[-1], dtype=bent.dtype)
        proper = torch.linalg.eigvalsh(eye + bent)[..., 0] > 0.0
    return _chosen(exact, safe, proper)


def _chosen(one: FilterTerms, two: FilterTerms, first: Tensor) -> FilterTerms:
    """The first terms at some steps [B, T], the second at the others."""

    def each(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return a
        return torch.where(first.view(*first.shape, *[1] * (a.ndim - 2)), a, b)

    return FilterTerms(*(each(a, b) for a, b in zip(one, two, strict=True)))
