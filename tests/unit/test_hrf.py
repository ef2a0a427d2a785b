"""Haemodynamic response against scipy, nilearn, published values and closed forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
import torch

from plssm.errors import CapabilityError, PlssmError
from plssm.observations.bold.hrf import DoubleGamma, ResponseFunction, double_gamma, realise

PUBLISHED = [0, 0.358, 0.570, 0.204, 0.0024, -0.0538, -0.0457, -0.0233, -0.0086, -0.0025, -0.0006]


def _gammas(t, peak=5.0, late=15.0, share=1 / 6):
    return scipy.stats.gamma(peak + 1).pdf(t) - share * scipy.stats.gamma(late + 1).pdf(t)


@pytest.mark.parametrize("dt", [0.0625, 0.1, 0.5, 0.72, 2.0, 2.4, 3.0, 8.0])
def test_kernel_is_the_difference_of_two_gamma_densities(dt):
    count = {0.0625: 513, 0.1: 321, 0.5: 65, 0.72: 45, 2.0: 17, 2.4: 14, 3.0: 11, 8.0: 5}[dt]
    f = _gammas(dt * np.arange(count))
    got = DoubleGamma().kernel(dt).numpy()
    assert got.shape == (count,)
    np.testing.assert_allclose(got, f / f.sum(), rtol=1e-12, atol=1e-15)


def test_kernel_at_three_seconds_is_the_published_one():
    got = DoubleGamma().kernel(3.0).numpy()
    np.testing.assert_allclose(got[:4], PUBLISHED[:4], atol=5e-4)  # printed with three digits
    np.testing.assert_allclose(got[4:], PUBLISHED[4:], atol=5e-5)


def test_kernel_at_three_seconds_is_that_of_the_recording(recordings_folder):
    folder = recordings_folder / "fmri_nback_subject"
    if not folder.is_dir():
        pytest.skip("the recording fmri_nback_subject is not on this machine")
    recording = np.load(folder / "fmri_nback_subject.npz")
    np.testing.assert_allclose(DoubleGamma().kernel(3.0), recording["hrf"], atol=1e-14)


@pytest.mark.parametrize("dt", [0.25, 2.0])
def test_kernel_equals_nilearn(dt):
    """nilearn writes the ratio as .167 and starts its response one sample late."""
    first_level = pytest.importorskip("nilearn.glm.first_level", reason="extra fmri")
    wanted = first_level.spm_hrf(dt, oversampling=1)
    times = torch.from_numpy(np.linspace(0, 32.0, len(wanted)) - dt)
    got = DoubleGamma(undershoot=0.167)(times).numpy()
    np.testing.assert_allclose(got / got.sum(), wanted, atol=1e-12)


def test_time_to_peak_is_where_the_response_peaks():
    t = torch.arange(0.0, 32.0, 0.001, dtype=torch.float64)
    for seconds in (3.0, 5.0, 6.5):
        f = DoubleGamma(seconds, undershoot=1e-9)(t)
        assert float(t[f.argmax()]) == pytest.approx(seconds, abs=2e-3)
    assert float(t[DoubleGamma()(t).argmin()]) == pytest.approx(15.0, abs=0.8)


def test_gradients_in_time_and_parameters():
    t = torch.tensor([0.3, 1.0, 4.0, 11.0, 31.0], dtype=torch.float64, requires_grad=True)
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (5.0, 15.0, 0.17)]
    assert torch.autograd.gradcheck(double_gamma, (t, *values))
    assert torch.autograd.gradgradcheck(double_gamma, (t, *values))
    at_zero = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    out = double_gamma(at_zero, *values)
    gradients = torch.autograd.grad(out.sum(), [at_zero, *values])
    assert bool((out == 0).all()) and all(bool((g == 0).all()) for g in gradients)


@pytest.mark.parametrize("regions", [None, 3])
def test_gradients_of_the_kernel(regions):
    hrf = DoubleGamma(4.0, learn=True, regions=regions)
    names = [name for name, _ in hrf.named_parameters()]
    assert names == ["raw_time_to_peak", "raw_undershoot"]

    def kernel(*raw):
        return torch.func.functional_call(hrf, dict(zip(names, raw, strict=True)), 3.0 * steps)

    steps = torch.arange(11, dtype=torch.float64)
    raw = [p.detach().clone().requires_grad_() for p in hrf.parameters()]
    assert torch.autograd.gradcheck(kernel, raw)
    (gradient,) = torch.autograd.grad(hrf.kernel(3.0).square().sum(), hrf.raw_time_to_peak)
    assert bool((gradient != 0).all()) and gradient.shape == hrf.raw_time_to_peak.shape


def test_every_region_has_its_own_response():
    hrf = DoubleGamma(learn=True, regions=3)
    with torch.no_grad():
        hrf.raw_time_to_peak.copy_(torch.tensor([-0.5, 0.0, 0.7]))
        hrf.raw_undershoot.copy_(torch.tensor([0.3, 0.0, -1.0]))
        kernels = hrf.kernel(2.0)
        for n in range(3):
            peak, share = float(hrf.time_to_peak[n]), float(hrf.undershoot[n])
            f = _gammas(2.0 * np.arange(17), peak, share=share)
            np.testing.assert_allclose(kernels[n].numpy(), f / f.sum(), rtol=1e-10, atol=1e-14)
        assert float(hrf.time_to_peak[1]) == 5.0 and float(hrf.undershoot[1]) == 1 / 6


def test_learned_values_stay_in_their_range():
    hrf = DoubleGamma(learn=True)
    for far in (-1e3, 1e3):
        with torch.no_grad():
            hrf.raw_time_to_peak.fill_(far)
            hrf.raw_undershoot.fill_(far)
        assert 1.0 <= hrf.time_to_peak.item() <= 9.0 and 0.0 <= hrf.undershoot.item() <= 1 / 3
        assert bool(torch.isfinite(hrf.kernel(0.5)).all())


# ---- as a linear filter ---------------------------------------------------------------------


@pytest.mark.parametrize("tr_seconds", [0.72, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("share", [1 / 8, 1 / 2, 1])
@pytest.mark.parametrize("order", [5, 6])
def test_few_states_meet_the_kernel_within_one_percent_of_its_peak(tr_seconds, share, order):
    hrf = DoubleGamma()
    wanted = hrf.kernel(tr_seconds * share).numpy()
    A, b, c, d = hrf.state_space(tr_seconds * share, order)
    assert A.shape == (order, order) and b.shape == c.shape == (order,)
    powers = [np.linalg.matrix_power(A, i) for i in range(2 * len(wanted))]
    got = np.array([d] + [c @ p @ b for p in powers])
    assert np.abs(got[: len(wanted)] - wanted).max() < 0.01 * wanted.max()
    assert np.abs(got[len(wanted) :]).max() < 0.01 * wanted.max()
    assert np.abs(np.linalg.eigvals(A)).max() < 1
    impulse = hrf.state_space(tr_seconds * share, order).impulse(len(wanted))
    np.testing.assert_allclose(impulse, got[: len(wanted)], atol=1e-12)


def test_four_states_do_at_the_repetition_time():
    for tr_seconds in (2.0, 3.0):
        kernel = DoubleGamma().kernel(tr_seconds).numpy()
        error = np.abs(realise(kernel, 4).impulse(len(kernel)) - kernel).max()
        assert error < 0.01 * kernel.max()


def test_a_filter_of_all_states_is_exact():
    for kernel in (DoubleGamma().kernel(3.0).numpy(), np.array([0.5, 0.3, -0.1])):
        impulse = realise(kernel, len(kernel) - 1).impulse(len(kernel) + 4)
        np.testing.assert_allclose(impulse, np.append(kernel, np.zeros(4)), atol=1e-12)


def test_an_exponential_is_one_state():
    A, b, c, d = realise(np.append(0.7, 0.5 ** np.arange(60.0)), 1)
    np.testing.assert_allclose([A.item(), b.item() * c.item(), d], [0.5, 1.0, 0.7], atol=1e-12)


def test_orders_that_are_not_possible():
    for order in (0, 11, 2.5):
        with pytest.raises(PlssmError, match="1 to 10 states"):
            DoubleGamma().state_space(3.0, order)
    with pytest.raises(CapabilityError, match="every region"):
        DoubleGamma(regions=2).state_space(3.0)


# ---- as an object ---------------------------------------------------------------------------


class Boxcar(ResponseFunction):
    """One after a delay of two seconds."""

    def forward(self, seconds):
        return (seconds >= 2.0).to(seconds.dtype)


class Empty(ResponseFunction):
    """No response."""

    def forward(self, seconds):
        return torch.zeros_like(seconds)


def test_a_response_of_ones_own():
    np.testing.assert_allclose(Boxcar(6.0).kernel(2.0), [0, 1 / 3, 1 / 3, 1 / 3])
    assert Boxcar(6.0).steps(2.0) == 4
    with pytest.raises(PlssmError, match="does not sum"):
        Empty().kernel(1.0)


def test_saved_and_rebuilt():
    hrf = DoubleGamma(4.0, 14.0, 0.2, length_seconds=24.0, learn=True, regions=2)
    with torch.no_grad():
        hrf.raw_time_to_peak.add_(torch.tensor([0.1, -0.2]))
    twin = DoubleGamma.from_config(json.loads(json.dumps(hrf.config())))
    twin.load_state_dict(hrf.state_dict())
    assert torch.equal(twin.kernel(1.0), hrf.kernel(1.0))
    assert list(DoubleGamma().parameters()) == []


def test_values_out_of_range():
    for arguments in (
        {"time_to_peak": 1.0},
        {"time_to_peak": 9.5},
        {"undershoot": 0.0},
        {"undershoot": 0.5},
        {"time_to_undershoot": -1.0},
        {"time_to_peak": float("nan")},
    ):
        (name,) = arguments
        with pytest.raises(PlssmError, match=f"{name} is .*, wanted"):
            DoubleGamma(**arguments)
    for length in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(PlssmError, match="length_seconds"):
            DoubleGamma(length_seconds=length)
    with pytest.raises(PlssmError, match="no sample"):
        DoubleGamma(length_seconds=2.0).kernel(3.0)
