"""Haemodynamic response: the delayed, smoothed answer of BOLD to activity."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from plssm._config_capture import Configurable
from plssm.errors import CapabilityError, PlssmError

__all__ = ["DoubleGamma", "LinearFilter", "ResponseFunction", "double_gamma", "realise"]

EARLIEST, LATEST = 1.0, 9.0  # seconds to the peak that a fit may reach; canonical in the middle
DEEPEST = 1 / 3  # largest share of the undershoot; canonical in the middle, too


def double_gamma(
    seconds: Tensor, time_to_peak: Tensor, time_to_undershoot: Tensor, undershoot: Tensor
) -> Tensor:
    r"""Difference of two gamma densities, the usual form of the haemodynamic response.

    .. math:: f(t) = g(t; \tau_p + 1) - \rho \, g(t; \tau_u + 1), \qquad
        g(t; a) = \frac{t^{a-1} e^{-t}}{\Gamma(a)}

    Smooth in all arguments for t > 0, and 0 for t <= 0.

    Args:
        seconds: t, any shape.
        time_to_peak: Mode of the first density in seconds; broadcasts against t, as the others.
        time_to_undershoot: Mode of the second density in seconds.
        undershoot: Share rho of the second density.

    Returns:
        f(t).
    """
    after = seconds > 0
    t = torch.where(after, seconds, 1.0)

    def gamma(mode: Tensor) -> Tensor:
        return torch.exp(mode * torch.log(t) - t - torch.lgamma(mode + 1))

    f = gamma(time_to_peak) - undershoot * gamma(time_to_undershoot)
    return torch.where(after, f, 0.0)


class LinearFilter(NamedTuple):
    r"""Linear filter that answers an impulse like the haemodynamic response.

    .. math:: s_t = A s_{t-1} + b z_{t-1}, \qquad x_t = c^\top s_t + d z_t, \qquad
        h_0 = d, \quad h_l = c^\top A^{l-1} b

    with s zero at the first step.

    Args:
        A: ``[q, q]``, stable.
        b: ``[q]``.
        c: ``[q]``.
        d: Direct term.

    Example:
        >>> A, b, c, d = realise(np.append(0.0, 0.5 ** np.arange(40.0)), order=1)
        >>> LinearFilter(A, b, c, d).impulse(4).round(3).tolist()
        [0.0, 1.0, 0.5, 0.25]
    """

    A: np.ndarray
    b: np.ndarray
    c: np.ndarray
    d: float

    def impulse(self, steps: int) -> np.ndarray:
        """Answer to an impulse, the first values ``[steps]``."""
        out, state = np.empty(steps), self.b
        out[:1] = self.d
        for i in range(1, steps):
            out[i] = self.c @ state
            state = self.A @ state
        return out


def realise(kernel: np.ndarray, order: int) -> LinearFilter:
    """Linear filter of a given order for a sampled kernel, by balanced truncation.

    The kernel is exactly a filter of L - 1 states. Of its balanced form, which the singular
    vectors of the Hankel matrix give, the leading states are kept; then c is fitted by least
    squares.

    Args:
        kernel: h ``[L]``.
        order: Number q of states, at most L - 1.

    Returns:
        The filter; it is stable.

    Raises:
        PlssmError: When the order is not between 1 and L - 1.

    References:
        Kung 1978, A new identification and model reduction algorithm via singular value
        decompositions; Moore 1981, doi:10.1109/TAC.1981.1102568.
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    past = len(kernel) - 1
    if int(order) != order or not 1 <= order <= past:
        raise PlssmError(
            f"a response of {len(kernel)} steps is a filter of 1 to {past} states, got "
            f"order={order!r}"
        )
    padded = np.concatenate([kernel[1:], np.zeros(past)])
    hankel = padded[np.add.outer(np.arange(past), np.arange(past))]
    u, values, vt = np.linalg.svd(hankel)
    root = np.sqrt(values[:order])
    left, right = u[:, :order], vt[:order].T
    shifted = np.vstack([hankel[1:], np.zeros(past)])
    A = left.T @ shifted @ right / root[:, None] / root
    b = root * right[0]
    states = [b]
    for _ in range(2 * past - 1):
        states.append(A @ states[-1])
    c = np.linalg.lstsq(np.stack(states), padded, rcond=None)[0]
    return LinearFilter(A, b, c, float(kernel[0]))


class ResponseFunction(Configurable, nn.Module, ABC):
    """Response f(t) to an impulse, sampled on any clock.

    A subclass writes :meth:`forward`.

    Args:
        length_seconds: After this time the response is taken as over.

    Attributes:
        regions: Number N of channels that have a response of their own, None for a shared one.

    Raises:
        PlssmError: When the length is not positive.

    Example:
        >>> class Boxcar(ResponseFunction):
        ...     def forward(self, seconds):
        ...         return (seconds >= 4.0).to(seconds.dtype)
        >>> Boxcar(length_seconds=6.0).kernel(2.0).tolist()
        [0.0, 0.0, 0.5, 0.5]
    """

    regions: int | None = None

    def __init__(self, length_seconds: float = 32.0) -> None:
        super().__init__()
        if not 0 < length_seconds < math.inf:
            raise PlssmError(f"length_seconds must be positive, got {length_seconds!r}")
        self.length_seconds = float(length_seconds)

    @abstractmethod
    def forward(self, seconds: Tensor) -> Tensor:
        """Response at times after the impulse.

        Args:
            seconds: ``[L]``, float64.

        Returns:
            ``[L]``, or ``[N, L]`` where every channel has its own.
        """

    def steps(self, dt: float) -> int:
        """Number L of samples of the response, those at 0, dt, 2 dt, ... up to its length.

        Args:
            dt: Seconds between samples.

        Raises:
            PlssmError: When the response is shorter than one step.
        """
        count = math.floor(self.length_seconds / dt + 1e-6) + 1
        if count < 2:
            raise PlssmError(
                f"a response of {self.length_seconds:g} s has no sample at steps of {dt:g} s; "
                "make it longer or the steps shorter"
            )
        return count

    def kernel(self, dt: float) -> Tensor:
        r"""Response sampled every dt seconds, with weights that sum to one.

        .. math:: h_l = \frac{f(l \, dt)}{\sum_j f(j \, dt)}

        Args:
            dt: Seconds between samples.

        Returns:
            ``[L]`` or ``[N, L]``, float64.

        Raises:
            PlssmError: When the response is shorter than one step or does not sum to more than 0.
        """
        f = self(dt * torch.arange(self.steps(dt), dtype=torch.float64))
        total = f.sum(-1, keepdim=True)
        if not bool((total > 0).all()):
            raise PlssmError(
                f"the response sampled every {dt:g} s over {self.length_seconds:g} s does not sum "
                "to a positive number; make length_seconds longer or the steps shorter"
            )
        return f / total

    def state_space(self, dt: float, order: int = 5) -> LinearFilter:
        """Linear filter with nearly the same kernel, so that a model stays Markov.

        Five states meet the canonical kernel within 1 % of its peak at steps of 0.1 s and longer.

        Args:
            dt: Seconds per step.
            order: Number q of states.

        Returns:
            The filter.

        Raises:
            CapabilityError: When every region has its own response.
            PlssmError: When the order is not possible.
        """
        if self.regions is not None:
            raise CapabilityError(
                "a response of its own for every region cannot be carried by states that the "
                "regions share; use one shared response"
            )
        return realise(self.kernel(dt).detach().cpu().numpy(), order)


@final
class DoubleGamma(ResponseFunction):
    r"""Double-gamma haemodynamic response; its defaults are the canonical one.

    .. math:: f(t) = g(t; \tau_p + 1) - \rho \, g(t; \tau_u + 1), \qquad
        g(t; a) = \frac{t^{a-1} e^{-t}}{\Gamma(a)}

    The canonical response (delays 6 and 16 s, dispersions 1, ratio 6, onset 0, length 32 s) has
    its peak at 5 s, its undershoot at 15 s and rho = 1/6. Learnable values stay within 1 to 9 s
    and 0 to 1/3.

    Args:
        time_to_peak: Seconds to the mode of the response, between 1 and 9.
        time_to_undershoot: Seconds to the mode of the undershoot.
        undershoot: Share rho of the undershoot, between 0 and 1/3.
        length_seconds: After this time the response is taken as over.
        learn: Whether time to peak and undershoot are trainable parameters.
        regions: Number of channels that have a response of their own; None for a shared one.

    Raises:
        PlssmError: When a value is out of its range.

    References:
        Friston et al. 1998, doi:10.1006/nimg.1997.0306;
        Glover 1999, doi:10.1006/nimg.1998.0419.

    Example:
        >>> [round(h, 3) for h in DoubleGamma().kernel(3.0).tolist()[:5]]
        [0.0, 0.358, 0.57, 0.204, 0.002]
    """

    def __init__(
        self,
        time_to_peak: float = 5.0,
        time_to_undershoot: float = 15.0,
        undershoot: float = 1 / 6,
        *,
        length_seconds: float = 32.0,
        learn: bool = False,
        regions: int | None = None,
    ) -> None:
        super().__init__(length_seconds)
        for name, value, low, high in (
            ("time_to_peak", time_to_peak, EARLIEST, LATEST),
            ("time_to_undershoot", time_to_undershoot, 0.0, math.inf),
            ("undershoot", undershoot, 0.0, DEEPEST),
        ):
            if not low < value < high:
                raise PlssmError(f"{name} is {value!r}, wanted a number between {low} and {high}")
        self.time_to_undershoot = float(time_to_undershoot)
        self.regions = regions
        shape = () if regions is None else (regions,)
        for name, share in (
            ("raw_time_to_peak", (time_to_peak - EARLIEST) / (LATEST - EARLIEST)),
            ("raw_undershoot", undershoot / DEEPEST),
        ):
            raw = torch.full(shape, share, dtype=torch.float64).logit()
            if learn:
                self.register_parameter(name, nn.Parameter(raw))
            else:
                self.register_buffer(name, raw)

    @property
    def time_to_peak(self) -> Tensor:
        """Seconds to the mode of the response, one number or ``[N]``."""
        raw = self.raw_time_to_peak.to(torch.float64)
        return EARLIEST + (LATEST - EARLIEST) * torch.sigmoid(raw)

    @property
    def undershoot(self) -> Tensor:
        """Share of the undershoot, one number or ``[N]``."""
        return DEEPEST * torch.sigmoid(self.raw_undershoot.to(torch.float64))

    def forward(self, seconds: Tensor) -> Tensor:
        """Response at times after the impulse (see the base class)."""
        late = torch.tensor(self.time_to_undershoot, dtype=torch.float64)
        peak, undershoot = self.time_to_peak[..., None], self.undershoot[..., None]
        return double_gamma(seconds.to(peak.device), peak, late.to(peak.device), undershoot)
