"""Where windows start by an encoder that learns to tell what a filter knows."""

from __future__ import annotations

import torch
from torch import Tensor

from plssm.data import Batch
from plssm.inference.batch_windows import BatchWindow, BatchWindows
from plssm.inference.innovations import Innovations
from plssm.inference.observed_starts import ObservedStarts, Spread
from plssm.inference.teacher_encoder import Belief, TeacherEncoder
from plssm.model import StateSpaceModel

__all__ = ["EncoderStarts"]

FIRST, LATER = 300, 60  # updates before the first windows start there, and at every check
RATE, CLIP = 1e-2, 1.0
STEPS, WINDOW = 2000, 100  # of an update, and of one window of it


class EncoderStarts:
    r"""Learns the filter's predictions from the last few observations.

    .. math:: q(z_{t+1} \mid y_{t-16:t}) = N(\bar z + L \mu_t, L \Lambda_t^{-1} L^\top), \qquad
        \min \sum_t \mathrm{KL}\big( N(m^-_{t+1}, P^-_{t+1}) \,\|\, q \big)

    with mean and covariance :math:`\bar z, L L^\top` of the states. What lies further back than
    the encoder reaches is not known to it, so that a filter that has lost its way at some time
    does not pass its state on from window to window. Precisions are diagonal in the coordinates
    of L and include what the encoder gets wrong.

    Args:
        model: Its observation models say what is read of a sample.
        batch: The trials, float64.
        size: Number D of joined states.

    References:
        Herz, Pals, Durstewitz and Koppe 2026, arXiv:2605.31547 (windows that start in the state of
        an encoder).
    """

    def __init__(self, model: StateSpaceModel, batch: Batch, size: int) -> None:
        self.encoder = TeacherEncoder.for_model(model, batch, size, causal=True, lasting=True)
        self.features = self.encoder.features(model, batch)
        self.inside = batch.time_mask
        reach = self.encoder.reach
        self.windows = BatchWindows(batch, steps=WINDOW, context=reach, after=0)
        self.times = 0

    @torch.enable_grad()
    def learn(self, found: Innovations, spread: Spread) -> float:
        """Some updates towards what a pass of the filter through all trials predicts.

        Args:
            found: The pass; trials in which it has not settled teach nothing.
            spread: Moments of the states.

        Returns:
            The divergence in the last update, nats per step.
        """
        mean, variance = _scaled(found, spread)
        good = self.inside[:, 1:] & found.settled[:, None]
        good = good & torch.isfinite(mean).all(-1) & torch.isfinite(variance).all(-1)
        parameters = list(self.encoder.parameters())
        optimiser = torch.optim.RAdam(parameters, lr=RATE)
        generator = torch.Generator().manual_seed(self.times)
        updates, loss = LATER if self.times else FIRST, torch.zeros(())
        pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates, eta_min=RATE / 10)
        for _ in range(updates if bool(good.any()) else 0):
            window = self.windows.draw(max(STEPS // WINDOW, 1), generator)
            row, at, belief = self._belief(window)
            later = at.clamp_max(mean.shape[1] - 1)
            scored = window.weight.bool() & (at < mean.shape[1]) & good[row, later]
            each = _divergence(belief, mean[row, later], variance[row, later])
            loss = torch.where(scored, each, 0.0).sum() / scored.sum().clamp_min(1)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimiser.step()
            pace.step()
        self.times += int(good.any())
        return float(loss.detach())

    def _belief(self, window: BatchWindow) -> tuple[Tensor, Tensor, Belief]:
        """Trials and steps of windows, and what the encoder says there."""
        at = window.start[:, None] + torch.arange(window.batch.steps)
        row, last = window.row[:, None], self.inside.shape[1] - 1
        found = {name: x[row, at.clamp_max(last)] for name, x in self.features.items()}
        return row, at, self.encoder.believe(found, window.batch.time_mask)

    @torch.no_grad()
    def starts(self, spread: Spread) -> ObservedStarts:
        """Mean and covariance of the states before each step's data.

        Args:
            spread: Moments of the states, which stand at first steps of trials.
        """
        belief = self.encoder.believe(self.features, self.inside)
        root = torch.linalg.cholesky(spread.covariance)
        scaled = root * belief.precision.rsqrt()[..., None, :]
        mean = spread.mean + belief.mean @ root.T
        shape = (len(mean), 1, *spread.covariance.shape)
        first = spread.mean.expand_as(mean[:, :1])
        return ObservedStarts(
            torch.cat([first, mean[:, :-1]], dim=1),
            torch.cat([spread.covariance.expand(shape), (scaled @ scaled.mT)[:, :-1]], dim=1),
        )

    def state(self) -> dict[str, Tensor]:
        """What resuming needs."""
        held = {f"encoder.{k}": v for k, v in self.encoder.state_dict().items()}
        return held | {"times": torch.tensor(self.times)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` returned, among other things."""
        name = "encoder."
        own = {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
        self.encoder.load_state_dict(own)
        self.times = int(state["times"])


@torch.no_grad()
def _scaled(found: Innovations, spread: Spread) -> tuple[Tensor, Tensor]:
    """Predicted means and variances of all steps but the first, in units of the states' spread."""
    root = torch.linalg.cholesky(spread.covariance)
    away = (found.run.predicted_mean[:, 1:] - spread.mean)[..., None]
    mean = torch.linalg.solve_triangular(root, away, upper=False)[..., 0]
    half = torch.linalg.solve_triangular(root, found.run.predicted_covariance[:, 1:], upper=False)
    whole = torch.linalg.solve_triangular(root, half.mT, upper=False)
    return mean, whole.diagonal(dim1=-2, dim2=-1)


def _divergence(belief: Belief, mean: Tensor, variance: Tensor) -> Tensor:
    r"""Divergence up to what does not depend on the belief, nats [B, T].

    .. math:: \tfrac12 \sum_k \lambda_k \big( (m_k - \mu_k)^2 + P_{kk} \big) - \log \lambda_k
    """
    away = (mean - belief.mean).square() + variance
    return 0.5 * (belief.precision * away - belief.precision.log()).sum(-1)
