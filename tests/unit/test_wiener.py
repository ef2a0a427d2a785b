"""Deconvolution of BOLD: noise levels, the filter, edges, missing scans, finer clocks, slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.data.batch import Modality
from plssm.data.synthetic import lorenz63
from plssm.observations import DoubleGamma
from plssm.observations.bold.wiener import noise_level, sources, wiener

TR = 0.4
KERNEL = DoubleGamma().kernel(TR)
L = len(KERNEL)


def recording(noise, *, steps=600, seed=0):
    """Lorenz-63 (z-scored, with an offset) and what a scanner sees of it."""
    z = lorenz63(steps + L - 1, dt=0.02, seed=seed)[0]
    z = (z - z.mean(0)) / z.std(0) + np.array([3.0, 0.0, -1.0])
    x = np.stack([np.convolve(z[:, i], KERNEL.numpy(), mode="valid") for i in range(3)], axis=1)
    x = x + noise * np.random.default_rng(seed).standard_normal(x.shape)
    return z[L - 1 :], x


def modality(x, clock=None, dt=TR):
    y = torch.from_numpy(np.nan_to_num(x))[None]
    mask = torch.from_numpy(~np.isnan(x))[None]
    return Modality(y, mask, None if clock is None else torch.as_tensor(clock)[None], dt=dt)


def explained(truth, found, known):
    """Share of the variance of the truth, where something was found."""
    truth, found = truth[known], found[known]
    return 1 - ((truth - found) ** 2).mean() / truth.var()


@pytest.mark.parametrize("level", [0.01, 0.1])
def test_the_level_of_white_noise_on_a_smooth_signal(level):
    _, x = recording(level, steps=2000)
    assert noise_level(x[:, 0]) == pytest.approx(level, rel=0.12)
    assert noise_level(np.full(3, 1.0)) == 0.0
    x[::7] = np.nan
    assert noise_level(x[:, 0]) == pytest.approx(level, rel=0.2)


def test_without_noise_a_periodic_source_comes_back():
    u = np.random.default_rng(0).standard_normal(128)
    kernel = np.array([0.5, 0.3, 0.2])
    y = sum(h * np.roll(u, lag) for lag, h in enumerate(kernel))
    np.testing.assert_allclose(wiener(y, kernel, noise=0.0), u, atol=1e-10)


def test_the_filter_by_a_plain_transform():
    rng = np.random.default_rng(1)
    y, kernel, noise = rng.standard_normal(12), np.array([0.2, 0.5, 0.3]), 0.4
    F = np.exp(-2j * np.pi * np.outer(np.arange(12), np.arange(12)) / 12)
    Y, H = F @ y, F[:, :3] @ kernel
    S = np.abs(Y) ** 2
    U = np.conj(H) * S / (np.abs(H) ** 2 * S + 12 * noise**2) * Y
    np.testing.assert_allclose(
        wiener(y, kernel, noise=noise), (F.conj() @ U / 12).real, atol=1e-12
    )


@pytest.mark.parametrize(("noise", "least"), [(0.01, 0.97), (0.1, 0.9)])
def test_the_source_is_closer_to_the_truth_than_the_signal(noise, least):
    z, x = recording(noise)
    found, known = (t[0].numpy() for t in sources(modality(x), KERNEL, tr_seconds=TR, steps=600))
    for i in range(3):
        share = explained(z[:, i], found[:, i], known[:, i])
        assert share > least
        assert explained(z[:, i], x[:, i], known[:, i]) < 0.5 * share


def test_edges_and_missing_scans_are_unknown_and_zero():
    _, x = recording(0.01, steps=300)
    x[100:103, 1] = np.nan
    x[:20, 2] = np.nan
    found, known = (t[0].numpy() for t in sources(modality(x), KERNEL, tr_seconds=TR, steps=310))
    wanted = np.zeros((310, 3), bool)
    wanted[int(0.25 * L) : 300 - int(0.5 * L)] = True
    wanted[: 20 + int(0.25 * L), 2] = False
    wanted[100:103, 1] = False
    np.testing.assert_array_equal(known, wanted)
    assert (found[~known] == 0).all()


def test_missing_scans_are_bridged():
    z, x = recording(0.01)
    x[np.random.default_rng(2).random(len(x)) < 0.1] = np.nan
    found, known = (t[0].numpy() for t in sources(modality(x), KERNEL, tr_seconds=TR, steps=600))
    assert explained(z[:, 0], found[:, 0], known[:, 0]) > 0.9


def test_steps_between_scans_are_interpolated_and_slices_have_their_own_scans():
    z, x = recording(0.01)
    whole, known = sources(modality(x), KERNEL, tr_seconds=TR, steps=600)
    clock = 4 * np.arange(600)
    m = modality(x, clock, dt=TR / 4)
    fine, seen = sources(m, KERNEL, tr_seconds=TR, steps=2400)
    assert torch.equal(fine[:, ::4], whole) and torch.equal(seen[:, ::4], known)
    middle = fine[0, 2::4][:-1], 0.5 * (whole[0, :-1] + whole[0, 1:])
    both = (known[0, :-1] & known[0, 1:]).numpy()
    assert (seen[0, 2::4][:-1].numpy() == both).all()
    np.testing.assert_allclose(middle[0][both], middle[1][both], atol=1e-12)
    shifted = np.full((1200, 3), np.nan)
    shifted[0::2, :2], shifted[1::2, 2] = x[:, :2], x[:, 2]
    own = np.stack([clock, clock + 1], axis=1).ravel()
    sliced, here = sources(modality(shifted, own, TR / 4), KERNEL, tr_seconds=TR, steps=2400)
    assert torch.equal(sliced[..., :2], fine[..., :2])
    assert torch.equal(sliced[:, 1:, 2], fine[:, :-1, 2])
    assert torch.equal(here[:, 1:, 2], seen[:, :-1, 2])


def test_every_region_has_its_own_response():
    _, x = recording(0.1, steps=200)
    kernels = torch.stack([KERNEL, KERNEL.roll(2), KERNEL])
    alone, _ = sources(modality(x), KERNEL, tr_seconds=TR, steps=200)
    found, _ = sources(modality(x), kernels, tr_seconds=TR, steps=200)
    assert torch.equal(found[..., [0, 2]], alone[..., [0, 2]])
    assert not torch.allclose(found[..., 1], alone[..., 1])


def test_nothing_observed_is_nothing_known():
    found, known = sources(modality(np.full((40, 2), np.nan)), KERNEL, tr_seconds=TR, steps=40)
    assert not known.any() and (found == 0).all()
    assert ps.observations.BOLD(2, tr_seconds=TR).memory(TR) == L - 1
