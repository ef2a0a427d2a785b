"""Cross-modal prediction against dense conditioning of the joint Gaussian, and quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit, gammaln, softmax
from scipy.stats import norm

import plssm as ps
from plssm.data import Dataset
from plssm.dynamics import PLRNN, LinearDynamics
from plssm.errors import CapabilityError, DataError, PlssmError
from plssm.observations import Gaussian, ObservationModel
from plssm.observations.bold.model import BOLD
from plssm.observations.counts.history import RaisedCosine
from plssm.observations.counts.models import Poisson
from plssm.observations.labels.classes import Bernoulli, Categorical
from plssm.observations.labels.ordinal import Ordinal
from plssm.prediction import Prediction
from plssm.prediction.cross_modal import predictors_of

A = np.array([[0.9, 0.2], [-0.3, 0.8]])
H, C = np.array([0.1, -0.05]), np.array([[0.5], [0.2]])
Q, MU0, S0 = np.array([0.1, 0.2]), np.array([0.3, -0.2]), np.array([1.0, 0.5])
B1, R1 = np.array([[1.0, 0.4], [0.2, -0.7]]), np.array([0.3, 0.2])
B2, R2, BIAS2 = np.array([[0.5, 1.0], [1.0, 0.0], [-0.6, 0.8]]), np.array([0.2, 0.1, 0.4]), 0.7
J2 = np.array([[0.3], [0.0], [-0.5]])
LENGTHS = (9, 6, 1)
CLOCKS = (np.array([0, 2, 2, 5, 8]), np.array([1, 5]), np.array([0]))


def dynamics():
    return LinearDynamics.from_parameters(
        A, h=H, C=C, process_noise=Q, initial_mean=MU0, initial_noise=S0
    )


def gaussians():
    return {
        "x": Gaussian.from_parameters(B1, noise=R1),
        "y": Gaussian.from_parameters(B2, [BIAS2] * 3, noise=R2, nuisance_weight=J2),
    }


def dataset(seed=0, *, values=True):
    """Three ragged trials; x has gaps, y its own clock (one step twice) and regressors."""
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(n, 2)) for n in LENGTHS]
    for one in x:
        one[rng.random(one.shape) < 0.2] = np.nan
    y = [rng.normal(size=(len(c), 3)) * (1.0 if values else np.nan) for c in CLOCKS]
    return Dataset.from_arrays(
        {"x": x, "y": y},
        0.5,
        times={"y": [0.5 * c + 0.01 * np.arange(len(c)) for c in CLOCKS]},
        inputs=[rng.normal(size=(n, 1)) for n in LENGTHS],
        nuisance={"y": [rng.normal(size=(len(c), 1)) for c in CLOCKS]},
        lengths=LENGTHS,
        check_channels=False,
    )


def dense_prior(inputs, transition=A, offset=H, drive=C, q=Q, mean=MU0, first=S0):
    """Mean ``[T*M]`` and covariance of a whole path, step by step."""
    steps, dim = len(inputs), len(mean)
    means, spread = [mean], np.zeros((steps * dim, steps * dim))
    spread[:dim, :dim] = np.diag(first)
    for t in range(1, steps):
        means.append(transition @ means[-1] + offset + drive @ inputs[t])
        now, before = slice(t * dim, (t + 1) * dim), slice((t - 1) * dim, t * dim)
        spread[now, : t * dim] = transition @ spread[before, : t * dim]
        spread[: t * dim, now] = spread[now, : t * dim].T
        spread[now, now] = transition @ spread[before, before] @ transition.T + np.diag(q)
    return np.concatenate(means), spread


def condition(mean, spread, rows, noise, observed):
    """Gaussian given ``rows @ z + noise = observed``; NaN = missing."""
    seen = np.isfinite(observed)
    rows, noise, observed = rows[seen], noise[seen], observed[seen]
    gain = spread @ rows.T @ np.linalg.inv(rows @ spread @ rows.T + np.diag(noise))
    return mean + gain @ (observed - rows @ mean), spread - gain @ rows @ spread


def rows_of(weight, steps, length):
    """Weights of samples at some steps on a stacked path."""
    channels, dim = weight.shape
    out = np.zeros((len(steps) * channels, length * dim))
    for i, t in enumerate(steps):
        out[i * channels : (i + 1) * channels, t * dim : (t + 1) * dim] = weight
    return out


def latent_posterior(trial, given):
    """Dense mean and covariance of one trial's path given some of its modalities."""
    m, v = dense_prior(trial.inputs)
    parts = {"x": (B1, R1, 0.0), "y": (B2, R2, None)}
    for name in given:
        weight, noise, shift = parts[name]
        if shift is None:
            shift = BIAS2 + trial.nuisance["y"] @ J2.T
        rows = rows_of(weight, trial.steps(name), trial.length)
        seen = (trial.values[name] - shift).ravel()
        m, v = condition(m, v, rows, np.tile(noise, len(trial.values[name])), seen)
    return m, v


def dense_prediction(trial, given):
    """Mean ``[n, 3]`` and covariance ``[3n, 3n]`` of the samples of y."""
    m, v = latent_posterior(trial, given)
    rows = rows_of(B2, trial.steps("y"), trial.length)
    mean = (rows @ m).reshape(-1, 3) + BIAS2 + trial.nuisance["y"] @ J2.T
    return mean, rows @ v @ rows.T + np.diag(np.tile(R2, len(mean)))


# ---- exactness --------------------------------------------------------------------------------
@pytest.mark.parametrize("given", [["x"], [], ["x", "y"], ["y"]])
def test_prediction_is_the_dense_conditional(given):
    fit, data = ps.Fit(ps.StateSpaceModel(dynamics(), gaussians())), dataset()
    draws = 4000
    made = fit.predict(data, "y", given, samples=draws, seed=3)
    mean, variance = made.moments()
    assert mean.shape == (3, 5, 3)
    samples = made.samples.numpy()
    for b, trial in enumerate(data.trials):
        n = len(CLOCKS[b])
        want, spread = dense_prediction(trial, given)
        sd = np.sqrt(np.diag(spread)).reshape(n, 3)
        # draws come in mirrored pairs where there is a posterior, so that the mean is exact
        close = 1e-9 if given else 4.5 * sd.max() / np.sqrt(draws)
        np.testing.assert_allclose(mean[b, :n].numpy(), want, atol=close)
        np.testing.assert_allclose(variance[b, :n].numpy(), sd**2, rtol=4.5 * np.sqrt(4 / draws))
        flat = samples[:, b, :n].reshape(draws, -1)
        error = np.cov(flat.T) - spread
        scale = np.sqrt(np.diag(spread)[:, None] * np.diag(spread) + spread**2)
        assert (np.abs(error) < 4.5 * np.sqrt(2 / draws) * scale).all()
        np.testing.assert_allclose(made.times[b, :n], trial.seconds("y", 0.5))
        assert torch.isnan(mean[b, n:]).all()
        assert torch.isnan(made.samples[:, b, n:]).all()
        assert np.isnan(made.times[b, n:]).all()
    assert made.mask.sum(1).tolist() == [5, 2, 1]


def test_log_density_and_band_are_those_of_the_conditional():
    fit, data = ps.Fit(ps.StateSpaceModel(dynamics(), gaussians())), dataset()
    made = fit.predict(data, "y", ["x"], samples=4000)
    y = np.full((3, 5, 3), np.nan)
    for b, trial in enumerate(data.trials):
        y[b, : len(CLOCKS[b])] = trial.values["y"]
    y[0, 1, 2] = np.nan
    got, (low, high), u = made.log_prob(y), made.interval(0.9), made.pit(y)
    for b, trial in enumerate(data.trials):
        n = len(CLOCKS[b])
        mean, spread = dense_prediction(trial, ["x"])
        sd = np.sqrt(np.diag(spread)).reshape(n, 3)
        seen = np.isfinite(y[b, :n])
        want = norm.logpdf(y[b, :n], mean, sd)
        np.testing.assert_allclose(np.exp(got[b, :n].numpy()), np.exp(want), atol=0.03)
        np.testing.assert_allclose(
            u[b, :n].numpy()[seen], norm.cdf(y[b, :n], mean, sd)[seen], atol=0.03
        )
        np.testing.assert_allclose(low[b, :n].numpy(), mean - 1.645 * sd, atol=0.2 * sd.max())
        np.testing.assert_allclose(high[b, :n].numpy(), mean + 1.645 * sd, atol=0.2 * sd.max())
        assert torch.isnan(got[b, n:]).all()
    assert torch.isnan(got[0, 1, 2])
    assert torch.isnan(u[0, 1, 2])


def test_by_default_everything_else_is_given_and_the_target_is_never_seen():
    fit, data = ps.Fit(ps.StateSpaceModel(dynamics(), gaussians())), dataset()
    want = fit.predict(data, "y", ["x"]).mean
    for other in (dataset(values=False), data.hold_out("y"), data.hold_out("y", channels=[1])):
        got = fit.predict(other, "y").mean
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(fit.predict(data, "y", "x").mean, want, equal_nan=True)


def test_hidden_entries_of_what_is_given_stay_hidden():
    fit, data = ps.Fit(ps.StateSpaceModel(dynamics(), gaussians())), dataset()
    held = data.hold_out("x", channels=[0], times=(0.0, 2.0))
    made = fit.predict(held, "y", ["x"])
    for b, trial in enumerate(held.trials):
        want = dense_prediction(trial, ["x"])[0]
        np.testing.assert_allclose(made.mean[b, : len(want)].numpy(), want, atol=1e-9)
    seen = fit.predict(data, "y", ["x"])
    assert float((made.mean - seen.mean).nan_to_num().abs().max()) > 0.01


def test_filtered_prediction_looks_at_the_past_only():
    fit, data = ps.Fit(ps.StateSpaceModel(dynamics(), gaussians())), dataset()
    made = fit.predict(data, "y", ["x"], causal=True, samples=4000)
    for b, trial in enumerate(data.trials):
        for i, t in enumerate(trial.steps("y")):
            m, v = dense_prior(trial.inputs[: t + 1])
            rows = rows_of(B1, np.arange(t + 1), t + 1)
            seen = trial.values["x"][: t + 1].ravel()
            m, v = condition(m, v, rows, np.tile(R1, t + 1), seen)
            mean = B2 @ m[-2:] + BIAS2 + J2 @ trial.nuisance["y"][i]
            sd = np.sqrt(np.diag(B2 @ v[-2:, -2:] @ B2.T) + R2)
            np.testing.assert_allclose(made.mean[b, i].numpy(), mean, atol=1e-8)
            got = made.moments()[1][b, i].sqrt().numpy()
            np.testing.assert_allclose(got, sd, rtol=0.1)


def test_a_modality_the_data_do_not_have_is_predicted_at_every_step():
    fit, data = ps.Fit(ps.StateSpaceModel(dynamics(), gaussians())), dataset()
    alone = Dataset.from_arrays(
        {"x": [t.values["x"] for t in data.trials]}, 0.5, inputs=[t.inputs for t in data.trials],
        check_channels=False,
    )  # fmt: skip
    made = fit.predict(alone, "y", ["x"])
    assert made.mean.shape == (3, 9, 3)
    for b, trial in enumerate(alone.trials):
        m = latent_posterior(trial, ["x"])[0].reshape(-1, 2)
        want = m @ B2.T + BIAS2  # regressors are not known and left out
        np.testing.assert_allclose(made.mean[b, : trial.length].numpy(), want, atol=1e-9)
        np.testing.assert_allclose(made.times[b, : trial.length], 0.5 * np.arange(trial.length))


def test_the_model_is_left_alone_and_draws_reproduce():
    fit, data = ps.Fit(ps.StateSpaceModel(dynamics(), gaussians())), dataset()
    before = {k: v.clone() for k, v in fit.model.state_dict().items()}
    state = torch.random.get_rng_state()
    one, two = (fit.predict(data, "y", ["x"], samples=7, seed=5).samples for _ in range(2))
    torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    other = fit.predict(data, "y", ["x"], samples=7, seed=6).samples
    assert not torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    assert torch.equal(state, torch.random.get_rng_state())
    assert list(fit.model.observations) == ["x", "y"]
    for name, value in fit.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_blocks_make_no_difference(monkeypatch):
    """With a memory of a few numbers only, exact results stay to the bit."""
    fit, data = ps.Fit(ps.StateSpaceModel(dynamics(), gaussians())), dataset()
    truth = np.random.default_rng(1).normal(size=(3, 5, 3))

    def results():
        made = fit.predict(data, "y", ["x"], samples=40)
        return [*made.moments(), made.log_prob(truth), *made.cdf(truth)]

    want = results()
    from plssm.prediction import predictive

    monkeypatch.setattr(predictive, "BLOCK", 1)
    for got, wanted in zip(results(), want):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)
    made = fit.predict(data, "y", ["x"], samples=40)
    assert made.samples.shape == (40, 3, 5, 3)
    low, high = made.interval()
    assert bool((torch.nan_to_num(high - low) >= 0).all())


def test_draws_of_a_posterior_in_parts_have_its_covariance(monkeypatch):
    from plssm.prediction import latent_draws

    monkeypatch.setattr(latent_draws, "BLOCK", 500)
    fit, data = ps.Fit(ps.StateSpaceModel(dynamics(), gaussians())), dataset()
    posterior = fit.posterior(data)
    paths = latent_draws.draw_paths(posterior, 4001, seed=1)
    for b, trial in enumerate(data.trials):
        assert paths[b].shape == (4001, trial.length, 2)
        m, v = latent_posterior(trial, ["x", "y"])
        flat = paths[b].reshape(4001, -1).numpy()
        np.testing.assert_allclose(flat[:4000].mean(0).reshape(-1), flat.mean(0), atol=1e-2)
        scale = np.sqrt(np.diag(v)[:, None] * np.diag(v) + v**2)
        assert (np.abs(np.cov(flat.T) - v) < 4.5 * np.sqrt(2 / 4000) * scale).all()
        assert np.abs(flat.mean(0) - m).max() < 0.01


# ---- labels, levels, counts -------------------------------------------------------------------
WEIGHTS = {
    "choice": np.array([[1.2], [-0.8], [0.3]]),
    "rating": np.array([[0.9], [-1.1]]),
    "lick": np.array([[1.0], [-2.0]]),
    "spikes": np.array([[0.6], [-0.9]]),
}
CUTS = np.array([[-0.5, 0.4, 1.5], [-1.0, 0.0, 0.7]])
OFFSET = {"choice": [0.1, 0.0, -0.4], "lick": [0.0, 0.5], "spikes": [0.3, -0.2]}


def mixed_fit():
    """One latent unit, seen by a Gaussian channel and by everything that is discrete."""
    latent = LinearDynamics.from_parameters(
        [[0.9]], process_noise=[0.3], initial_mean=[0.0], initial_noise=[1.0]
    )
    parts = {
        "x": Gaussian.from_parameters([[1.0]], noise=[0.5]),
        "choice": Categorical.from_parameters(WEIGHTS["choice"], OFFSET["choice"]),
        "rating": Ordinal.from_parameters(WEIGHTS["rating"], CUTS),
        "lick": Bernoulli.from_parameters(WEIGHTS["lick"], OFFSET["lick"]),
        "spikes": Poisson.from_parameters(WEIGHTS["spikes"], OFFSET["spikes"]),
    }
    return ps.Fit(ps.StateSpaceModel(latent, parts))


def class_probabilities(name, z):
    """Probability of each class at latent states ``[..., 1]`` as ``[..., N, K]``."""
    eta = z @ WEIGHTS[name].T
    if name == "choice":
        eta = np.concatenate([eta + OFFSET[name], np.zeros((*eta.shape[:-1], 1))], axis=-1)
        return softmax(eta, axis=-1)[..., None, :]
    if name == "lick":
        p = expit(eta + OFFSET[name])
        return np.stack([1 - p, p], axis=-1)
    below = expit(CUTS - eta[..., None])
    edges = np.concatenate(
        [np.zeros_like(below[..., :1]), below, np.ones_like(below[..., :1])], -1
    )
    return np.diff(edges, axis=-1)


def averaged(function, mean, variance, nodes=60):
    """Expectation over N(mean, variance) ``[T]`` of a function of states ``[nodes, T, 1]``."""
    x, w = hermegauss(nodes)
    z = mean + np.sqrt(variance) * x[:, None]
    return np.tensordot(w / w.sum(), function(z[..., None]), axes=1)


@pytest.fixture(scope="module")
def mixed():
    fit = mixed_fit()
    data = fit.simulate(12, trials=3, seed=1)
    posterior = ps.Fit(
        ps.StateSpaceModel(fit.model.dynamics, {"x": fit.model.observations["x"]})
    ).posterior(data)
    return fit, data, posterior.mean[..., 0].numpy(), posterior.covariance()[..., 0, 0].numpy()


@pytest.mark.parametrize("name", ["choice", "rating", "lick"])
def test_probabilities_are_those_of_the_posterior(mixed, name):
    fit, data, m, v = mixed
    made = fit.predict(data, name, ["x"], samples=3000)
    want = np.stack([averaged(lambda z: class_probabilities(name, z), *mv) for mv in zip(m, v)])
    channels = want.shape[2]
    got = made.probabilities.numpy()
    assert got.shape == ((3, 12, 4) if name == "choice" else want.shape)
    full = got[:, :, None] if channels == 1 else got
    np.testing.assert_allclose(full, want, atol=4.5 * 0.5 / np.sqrt(3000))
    np.testing.assert_allclose(full.sum(-1), 1.0, rtol=1e-12)
    labels = made.labels.numpy()
    assert labels.shape == full.shape[: 2 if channels == 1 else 3]
    np.testing.assert_array_equal(labels.reshape(full.shape[:3]), full.argmax(-1))
    levels = np.arange(full.shape[-1])
    mean, variance = made.moments()
    np.testing.assert_allclose(mean.numpy(), full @ levels, atol=1e-12)
    second = full @ levels**2 - (full @ levels) ** 2
    np.testing.assert_allclose(variance.numpy(), second, atol=1e-12)
    y = data.values(name)
    picked = np.take_along_axis(full, y[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(made.log_prob(y).numpy(), np.log(picked), atol=1e-12)
    below, upto = made.cdf(y)
    np.testing.assert_allclose((upto - below).numpy(), picked, atol=1e-12)
    np.testing.assert_allclose(upto.numpy(), (full * (levels <= y[..., None])).sum(-1), atol=1e-9)
    u = made.pit(y)
    assert bool(((below <= u) & (u <= upto)).all())


def test_counts_are_predicted_by_their_mixture(mixed):
    fit, data, m, v = mixed
    made = fit.predict(data, "spikes", ["x"], samples=4000)
    w, b = WEIGHTS["spikes"][:, 0], np.array(OFFSET["spikes"])
    mean = np.exp(b + m[..., None] * w + 0.5 * v[..., None] * w**2)  # log-normal
    spread = mean**2 * np.expm1(v[..., None] * w**2)
    got, variance = made.moments()
    np.testing.assert_allclose(got.numpy(), mean, atol=4.5 * np.sqrt(spread.max() / 4000))
    np.testing.assert_allclose(variance.numpy(), mean + spread, rtol=0.25)
    y = data.values("spikes")

    def density(trial):
        def at(z):
            log_rate = z * w + b
            return np.exp(y[trial] * log_rate - np.exp(log_rate) - gammaln(y[trial] + 1))

        return at

    want = np.stack([np.log(averaged(density(k), m[k], v[k])) for k in range(3)])
    np.testing.assert_allclose(made.log_prob(y).numpy(), want, atol=0.1)
    below, upto = (e.numpy() for e in made.cdf(y))
    np.testing.assert_allclose(upto - below, np.exp(want), atol=0.05)


def test_classes_know_no_time_beyond_a_trial():
    fit = mixed_fit()
    full = fit.simulate(8, trials=2, seed=0)
    data = Dataset.from_arrays(
        {"x": [full.values("x")[0], full.values("x")[1][:5]],
         "choice": [full.values("choice")[0][::2], full.values("choice")[1][:2]]},
        kinds={"x": "continuous", "choice": "label"},
        times={"choice": [np.arange(0.0, 8.0, 2.0), np.array([1.0, 4.0])]},
        check_channels=False,
    )  # fmt: skip
    made = fit.predict(data, "choice")
    assert made.probabilities.shape == (2, 4, 4)
    assert torch.isnan(made.probabilities[1, 2:]).all()
    assert torch.isnan(made.labels[1, 2:]).all()
    assert torch.isfinite(made.labels[1, :2]).all()
    assert made.sample(5).shape == (5, 2, 4, 1)


def test_numbers_have_no_probabilities(mixed):
    fit, data, *_ = mixed
    made = fit.predict(data, "x", ["spikes"])
    for ask in ("probabilities", "labels"):
        with pytest.raises(CapabilityError, match="Gaussian describes numbers"):
            getattr(made, ask)


def test_a_label_model_that_is_only_a_distribution():
    """Probabilities are found from the density, without a method of that name."""

    class Plain(ObservationModel):
        kinds = ("label",)

        def __init__(self):
            super().__init__(1, predictors=3)

        def distribution(self, features):
            return torch.distributions.Categorical(logits=features.unsqueeze(-2))

    model = ps.StateSpaceModel(
        LinearDynamics.from_parameters([[0.5]], process_noise=[0.1]),
        {"x": Gaussian.from_parameters([[1.0]], noise=[0.1]), "c": Plain()},
    )
    rng = np.random.default_rng(0)
    data = Dataset.from_arrays(
        {"x": rng.normal(size=(9, 1)), "c": np.arange(9) % 3}, kinds={"c": "label"}
    )
    fit = ps.Fit(model)
    made = fit.predict(data, "c", ["x"], samples=11)
    assert made.probabilities.shape == (1, 9, 3)
    z = fit.predict(data, "x", ["x"], samples=11)
    assert z.mean.shape == (1, 9, 1)
    weight = fit.model.observations["c"].weight.detach().numpy()
    assert weight.shape == (3, 1)
    np.testing.assert_allclose(made.probabilities.sum(-1).numpy(), 1.0)
    y = data.values("c")
    picked = np.take_along_axis(made.probabilities.numpy(), y.astype(int), -1)
    np.testing.assert_allclose(made.log_prob(y).numpy(), np.log(picked), atol=1e-12)


# ---- memory -----------------------------------------------------------------------------------
def bold_fit(noise=0.05):
    parts = {
        "x": Gaussian.from_parameters(B1, noise=R1),
        "bold": BOLD.from_parameters(
            B=[[1.0, 0.5], [0.3, -1.0]], bias=[0.2, 0.0], noise=[noise, noise], tr_seconds=3.0
        ),
    }
    free = LinearDynamics.from_parameters(
        A, h=H, process_noise=Q, initial_mean=MU0, initial_noise=S0
    )
    return ps.Fit(ps.StateSpaceModel(free, parts), dt=3.0)


def bold_rows(observation, steps, length, dt=3.0):
    """Weights of scans on a stacked path, from the response's own kernel."""
    kernel = observation.hrf.kernel(dt).detach().numpy()
    weight = observation.weight.detach().numpy()
    out = np.zeros((len(steps), 2, length, 2))
    for i, t in enumerate(steps):
        for lag, h in enumerate(kernel[: t + 1]):
            out[i, :, t - lag] = h * weight
    return out.reshape(len(steps) * 2, length * 2)


def bold_data(fit, lengths=(30, 22, 14), seed=0):
    """Scans of ragged runs, a fifth of them lost."""
    runs = [fit.simulate(n, seed=seed + k, dt=3.0) for k, n in enumerate(lengths)]
    rng = np.random.default_rng(seed)
    keep = [np.sort(rng.permutation(n)[: (4 * n) // 5]) for n in lengths]
    return Dataset.from_arrays(
        {"x": [r.values("x")[0] for r in runs],
         "bold": [r.values("bold")[0][k] for r, k in zip(runs, keep)]},
        3.0,
        kinds={"x": "continuous", "bold": "bold"},
        times={"bold": [3.0 * k for k in keep]},
    )  # fmt: skip


def bold_prediction(fit, trial, upto=None, given=("x",)):
    """Dense mean ``[n, 2]`` and covariance of scans given x (up to one step after the other)."""
    bold = fit.model.observations["bold"]
    length = trial.length
    m, v = dense_prior(np.zeros((length, 1)))
    if "x" in given:
        seen = np.array(trial.values["x"])
        if upto is not None:
            seen[upto + 1 :] = np.nan
        m, v = condition(
            m, v, rows_of(B1, np.arange(length), length), np.tile(R1, length), seen.ravel()
        )
    rows = bold_rows(bold, trial.steps("bold"), length)
    mean = (rows @ m).reshape(-1, 2) + bold.bias.detach().numpy()
    noise = np.tile(bold.noise.detach().numpy(), len(mean))
    return mean, rows @ v @ rows.T + np.diag(noise)


def test_memory_is_remembered_within_joint_draws():
    fit = bold_fit()
    data = bold_data(fit)
    made = fit.predict(data, "bold", ["x"], samples=4000)
    mean, variance = made.moments()
    for b, trial in enumerate(data.trials):
        want, spread = bold_prediction(fit, trial)
        n = len(want)
        np.testing.assert_allclose(mean[b, :n].numpy(), want, atol=1e-8)
        np.testing.assert_allclose(
            variance[b, :n].numpy().ravel(), np.diag(spread), rtol=4.5 * np.sqrt(4 / 4000)
        )


def test_memory_from_the_prior_and_from_itself():
    fit = bold_fit()
    data = bold_data(fit, lengths=(20,))
    trial = data.trials[0]
    mean, spread = bold_prediction(fit, trial, given=())
    made = fit.predict(data, "bold", [], samples=4000)
    sd = np.sqrt(np.diag(spread)).reshape(-1, 2)
    assert (np.abs(made.mean[0].numpy() - mean) < 4.5 * sd / np.sqrt(4000)).all()
    np.testing.assert_allclose(made.moments()[1][0].numpy(), sd**2, rtol=0.12)
    rows = bold_rows(fit.model.observations["bold"], trial.steps("bold"), 20)
    m, v = dense_prior(np.zeros((20, 1)))
    bias = fit.model.observations["bold"].bias.detach().numpy()
    seen = (trial.values["bold"] - bias).ravel()
    m, v = condition(m, v, rows, np.full(len(seen), 0.05), seen)
    smoothed = fit.predict(data, "bold", ["bold"], samples=100)
    np.testing.assert_allclose(
        smoothed.mean[0].numpy(), (rows @ m).reshape(-1, 2) + bias, atol=1e-8
    )


def test_memory_filtered_from_another_modality():
    fit = bold_fit()
    data = bold_data(fit, lengths=(16, 12))
    made = fit.predict(data, "bold", ["x"], samples=4000, causal=True)
    mean, variance = made.moments()
    for b, trial in enumerate(data.trials):
        for i, t in enumerate(trial.steps("bold")):
            want, spread = bold_prediction(fit, trial, upto=t)
            sd = np.sqrt(np.diag(spread)).reshape(-1, 2)[i]
            assert (np.abs(mean[b, i].numpy() - want[i]) < 4.5 * sd / np.sqrt(4000)).all()
            np.testing.assert_allclose(variance[b, i].sqrt().numpy(), sd, rtol=0.08)


def test_few_samples_far_apart_see_the_same_past():
    """The path is cut to the windows that matter; what is predicted stays."""
    fit = bold_fit()
    data = bold_data(fit, lengths=(120,))
    every = fit.predict(data, "bold", ["x"], samples=20, seed=2)
    rows = np.array([0, len(data.trials[0].values["bold"]) - 1])
    alone = ps.StateSpaceModel(fit.model.dynamics, {"x": fit.model.observations["x"]})
    source = predictors_of(
        fit.model, ps.smooth(alone, data), data, "bold", seen=False, samples=20, seed=2,
        rows=[rows],
    )  # fmt: skip
    made = Prediction(fit.model.observations["bold"], source, np.zeros(2))
    np.testing.assert_allclose(made.mean[0].numpy(), every.mean[0, rows].numpy(), atol=1e-10)
    assert source.samples == 2


def test_forecast_remembers_the_end_of_the_trial():
    fit = bold_fit()
    data = bold_data(fit, lengths=(20, 7))
    steps, draws = 6, 6000
    made = fit.forecast(data, steps, samples=draws)["bold"]
    at = np.rint(made.times / 3.0).astype(int) - 1
    bold = fit.model.observations["bold"]
    for b, trial in enumerate(data.trials):
        length = trial.length + steps
        m, v = dense_prior(np.zeros((length, 1)))
        rows = rows_of(B1, np.arange(trial.length), length)
        m, v = condition(m, v, rows, np.tile(R1, trial.length), trial.values["x"].ravel())
        scans = bold_rows(bold, trial.steps("bold"), length)
        seen = (trial.values["bold"] - bold.bias.detach().numpy()).ravel()
        m, v = condition(m, v, scans, np.full(len(seen), 0.05), seen)
        future = bold_rows(bold, trial.length + at, length)
        mean = (future @ m).reshape(-1, 2) + bold.bias.detach().numpy()
        sd = np.sqrt(np.diag(future @ v @ future.T) + 0.05).reshape(-1, 2)
        assert (np.abs(made.mean[b].numpy() - mean) < 4.5 * sd / np.sqrt(draws)).all()
        np.testing.assert_allclose(made.moments()[1][b].sqrt().numpy(), sd, rtol=0.05)


# ---- spike history ----------------------------------------------------------------------------
def test_spike_history_drives_the_forecast():
    """Against a simulation of every step by hand."""
    basis = RaisedCosine(functions=2, longest_seconds=3.0, offset_seconds=0.5)
    spikes = Poisson.from_parameters(
        [[0.3], [-0.2]], [0.0, 0.3], history=basis, history_weight=[[-1.0, 0.3], [0.2, -0.1]]
    )
    fit = ps.Fit(
        ps.StateSpaceModel(
            LinearDynamics.from_parameters([[0.8]], process_noise=[0.2], initial_noise=[1.0]),
            {"x": Gaussian.from_parameters([[1.0]], noise=[0.1]), "spikes": spikes},
        )
    )
    rng = np.random.default_rng(3)
    y = rng.poisson(1.0, size=(10, 2)).astype(float)
    y[-1, 0] = np.nan
    data = Dataset.from_arrays(
        {"x": rng.normal(size=(10, 1)), "spikes": y}, kinds={"spikes": "count"}
    )
    fit.model.observations["spikes"].refresh(data.batch().modalities["spikes"])
    draws, steps = 20_000, 3
    made = fit.forecast(data, steps, samples=draws)["spikes"]
    posterior = fit.posterior(data)
    m, v = float(posterior.mean[0, -1]), float(posterior.covariance()[0, -1])
    kernel = spikes.history_filter(1.0).detach().numpy()  # [L, N]
    z = m + np.sqrt(v) * rng.standard_normal(draws)
    past = np.where(np.isnan(y), np.nanmean(y, 0), y)[-len(kernel) :]
    past = np.tile(past, (draws, 1, 1))
    for k in range(steps):
        z = 0.8 * z + np.sqrt(0.2) * rng.standard_normal(draws)
        eta = z[:, None] * [0.3, -0.2] + [0.0, 0.3] + np.einsum("ln,sln->sn", kernel[::-1], past)
        rate = np.exp(eta)
        error = 5 * rate.std(0) * np.sqrt(2 / draws)
        np.testing.assert_allclose(made.mean[0, k].numpy(), rate.mean(0), atol=error.max())
        past = np.concatenate([past[:, 1:], rng.poisson(rate)[:, None]], axis=1)


# ---- refusals ---------------------------------------------------------------------------------
def test_unknown_names_are_refused_with_those_that_exist():
    fit, data = ps.Fit(ps.StateSpaceModel(dynamics(), gaussians())), dataset()
    with pytest.raises(DataError, match="got 'z', wanted one of 'x', 'y'"):
        fit.predict(data, "z")
    with pytest.raises(DataError, match="got 'w', wanted one of 'x', 'y'"):
        fit.predict(data, "y", ["x", "w"])
    with pytest.raises(DataError, match="got 'w'"):
        fit.score(data, given=["w"])
    with pytest.raises(DataError, match="nothing is left to be scored"):
        fit.score(data, given=["x", "y"])
    with pytest.raises(DataError, match="modality 'y'.*nuisance"):
        plain = Dataset.from_arrays(
            {m: [t.values[m] for t in data.trials] for m in "xy"}, 0.5, check_channels=False,
            times={"y": [t.times["y"] for t in data.trials]}, lengths=LENGTHS,
            inputs=[t.inputs for t in data.trials],
        )  # fmt: skip
        fit.predict(plain, "y", ["x"])
    with pytest.raises(PlssmError, match="got observations .* wanted"):
        fit.predict(data, "y", ["x"]).log_prob(np.zeros((3, 4, 3)))


def test_an_unbounded_prior_says_so():
    wild = PLRNN.from_parameters(A=[3.0], W=[[0.0]], h=[1.0], process_noise=[0.1])
    fit = ps.Fit(ps.StateSpaceModel(wild, {"x": Gaussian.from_parameters([[1.0]], noise=[0.1])}))
    data = Dataset.from_arrays({"x": np.zeros((800, 1))}, check_channels=False)
    with pytest.raises(PlssmError, match="leaves the finite numbers"):
        fit.predict(data, "x", [])
