"""Multimodal teacher forcing with every observation model, alone and in pairs: masks, ragged."""

import numpy as np
import torch

from plssm.inference import MTF, TeacherForcing

SETTINGS = {"steps": 20, "sequence": 9, "batch_size": 4, "checks": 2, "dtype": "float64"}


def trained(small, names, **options):
    """A fit of which everything is finite, and its data."""
    data, engine = small.data(list(names)), TeacherForcing(scheme=MTF(3), **SETTINGS | options)
    fit = engine.fit(small.model(names), data, progress=False)
    assert np.isfinite(fit.history["loss"].iloc[1:]).all()
    for part in (fit.model, fit.recognition):
        assert all(bool(torch.isfinite(p).all()) for p in part.parameters())
    return fit, data


def means(fit, data):
    """What the encoder makes of data [B, T, K], and where it says something."""
    with torch.no_grad():
        belief = fit.recognition(fit.model, data.batch())
    return belief.mean, belief.known


def test_alone(small, observed_by):
    """The encoder reads a trial as if there were no other, and knows nothing where nothing is."""
    fit, data = trained(small, [observed_by])
    together, known = means(fit, data)
    for b in range(len(data.trials)):
        alone, here = means(fit, data.select(trials=[b]))
        n = data.trials[b].length
        assert torch.equal(here[0, :n], known[b, :n])
        torch.testing.assert_close(alone[0, :n][here[0, :n]], together[b, :n][here[0, :n]])
    assert bool(known.any())
    post = fit.posterior(data)
    inside = torch.arange(post.mean.shape[1]) < post.length[:, None]
    assert bool(torch.isfinite(post.mean[inside]).all())
    again = TeacherForcing(scheme=MTF(3), **SETTINGS).fit(
        small.model([observed_by]), data, progress=False
    )
    assert again.history["loss"].iloc[1:].tolist() == fit.history["loss"].iloc[1:].tolist()


def test_in_pairs(small, observed_by_two):
    """One of the two is absent in the last trial; the other is predicted from it and back."""
    fit, data = trained(small, observed_by_two, steps=6, fit_noise=False)
    one, two = observed_by_two
    seen = np.isfinite(data.values(one)[..., 0])
    guess = fit.predict(data, one, given=[two], samples=4)
    assert bool(torch.isfinite(guess.mean.reshape(*guess.mean.shape[:2], -1)[seen]).all())
    _, known = means(fit, data.select(trials=[2]))
    assert bool(known.any())  # by the other modality alone
