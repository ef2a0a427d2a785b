"""Particle filter and backward-simulation smoother: the posterior up to Monte-Carlo error."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from plssm.data import Batch
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.modality_weights import is_tempered
from plssm.inference.particle_clouds import Cloud, ParticleFilter, log_mean
from plssm.kernels.particle_steps import backward_draws, systematic
from plssm.model import StateSpaceModel
from plssm.path_samples import PathSamples, StateSamples

__all__ = ["combined_evidence", "particle_filter", "particle_smoother"]

PROPOSALS = ("guided", "lookahead", "bootstrap")
HELD = 100_000_000  # numbers that a block of trials may hold
MOST_HELD = 500_000_000  # numbers that a single trial, or all draws, may hold
FEW = 10  # effective particles below which a trial is marked
MOST_SPREAD = (
    100.0  # variance of the log evidence of runs beyond which its error is as good as infinite
)
UNSURE = 1.0  # standard error of the log evidence, nats, above which a trial is marked


def particle_filter(
    model: StateSpaceModel,
    batch: Batch,
    *,
    particles: int = 1000,
    proposal: str = "guided",
    runs: int = 1,
    seed: int = 0,
    draws: int = 1000,
) -> StateSamples:
    r"""Filtered states and the evidence, by weighted particles.

    .. math:: p(Y) \approx \frac1R \sum_r \hat p_r(Y), \qquad E[\hat p_r(Y)] = p(Y)

    Particles go where the data of the step are likely: the process noise is Gaussian, and so are
    the observations or their expansion around an extended Kalman filter, so that
    :math:`p(z_t \mid z_{t-1}, y_t)` is known in closed form. Weights correct for what was
    expanded; a share of the particles ignores the guide, which bounds the weights of counts and
    labels. Observations with memory (BOLD) weigh the particles' own pasts and guide nothing.

    With "lookahead" later data guide, too (:func:`plssm.inference.particle_guide.look_ahead`):
    the evidence is much more precise, but few particles are left where a filter, which knows no
    later data, wants them.

    Args:
        model: Model with float64 parameters; any dynamics with a ``step``.
        batch: Trials, float64.
        particles: Particles of each filter.
        proposal: "guided", "lookahead", or "bootstrap" (particles follow the dynamics alone).
        runs: Independent filters, whose spread gives the standard error of the log evidence.
        seed: Seed; what a trial gets does not depend on the trials after it.
        draws: States kept of every step, for draws and bands.

    Returns:
        The filtered states. ``evidence_error`` is NaN for a single run.

    Raises:
        PlssmError: If an option is out of range.
        CapabilityError: If what must be kept does not fit into memory.

    References:
        Doucet, Godsill and Andrieu 2000, doi:10.1023/A:1008935410038 (guided proposals);
        Pitt and Shephard 1999, doi:10.1080/01621459.1999.10474153 (weights before moving);
        Del Moral 2004, doi:10.1007/978-1-4684-9393-1 (unbiasedness).
    """
    run = _checked_filter(model, batch, particles, proposal, runs, seed, draws)
    shape = (len(batch), batch.steps)
    states = np.zeros((draws, *shape, model.dim))
    mean, covariance = np.zeros((*shape, model.dim)), np.zeros((*shape, model.dim, model.dim))
    past: np.ndarray | None = None
    if run.memory and draws * np.prod(shape) * model.dim * (run.memory + 1) <= MOST_HELD:
        past = np.zeros((draws, *shape, run.memory + 1, model.dim))
    summary = _Summary(run)
    rng = [np.random.default_rng([seed, 1, b]) for b in range(len(batch))]
    for trials in _blocks(run, held=0):
        for cloud in run.clouds(trials):
            summary.add(cloud, trials)
            place = trials, cloud.t
            mean[place], covariance[place] = _moments(cloud)
            for b in range(cloud.z.shape[1]):
                flat = cloud.weight[:, b].ravel()
                chosen = np.unravel_index(
                    systematic(flat, rng[trials.start + b].random(), draws),
                    cloud.weight[:, b].shape,
                )
                states[:, trials.start + b, cloud.t] = cloud.z[:, b][chosen]
                if past is not None:
                    past[:, trials.start + b, cloud.t] = cloud.past[:, b][chosen][:, ::-1]
    return StateSamples(
        states, mean=mean, covariance=covariance, histories=past, **summary.results(model)
    )


def particle_smoother(
    model: StateSpaceModel,
    batch: Batch,
    *,
    particles: int = 1000,
    proposal: str = "lookahead",
    runs: int = 1,
    seed: int = 0,
    draws: int = 1000,
) -> PathSamples:
    r"""Whole paths given all data, by backward simulation through the particles of a filter.

    .. math:: P(z_t = z_t^{(i)} \mid z_{t+1}, y_{1:t}) \propto
        w_t^{(i)} \, p(z_{t+1} \mid z_t^{(i)})

    Paths are drawn from the independent filters in proportion to their evidence.

    Args:
        model: Model with float64 parameters; no observation may remember earlier states.
        batch: Trials, float64.
        particles: Particles of each filter.
        proposal: "lookahead", "guided" or "bootstrap" (see :func:`particle_filter`).
        runs: Independent filters.
        seed: Seed.
        draws: Number of paths.

    Returns:
        The paths, with the evidence of the filters.

    Raises:
        PlssmError: If an option is out of range.
        CapabilityError: If an observation has memory, or the particles do not fit into memory.

    References:
        Godsill, Doucet and West 2004, doi:10.1198/016214504000000151.
    """
    remembering = [n for n, o in model.observations.items() if o.memory(batch.dt)]
    if remembering:
        raise CapabilityError(
            f"particle: samples of {remembering} depend on several latent steps, and backward "
            "simulation needs observations of single steps; use causal=True, or method='laplace'."
        )
    run = _checked_filter(model, batch, particles, proposal, runs, seed, draws)
    paths = np.zeros((draws, len(batch), batch.steps, model.dim))
    summary = _Summary(run)
    per_trial = batch.steps * runs * particles * (model.dim + 1)
    if per_trial > MOST_HELD:
        raise CapabilityError(
            f"particle: {runs} runs of {particles} particles at {batch.steps} steps need "
            f"{8 * per_trial / 1e9:.1f} GB; use fewer runs or particles, shorter trials, or "
            "causal=True."
        )
    for trials in _blocks(run, held=per_trial):
        clouds = []
        for cloud in run.clouds(trials):
            summary.add(cloud, trials)
            clouds.append(cloud)
        for b in range(*trials.indices(len(batch))):
            rng = np.random.default_rng([seed, 2, b])
            paths[:, b] = _backward(run, clouds, b, b - trials.start, draws, rng)
    return PathSamples(paths, **summary.results(model))


def _checked_filter(
    model: StateSpaceModel,
    batch: Batch,
    particles: int,
    proposal: str,
    runs: int,
    seed: int,
    draws: int,
) -> ParticleFilter:
    """The filter, once its options are found to be possible."""
    if proposal not in PROPOSALS:
        raise PlssmError(f"particle: proposal is {proposal!r}, wanted one of {PROPOSALS}.")
    least = {
        "particles": (particles, 2),
        "runs": (runs, 1),
        "seed": (seed, 0),
        "draws": (draws, 1),
    }
    for name, (value, lowest) in least.items():
        if int(value) != value or value < lowest:
            raise PlssmError(
                f"particle: {name} is {value!r}, wanted a whole number of at least {lowest}."
            )
    wanted = draws * len(batch) * batch.steps * model.dim
    if wanted > MOST_HELD:
        raise CapabilityError(
            f"particle: {draws} draws of {len(batch)} trials of {batch.steps} steps need "
            f"{8 * wanted / 1e9:.1f} GB; use fewer draws=, or fewer trials at a time."
        )
    return ParticleFilter(
        model, batch, particles=particles, runs=runs, proposal=proposal, seed=seed
    )


def _blocks(run: ParticleFilter, *, held: int) -> Iterator[slice]:
    """Consecutive trials whose particles fit into memory together."""
    widest = run.dim * (run.memory + 1)
    if run.densities is not None:
        widest = max(widest, *(o.predictors * g.y.shape[2] for o, g, *_ in run.densities.parts))
    each = max(held, 10 * run.runs * run.particles * widest)
    trials, size = len(run.transition.length), max(HELD // each, 1)
    for first in range(0, trials, size):
        yield slice(first, min(first + size, trials))


def _moments(cloud: Cloud) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``[B, M]`` and covariance ``[B, M, M]`` over the particles of all runs."""
    w = np.exp(cloud.weight - cloud.weight.max((0, 2), keepdims=True))
    w /= w.sum((0, 2), keepdims=True)
    mean = np.einsum("rbp,rbpm->bm", w, cloud.z)
    apart = cloud.z - mean[:, None]
    weighted = (w[..., None] * apart).swapaxes(0, 1).reshape(len(mean), -1, mean.shape[1])
    apart = apart.swapaxes(0, 1).reshape(weighted.shape)
    return mean, weighted.swapaxes(1, 2) @ apart


def combined_evidence(log_evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Log of the mean of independent estimates of the evidence, with its standard error.

    .. math:: \hat\ell = \log \frac1R \sum_r e^{\ell_r}, \qquad
        \mathrm{se}(\hat\ell) = \sqrt{(e^{s^2} - 1) / R}, \quad s^2 = \mathrm{var}_r(\ell_r)

    Estimates of particle filters are log-normal in the limit; for small spread the error is that
    of the delta method, s over the root of R, which for a spread beyond .6 is much too small.

    Args:
        log_evidence: Log evidence of every run ``[R, B]``.

    Returns:
        Both ``[B]``; the error is NaN for a single run.

    References:
        Berard, Del Moral and Doucet 2014, doi:10.1214/EJP.v19-3428.
    """
    value = log_mean(log_evidence.T)
    runs = len(log_evidence)
    if runs == 1:
        return value, np.full(len(value), np.nan)
    spread = np.minimum(log_evidence.var(0, ddof=1), MOST_SPREAD)
    return value, np.sqrt(np.expm1(spread) / runs)


class _Summary:
    """Evidence and effective sample sizes of all trials, collected while the particles move."""

    def __init__(self, run: ParticleFilter) -> None:
        self.run, self.length = run, run.transition.length
        self.evidence = np.zeros((run.runs, len(self.length)))
        self.effective = np.zeros((len(self.length), run.steps))

    def add(self, cloud: Cloud, trials: slice) -> None:
        """Take in the particles of a step."""
        self.effective[trials, cloud.t] = cloud.effective.mean(0)
        ends = np.flatnonzero(self.length[trials] == cloud.t + 1)
        self.evidence[:, trials.start + ends] = log_mean(cloud.weight[:, ends])

    def results(self, model: StateSpaceModel) -> dict:
        """Arguments that both posteriors take."""
        value, error = combined_evidence(self.evidence + self.run.constant)
        inside = np.arange(self.run.steps) < self.length[:, None]
        least = np.where(inside, self.effective, np.inf).min(1)
        poor = (least < FEW) | (error > UNSURE)
        return {
            "length": self.length,
            "log_evidence": value,
            "evidence_error": error,
            "evidence_kind": "tempered" if is_tempered(model) else "particle",
            "effective": self.effective,
            "status": tuple("few particles" if p else "sampled" for p in poor),
        }


def _backward(
    run: ParticleFilter,
    clouds: list[Cloud],
    trial: int,
    b: int,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Paths ``[draws, T, M]`` of a trial, the b-th of its block; zero beyond its end."""
    transition = run.transition.select(slice(trial, trial + 1))
    last = int(transition.length[0]) - 1
    out = np.zeros((draws, run.steps, run.dim))
    evidence = log_mean(clouds[last].weight[:, b])
    source = systematic(evidence, rng.random(), draws)
    whiten = np.linalg.inv(run.prior_root).T
    for r in np.unique(source):
        mine = np.flatnonzero(source == r)
        chosen = systematic(clouds[last].weight[r, b], rng.random(), len(mine))
        out[mine, last] = clouds[last].z[r, b, chosen]
        for t in range(last - 1, -1, -1):
            z = clouds[t].z[r, b]
            ahead = transition.after(z[None], t + 1)[0] @ whiten
            chosen = backward_draws(
                ahead.T, clouds[t].weight[r, b], out[mine, t + 1] @ whiten, rng.random(len(mine))
            )
            out[mine, t] = z[chosen]
    return out
