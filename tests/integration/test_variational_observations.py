"""VariationalInference with every observation model, alone and in pairs: masks, ragged trials."""

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference.variational import VariationalInference

SETTINGS = {
    "steps": 12, "checks": 2, "hidden": 4, "draws": 8, "dtype": "float64", "start_iterations": 2,
}  # fmt: skip


def finite(fit, data):
    """The posterior of a fit of which everything is finite, and its own length."""
    assert np.isfinite(fit.history["elbo"]).all()
    for parts in (fit.model, fit.recognition):
        assert all(bool(torch.isfinite(p).all()) for p in parts.parameters())
    post = fit.posterior(data)
    assert bool(torch.isfinite(post.log_evidence).all())
    beyond = torch.arange(post.mean.shape[1]) >= post.length[:, None]
    for value in (post.mean, post.covariance(), post.sample(2)[1]):
        assert torch.equal(~value.flatten(2).isfinite().all(-1), beyond)
    assert (torch.linalg.eigvalsh(post.covariance()[~beyond]) > 0).all()
    return post


def test_alone(small, observed_by, tmp_path):
    """Windows, a network, and everything that a fit can do."""
    data = small.data([observed_by])
    engine = VariationalInference(**SETTINGS, encoder="conv", window=9)
    fit = engine.fit(small.model([observed_by]), data, progress=False)
    post = finite(fit, data)
    # the start has been searched for: twelve updates on windows with eight draws are mostly noise
    assert fit.history["elbo"].iloc[-1] > fit.history["elbo"].iloc[0] - 0.2
    for b in (1, 2):
        alone, n = fit.posterior(data.select(trials=[b])), data.trials[b].length
        torch.testing.assert_close(alone.mean[0, :n], post.mean[b, :n], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.log_evidence[0], post.log_evidence[b])
    table = fit.score(data, steps=(1,), warmup=3, samples=4)
    assert np.isfinite(table.loc[observed_by, "log_likelihood"])
    assert bool(torch.isfinite(fit.forecast(data, steps=3, samples=4)[observed_by].samples).all())
    again = ps.Fit.load(fit.save(tmp_path / "fit")).posterior(data)
    assert torch.equal(torch.nan_to_num(again.mean), torch.nan_to_num(post.mean))


def test_in_pairs(small, observed_by_two):
    """One of the two is absent in the last trial."""
    data, (one, two) = small.data(list(observed_by_two)), observed_by_two
    few = SETTINGS | {"steps": 4, "start": "model"}
    engine = VariationalInference(**few, encoder="none", drop=0.3)
    fit = engine.fit(small.model(observed_by_two), data, progress=False)
    finite(fit, data)
    guess = fit.predict(data, one, given=[two], samples=4)
    seen = np.isfinite(data.values(one)[..., 0])
    assert bool(torch.isfinite(guess.mean.reshape(*guess.mean.shape[:2], -1)[seen]).all())


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "gru", "bound": "importance", "samples": 2},
        {"encoder": "mlp", "guide": "mean-field", "samples": 3},
        {"encoder": "conv", "guide": "chain", "window": 8, "dtype": "float32"},
        {"encoder": "none", "experts": "mixture"},
        {"encoder": "free"},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_everything_at_once(small, options):
    """Every kind of guide, with all the modalities that there are."""
    names = ["gaussian", "poisson", "negative_binomial", "categorical", "ordinal", "bold"]
    data = small.data(names)
    engine = VariationalInference(**{**SETTINGS, "start": "model", **options})
    finite(engine.fit(small.model(names), data, progress=False), data)
