"""The evidence lower bound of a Pyro model and guide with one site for the latent path."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from plssm.data import Batch
from plssm.inference.path_distribution import GaussianPath
from plssm.inference.path_mixture import PathMixture
from plssm.inference.pyro_bridge import PATH, TRIALS
from plssm.inference.recognition import Recognition
from plssm.model import StateSpaceModel

__all__ = ["BOUNDS", "PathBound", "PathGuide", "bound_terms"]

BOUNDS = ("elbo", "importance")


class PathGuide:
    """A recognition model as a Pyro guide: one site ``z`` in the plate ``trials``.

    Args:
        recognition: The recognition model.
        model: Its observation models say what is read of the samples.
        samples: Draws of every path; more than one stand in front of the trials. Of a mixture
            every component is drawn as often.
        generator: Source of randomness; Pyro's where absent.

    Example:
        >>> import plssm as ps
        >>> from plssm.inference.encoders import Encoder
        >>> model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
        >>> batch = model.simulate(10, trials=4).batch()
        >>> guide = PathGuide(Recognition(Encoder.for_model(model, batch), 2), model)
        >>> guide(batch).shape
        torch.Size([4, 10, 2])
    """

    def __init__(
        self, recognition: Recognition, model: StateSpaceModel, *, samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        self.recognition, self.model, self.samples = recognition, model, samples
        self.generator = generator

    def __call__(
        self,
        batch: Batch,
        observed: bool = True,
        *,
        scale: float = 1.0,
        weight: Tensor | None = None,  # noqa: ARG002 (as the model is called)
        start: Tensor | None = None,
        row: Tensor | None = None,
    ) -> Tensor:
        """Draws the latent paths ``[B, T, M]``, or ``[S, B, T, M]`` where S > 1.

        Args:
            batch: The trials.
            observed: As of the model; the guide always looks at the data.
            scale: Factor on the log-density.
            weight: As of the model.
            start: First step of each trial in its recording [B], where windows are given.
            row: Number of each trial in the training data [B], for free variational parameters.
        """
        if self.recognition.experts == "mixture":
            parts, weights = self.recognition.mixture(self.model, batch, start)
            each = [GaussianPath(*terms, generator=self.generator) for terms in parts.values()]
            path = PathMixture(each, weights, count=self.samples)
        else:
            terms = self.recognition(self.model, batch, start, row)
            path = GaussianPath(*terms, generator=self.generator)
            if self.samples > 1:
                path = path.expand(torch.Size((self.samples, len(batch))))
        with pyro.plate(TRIALS, len(batch), dim=-1), poutine.scale(scale=scale):
            return pyro.sample(PATH, path)


class BoundTerms(NamedTuple):
    """The parts of a bound, each [S, B] or [B].

    Attributes:
        data: Log-density of the observations.
        prior: Log-density of the path.
        entropy: Closed-form entropy of the guide's path [B]; None of a mixture.
        log_guide: Log-density of the path under the guide; None where it was not asked for.
        shared: Prior less guide of sites outside the trials (parameters), a number.
        share: What each draw of a mixture counts [S, B]; None of a single Gaussian.
    """

    data: Tensor
    prior: Tensor
    entropy: Tensor | None
    log_guide: Tensor | None
    shared: Tensor | float
    share: Tensor | None = None


def bound_terms(
    model: Callable,
    guide: Callable,
    *args: Any,
    density: bool = False,
    weight: Tensor | None = None,
    **options: Any,
) -> BoundTerms:
    """Runs guide and model, and collects the parts of the bound.

    Args:
        model: A Pyro model with a path site.
        guide: A guide whose path is a GaussianPath or a PathMixture.
        *args: What both are called with.
        density: Whether the guide's log-density is wanted as well.
        weight: Weight of each latent step [B, T], handed to both.
        **options: Further keywords of both.
    """
    shown = {"weight": weight, **options}
    guided = poutine.trace(guide).get_trace(*args, **shown)
    shown.pop("start", None), shown.pop("row", None)
    run = poutine.trace(poutine.replay(model, trace=guided)).get_trace(*args, **shown)
    path, prior, data, shared = guided.nodes[PATH], None, 0.0, 0.0
    for name, site in run.nodes.items():
        if site["type"] != "sample" or name == TRIALS:
            continue
        value = site["fn"].log_prob(site["value"])
        if name == PATH:
            prior = value
        elif any(frame.name == TRIALS for frame in site["cond_indep_stack"]):
            data = data + value * site["scale"]
        else:
            shared = shared + value.sum()
    for name, site in guided.nodes.items():
        if site["type"] == "sample" and name not in (TRIALS, PATH):
            shared = shared - site["fn"].log_prob(site["value"]).sum()
    if isinstance(path["fn"], PathMixture):
        log_guide = path["fn"].log_prob(path["value"])
        return BoundTerms(data, prior, None, log_guide, shared, path["fn"].share)
    entropy = path["fn"].entropy_terms()
    entropy = entropy[0] if entropy.ndim > 2 else entropy  # the same for all draws
    entropy = entropy if weight is None else entropy * weight
    log_guide = None
    if density:
        log_guide = path["fn"].log_prob(path["value"])
    return BoundTerms(data, prior, entropy.sum(-1), log_guide, shared)


class PathBound(Trace_ELBO):
    r"""Evidence lower bound with the entropy of the path in closed form.

    .. math:: E_q[\log p(Y \mid Z)] + \beta\, (E_q[\log p(Z)] + H[q]), \qquad
        \text{or} \quad E \log \frac1S \sum_s \frac{p(Y, Z_s)}{q(Z_s)}

    A mixture has no entropy in closed form: its densities take that place, and draws count by
    the weights of their components. The bound can be handed to ``pyro.infer.SVI`` with any guide
    whose path is a GaussianPath or a PathMixture.

    Args:
        kind: "elbo" or "importance" (importance-weighted, from the guide's S draws).

    References:
        Kingma and Welling (2014), arXiv:1312.6114; Burda, Grosse and Salakhutdinov (2016),
        Importance weighted autoencoders, arXiv:1509.00519.
    """

    def __init__(self, kind: str = "elbo") -> None:
        super().__init__()
        self.kind = kind

    def bound(
        self, model: Callable, guide: Callable, *args: Any, beta: float = 1.0, **options: Any
    ) -> Tensor:
        """The bound of every trial [B], in nats, without parts that trials share.

        Args:
            model: The Pyro model.
            guide: The guide.
            *args: What both are called with.
            beta: Weight of prior and entropy (annealing).
            **options: Further keywords of both.
        """
        weighted = self.kind == "importance"
        return self._each(bound_terms(model, guide, *args, density=weighted, **options), beta)

    def _each(self, terms: BoundTerms, beta: float) -> Tensor:
        if terms.share is not None:
            logs = terms.data + beta * (terms.prior - terms.log_guide)
            if self.kind == "importance":
                return torch.logsumexp(logs + terms.share.log(), 0)
            return (torch.where(terms.share > 0, logs, 0.0) * terms.share).sum(0)
        if terms.log_guide is None:
            each = terms.data + beta * terms.prior
            each = each.mean(0) if each.ndim > 1 else each
            return each + beta * terms.entropy
        logs = terms.data + beta * (terms.prior - terms.log_guide)
        if logs.ndim == 1:
            return logs
        return torch.logsumexp(logs, 0) - math.log(len(logs))

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **options: Any
    ) -> Tensor:
        """Minus the bound of all trials together, with parts that they share."""
        weighted = self.kind == "importance"
        terms = bound_terms(model, guide, *args, density=weighted, **options)
        return -self._each(terms, 1.0).sum() - terms.shared

    def loss(self, model: Callable, guide: Callable, *args: Any, **options: Any) -> float:
        """Minus the bound, as a number."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **options))

    def loss_and_grads(
        self, model: Callable, guide: Callable, *args: Any, **options: Any
    ) -> float:
        """Minus the bound; adds its gradient to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **options)
        loss.backward()
        return float(loss.detach())
