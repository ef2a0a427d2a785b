"""Scores of labels, levels, counts and signals with memory, against computations by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit, gammaln, softmax
from scipy.stats import norm

import plssm as ps
from plssm.data import Dataset
from plssm.dynamics import LinearDynamics
from plssm.observations import Gaussian
from plssm.observations.bold.model import BOLD
from plssm.observations.counts.history import RaisedCosine
from plssm.observations.counts.models import Poisson
from plssm.observations.labels.classes import Bernoulli, Categorical
from plssm.observations.labels.ordinal import Ordinal

DECAY, NOISE = 0.9, 0.4
CHOICE = np.array([[1.5], [-1.2]]), np.array([0.2, 0.0])
RATING, CUTS = np.array([[1.3]]), np.array([[-0.8, 0.3, 1.2]])
SPIKES = np.array([[0.6], [-0.8]]), np.array([0.2, -0.3])
WARMUP, STEPS = 3, (1, 3)
KINDS = {"x": "continuous", "choice": "label", "rating": "ordinal", "spikes": "count"}


def make():
    latent = LinearDynamics.from_parameters(
        [[DECAY]], process_noise=[NOISE], initial_mean=[0.0], initial_noise=[1.0]
    )
    parts = {
        "x": Gaussian.from_parameters([[1.0]], noise=[0.5]),
        "choice": Categorical.from_parameters(*CHOICE),
        "rating": Ordinal.from_parameters(RATING, CUTS),
        "spikes": Poisson.from_parameters(*SPIKES),
    }
    return ps.StateSpaceModel(latent, parts)


def simulate(model, lengths, seed, missing=0.15):
    rng, arrays = np.random.default_rng(seed), {name: [] for name in KINDS}
    for k, n in enumerate(lengths):
        one = model.simulate(n, seed=seed + 10 * k)
        for name in KINDS:
            values = one.values(name)[0]
            values[rng.random(values.shape) < missing] = np.nan
            arrays[name].append(values)
    return Dataset.from_arrays(arrays, kinds=KINDS, check_channels=False)


def fitted(model, train):
    """A known model as the result of a training that changed nothing."""
    engine = ps.inference.LaplaceEM(start="model", stages=(ps.inference.Stage("look", 0),))
    return engine.fit(model, train)


@pytest.fixture(scope="module")
def material():
    model = make()
    train, test = simulate(model, (60, 40), 1), simulate(model, (40, 25, 6), 2)
    return fitted(model, train), train, test


@pytest.fixture(scope="module")
def scored(material):
    fit, _, test = material
    return fit.score(test, steps=STEPS, warmup=WARMUP, samples=1500)


@pytest.fixture(scope="module")
def filtered(material):
    fit, _, test = material
    return fit.posterior(test, causal=True)


def averaged(function, mean, variance, nodes=80):
    """Expectation of a function of states ``[nodes, 1]`` under N(mean, variance)."""
    x, w = hermegauss(nodes)
    return np.tensordot(w / w.sum(), function((mean + np.sqrt(variance) * x)[:, None]), axes=1)


def choice_probabilities(z):
    eta = z @ CHOICE[0].T + CHOICE[1]
    return softmax(np.concatenate([eta, np.zeros((len(z), 1))], axis=1), axis=1)


def rating_probabilities(z):
    below = expit(CUTS - z @ RATING.T)
    edges = np.concatenate([np.zeros((len(z), 1)), below, np.ones((len(z), 1))], axis=1)
    return np.diff(edges, axis=1)


PROBABILITIES = {"choice": choice_probabilities, "rating": rating_probabilities}


def origins(filtered, test):
    """Yield trial, origin, horizon and the Gaussian forecast of the latent state."""
    for b, trial in enumerate(test.trials):
        for t in range(WARMUP, trial.length - 1):
            m, v = float(filtered.mean[b, t]), float(filtered.covariance()[b, t])
            for n in range(1, max(STEPS) + 1):
                m, v = DECAY * m, DECAY**2 * v + NOISE
                if t + n < trial.length and n in STEPS:
                    yield trial, t, n, m, v


def markov(train, name, classes):
    """Frequencies, and transition probabilities of pairs of neighbours, by counting."""
    seen = np.concatenate([t.values[name] for t in train.trials])[:, 0]
    frequency = np.array([np.mean(seen[np.isfinite(seen)] == k) for k in range(classes)])
    counts = np.zeros((classes, classes))
    for trial in train.trials:
        y = trial.values[name][:, 0]
        for one, other in zip(y[:-1], y[1:]):
            if np.isfinite(one) and np.isfinite(other):
                counts[int(one), int(other)] += 1
    return frequency, counts / counts.sum(1, keepdims=True)


def last_seen(trial, name, t, frequency):
    past = trial.values[name][: t + 1, 0]
    past = past[np.isfinite(past)]
    return np.eye(len(frequency))[int(past[-1])] if len(past) else frequency


def rps(p, y):
    return ((p.cumsum()[:-1] - (y <= np.arange(len(p) - 1))) ** 2).sum()


@pytest.mark.parametrize("name", ["choice", "rating"])
def test_labels_and_levels_equal_the_computation_by_hand(material, scored, filtered, name):
    _, train, test = material
    classes = 3 if name == "choice" else 4
    frequency, transition = markov(train, name, classes)
    error = (lambda p, y: p.argmax() != y) if name == "choice" else rps
    found = {k: {n: [] for n in STEPS} for k in ("error", "persistence", "var1")}
    ps_, ys = [], []
    for trial, t, n, m, v in origins(filtered, test):
        y = trial.values[name][t + n, 0]
        if np.isnan(y):
            continue
        p = averaged(PROBABILITIES[name], m, v)
        last = last_seen(trial, name, t, frequency)
        ahead = last @ np.linalg.matrix_power(transition, n)
        for key, q in (("error", p), ("persistence", last), ("var1", ahead)):
            found[key][n].append(error(q, y))
        if n == 1:
            ps_.append(p)
            ys.append(int(y))
    p, y = np.array(ps_), np.array(ys)
    got = scored.loc[name]
    for key, errors in found.items():
        for n in STEPS:
            exact = 1e-9 if key != "error" else 0.02
            np.testing.assert_allclose(got[f"{key}_{n}"], np.mean(errors[n]), atol=exact)
    assert got["values"] == len(y)
    picked = p[np.arange(len(y)), y]
    np.testing.assert_allclose(got["log_likelihood"], np.log(picked).mean(), atol=0.01)
    np.testing.assert_allclose(got["accuracy"], (p.argmax(1) == y).mean(), atol=0.03)
    np.testing.assert_allclose(got["majority"], (y == frequency.argmax()).mean(), atol=1e-12)
    hit = np.eye(classes)[y]
    if name == "choice":
        recall = [(p.argmax(1) == y)[y == k].mean() for k in range(classes)]
        np.testing.assert_allclose(got["balanced_accuracy"], np.mean(recall), atol=0.03)
        np.testing.assert_allclose(got["brier"], ((p - hit) ** 2).sum(1).mean(), atol=0.01)
        assert np.isnan(got[["r2", "coverage_95", "pit_ks", "rps"]].astype(float)).all()
    else:
        np.testing.assert_allclose(got["rps"], np.mean([*map(rps, p, y)]), atol=0.01)
        np.testing.assert_allclose(got["rps"], got["error_1"], atol=1e-9)
        below = p.cumsum(1)[np.arange(len(y)), y] - picked
        inside = (below <= 0.975) & (below + picked >= 0.025)
        np.testing.assert_allclose(got["coverage_95"], inside.mean(), atol=0.02)
        assert 0 < got["pit_ks"] < 0.5
        assert np.isnan(got[["r2", "brier", "balanced_accuracy"]].astype(float)).all()


def test_counts_equal_the_computation_by_hand(material, scored, filtered):
    _, train, test = material
    (w, b), stacked = SPIKES, np.concatenate([t.values["spikes"] for t in train.trials])
    mean, sd = np.nanmean(stacked, 0), np.nanstd(stacked, 0)
    errors, bits, spikes, density = {n: [] for n in STEPS}, 0.0, 0.0, []
    for trial, t, n, m, v in origins(filtered, test):
        y = trial.values["spikes"][t + n]
        seen = np.isfinite(y)
        rate = np.exp(w[:, 0] * m + b + 0.5 * w[:, 0] ** 2 * v)  # log-normal
        errors[n].extend((((y - rate) / sd) ** 2)[seen])
        if n == 1:
            null = y * np.log(mean) - mean
            bits += np.nansum(y * np.log(rate) - rate - null)
            spikes += np.nansum(y)

            def p(z, y=y):
                log_rate = z @ w.T + b
                return np.exp(y * log_rate - np.exp(log_rate) - gammaln(y + 1))

            density.extend(np.log(averaged(p, m, v))[seen])
    got = scored.loc["spikes"]
    for n in STEPS:
        np.testing.assert_allclose(got[f"error_{n}"], np.mean(errors[n]), rtol=0.02)
    np.testing.assert_allclose(got["bits_per_spike"], bits / spikes / np.log(2), atol=0.01)
    np.testing.assert_allclose(got["log_likelihood"], np.mean(density), atol=0.01)
    assert got["values"] == len(density)
    assert got["coverage_95"] > 0.9
    assert np.isnan(got["accuracy"])


def test_one_table_with_the_columns_that_apply(material, scored):
    (fit, _, test), table = material, scored
    assert list(table.index) == list(KINDS)
    assert list(table.columns) == [
        "evidence", "evidence_kind", "values", "log_likelihood", "r2", "bits_per_spike",
        "accuracy", "balanced_accuracy", "majority", "brier", "rps", "coverage_95", "pit_ks",
        "error_1", "persistence_1", "var1_1", "error_3", "persistence_3", "var1_3",
    ]  # fmt: skip
    assert np.isnan(table.loc["x", ["bits_per_spike", "accuracy", "rps"]].astype(float)).all()
    alone = ps.StateSpaceModel(fit.model.dynamics, {"x": fit.model.observations["x"]})
    short = ps.Fit(alone).score(test, steps=(1,), warmup=WARMUP, samples=8)
    assert list(short.columns) == [
        "evidence", "evidence_kind", "values", "log_likelihood", "r2", "coverage_95", "pit_ks",
        "error_1", "persistence_1", "var1_1",
    ]  # fmt: skip


def test_calibration_of_the_true_model_and_of_a_wrong_one():
    """Kolmogorov-Smirnov distances of n independent uniform values stay below 1.63 / sqrt(n)."""
    model = make()
    data = simulate(model, (400,), 5, missing=0.0)
    table = ps.Fit(model).score(data, steps=(1,), samples=100)
    for name in ("x", "rating", "spikes"):
        row = table.loc[name]
        assert row["pit_ks"] < 1.63 / np.sqrt(row["values"]), name
        assert row["coverage_95"] > 0.93
    with torch.no_grad():
        model.observations["x"].noise = 0.02
        model.observations["spikes"].bias += 0.7
        model.observations["rating"].first_threshold += 1.5
    wrong = ps.Fit(model).score(data, steps=(1,), samples=100)
    for name in ("x", "rating", "spikes"):
        row = wrong.loc[name]
        assert row["pit_ks"] > 1.63 / np.sqrt(row["values"]), name
        assert row["log_likelihood"] < table.loc[name, "log_likelihood"]


# ---- decoding ---------------------------------------------------------------------------------
def test_decoded_modalities_are_scored_at_all_their_entries(material):
    fit, train, test = material
    got = fit.score(test, given=["x"], samples=1500)
    assert list(got.index) == ["choice", "rating", "spikes"]
    alone = ps.StateSpaceModel(fit.model.dynamics, {"x": fit.model.observations["x"]})
    posterior = ps.smooth(alone, test)
    m, v = posterior.mean[..., 0].numpy(), posterior.covariance()[..., 0, 0].numpy()
    for name, classes in (("choice", 3), ("rating", 4)):
        frequency = markov(train, name, classes)[0]
        p, y = [], []
        for b, trial in enumerate(test.trials):
            for t in np.flatnonzero(np.isfinite(trial.values[name][:, 0])):
                p.append(averaged(PROBABILITIES[name], m[b, t], v[b, t]))
                y.append(int(trial.values[name][t, 0]))
        p, y = np.array(p), np.array(y)
        row = got.loc[name]
        assert row["values"] == len(y)
        np.testing.assert_allclose(row["accuracy"], (p.argmax(1) == y).mean(), atol=0.03)
        picked = p[np.arange(len(y)), y]
        np.testing.assert_allclose(row["log_likelihood"], np.log(picked).mean(), atol=0.01)
        if name == "choice":
            floor = (y != frequency.argmax()).mean()
            np.testing.assert_allclose(row["error"], 1 - row["accuracy"], atol=1e-12)
            np.testing.assert_allclose(row["floor"], 1 - row["majority"], atol=1e-12)
        else:
            floor = np.mean([rps(frequency, k) for k in y])
            np.testing.assert_allclose(row["error"], row["rps"], atol=1e-9)
        np.testing.assert_allclose(row["floor"], floor, atol=1e-12)
    (w, b), stacked = SPIKES, np.concatenate([t.values["spikes"] for t in train.trials])
    y = np.concatenate([t.values["spikes"] for t in test.trials])
    inside = np.arange(m.shape[1]) < test.lengths[:, None]
    rate = np.exp(w.T * m[inside][:, None] + b + 0.5 * w.T**2 * v[inside][:, None])
    mean, sd = np.nanmean(stacked, 0), np.nanstd(stacked, 0)
    bits = np.nansum(y * np.log(rate / mean) - rate + mean) / np.nansum(y) / np.log(2)
    row = got.loc["spikes"]
    np.testing.assert_allclose(row["bits_per_spike"], bits, atol=0.01)
    np.testing.assert_allclose(row["error"], np.nanmean(((y - rate) / sd) ** 2), rtol=0.02)
    np.testing.assert_allclose(row["floor"], np.nanmean(((y - mean) / sd) ** 2), rtol=1e-9)
    predicted = fit.predict(test, "choice", ["x"], samples=1500).labels
    truth = np.full(predicted.shape, np.nan)
    for b, trial in enumerate(test.trials):
        truth[b, : trial.length] = trial.values["choice"][:, 0]
    seen = np.isfinite(truth)
    np.testing.assert_allclose(
        got.loc["choice", "accuracy"], (predicted.numpy() == truth)[seen].mean(), atol=0.02
    )


def test_given_restricts_what_hidden_entries_are_predicted_from(material):
    fit, _, test = material
    held = test.hold_out("spikes", channels=[1])
    everything, one = fit.score(held), fit.score(held, given=["x"])
    both = fit.score(held, given=["x", "spikes"])
    assert [list(t.index) for t in (everything, one, both)] == [["spikes"]] * 3
    count = np.isfinite(np.concatenate([t.values["spikes"][:, 1] for t in test.trials])).sum()
    assert (everything["values"] == count).all()
    assert len({float(t["log_likelihood"].iloc[0]) for t in (everything, one, both)}) == 3
    blind = Dataset.from_arrays(
        {n: [t.values[n] for t in test.trials] for n in ("x", "spikes")},
        kinds={n: KINDS[n] for n in ("x", "spikes")},
        check_channels=False,
    ).hold_out("spikes", channels=[1])
    small = ps.StateSpaceModel(
        fit.model.dynamics, {n: fit.model.observations[n] for n in ("x", "spikes")}
    )
    same = ps.Fit(small, baselines=fit._baselines).score(blind)
    for column in ("log_likelihood", "error", "bits_per_spike"):
        np.testing.assert_allclose(both[column], same[column], rtol=1e-9)


def test_nothing_given_is_the_prior(material):
    fit, _, test = material
    got = fit.score(test, given=[], samples=800)
    assert list(got.index) == list(KINDS)
    variance, p, y = 1.0, [], []
    for t in range(max(test.lengths)):
        here = averaged(choice_probabilities, 0.0, variance)
        for trial in test.trials:
            if t < trial.length and np.isfinite(trial.values["choice"][t, 0]):
                p.append(here)
                y.append(int(trial.values["choice"][t, 0]))
        variance = DECAY**2 * variance + NOISE
    want = np.log(np.array(p)[np.arange(len(y)), y]).mean()
    np.testing.assert_allclose(got.loc["choice", "log_likelihood"], want, atol=0.02)


def test_binary_channels_and_channels_without_spikes():
    rng = np.random.default_rng(0)
    latent = LinearDynamics.from_parameters([[0.8]], process_noise=[0.5])
    model = ps.StateSpaceModel(
        latent,
        {"x": Gaussian.from_parameters([[1.0]], noise=[0.2]),
         "lick": Bernoulli.from_parameters([[1.0], [-2.0]], [0.0, 0.4]),
         "event": Bernoulli.from_parameters([[1.0]], [-0.5])},
    )  # fmt: skip
    full = model.simulate(60, seed=3)
    event = full.values("event")[0]
    data = Dataset.from_arrays(
        {"x": full.values("x")[0], "lick": full.values("lick")[0], "event": event},
        kinds={"lick": "label", "event": "count"},
    )
    table = ps.Fit(model).score(data, given=["x"])
    p = ps.Fit(model).predict(data, "lick", ["x"]).probabilities[0].numpy()
    y = data.values("lick")[0]
    np.testing.assert_allclose(table.loc["lick", "accuracy"], ((p[..., 1] > 0.5) == y).mean())
    assert np.isfinite(table.loc["event", "bits_per_spike"])
    assert np.isnan(table.loc["event", "accuracy"])
    silent = data.trials[0].values["event"] * 0
    quiet = Dataset.from_arrays(
        {"x": rng.normal(size=(60, 1)), "lick": y, "event": silent},
        kinds={"lick": "label", "event": "count"}, check_channels=False,
    )  # fmt: skip
    assert np.isnan(ps.Fit(model).score(quiet, given=["x"]).loc["event", "bits_per_spike"])


# ---- memory and history -----------------------------------------------------------------------
A = np.array([[0.9, 0.2], [-0.3, 0.8]])
Q, S0, B1, R1 = np.array([0.1, 0.2]), np.array([1.0, 0.5]), np.eye(2), np.array([0.3, 0.2])
B2, R2, J2 = np.array([[1.0, 0.5], [0.3, -1.0]]), np.array([0.05, 0.1]), np.array([[0.4], [-0.2]])


def bold_model():
    latent = LinearDynamics.from_parameters(
        A, process_noise=Q, initial_mean=[0.0, 0.0], initial_noise=S0
    )
    bold = BOLD.from_parameters(B=B2, noise=R2, tr_seconds=3.0, J=J2)
    parts = {"x": Gaussian.from_parameters(B1, noise=R1), "bold": bold}
    return ps.StateSpaceModel(latent, parts)


def dense_path(length):
    spread = np.zeros((length * 2, length * 2))
    spread[:2, :2] = np.diag(S0)
    for t in range(1, length):
        now, before = slice(2 * t, 2 * t + 2), slice(2 * t - 2, 2 * t)
        spread[now, : 2 * t] = A @ spread[before, : 2 * t]
        spread[: 2 * t, now] = spread[now, : 2 * t].T
        spread[now, now] = A @ spread[before, before] @ A.T + np.diag(Q)
    return spread


def scans(kernel, length):
    out = np.zeros((length, 2, length, 2))
    for t in range(length):
        for lag, h in enumerate(kernel[: t + 1]):
            out[t, :, t - lag] = h * B2
    return out.reshape(length * 2, length * 2)


def test_forecasts_of_a_modality_with_memory_equal_dense_conditioning():
    model, length, warmup = bold_model(), 24, 8
    rng = np.random.default_rng(4)
    r = rng.normal(size=(length, 1))
    data = model.simulate(length, seed=4, nuisance={"bold": r}, dt=3.0)
    kernel = model.observations["bold"].hrf.kernel(3.0).detach().numpy()
    prior, rows = dense_path(length), scans(kernel, length)
    x, bold = data.values("x")[0], data.values("bold")[0]
    mean, sd = bold.mean(0), bold.std(0)
    errors, density = {n: [] for n in STEPS}, []
    for t in range(warmup, length - 1):
        known = np.concatenate([np.eye(2 * length)[: 2 * t + 2], rows[: 2 * t + 2]])
        noise = np.concatenate([np.tile(R1, t + 1), np.tile(R2, t + 1)])
        seen = np.concatenate([x[: t + 1].ravel(), (bold - r @ J2.T)[: t + 1].ravel()])
        gain = prior @ known.T @ np.linalg.inv(known @ prior @ known.T + np.diag(noise))
        m, v = gain @ seen, prior - gain @ known @ prior
        for n in STEPS:
            if t + n < length:
                row = rows[2 * (t + n) : 2 * (t + n) + 2]
                made = row @ m + J2 @ r[t + n]
                errors[n].extend(((bold[t + n] - made) / sd) ** 2)
                if n == 1:
                    spread = np.sqrt(np.diag(row @ v @ row.T) + R2)
                    density.extend(norm.logpdf(bold[t + 1], made, spread))
    table = ps.Fit(model, dt=3.0).score(data, steps=STEPS, warmup=warmup, samples=3001)
    got = table.loc["bold"]
    assert mean.shape == (2,)
    for n in STEPS:
        # half of the draws mirror the others: the mean of a linear model is exact
        np.testing.assert_allclose(got[f"error_{n}"], np.mean(errors[n]), rtol=1e-8)
    np.testing.assert_allclose(got["log_likelihood"], np.mean(density), atol=0.02)
    assert got["values"] == len(density)


def test_trials_in_groups_make_no_difference(monkeypatch):
    from plssm.scoring import forecasts

    model = bold_model()
    data = model.simulate(20, trials=3, seed=1, nuisance={"bold": np.zeros((20, 1))}, dt=3.0)
    want = ps.Fit(model).score(data, steps=(1,), samples=500)
    monkeypatch.setattr(forecasts, "HISTORIES", 1)
    got = ps.Fit(model).score(data, steps=(1,), samples=500)
    np.testing.assert_allclose(got["log_likelihood"], want["log_likelihood"], atol=0.05)
    np.testing.assert_allclose(got["error_1"], want["error_1"], rtol=1e-9)
    np.testing.assert_allclose(got["persistence_1"], want["persistence_1"], rtol=1e-12)


def test_spike_history_is_known_one_step_ahead_and_drawn_beyond():
    basis = RaisedCosine(functions=2, longest_seconds=3.0, offset_seconds=0.5)
    weight, bias = np.array([[0.4], [-0.3]]), np.array([0.0, 0.3])
    spikes = Poisson.from_parameters(
        weight, bias, history=basis, history_weight=[[-1.0, 0.3], [0.2, -0.1]]
    )
    latent = LinearDynamics.from_parameters([[DECAY]], process_noise=[NOISE], initial_noise=[1.0])
    rng = np.random.default_rng(2)
    y = rng.poisson(1.0, size=(14, 2)).astype(float)
    data = Dataset.from_arrays(
        {"x": rng.normal(size=(14, 1)), "spikes": y}, kinds={"spikes": "count"}
    )
    spikes.refresh(data.batch().modalities["spikes"])
    parts = {"x": Gaussian.from_parameters([[1.0]], noise=[0.5]), "spikes": spikes}
    fit = ps.Fit(ps.StateSpaceModel(latent, parts))
    got = fit.score(data, steps=(1, 2), warmup=WARMUP, samples=4000).loc["spikes"]
    kernel = spikes.history_filter(1.0).detach().numpy()[::-1]
    filtered = fit.posterior(data, causal=True)
    sd, errors, density, draws = y.std(0), {1: [], 2: []}, [], 8000
    for t in range(WARMUP, 13):
        m, v = float(filtered.mean[0, t]), float(filtered.covariance()[0, t])
        past = np.tile(y[t + 1 - len(kernel) : t + 1], (draws, 1, 1))
        z = m + np.sqrt(v) * rng.standard_normal(draws)
        for n in (1, 2):
            if t + n > 13:
                break
            z = DECAY * z + np.sqrt(NOISE) * rng.standard_normal(draws)
            drive = np.einsum("ln,sln->sn", kernel, past)
            rate = np.exp(z[:, None] * weight[:, 0] + bias + drive)
            errors[n].extend(((y[t + n] - rate.mean(0)) / sd) ** 2)
            if n == 1:
                p = np.exp(y[t + 1] * np.log(rate) - rate - gammaln(y[t + 1] + 1))
                density.extend(np.log(p.mean(0)))
            past = np.concatenate([past[:, 1:], rng.poisson(rate)[:, None]], axis=1)
    for n in (1, 2):
        np.testing.assert_allclose(got[f"error_{n}"], np.mean(errors[n]), rtol=0.03)
    np.testing.assert_allclose(got["log_likelihood"], np.mean(density), atol=0.02)
