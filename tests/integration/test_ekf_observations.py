"""EKF with every observation model, alone and in pairs: masks, ragged trials, clocks."""

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference import EKF, OpenLoop

SETTINGS = {"steps": 6, "checks": 2, "window": 9, "warmup": 4, "start_iterations": 2}


def finite(fit, data):
    """The posterior of a fit of which everything is finite, and its own length."""
    assert np.isfinite(fit.history["log_likelihood"]).all()
    assert all(bool(torch.isfinite(p).all()) for p in fit.model.parameters())
    post = fit.posterior(data)
    assert bool(torch.isfinite(post.log_evidence).all())
    beyond = torch.arange(post.mean.shape[1]) >= post.length[:, None]
    for value in (post.mean, post.covariance(), post.sample(2)[1]):
        assert torch.equal(~value.flatten(2).isfinite().all(-1), beyond)
    assert (torch.linalg.eigvalsh(post.covariance()[~beyond]) > 0).all()
    return post


def test_alone(small, observed_by, tmp_path):
    data = small.data([observed_by])
    fit = EKF(**SETTINGS).fit(small.model([observed_by]), data, progress=False)
    post = finite(fit, data)
    rows = fit.history["log_likelihood"]
    assert rows.max() >= rows.iloc[0]
    for b in (1, 2):
        alone, n = fit.posterior(data.select(trials=[b])), data.trials[b].length
        torch.testing.assert_close(alone.mean[0, :n], post.mean[b, :n], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.log_evidence[0], post.log_evidence[b], rtol=0, atol=1e-5)
    table = fit.score(data, steps=(1,), warmup=3, samples=4)
    assert np.isfinite(table.loc[observed_by, "log_likelihood"])
    assert bool(torch.isfinite(fit.forecast(data, steps=3, samples=4)[observed_by].samples).all())
    again = ps.Fit.load(fit.save(tmp_path / "fit"))
    assert again.engine == fit.engine
    mean = again.posterior(data).mean
    assert torch.equal(torch.nan_to_num(mean), torch.nan_to_num(post.mean))


def test_in_pairs(small, observed_by_two):
    """One of the two is absent in the last trial."""
    data, (one, two) = small.data(list(observed_by_two)), observed_by_two
    few = SETTINGS | {"steps": 3, "checks": 1, "start": "model"}
    fit = EKF(**few).fit(small.model(observed_by_two), data, progress=False)
    finite(fit, data)
    guess = fit.predict(data, one, given=[two], samples=4)
    seen = np.isfinite(data.values(one)[..., 0])
    assert bool(torch.isfinite(guess.mean.reshape(*guess.mean.shape[:2], -1)[seen]).all())


@pytest.mark.parametrize("names", [["gaussian"], ["gaussian", "bold"], ["gaussian", "poisson"]])
def test_matched_moments(small, names):
    """Paths with memory, and of counts, are inferred as a whole."""
    data = small.data(names)
    engine = EKF(**{**SETTINGS, "start": "model", "propagation": "moments"})
    fit = engine.fit(small.model(names), data, progress=False)
    post = finite(fit, data)
    assert post.evidence_kind == ("moments" if names == ["gaussian"] else "laplace")
    assert fit.posterior(data, causal=True).evidence_kind == "moments"


@pytest.mark.parametrize(
    "options",
    [
        {"objective": OpenLoop(horizon=3)},
        {"objective": OpenLoop(horizon=1), "state": "data"},
        {"modality_weights": "null-fisher"},
        {"propagation": "moments"},
    ],
    ids=["open loop", "one step", "tempered", "moments"],
)
def test_everything_at_once(small, options):
    names = ["gaussian", "poisson", "negative_binomial", "categorical", "ordinal", "bold"]
    data = small.data(names)
    engine = EKF(**{**SETTINGS, "start": "model", "warmup": 2, **options})
    finite(engine.fit(small.model(names), data, progress=False), data)
