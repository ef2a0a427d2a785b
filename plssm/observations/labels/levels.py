"""Distribution over a finite number of levels, by their log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

__all__ = ["LevelDistribution", "pick"]


class LevelDistribution(Distribution):
    """Distribution over the levels 0 .. K-1 of each channel, given by log-probabilities.

    Unlike ``torch.distributions.Categorical`` it has moments, and draws have the dtype of the
    probabilities.

    Args:
        logits: Normalised log-probabilities ``[..., N, K]``.
        validate_args: Whether to check arguments and values.

    Attributes:
        logits: The log-probabilities.

    Example:
        >>> d = LevelDistribution(torch.tensor([[0.5, 0.25, 0.25]]).log())
        >>> d.mean.item(), d.variance.item(), d.cdf(torch.tensor([1.0])).item()
        (0.75, 0.6875, 0.75)
    """

    arg_constraints = {"logits": constraints.real_vector}
    has_enumerate_support = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Whole numbers from 0 to K-1."""
        return constraints.integer_interval(0, self.levels - 1)

    @property
    def levels(self) -> int:
        """Number K of levels."""
        return self.logits.shape[-1]

    @property
    def probs(self) -> Tensor:
        """Probability of each level ``[..., N, K]``."""
        return self.logits.exp()

    @property
    def mean(self) -> Tensor:
        """Expected level ``[..., N]``."""
        return self.probs @ self._numbers()

    @property
    def variance(self) -> Tensor:
        """Variance of the level ``[..., N]``."""
        deviation = self._numbers() - self.mean[..., None]
        return (self.probs * deviation.square()).sum(-1)

    @property
    def mode(self) -> Tensor:
        """Most probable level ``[..., N]``."""
        return self.logits.argmax(-1).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of levels ``[..., N]``."""
        if self._validate_args:
            self._validate_sample(value)
        return pick(self.logits, value.long())

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of a level not above ``value``."""
        below = self._numbers() <= value[..., None]
        return torch.where(below, self.probs, 0.0).sum(-1)

    def sample(self, sample_shape: torch.Size | tuple = ()) -> Tensor:
        """Draw levels ``[*sample_shape, ..., N]``."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            edges = self.probs.cumsum(-1)[..., :-1]
            uniform = torch.rand(shape, dtype=edges.dtype, device=edges.device)
            return (uniform[..., None] >= edges).sum(-1).to(edges.dtype)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All levels ``[K, ..., N]`` (``[K, 1, ..., 1]`` unless expanded)."""
        values = self._numbers().view(-1, *(1 for _ in self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values

    def expand(
        self, batch_shape: torch.Size | tuple, _instance: LevelDistribution | None = None
    ) -> LevelDistribution:
        """The same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        return LevelDistribution(self.logits.expand(*shape, self.levels), validate_args=False)

    def _numbers(self) -> Tensor:
        return torch.arange(self.levels, dtype=self.logits.dtype, device=self.logits.device)


def pick(table: Tensor, index: Tensor) -> Tensor:
    """Entry of the last axis named by an index, batch axes broadcast.

    Args:
        table: ``[..., K]``.
        index: int64 ``[...]``.

    Returns:
        ``[...]``.
    """
    shape = torch.broadcast_shapes(table.shape[:-1], index.shape)
    index = index.expand(shape)[..., None]
    return table.expand(*shape, table.shape[-1]).gather(-1, index).squeeze(-1)
