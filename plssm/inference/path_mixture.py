"""Mixture of Gaussian paths, for Pyro: one component for each modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from plssm.inference.path_distribution import GaussianPath

__all__ = ["PathMixture"]


class PathMixture(TorchDistribution):
    r"""Mixture of Gaussian paths, whose draws come from all components in equal numbers.

    .. math:: q(Z) = \sum_e w_e\, N_e(Z), \qquad
        \mathbb E_q f(Z) = \sum_e \frac{w_e}{n} \sum_{k=1}^{n} \mathbb E f(Z_{ek}),
        \quad Z_{ek} \sim N_e

    The batch has a row for every draw: those of the first component, then those of the next.
    Each row is drawn from its component, and its density is that of the mixture. No choice is
    made at random, so that everything is differentiable in the components' parameters.

    Args:
        components: Gaussian paths of the same trials [B].
        weight: Their weights w [B, E]; they add up to one, and may be zero.
        count: Number n of draws of each component.

    Raises:
        ValueError: If the shapes do not fit together.

    Example:
        >>> diag = torch.eye(2).expand(3, 5, 2, 2)
        >>> paths = [GaussianPath(torch.full((3, 5, 2), m), diag) for m in (-1.0, 1.0)]
        >>> mixture = PathMixture(paths, torch.full((3, 2), 0.5), count=4)
        >>> z = mixture.rsample()
        >>> z.shape, mixture.log_prob(z).shape
        (torch.Size([8, 3, 5, 2]), torch.Size([8, 3]))
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self, components: Sequence[GaussianPath], weight: Tensor, *, count: int = 1
    ) -> None:
        batch, event = components[0].batch_shape, components[0].event_shape
        if weight.shape != (*batch, len(components)):
            raise ValueError(
                f"weight: got {tuple(weight.shape)}, wanted {(*batch, len(components))}"
            )
        self.components, self.weight, self.count = list(components), weight, count
        shape = torch.Size((count * len(components), *batch))
        super().__init__(shape, event, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PathMixture:
        """Itself: a mixture has its rows from the start.

        Raises:
            ValueError: If another shape is wanted.
        """
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(f"expand: got {tuple(batch_shape)}, wanted {self.batch_shape}")
        return self

    @property
    def share(self) -> Tensor:
        """What the draw of a row counts, w_e / n [n E, B]."""
        return self.weight.T.repeat_interleave(self.count, dim=0) / self.count

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws n paths of every component, [*S, n E, B, T, M]; zero beyond a trial's end.

        Args:
            sample_shape: Further leading axes S.
        """
        shape = (*sample_shape, self.count)
        return torch.cat([path.rsample(shape) for path in self.components], dim=-4)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of paths under the mixture; NaN where a component has none.

        Args:
            value: [*S, B, T, M].

        Returns:
            [*S, B].
        """
        each = torch.stack([path.log_prob(value) for path in self.components], dim=-1)
        broken = [~path.entropy().detach().isfinite() for path in self.components]
        total = torch.logsumexp(each + self.weight.to(each).log(), dim=-1)
        return torch.where(torch.stack(broken).any(0), torch.nan, total)
