"""What every latent dynamics has: a step, noise, an initial state, densities and rollouts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from plssm._config_capture import Configurable
from plssm.dynamics._checks import checked, write
from plssm.dynamics.initial import Initial
from plssm.dynamics.noise import make_noise
from plssm.dynamics.relu_form import ReluForm, derive_relu_form
from plssm.errors import CapabilityError, PlssmError, ShapeError

__all__ = ["LatentDynamics", "PiecewiseLinear"]

_ROWS = 16384  # states whose Jacobians are held at a time


class LatentDynamics(Configurable, nn.Module, ABC):
    r"""Latent dynamics with Gaussian process noise and a Gaussian first state.

    .. math::
        z_1 \sim N(\mu_0, \Sigma_0), \qquad z_t = F(z_{t-1}, s_t) + \epsilon_t,
        \quad \epsilon_t \sim N(0, \Sigma)

    A subclass writes `step` (or inherits from :class:`PiecewiseLinear`); everything else has a
    default. Parameters are float64. Assigning an array to a parameter (``dynamics.h = [...]``)
    writes its values after a check of the shape; ``requires_grad_(False)`` freezes it.

    Args:
        dim: Number of latent states M.
        inputs: Number of inputs K; they enter through the matrix C [M, K].
        noise: Process noise: "diagonal", "full" or "isotropic"; unit variance.
        initial: "shared" (one initial distribution) or "tied" (one mean per training trial).
        initial_noise: Kind of the initial covariance.
        input_at_start: Whether s_1 adds C s_1 to the mean of z_1; otherwise inputs act from the
            second step on.
    """

    def __init__(
        self,
        dim: int,
        inputs: int = 0,
        *,
        noise: str = "diagonal",
        initial: str = "shared",
        initial_noise: str = "diagonal",
        input_at_start: bool = False,
    ) -> None:
        super().__init__()
        if int(dim) != dim or dim < 1 or int(inputs) != inputs or inputs < 0:
            raise PlssmError(
                f"sizes: got dim={dim!r}, inputs={inputs!r}, wanted whole numbers, "
                "dim at least 1 and inputs at least 0"
            )
        self.dim, self.n_inputs = int(dim), int(inputs)
        self.noise = make_noise(noise, self.dim)
        self.initial = Initial(self.dim, kind=initial, noise=initial_noise)
        self.input_at_start = bool(input_at_start)
        self.initialised = False
        self.C = nn.Parameter(torch.zeros(self.dim, self.n_inputs, dtype=torch.float64))

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigning values to a parameter writes into it, after `check_parameter`."""
        parameters = self.__dict__.get("_parameters", {})
        if parameters.get(name) is None or isinstance(value, nn.Parameter):
            return super().__setattr__(name, value)
        value = checked(name, value, tuple(parameters[name].shape))
        self.check_parameter(name, value)
        write(parameters[name], value)

    def check_parameter(self, name: str, value: Tensor) -> None:
        """Refuses values that a parameter may not have; called before values are assigned.

        Args:
            name: The parameter's name.
            value: Its new values, finite and of the right shape.

        Raises:
            PlssmError: In a subclass, where there is something to refuse.
        """

    def draw_start(self, generator: torch.Generator) -> None:
        """Writes fresh random start values of the map's parameters; frozen ones stay.

        Noise and initial state are not touched. Gradient-based fits begin from such values, and
        restarts differ by them.

        Args:
            generator: Source of randomness, on the CPU.

        Raises:
            CapabilityError: If the class does not say how.
        """
        raise CapabilityError(
            f"{type(self).__name__} has no random start values; write draw_start(generator), or "
            "start from parameters that are set"
        )

    def regress_start(
        self,
        before: Tensor,
        after: Tensor,
        inputs: Tensor | None,  # noqa: ARG002 (the default draws only)
        generator: torch.Generator,
    ) -> Tensor:
        """Writes fresh start values, fitted to pairs of states where that is a regression.

        The default draws them (:meth:`draw_start`). A map that is linear in some of its parameters
        overrides it. Frozen parameters stay.

        Args:
            before: States [n, M].
            after: States one step later [n, M].
            inputs: Inputs of the step arrived at [n, K], or None.
            generator: Source of randomness.

        Returns:
            Mean squares of what the map leaves unexplained [M].
        """
        self.draw_start(generator)
        with torch.no_grad():
            return (after - self.step(before, inputs)).square().mean(0)

    def _write_free(self, **values: Tensor | float) -> None:
        """Writes parameters by name, except those that are frozen."""
        for name, value in values.items():
            parameter = getattr(self, name)
            if parameter.requires_grad:
                write(parameter, torch.as_tensor(value))

    # ---- the map ------------------------------------------------------------------------------
    @abstractmethod
    def step(self, z: Tensor, s: Tensor | None = None) -> Tensor:
        """Returns the expected next state.

        Args:
            z: States [..., M].
            s: Inputs of the step arrived at [..., K]; None is no input.

        Returns:
            Next states [..., M].
        """

    def drive(self, s: Tensor | None) -> Tensor | float:
        """Returns what the inputs add to the next state: s [..., K] to C s [..., M] (or 0.0).

        Raises:
            ShapeError: If the number of inputs differs from the model's.
        """
        if s is None:
            return 0.0
        if s.shape[-1] != self.n_inputs:
            raise ShapeError(
                f"inputs: got {s.shape[-1]} on the last axis, wanted {self.n_inputs}; "
                "set inputs= when the dynamics is made"
            )
        return s @ self.C.T if self.n_inputs else 0.0

    def jacobian(self, z: Tensor, s: Tensor | None = None) -> Tensor:
        """Returns the Jacobian of `step` in z, by automatic differentiation.

        Args:
            z: States [..., M].
            s: Inputs of the step arrived at [..., K].

        Returns:
            Jacobians [..., M, M]; differentiable when gradients are enabled.
        """
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            point = z if z.requires_grad else z.detach().requires_grad_()
            after = self.step(point, s) + 0.0 * point  # a constant map has a gradient, too
            rows = [
                torch.autograd.grad(
                    after[..., i].sum(), point, create_graph=keep, retain_graph=True,
                    materialize_grads=True,
                )[0]
                for i in range(self.dim)
            ]  # fmt: skip
        return torch.stack(rows, dim=-2)

    # ---- densities ----------------------------------------------------------------------------
    def first_mean(self, inputs: Tensor | None = None) -> Tensor:
        """Returns the mean of z_1.

        Args:
            inputs: Inputs [..., T, K]; used only with `input_at_start`.

        Returns:
            The shared mean [M], or [..., M] where the first input moves it.
        """
        if inputs is None or not self.input_at_start:
            return self.initial.mean
        return self.initial.mean + self.drive(inputs[..., 0, :])

    def log_prob(
        self,
        z: Tensor,
        inputs: Tensor | None = None,
        length: Tensor | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        r"""Returns the log-density of latent paths, all steps at once.

        .. math:: w_1 \log p(z_1) + \sum_{t=2}^{T} w_t \log p(z_t \mid z_{t-1}, s_t)

        Args:
            z: Paths [..., T, M].
            inputs: Inputs [..., T, K]; None is no input.
            length: Number of steps of each trial [B] (the axis before time), or a single number
                for a single path; what lies beyond is ignored, also NaN.
            weight: Weight w of each step [..., T]; None is 1 everywhere.

        Returns:
            Log-densities [...].
        """
        steps = z.shape[-2]
        mask = None
        if length is not None:
            length = torch.as_tensor(length, device=z.device)
            mask = torch.arange(steps, device=z.device) < length[..., None]
            z = torch.where(mask[..., None], z, 0.0)
            if inputs is not None:
                inputs = torch.where(mask[..., None], inputs, 0.0)
        first = self.initial.noise.log_prob(z[..., 0, :] - self.first_mean(inputs))
        if weight is not None:
            first = first * weight[..., 0]
        if steps == 1:
            return first
        arrived = None if inputs is None else inputs[..., 1:, :]
        entries = self.noise.log_prob(z[..., 1:, :] - self.step(z[..., :-1, :], arrived))
        if mask is not None:
            entries = torch.where(mask[..., 1:], entries, 0.0)
        if weight is not None:
            entries = entries * weight[..., 1:]
        return first + entries.sum(-1)

    def penalty(self) -> Tensor:
        """Returns the negative log-prior of the parameters, to subtract from an objective."""
        return torch.zeros((), dtype=self.C.dtype, device=self.C.device)

    # ---- paths --------------------------------------------------------------------------------
    def rollout(
        self,
        start: Tensor,
        steps: int,
        *,
        inputs: Tensor | None = None,
        noise: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Iterates the map.

        Args:
            start: States to start from [..., M].
            steps: Number of steps.
            inputs: Inputs of the steps arrived at [..., steps, K].
            noise: Whether process noise is added.
            generator: Source of randomness.

        Returns:
            The states after the start [..., steps, M]. They carry gradients when gradients are
            enabled; long free runs are much faster under ``torch.no_grad()``.
        """
        start = start.to(dtype=self.C.dtype, device=self.C.device)
        if inputs is not None:
            self.drive(inputs[..., :0, :])  # refuses a wrong number of inputs
            if inputs.shape[-2] != steps:
                raise ShapeError(f"inputs: got {inputs.shape[-2]} steps, wanted {steps}")
            inputs = inputs.to(start)
            batch = torch.broadcast_shapes(start.shape[:-1], inputs.shape[:-2])
            start = start.expand(*batch, self.dim)
            inputs = inputs.expand(*batch, steps, -1) if self.n_inputs else None
        draws = None
        if noise:
            draws = self.noise.sample((*start.shape[:-1], steps), generator=generator)
        return self._iterate(start, steps, inputs, draws)

    def _iterate(
        self, z: Tensor, steps: int, inputs: Tensor | None, draws: Tensor | None
    ) -> Tensor:
        """The plain loop: z [..., M] to [..., steps, M]."""
        path = []
        for t in range(steps):
            z = self.step(z, None if inputs is None else inputs[..., t, :])
            z = z if draws is None else z + draws[..., t, :]
            path.append(z)
        return torch.stack(path, dim=-2) if path else z.new_zeros(*z.shape[:-1], 0, self.dim)

    def sample(
        self,
        steps: int,
        *,
        trials: int = 1,
        inputs: Tensor | None = None,
        noise: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws paths from the prior.

        Args:
            steps: Number of steps T.
            trials: Number of paths.
            inputs: Inputs [trials, T, K] (or [T, K] for all alike).
            noise: Whether there is noise; False starts at the initial mean and runs freely.
            generator: Source of randomness.

        Returns:
            Paths [trials, T, M].
        """
        if inputs is not None:
            inputs = inputs.to(self.C).expand(trials, -1, -1)
            if inputs.shape[-2] != steps:
                raise ShapeError(f"inputs: got {inputs.shape[-2]} steps, wanted {steps}")
        z = self.first_mean(inputs).expand(trials, self.dim)
        if noise:
            z = z + self.initial.noise.sample((trials,), generator=generator)
        later = None if inputs is None else inputs[:, 1:]
        rest = self.rollout(z, steps - 1, inputs=later, noise=noise, generator=generator)
        return torch.cat([z[:, None], rest], dim=1)

    def __repr__(self) -> str:
        """Says the sizes and the noise."""
        sizes = {"dim": self.dim, **self._sizes()}
        if self.n_inputs:
            sizes["inputs"] = self.n_inputs
        said = ", ".join(f"{name}={value}" for name, value in sizes.items())
        return f"{type(self).__name__}({said}, noise={self.noise.kind!r})"

    def _sizes(self) -> dict[str, int | bool]:
        """Sizes and switches beside dim and inputs that the representation names."""
        return {}


class PiecewiseLinear(LatentDynamics, ABC):
    r"""Dynamics that are affine inside each region of state space.

    .. math:: F(z, s) = J_{r(z)} z + b_{r(z)} + C s

    A subclass writes `region` and `affine`. Where `F` is continuous and its gates are ReLUs of
    affine functions of z, `relu_form` finds the rest of what engines need.
    """

    @abstractmethod
    def region(self, z: Tensor) -> Tensor:
        """Returns the region of each state: z [..., M] to bits, bool [..., P]."""

    @abstractmethod
    def affine(self, region: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the affine map of each region: bits [..., P] to J [..., M, M], b [..., M]."""

    def step(self, z: Tensor, s: Tensor | None = None) -> Tensor:
        """Returns the expected next state from `region` and `affine`.

        Args:
            z: States [..., M].
            s: Inputs of the step arrived at [..., K]; None is no input.

        Returns:
            Next states [..., M].
        """
        rows = z.reshape(-1, self.dim).split(_ROWS)  # bounds the memory that J [..., M, M] takes
        after = [self._apply_region(row) for row in rows]
        return torch.cat(after).reshape(z.shape) + self.drive(s)

    def _apply_region(self, z: Tensor) -> Tensor:
        """J_r z + b_r: [n, M] to [n, M]."""
        jacobian, bias = self.affine(self.region(z))
        return (jacobian @ z[..., None])[..., 0] + bias

    @final
    def jacobian(self, z: Tensor, s: Tensor | None = None) -> Tensor:
        """Returns the Jacobian of the region that z [..., M] lies in, [..., M, M]."""
        return self.affine(self.region(z))[0]

    def relu_form(self) -> ReluForm:
        """Returns the map as ReLU gates, derived by probing single bits of `region`.

        Returns:
            The form, in float64 arrays that do not follow later changes of the parameters.

        Raises:
            CapabilityError: If the map has no such form.
        """
        return derive_relu_form(self)

    def coefficients(self) -> tuple[Tensor, Tensor] | None:
        r"""Returns the map as regression coefficients, where a closed-form update exists.

        .. math:: F(z, s) = \theta\,[z;\ \max(0, I z + o);\ 1;\ s]

        Returns:
            theta [M, M+P+1+K] and free, bool of the same shape (False for structural zeros and
            frozen parameters), or None where the update needs gradients.
        """
        return None

    def assign_coefficients(self, theta: Tensor) -> None:
        """Writes regression coefficients back; entries that are not free stay as they are.

        Args:
            theta: Coefficients [M, M+P+1+K] in the order of `coefficients`.

        Raises:
            CapabilityError: If there is no such form.
        """
        raise CapabilityError(
            f"{type(self).__name__} has no closed-form coefficients; update it by gradient"
        )

    def prior(self) -> tuple[Tensor, Tensor] | None:
        r"""Returns the quadratic prior on the coefficients, if there is one.

        .. math:: -\tfrac12 \sum_{ij} w_{ij} (\theta_{ij} - \theta^0_{ij})^2

        Returns:
            Weights and targets, both [M, M+P+1+K], or None.
        """
        return None

    def _iterate(
        self, z: Tensor, steps: int, inputs: Tensor | None, draws: Tensor | None
    ) -> Tensor:
        """The compiled loop where no gradient is wanted, otherwise the plain one."""
        tensors = (z, *(t for t in (inputs, draws) if t is not None), *self.parameters())
        gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if gradient or steps == 0 or z.device.type != "cpu":
            return super()._iterate(z, steps, inputs, draws)
        try:
            form = self.relu_form()
        except CapabilityError:
            return super()._iterate(z, steps, inputs, draws)
        path = form.rollout(z.numpy(force=True), steps, _array(inputs), _array(draws))
        return torch.from_numpy(path).to(z.dtype)


def _array(tensor: Tensor | None) -> np.ndarray | None:
    """A tensor's values as an array."""
    return None if tensor is None else tensor.numpy(force=True)
