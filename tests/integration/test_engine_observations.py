"""LaplaceEM with every observation model, alone and in pairs: masks, ragged trials, clocks."""

import numpy as np
import pytest
import torch

import plssm as ps
from plssm import observations as o


def fitted(small, names, *, seed=0, iterations=2):
    model, data = small.model(names), small.data(names, seed)
    stages = (ps.inference.laplace_em.Stage("em", iterations),)
    return ps.inference.LaplaceEM(seed=seed, stages=stages).fit(model, data, progress=False), data


def test_alone(small, observed_by, tmp_path):
    name = observed_by
    fit, data = fitted(small, [name], iterations=4)
    evidence = fit.history["evidence"].to_numpy()
    assert np.isfinite(evidence).all()
    assert (np.diff(evidence) >= -1e-6 * np.abs(evidence[1:])).all()
    post = fit.posterior(data)
    assert post.mean.shape == (3, max(t.length for t in data.trials), 2)
    assert bool(torch.isfinite(post.log_evidence).all())
    causal = fit.posterior(data, causal=True)
    assert bool(torch.isfinite(causal.log_evidence).all())
    table = fit.score(data, steps=(1, 3), warmup=3, samples=8)
    assert np.isfinite(table.loc[name, "log_likelihood"])
    ahead = fit.forecast(data, steps=4, samples=10)[name]
    assert bool(torch.isfinite(ahead.samples).all())
    fit.save(tmp_path / "fit")
    again = ps.Fit.load(tmp_path / "fit").posterior(data)
    torch.testing.assert_close(again.mean, post.mean, rtol=0, atol=1e-9, equal_nan=True)


def test_in_pairs(small, observed_by_two):
    fit, data = fitted(small, list(observed_by_two))
    evidence = fit.history["evidence"].to_numpy()
    assert np.isfinite(evidence).all() and len(evidence) >= 2
    assert evidence[-1] >= evidence[0] - 1e-6 * abs(evidence[0])
    one, two = observed_by_two
    guess = fit.predict(data, one, given=[two], samples=8)
    seen = np.isfinite(data.values(one)[..., 0])
    assert bool(torch.isfinite(guess.mean.reshape(*guess.mean.shape[:2], -1)[seen]).all())


def test_everything_at_once_with_gaps_of_whole_trials(small):
    names = ["gaussian", "poisson", "categorical", "ordinal", "bold"]
    fit, data = fitted(small, names)
    assert np.isfinite(fit.history["evidence"]).all()
    table = fit.score(data, given=["poisson"])
    assert set(table.index) == set(names) - {"poisson"}


def test_a_trial_alone_is_what_it_is_among_others(small, observed_by):
    fit, data = fitted(small, [observed_by])
    whole = fit.posterior(data)
    for b in (1, 2):
        alone = fit.posterior(data.select(trials=[b]))
        n = data.trials[b].length
        torch.testing.assert_close(alone.mean[0, :n], whole.mean[b, :n], rtol=0, atol=1e-6)


def refused(kind, values, observation, message, **options):
    with pytest.raises(ps.errors.DataError, match=message):
        data = ps.Dataset.from_arrays({"y": values}, 1.0, kinds={"y": kind}, **options)
        model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"y": observation})
        ps.inference.LaplaceEM(iterations=1).fit(model, data, progress=False)


def test_bad_input_of_every_kind_is_refused():
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (40, 2)).astype(float)
    labels = rng.integers(0, 3, 40).astype(float)
    bold = rng.normal(size=(40, 2))
    refused("count", counts + 0.5, o.Poisson(2), "not a whole number")
    refused("count", -counts, o.Poisson(2), "negative")
    refused("count", counts * [1, 0], o.Poisson(2), "channel")
    refused("label", labels + 1, o.Categorical(3), "class out of range")
    refused("label", labels + 0.5, o.Categorical(3), "not a whole number")
    refused("label", labels * 0, o.Categorical(3), "class")
    refused("ordinal", labels + 1, o.Ordinal(1, 3), "level")
    refused("ordinal", labels * 0, o.Ordinal(1, 3), "level")
    refused("label", labels, o.Bernoulli(1), "value out of range")
    nothing = np.full((40, 2), np.nan)
    refused("count", nothing, o.Poisson(2), "missing in every trial", check_channels=False)
    refused("bold", bold, o.BOLD(2, tr_seconds=0.5), "TR is shorter than dt")
    refused("bold", bold, o.BOLD(2, tr_seconds=3.0), "repetition time")
    refused("bold", bold[:20], o.BOLD(2, tr_seconds=1.0), "HRF is longer than the run")
