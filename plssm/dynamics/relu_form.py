"""The common form of piecewise-linear maps: linear part plus a sum of rectified gates."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from plssm.errors import CapabilityError, ShapeError

if TYPE_CHECKING:
    from plssm.dynamics.base import PiecewiseLinear

__all__ = ["ReluForm", "derive_relu_form"]

_TOLERANCE = 1e-8  # relative to the size of the map's coefficients


@dataclass(frozen=True, eq=False)
class ReluForm:
    r"""A continuous piecewise-linear map written with ReLU gates, in plain float64 arrays.

    .. math:: F(z, s) = L z + b + O\,\max(0, I z + o) + C s

    Args:
        linear: L [M, M].
        bias: b [M].
        outer: O [M, P].
        inner: I [P, M].
        offset: o [P].
        inputs: C [M, K].

    Raises:
        ShapeError: If the shapes do not belong together.

    Example:
        >>> form = ReluForm(np.zeros((1, 1)), np.zeros(1), np.ones((1, 1)), np.ones((1, 1)),
        ...                 np.zeros(1), np.zeros((1, 0)))
        >>> form.step(np.array([[-2.0], [3.0]])).ravel().tolist()
        [0.0, 3.0]
    """

    linear: np.ndarray
    bias: np.ndarray
    outer: np.ndarray
    inner: np.ndarray
    offset: np.ndarray
    inputs: np.ndarray
    identity_gates: bool = field(init=False)

    def __post_init__(self) -> None:
        """Makes the arrays float64, contiguous and unwritable; checks that they fit together."""
        arrays = {n: np.array(getattr(self, n), dtype=np.float64, order="C") for n in _ARRAYS}
        dim, gates = arrays["bias"].size, arrays["offset"].size
        wanted = {
            "linear": (dim, dim), "bias": (dim,), "outer": (dim, gates), "inner": (gates, dim),
            "offset": (gates,), "inputs": (dim, arrays["inputs"].shape[-1]),
        }  # fmt: skip
        for name, array in arrays.items():
            if array.shape != wanted[name]:
                raise ShapeError(f"{name}: got shape {array.shape}, wanted {wanted[name]}")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        identity = gates == dim and not self.offset.any()
        identity = identity and np.array_equal(self.inner, np.eye(dim))
        object.__setattr__(self, "identity_gates", bool(identity))

    def gates(self, z: np.ndarray) -> np.ndarray:
        """Returns the gates' arguments I z + o: z [..., M] to [..., P]."""
        z = np.asarray(z, dtype=np.float64)
        return z if self.identity_gates else z @ self.inner.T + self.offset

    def region(self, z: np.ndarray) -> np.ndarray:
        """Returns which gates are on: z [..., M] to bool [..., P]."""
        return self.gates(z) > 0.0

    def step(self, z: np.ndarray, s: np.ndarray | None = None) -> np.ndarray:
        """Applies the map.

        Args:
            z: States [..., M].
            s: Inputs of the step arrived at [..., K]; None is no input.

        Returns:
            Next states [..., M].
        """
        z = np.asarray(z, dtype=np.float64)
        after = z @ self.linear.T + np.maximum(self.gates(z), 0.0) @ self.outer.T + self.bias
        return after if s is None else after + np.asarray(s) @ self.inputs.T

    def jacobian(self, region: np.ndarray) -> np.ndarray:
        r"""Returns the Jacobian of a region.

        .. math:: J = L + O\,\mathrm{diag}(d)\,I

        Args:
            region: Gates d [..., P], boolean or any number between 0 and 1.

        Returns:
            Jacobians [..., M, M].
        """
        d = np.asarray(region, dtype=np.float64)
        if self.identity_gates:
            return self.linear + self.outer * d[..., None, :]
        return self.linear + (self.outer * d[..., None, :]) @ self.inner

    def regional_bias(self, region: np.ndarray) -> np.ndarray:
        r"""Returns the constant part of the map in a region.

        .. math:: b_r = b + O\,\mathrm{diag}(d)\,o

        Args:
            region: Gates d [..., P], boolean or any number between 0 and 1.

        Returns:
            Biases [..., M].
        """
        d = np.asarray(region, dtype=np.float64)
        return self.bias + (d * self.offset) @ self.outer.T

    def rollout(
        self,
        start: np.ndarray,
        steps: int,
        inputs: np.ndarray | None = None,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Iterates the map in compiled code.

        Args:
            start: States to start from [..., M].
            steps: Number of steps.
            inputs: Inputs of the steps arrived at [..., steps, K].
            noise: Values added to each step [..., steps, M].

        Returns:
            The states after the start [..., steps, M].
        """
        from plssm.kernels.rollout import rollout  # compiles on first use

        def flat(array: np.ndarray, *shape: int) -> np.ndarray:
            return np.ascontiguousarray(array, dtype=np.float64).reshape(-1, *shape)

        dim = self.bias.size
        path = rollout(
            self.linear, self.bias, self.outer, self.inner, self.offset, self.inputs,
            flat(start, dim), steps,
            None if inputs is None else flat(inputs, steps, self.inputs.shape[1]),
            None if noise is None else flat(noise, steps, dim),
        )  # fmt: skip
        return path.reshape(*np.shape(start)[:-1], steps, dim)


_ARRAYS = ("linear", "bias", "outer", "inner", "offset", "inputs")


def derive_relu_form(dynamics: PiecewiseLinear) -> ReluForm:
    """Finds the ReLU form of a map from its `region` and `affine` alone.

    Switching on one gate changes [J | b] by a rank-one matrix outer [inner | offset]; its sign
    follows from which side of the hyperplane `region` calls on. A gate that changes nothing gets
    zero rows. That the gates add up is checked on random patterns, that the map is continuous at
    every gate's boundary, and that the form equals `step` at random points.

    Args:
        dynamics: A piecewise-linear map.

    Returns:
        The ReLU form.

    Raises:
        CapabilityError: If the map is not of this form (for example two ReLU layers, or a jump).
    """
    dynamics = copy.deepcopy(dynamics).to(device="cpu", dtype=torch.float64)
    with torch.no_grad():
        return _Probe(dynamics).form()


class _Probe:
    """Takes single measurements of a map; every refusal says what did not fit."""

    def __init__(self, dynamics: PiecewiseLinear) -> None:
        self.dynamics = dynamics
        self.gates = dynamics.region(torch.zeros(dynamics.dim, dtype=torch.float64)).shape[-1]
        self.random = np.random.default_rng(0)
        self.base = self.augmented(np.zeros((1, self.gates), dtype=bool))[0]
        self.scale = max(1.0, float(np.abs(self.base).max()))

    def refuse(self, why: str) -> CapabilityError:
        name = type(self.dynamics).__name__
        return CapabilityError(
            f"{name} has no ReLU form z' = L z + b + O relu(I z + o) + C s: {why}. "
            "Override relu_form() if there is one; otherwise use an engine that needs only step()."
        )

    def augmented(self, pattern: np.ndarray) -> np.ndarray:
        """[J | b] of patterns [n, P], as [n, M, M+1]."""
        jacobian, bias = self.dynamics.affine(torch.from_numpy(pattern))
        return np.concatenate([jacobian.numpy(), bias.numpy()[..., None]], axis=-1)

    def form(self) -> ReluForm:
        outer, inner, offset = self.factors()
        self.check_additive(outer, inner, offset)
        points = self.random.standard_normal((64, self.dynamics.dim))
        if self.gates:
            edge = self.boundary_points(inner, offset)
            outer, inner, offset = self.orient(edge, outer, inner, offset)
            points = np.concatenate([points, edge.reshape(-1, self.dynamics.dim)])
        weights = self.dynamics.C.numpy()
        form = ReluForm(self.base[:, :-1], self.base[:, -1], outer, inner, offset, weights)
        want = self.dynamics.step(torch.from_numpy(points)).numpy()
        size = self.scale * (1.0 + np.abs(points).max(-1, keepdims=True))
        if (np.abs(form.step(points) - want) > _TOLERANCE * size).any():
            raise self.refuse("the form found differs from step() at random points")
        return form

    def factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rank-one factors of what each gate adds, its largest inner weight scaled to one."""
        dim, gates = self.dynamics.dim, self.gates
        outer, inner, offset = np.zeros((dim, gates)), np.zeros((gates, dim)), np.zeros(gates)
        change = self.augmented(np.eye(gates, dtype=bool)) - self.base
        self.scale = max(self.scale, float(np.abs(change).max(initial=0.0)))
        for p, delta in enumerate(change):
            if np.abs(delta).max() <= 1e-13 * self.scale:
                continue
            row = delta[np.abs(delta[:, :-1]).max(axis=1).argmax()]
            pivot = np.abs(row[:-1]).argmax()
            if np.abs(row[pivot]) <= 1e-13 * self.scale:
                raise self.refuse(f"gate {p} switches a constant, so that the map jumps")
            unit = row / row[pivot]
            inner[p], offset[p], outer[:, p] = unit[:-1], unit[-1], delta[:, pivot]
            if np.abs(delta - np.outer(outer[:, p], unit)).max() > _TOLERANCE * self.scale:
                raise self.refuse(f"gate {p} does not change [J | b] by a rank-one matrix")
        return outer, inner, offset

    def check_additive(self, outer: np.ndarray, inner: np.ndarray, offset: np.ndarray) -> None:
        """Random patterns must change [J | b] by the sum of their gates' changes."""
        pattern = self.random.random((32, self.gates)) < 0.5
        gates = np.concatenate([inner, offset[:, None]], axis=1)
        want = self.base + (outer * pattern[:, None, :]) @ gates
        if np.abs(self.augmented(pattern) - want).max(initial=0.0) > _TOLERANCE * self.scale * max(
            1, self.gates
        ):
            raise self.refuse("the gates' effects do not add up")

    def boundary_points(self, inner: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Random points on both sides of each gate's hyperplane [n, P, M]."""
        squares = (inner**2).sum(-1, keepdims=True)
        foot = -offset[:, None] * inner / np.where(squares > 0, squares, 1.0)
        size = 1.0 + np.abs(foot).max(initial=0.0)
        return foot + size * self.random.standard_normal((16, self.gates, self.dynamics.dim))

    def orient(
        self, edge: np.ndarray, outer: np.ndarray, inner: np.ndarray, offset: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gives each gate the sign under which `region` is where its argument is positive."""
        region = self.dynamics.region(torch.from_numpy(edge)).numpy()
        on = np.diagonal(region, axis1=1, axis2=2)  # gate p at its own points
        argument = (edge * inner).sum(-1) + offset
        clear = np.abs(argument) > 1e-6 * (1.0 + np.abs(offset))
        agrees = ((on == (argument > 0)) | ~clear).all(0)
        opposed = ((on != (argument > 0)) | ~clear).all(0)
        live = np.abs(outer).max(0) > 0
        wrong = np.flatnonzero(live & ~agrees & ~opposed)
        if wrong.size:
            raise self.refuse(f"the map jumps at the boundary of gate {wrong[0]}")
        sign = np.where(live & ~agrees, -1.0, 1.0)
        return outer * sign, inner * sign[:, None], offset * sign
