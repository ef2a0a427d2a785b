"""State-space models as Pyro models: one site for the latent path, one for each modality.

Everything of Pyro then applies: a user's own guides and automatic ones, priors on parameters, NUTS
on small problems, ``Predictive``. Pyro's parameter store has no part in it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import Distribution

from plssm.data import Batch, Modality
from plssm.dynamics.base import LatentDynamics
from plssm.errors import PlssmError, ShapeError
from plssm.inference.pyro_priors import ParameterPrior, Shape, match_priors
from plssm.model import StateSpaceModel
from plssm.observations.base import ObservationModel
from plssm.observations.clock import gather

__all__ = ["PATH", "TRIALS", "Observed", "PathPrior", "PyroModel", "to_pyro"]

PATH, TRIALS = "z", "trials"


class PathPrior(TorchDistribution):
    r"""Prior of the latent paths of some trials; batch shape ``[B]``, event shape ``(T, M)``.

    .. math:: w_1 \log p(z_1) + \sum_{t=2}^{T_b} w_t \log p(z_t \mid z_{t-1}, s_t)

    Args:
        dynamics: The latent dynamics.
        inputs: Inputs ``[B, T, K]``, or None.
        length: Latent steps of each trial ``[B]``.
        weight: Weight of each step ``[B, T]``, for windows of longer trials; None is 1.
        anchored: Whether entries beyond a trial's end have the log-density -x²/2 (0 where they
            are 0) instead of none at all. Samplers and guides of whole arrays need it, because
            nothing else holds these entries; they multiply the evidence by a constant,
            :math:`\sqrt{2 \pi}` for each.
        validate_args: As in torch; values beyond a trial's end are never validated.

    Example:
        >>> import plssm as ps
        >>> prior = PathPrior(ps.dynamics.PLRNN(2), length=torch.tensor([5, 3]))
        >>> prior.log_prob(prior.sample((4,))).shape
        torch.Size([4, 2])
    """

    arg_constraints = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = False

    def __init__(
        self,
        dynamics: LatentDynamics,
        inputs: Tensor | None = None,
        *,
        length: Tensor,
        weight: Tensor | None = None,
        anchored: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.dynamics, self.inputs, self.length, self.weight = dynamics, inputs, length, weight
        given = inputs if inputs is not None else weight
        steps = int(length.max()) if given is None else given.shape[1]
        shape = torch.Size(length.shape), torch.Size((steps, dynamics.dim))
        super().__init__(*shape, validate_args=validate_args)
        inside = torch.arange(steps, device=length.device) < length[:, None]
        self._beyond = None if bool(inside.all()) else ~inside[..., None]
        self.anchored = bool(anchored)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of paths ``[*S, B, T, M]``, as ``[*S, B]``; any values beyond the ends.

        Raises:
            ShapeError: If the paths have another number of steps or states.
        """
        if value.shape[-2:] != self.event_shape:
            raise ShapeError(
                f"PathPrior: got paths {tuple(value.shape)}, wanted [..., {self.batch_shape[0]}, "
                f"{self.event_shape[0]}, {self.event_shape[1]}] (trials, steps, states)"
            )
        weight = {} if self.weight is None else {"weight": self.weight}
        length = None if self._beyond is None else self.length
        total = self.dynamics.log_prob(value, self.inputs, length, **weight)
        if self.anchored and self._beyond is not None:
            rest = torch.where(self._beyond & ~value.isnan(), value, 0.0)
            total = total - 0.5 * rest.square().sum((-2, -1))
        return total

    def expand(self, batch_shape: Shape, _instance: Any = None) -> TorchDistribution:
        """The same distribution for more latent samples; itself where nothing is added."""
        if tuple(batch_shape) == tuple(self.batch_shape):
            return self
        return super().expand(torch.Size(batch_shape), _instance)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw paths ``[*sample_shape, B, T, M]`` by Pyro's seed; 0 beyond a trial's end."""
        shape = (*sample_shape, *self.batch_shape)
        steps, dim = self.event_shape
        inputs = self.inputs
        if inputs is not None:
            inputs = inputs.expand(*shape, *inputs.shape[-2:]).reshape(-1, *inputs.shape[-2:])
        with torch.no_grad():
            z = self.dynamics.sample(steps, trials=math.prod(shape), inputs=inputs)
            z = z.reshape(*shape, steps, dim)
            return z if self._beyond is None else torch.where(self._beyond, 0.0, z)


class Observed(TorchDistribution):
    r"""Observations of one modality given latent paths; batch ``[*S, B]``, event ``(n, N)``.

    .. math:: \sum_i w_{k(i)} \sum_{n\ \mathrm{observed}} \log p(y_{in} \mid Z)

    Args:
        observation: The observation model.
        modality: Masks, clock and regressors of the samples (and the data themselves).
        z: Latent paths ``[*S, B, T, M]``.
        weight: Weight of each latent step ``[B, T]``; a sample has that of its step. None is 1.
        validate_args: As in torch; observations are never validated here, what is not observed
            may be anything.

    Example:
        >>> import plssm as ps
        >>> x = ps.observations.Gaussian(3).bind(2)
        >>> y = torch.zeros(4, 5, 3, dtype=torch.float64)
        >>> m = Modality(y, mask=torch.ones_like(y, dtype=torch.bool))
        >>> site = Observed(x, m, torch.zeros(7, 4, 5, 2, dtype=torch.float64))
        >>> site.batch_shape, site.event_shape, site.log_prob(y).shape
        (torch.Size([7, 4]), torch.Size([5, 3]), torch.Size([7, 4]))
    """

    arg_constraints = {}
    has_rsample = False

    def __init__(
        self,
        observation: ObservationModel,
        modality: Modality,
        z: Tensor,
        weight: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.observation, self.modality, self.z = observation, modality, z
        self.weight = weight
        super().__init__(z.shape[:-2], modality.y.shape[-2:], validate_args=validate_args)

    @constraints.dependent_property(event_dim=2)
    def support(self) -> constraints.Constraint:
        """Arrays of what the observation model's distribution has as its support."""
        one = self.z.new_zeros(1, self.observation.predictors)
        return constraints.independent(self.observation.distribution(one).support, 2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of observations ``[*S, B, n, N]``; masked entries may be anything.

        Args:
            value: Observations; usually ``modality.y``.

        Returns:
            ``[*S, B]``, with the modality's mask.

        Raises:
            ShapeError: If the observations have another number of samples or channels.
        """
        if value.shape[-2:] != self.event_shape:
            raise ShapeError(
                f"Observed: got observations {tuple(value.shape)}, wanted the last axes "
                f"{tuple(self.event_shape)} (samples, channels)"
            )
        if value.ndim > 3:
            return self._each_its_own(value)
        m = self.modality
        if value is not m.y:
            y = torch.where(m.mask, value.to(m.y.dtype), 0.0).expand(m.y.shape)
            m = replace(m, y=y)
        if self.weight is None:
            return self.observation.log_prob(m, self.z)
        at = gather(self.weight[..., None], m.clock, m.y.shape[-2])[..., 0]
        return (self.observation.log_prob_entries(m, self.z).sum(-1) * at).sum(-1)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> TorchDistribution:
        """The same distribution for more latent samples; itself where nothing is added."""
        if tuple(batch_shape) == tuple(self.batch_shape):
            return self
        return super().expand(torch.Size(batch_shape), _instance)

    def _each_its_own(self, value: Tensor) -> Tensor:
        """Log-density where every latent sample comes with its own observations."""
        lead = torch.broadcast_shapes(value.shape[:-3], self.z.shape[:-3])
        copies, m = math.prod(lead), self.modality

        def flat(x: Tensor) -> Tensor:
            return x.expand(*lead, *x.shape[-3:]).reshape(-1, *x.shape[-2:])

        def repeated(x: Tensor) -> Tensor:
            return x.repeat(copies, *(1 for _ in x.shape[1:]))

        many = replace(
            m,
            y=flat(value),
            mask=repeated(m.mask),
            clock=None if m.clock is None else repeated(m.clock),
            nuisance=None if m.nuisance is None else repeated(m.nuisance),
        )
        weight = None if self.weight is None else repeated(self.weight)
        site = Observed(self.observation, many, flat(self.z), weight)
        y = torch.where(many.mask, many.y, 0.0)
        return site.log_prob(y).reshape(*lead, len(m.y))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw every entry, observed or not, ``[*sample_shape, *S, B, n, N]`` by Pyro's seed.

        Spike histories are driven by the counts that are drawn. What stands in the padding of
        shorter trials has no meaning.
        """
        m = self.modality
        seed = int(torch.randint(2**62, ()))
        with torch.no_grad():
            if m.clock is None:
                z = self.z[..., : m.y.shape[-2], :]
                eta = self.observation.features_along(z, nuisance=m.nuisance, dt=m.dt)
            else:
                everything = replace(m, mask=torch.ones_like(m.mask))
                eta = self.observation.features_at(everything, self.z)
            eta = eta.expand(*sample_shape, *eta.shape)
            return self.observation.sample_sequence(eta, seed, dt=m.dt).to(m.y.dtype)


class PyroModel:
    r"""A state-space model as a Pyro model; made by :func:`to_pyro`.

    Called with a batch it runs the sites ``z`` (the latent paths ``[B, T, M]``) and one for each
    modality, named like it, in the plate ``trials``; before them one for each parameter with a
    prior, named as in ``model.named_parameters()``.

    Args:
        model: The state-space model; never changed.
        priors: See :func:`to_pyro`.
        tempered: Whether likelihoods have the exponents ``observation.tempering``.

    Attributes:
        priors: Distribution of each parameter that has one, by name.

    Raises:
        PlssmError: If a modality has the name of the path or of the plate, or priors do not fit.
    """

    def __init__(
        self,
        model: StateSpaceModel,
        priors: Mapping[str, Distribution | str] | None = None,
        *,
        tempered: bool = False,
    ) -> None:
        for name in model.observations:
            if name in (PATH, TRIALS):
                raise PlssmError(
                    f"{name!r} is the name of a modality and of a site of the Pyro model; "
                    "rename the modality"
                )
        self.model, self.tempered = model, bool(tempered)
        found = match_priors(model, priors or {})
        self.priors = {n: ParameterPrior(d, model.get_parameter(n)) for n, d in found.items()}

    def __call__(
        self,
        batch: Batch,
        observed: bool = True,
        *,
        scale: float = 1.0,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Run the model.

        Args:
            batch: The trials: their data, inputs, clocks and lengths.
            observed: Whether the modalities are fixed to the data; otherwise they are drawn.
            scale: Factor on the log-densities of the trials, for a batch that is a part of the
                data: all trials / those in the batch. A guide's path needs it, too; automatic
                guides hold one path for each place in the batch and need all trials.
            weight: Weight of each latent step ``[B, T]``, for windows of longer trials.

        Returns:
            The latent paths ``[*S, B, T, M]``.
        """
        dynamics, observations = self._drawn()
        with pyro.plate(TRIALS, len(batch), dim=-1), _scaled(scale):
            prior = PathPrior(
                dynamics, batch.inputs, length=batch.length, weight=weight, anchored=True
            )
            z = pyro.sample(PATH, prior)
            for name, observation in observations.items():
                m = batch.modalities[name]
                site = Observed(observation, m, z, weight)
                with _scaled(float(observation.tempering) if self.tempered else 1.0):
                    pyro.sample(name, site, obs=m.y if observed else None)
        return z

    def _drawn(self) -> tuple[LatentDynamics, Mapping[str, ObservationModel]]:
        """The model's parts, or copies with drawn values in the place of their parameters.

        Log-densities are evaluated after the run, so the values must stay: every run has its own
        copies. Only the objects around the tensors are copied, not what is not drawn.
        """
        model = self.model
        if not self.priors:
            return model.dynamics, model.observations
        memo = {id(t): t for t in (*model.parameters(), *model.buffers())}
        for name, prior in self.priors.items():
            memo[id(model.get_parameter(name))] = prior.one(name, pyro.sample(name, prior))

        def copied(path: str, part: nn.Module) -> nn.Module:
            drawn = any(name.startswith(f"{path}.") for name in self.priors)
            return copy.deepcopy(part, memo) if drawn else part

        observations = {
            name: copied(f"observations.{name}", part) for name, part in model.observations.items()
        }
        return copied("dynamics", model.dynamics), observations

    def to_model(self, sample: Mapping[str, Tensor]) -> StateSpaceModel:
        """Write drawn values back: a copy of the model with the parameters of one draw.

        Args:
            sample: Values by site, each of the parameter's shape, e.g. posterior means; other
                sites are left alone.

        Returns:
            The model, which everything of plssm takes.

        Raises:
            ShapeError: If a value has another shape.
        """
        model = copy.deepcopy(self.model)
        for name, prior in self.priors.items():
            if name not in sample:
                continue
            value = prior.one(name, torch.as_tensor(sample[name]).detach())
            with torch.no_grad():
                model.get_parameter(name).copy_(value)
        for part in (model.dynamics, *model.observations.values()):
            part.initialised = True
        return model


def _scaled(factor: float) -> AbstractContextManager:
    """Scales the log-densities of the sites inside."""
    return nullcontext() if factor == 1.0 else poutine.scale(scale=factor)


def to_pyro(
    model: StateSpaceModel,
    priors: Mapping[str, Distribution | str] | None = None,
    *,
    tempered: bool = False,
) -> PyroModel:
    r"""Make a Pyro model of a state-space model.

    .. math:: p(\theta) \prod_b p(Z_b \mid \theta) \prod_m p(y_b^{(m)} \mid Z_b, \theta)

    Args:
        model: The state-space model; its values are never changed. Parameters without prior are
            those it has (the gradient of a loss reaches them, as in every torch module).
        priors: Distributions of parameters, so that they get posteriors: by names of
            ``model.named_parameters()`` or patterns such as ``"dynamics.*"``, in the space of the
            stored parameters (``log_variance``), broadcast to their shape; or "default", see
            :func:`plssm.inference.pyro_priors.default_prior`. With free dynamics and
            observations the latent space can be rotated and scaled; then hold one of them. What
            a model does not use (the diagonal of a PLRNN's ``W``) keeps its prior.
        tempered: Whether likelihoods have the exponents ``observation.tempering``. Otherwise the
            log-density of a trace is ``model.log_joint`` plus that of the priors.

    Returns:
        A callable ``pyro_model(batch, observed=True)`` for guides, samplers and ``Predictive``.
        In an ``AutoGuideList`` a guide written by hand takes the list's ``plates["trials"]``.

    Raises:
        PlssmError: If priors or names do not fit.

    Example:
        >>> import plssm as ps
        >>> model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
        >>> batch = model.simulate(10, trials=4).batch()
        >>> pyro_model = to_pyro(model, {"observations.x.*": "default"})
        >>> trace = poutine.trace(pyro_model).get_trace(batch)
        >>> trace.nodes["z"]["value"].shape, trace.nodes["observations.x.weight"]["value"].shape
        (torch.Size([4, 10, 2]), torch.Size([3, 2]))
    """
    return PyroModel(model, priors, tempered=tempered)
