"""Spike history: how the counts of past bins drive the counts of the present one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

from plssm.errors import PlssmError, ShapeError

__all__ = ["HistoryBasis", "RaisedCosine", "SpikeHistory", "filtered_past"]


class HistoryBasis(ABC):
    """Functions of the time since a spike, of which a history filter is a weighted sum."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number J of functions."""

    @abstractmethod
    def lags(self, dt: float) -> int:
        """Number L of past bins that have an effect.

        Args:
            dt: Seconds per bin.
        """

    @abstractmethod
    def values(self, dt: float) -> Tensor:
        """The functions at lags of 1, ..., L bins, ``[L, J]`` float64.

        Args:
            dt: Seconds per bin.
        """


@dataclass(frozen=True)
class RaisedCosine(HistoryBasis):
    r"""Raised cosines on a logarithmic time axis: fine just after a spike, coarse later.

    .. math:: b_j(t) = \tfrac12 \Big(1 + \cos\big(\mathrm{clip}_{\pm\pi}
        \frac{\pi \, (x(t) - x_j)}{2 \Delta}\big)\Big), \qquad x(t) = \log(1 + t / c)

    A lag of l bins counts as t = (l − 1) dt. The first function peaks at t = 0, the bin after
    the spike, and the last has fallen to zero at the longest time; peaks are 1 high and neighbours
    half overlap, so that a weight is the change of the predictor at a function's peak.

    Args:
        functions: Number J of functions.
        longest_seconds: Time after which a spike has no effect.
        offset_seconds: The time c up to which the axis is nearly linear.

    References:
        Pillow et al. 2008, doi:10.1038/nature07140.

    Example:
        >>> RaisedCosine(functions=2, longest_seconds=0.05).values(0.01).shape
        torch.Size([5, 2])
    """

    functions: int = 3
    longest_seconds: float = 0.1
    offset_seconds: float = 0.005

    def __post_init__(self) -> None:
        """Refuse what is not a basis."""
        if isinstance(self.functions, bool) or self.functions != int(self.functions):
            raise PlssmError(f"RaisedCosine: functions is {self.functions!r}, wanted an integer")
        if self.functions < 1:
            raise PlssmError(f"RaisedCosine: functions is {self.functions}, wanted at least 1")
        for name in ("longest_seconds", "offset_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise PlssmError(f"RaisedCosine: {name} is {value}, wanted seconds > 0")

    @property
    def size(self) -> int:
        """Number J of functions."""
        return int(self.functions)

    def lags(self, dt: float) -> int:
        """Number of past bins of dt seconds that have an effect, at least 1."""
        return max(math.ceil(self.longest_seconds / dt - 1e-9), 1)

    def values(self, dt: float) -> Tensor:
        """The functions at lags of 1, ..., L bins, ``[L, J]``."""
        end = math.log1p(self.longest_seconds / self.offset_seconds)
        spacing = end / (self.size + 1)
        x = np.log1p(np.arange(self.lags(dt)) * dt / self.offset_seconds)
        distance = (x[:, None] - spacing * np.arange(self.size)) / spacing
        return torch.from_numpy(0.5 * (1 + np.cos(np.pi * np.clip(distance / 2, -1, 1))))


class SpikeHistory(nn.Module):
    """Past counts of all channels, filtered by a basis.

    Args:
        basis: The functions.
        channels: Number N of channels.
        coupling: Whether the filters go between all channels, else from each to itself.

    Attributes:
        expected_count: What stands for an unknown count ``[N]``.
        own: Which of the weights ``[N, N * J]`` belong to a channel's own past.
    """

    def __init__(self, basis: HistoryBasis, channels: int, coupling: bool) -> None:
        super().__init__()
        self.basis, self.channels, self.coupling = basis, channels, coupling
        self.register_buffer("expected_count", torch.zeros(channels, dtype=torch.float64))
        own = torch.eye(channels, dtype=torch.bool).repeat_interleave(basis.size, dim=1)
        self.register_buffer("own", own, persistent=False)

    @property
    def columns(self) -> int:
        """Number of filtered counts of a bin."""
        return self.channels * self.basis.size

    def pack(self, weight: Tensor) -> Tensor:
        """Weights ``[N, J]``, coupled ``[N target, N source, J]``, as ``[N, N * J]``.

        Raises:
            ShapeError: When they have another shape.
        """
        wanted = (self.channels,) * (1 + self.coupling) + (self.basis.size,)
        if tuple(weight.shape) != wanted:
            raise ShapeError(f"history_weight: wanted {wanted}, got {tuple(weight.shape)}")
        if not self.coupling:
            weight = torch.diag_embed(weight.mT).permute(1, 2, 0)
        return weight.flatten(1)

    def unpack(self, packed: Tensor) -> Tensor:
        """Weights ``[N, N * J]`` as ``[N, J]``, coupled ``[N target, N source, J]``."""
        full = packed.unflatten(1, (self.channels, self.basis.size))
        return full if self.coupling else torch.diagonal(full, dim1=0, dim2=1).mT

    def expect(self, total: Tensor, count: Tensor) -> None:
        """Set the expected counts to means; a channel never observed keeps its own.

        Args:
            total: Sum of the observed counts ``[N]``.
            count: Number of observed samples ``[N]``.
        """
        mean = (total / count.clamp_min(1)).to(self.expected_count)
        self.expected_count.copy_(torch.where(count > 0, mean, self.expected_count))

    def filtered(self, counts: Tensor, dt: float, *, past: Tensor | None = None) -> Tensor:
        """Filtered past counts ``[..., T, N * J]``.

        Args:
            counts: ``[..., T, N]``, NaN where unknown.
            dt: Seconds per bin.
            past: Counts of earlier bins ``[..., t, N]``.
        """
        basis = self.basis.values(dt)
        return filtered_past(self._filled(counts), basis, self._before(past, len(basis)))

    def run(
        self,
        features: Tensor,
        draw: Callable[[Tensor], Tensor],
        kernel: Tensor,
        past: Tensor | None,
    ) -> Tensor:
        """Draw counts bin after bin.

        Args:
            features: Predictors without history ``[..., T, N]``.
            draw: Map from the predictors of one bin to drawn counts, ``[..., N]`` both.
            kernel: Filters ``[L, N]``, coupled ``[L, N target, N source]``.
            past: Counts of earlier bins ``[..., t, N]``.

        Returns:
            ``[..., T, N]``.
        """
        rule = "lts,...ls->...t" if self.coupling else "lt,...lt->...t"
        latest_last = kernel.flip(0)
        before = self._before(past, len(kernel)).to(features)
        window = before.expand(*features.shape[:-2], *before.shape[-2:])
        out = []
        for eta in features.unbind(-2):
            y = draw(eta + torch.einsum(rule, latest_last, window))
            window = torch.cat([window[..., 1:, :], y.unsqueeze(-2)], dim=-2)
            out.append(y)
        return torch.stack(out, dim=-2)

    def _filled(self, counts: Tensor) -> Tensor:
        return torch.where(counts.isnan(), self.expected_count.to(counts), counts)

    def _before(self, past: Tensor | None, lags: int) -> Tensor:
        """The last L bins before a sequence, ``[..., L, N]``."""
        if past is None:
            return self.expected_count.expand(lags, -1)
        known = self._filled(past[..., max(past.shape[-2] - lags, 0) :, :])
        missing = self.expected_count.to(known)
        missing = missing.expand(*known.shape[:-2], lags - known.shape[-2], -1)
        return torch.cat([missing, known], dim=-2)


def filtered_past(counts: Tensor, basis: Tensor, past: Tensor) -> Tensor:
    r"""Filter the past counts of every channel by every function of a basis.

    .. math:: f_{t,nj} = \sum_{l=1}^{L} b_{lj} \, y_{t-l,n}

    Args:
        counts: ``[..., T, N]``.
        basis: ``[L, J]``, lags of 1, ..., L bins.
        past: The bins before the first one ``[..., L, N]``, oldest first.

    Returns:
        ``[..., T, N * J]``, the functions of one channel beside each other. The present bin has
        no part in its own row.
    """
    lags, functions = basis.shape
    past = past.to(counts).expand(*counts.shape[:-2], lags, counts.shape[-1])
    rows = torch.cat([past, counts[..., :-1, :]], dim=-2).mT
    kernel = basis.to(counts).mT.flip(-1)[:, None]
    out = conv1d(rows.reshape(-1, 1, rows.shape[-1]), kernel)
    out = out.unflatten(0, rows.shape[:-1])
    return out.permute(*range(out.ndim - 3), -1, -3, -2).flatten(-2)
