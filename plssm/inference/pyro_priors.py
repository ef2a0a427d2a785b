"""Priors on the parameters of a state-space model, by name or pattern."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, Normal
from torch.nn import Parameter

from plssm.errors import PlssmError, ShapeError
from plssm.model import StateSpaceModel

__all__ = ["DEFAULT", "ParameterPrior", "Shape", "default_prior", "match_priors"]

DEFAULT = "default"
Shape = torch.Size | list[int] | tuple[int, ...]
WIDE, NARROW = 3.0, 1.0
OFFSETS = ("bias", "mean", "h", "h1", "h2", "thresholds", "first_threshold", "zero_logit")


class ParameterPrior(TorchDistribution):
    """Prior of one parameter as a whole, in the parameter's dtype.

    Args:
        base: Distribution whose batch and event shape together are the parameter's.
        parameter: The parameter.
    """

    arg_constraints = {}

    def __init__(self, base: Distribution, parameter: Tensor) -> None:
        self.base, self.dtype, self.device = base, parameter.dtype, parameter.device
        super().__init__(torch.Size(), parameter.shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether draws carry gradients."""
        return self.base.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Where the density is positive."""
        return constraints.independent(self.base.support, len(self.base.batch_shape))

    @property
    def mean(self) -> Tensor:
        """Expected value."""
        return self.base.mean.to(self.device, self.dtype)

    def one(self, name: str, value: Tensor) -> Tensor:
        """One value of the parameter out of what a site holds, which may have axes of size 1.

        Raises:
            ShapeError: If it is not one value of the parameter's shape.
        """
        shape = tuple(value.shape)
        wanted = tuple(self.event_shape)
        extra = len(shape) - len(wanted)
        if extra < 0 or shape[extra:] != wanted or any(size != 1 for size in shape[:extra]):
            raise ShapeError(
                f"{name}: got values {shape}, wanted one of {wanted}: take one draw of each "
                "parameter; in Pyro Predictive(parallel=False), vectorize_particles=False"
            )
        return value.reshape(wanted).to(self.device, self.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of values ``[*S, ...]``, as ``[*S]``."""
        entries = self.base.log_prob(value)
        return sum_rightmost(entries, len(self.base.batch_shape))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw values ``[*sample_shape, ...]``."""
        return self.base.sample(torch.Size(sample_shape)).to(self.device, self.dtype)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw values that carry gradients."""
        return self.base.rsample(torch.Size(sample_shape)).to(self.device, self.dtype)


def default_prior(name: str, parameter: Parameter) -> Normal:
    """Weakly informative prior, for data and latent states of order one.

    Args:
        name: The parameter's name.
        parameter: The parameter.

    Returns:
        A Normal around 0, in the space of the stored parameter: standard deviation 3 for
        logarithms (names ``log_...``: variances, dispersions, gaps) and offsets (bias, h,
        thresholds, initial mean, zero logit), 1 for everything else (maps, weights, inputs).
    """
    last = name.rpartition(".")[2]
    wide = last.startswith("log_") or last in OFFSETS
    zero = torch.zeros_like(parameter, requires_grad=False)
    return Normal(zero, zero + (WIDE if wide else NARROW), validate_args=False)


def match_priors(
    model: StateSpaceModel, priors: Mapping[str, Distribution | str]
) -> dict[str, Distribution]:
    """Find the prior of each parameter.

    Args:
        model: The model.
        priors: Distributions, or "default", by names of ``model.named_parameters()`` or patterns
            such as ``"dynamics.*"``. A name goes before patterns, of patterns the first counts.

    Returns:
        By name, in the order of the model: distributions whose batch and event shape together are
        the parameter's. Frozen and empty parameters that only a pattern matches are left out.

    Raises:
        PlssmError: If a key names no parameter or a frozen one, or a value is no distribution.
        ShapeError: If a distribution does not broadcast to the parameter.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.numel()}
    free = {n: p for n, p in parameters.items() if p.requires_grad}
    for key, given in priors.items():
        if key in parameters and key not in free:
            raise PlssmError(
                f"priors[{key!r}]: the parameter is frozen; take the prior away, or free it with "
                "requires_grad_(True)"
            )
        if not any(key == name or fnmatchcase(name, key) for name in free):
            raise PlssmError(f"priors[{key!r}] matches no free parameter of {list(free)}")
        if given != DEFAULT and not isinstance(given, Distribution):
            raise PlssmError(
                f"priors[{key!r}] is a {type(given).__name__}, wanted a distribution such as "
                f"torch.distributions.Normal(0.0, 1.0), or {DEFAULT!r}"
            )
    found = {}
    for name, parameter in free.items():
        keys = [key for key in priors if key == name]
        keys += [key for key in priors if fnmatchcase(name, key)]
        if keys:
            given = priors[keys[0]]
            prior = default_prior(name, parameter) if isinstance(given, str) else given
            found[name] = _expanded(name, prior, parameter)
    return found


def _expanded(name: str, prior: Distribution, parameter: Parameter) -> Distribution:
    """The distribution with as many batch axes as complete the parameter's shape."""
    shape = tuple(parameter.shape)
    cut = len(shape) - len(prior.event_shape)
    if cut >= 0 and shape[cut:] == tuple(prior.event_shape):
        if shape[:cut] == tuple(prior.batch_shape):
            return prior
        try:
            return prior.expand(torch.Size(shape[:cut]))
        except (RuntimeError, ValueError):
            pass
    raise ShapeError(
        f"the prior of {name!r} has batch shape {tuple(prior.batch_shape)} and event shape "
        f"{tuple(prior.event_shape)}, wanted what broadcasts to {shape}"
    )
