"""Spike history and coupling: filters by brute force, sampling, recovery, refusals."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from plssm.data import Dataset
from plssm.data.batch import Modality
from plssm.errors import DataError, PlssmError, ShapeError
from plssm.observations import ObservationModel
from plssm.observations.counts.history import RaisedCosine, filtered_past
from plssm.observations.counts.models import NegativeBinomial, Poisson
from plssm.observations.counts.zero_inflated import ZeroInflatedPoisson

DT = 0.02
BASIS = RaisedCosine(functions=2, longest_seconds=0.1)  # five lags of DT
KINDS = (Poisson, NegativeBinomial, ZeroInflatedPoisson)


def _rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _model(kind=Poisson, *, coupling=False, nuisance=0, channels=3, dim=2):
    """A model with weights everywhere, those of the off-channel history included."""
    model = kind(channels, history=BASIS, coupling=coupling, nuisance=nuisance).bind(dim)
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(0.3 * _rand(*p.shape, seed=k))
        model.spike_history.expected_count.copy_(torch.tensor([0.4, 1.0, 0.1])[:channels])
    return model


def _modality(model, *, steps=9, missing=0.25, seed=3):
    """Three trials, the second shorter, with missing entries."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.poisson(torch.full((3, steps, model.channels), 0.8).double(), generator=generator)
    mask = torch.rand(y.shape, generator=generator) >= missing
    mask[1, max(steps - 3, 1) :] = False
    nuisance = _rand(3, steps, model.nuisance, seed=seed) if model.nuisance else None
    return Modality(torch.where(mask, y, 0.0), mask, None, nuisance, DT)


def _brute_force_drive(model, m):
    """History part of the predictors by loops over trial, step, channels, lags and functions."""
    basis, expected = BASIS.values(DT).numpy(), model.spike_history.expected_count.numpy()
    weight = model.nuisance_weight.detach().numpy()[:, model.nuisance :]
    trials, steps, channels = m.y.shape
    out = np.zeros((trials, steps, channels))
    for b in range(trials):
        for t in range(steps):
            for target in range(channels):
                for source in range(channels) if model.coupling else (target,):
                    for lag in range(1, len(basis) + 1):
                        past = t - lag
                        seen = past >= 0 and bool(m.mask[b, past, source])
                        count = float(m.y[b, past, source]) if seen else expected[source]
                        for j in range(BASIS.size):
                            out[b, t, target] += (
                                weight[target, source * BASIS.size + j] * basis[lag - 1, j] * count
                            )
    return torch.from_numpy(out)


# ---- the basis ----------------------------------------------------------------------------------
def test_basis_is_raised_cosines_on_logarithmic_time():
    basis = RaisedCosine(functions=4, longest_seconds=0.2, offset_seconds=0.01)
    values = basis.values(0.005).numpy()
    assert values.shape == (40, 4) and basis.lags(0.005) == 40
    end = np.log(1 + 0.2 / 0.01)
    for lag in range(1, 41):
        x = np.log(1 + (lag - 1) * 0.005 / 0.01)
        for j in range(4):
            phase = np.pi / 2 * (x - j * end / 5) / (end / 5)
            wanted = 0.5 * (1 + np.cos(phase)) if abs(phase) < np.pi else 0.0
            assert values[lag - 1, j] == pytest.approx(wanted, abs=1e-14)
    assert values[0, 0] == 1.0
    assert np.linalg.matrix_rank(values) == 4
    assert (values[:, 0] > 0).sum() < (values[:, 3] > 0).sum()  # fine first, coarse later


def test_basis_is_the_same_function_of_time_at_every_bin_width():
    basis = RaisedCosine(functions=3, longest_seconds=0.1)
    np.testing.assert_allclose(basis.values(0.01)[::2], basis.values(0.02), atol=1e-14)
    assert basis.lags(0.01) == 10 and basis.lags(0.02) == 5
    assert basis.lags(0.03) == 4 and basis.lags(1.0) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"functions": 0},
        {"functions": 1.5},
        {"functions": True},
        {"longest_seconds": 0.0},
        {"longest_seconds": float("inf")},
        {"offset_seconds": -0.1},
    ],
)
def test_bad_basis_is_refused(options):
    with pytest.raises(PlssmError, match=next(iter(options))):
        RaisedCosine(**options)


# ---- filtering ----------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_filtered_past_equals_the_sum_written_out(steps):
    counts, past = _rand(2, 3, steps, 4), _rand(2, 3, 5, 4, seed=1)
    basis = _rand(5, 2, seed=2)
    got = filtered_past(counts, basis, past)
    rows = torch.cat([past, counts], dim=-2)
    wanted = torch.zeros(2, 3, steps, 8, dtype=torch.float64)
    for t in range(steps):
        for n in range(4):
            for j in range(2):
                for lag in range(1, 6):
                    wanted[..., t, 2 * n + j] += basis[lag - 1, j] * rows[..., 5 + t - lag, n]
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("coupling", [False, True])
@pytest.mark.parametrize("nuisance", [0, 2])
def test_predictors_equal_brute_force(coupling, nuisance):
    """Batch of three with masks: unknown counts enter as expected, trials do not touch."""
    for steps in (9, 1):
        model = _model(coupling=coupling, nuisance=nuisance)
        m, z = _modality(model, steps=steps), _rand(3, steps, 2, seed=5)
        wanted = z @ model.weight.mT + model.bias + _brute_force_drive(model, m)
        if nuisance:
            wanted = wanted + m.nuisance @ model.nuisance_weight[:, :nuisance].mT
        seen = m.mask.any(-1)  # where nothing is observed, the latent state has no part
        torch.testing.assert_close(model.features_at(m, z)[seen], wanted[seen])
        assert model.covariates(m).shape == (3, steps, model.n_covariates)
        assert model.n_covariates == nuisance + 3 * 2


def test_present_and_future_counts_have_no_part():
    model = _model(coupling=True)
    m = _modality(model, missing=0.0)
    before = model.covariates(m)
    y = m.y.clone()
    y[:, 4:] += 7.0
    mask = m.mask.clone()
    mask[:, 6:] = ~mask[:, 6:]
    after = model.covariates(Modality(y, mask, None, None, DT))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


def test_other_channels_count_only_with_coupling():
    """Off-channel weights that are not zero change nothing, and get no gradient."""
    model = _model(coupling=False, nuisance=1)
    m, z = _modality(model), _rand(3, 9, 2)
    mask = model.covariate_mask
    assert mask.shape == model.nuisance_weight.shape
    assert mask[:, 0].all() and mask[:, 1:].sum() == 3 * 2
    assert mask[1].tolist() == [True, False, False, True, True, False, False]
    value = model.log_prob(m, z).sum()
    (gradient,) = torch.autograd.grad(value, model.nuisance_weight)
    assert bool((gradient[~mask] == 0).all() and (gradient[mask] != 0).all())
    with torch.no_grad():
        model.nuisance_weight[~mask] = 5.0
    torch.testing.assert_close(model.log_prob(m, z).sum(), value)
    assert _model(coupling=True).covariate_mask is None
    assert Poisson(2).covariate_mask is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coupling", [False, True])
def test_local_expansion_with_history_equals_autograd(kind, coupling):
    model = _model(kind, coupling=coupling, nuisance=1)
    m, z = _modality(model, steps=6), _rand(3, 6, 2, seed=4)
    local = model.local(m, z)
    path = z.clone().requires_grad_()
    (score,) = torch.autograd.grad(model.log_prob(m, path).sum(), path)
    torch.testing.assert_close(local.score, score)
    hessian = torch.autograd.functional.hessian(lambda v: model.log_prob(m, v).sum(), z)
    wanted = torch.zeros_like(hessian)
    for b in range(3):
        for t in range(6):
            wanted[b, t, :, b, t, :] = -local.curvature[b, t]
    torch.testing.assert_close(wanted, hessian)
    covariance = 0.1 * torch.eye(2, dtype=torch.float64).expand(3, 6, 2, 2)
    torch.testing.assert_close(
        model.expected_log_prob(m, z, covariance),
        ObservationModel.expected_log_prob(model, m, z, covariance),
        rtol=1e-6,
        atol=1e-6,
    )


def test_missing_entries_give_finite_gradients_and_trials_are_independent():
    model = _model(coupling=True)
    m, z = _modality(model), _rand(3, 9, 2)
    junk = Modality(torch.where(m.mask, m.y, torch.nan), m.mask, None, None, DT)
    value = model.log_prob(junk, z)
    gradient = torch.autograd.grad(value.sum(), list(model.parameters()))
    assert all(bool(torch.isfinite(g).all()) for g in gradient)
    torch.testing.assert_close(value, model.log_prob(m, z))
    for b in (2, 0, 1):
        one = Modality(m.y[b : b + 1], m.mask[b : b + 1], None, None, DT)
        torch.testing.assert_close(model.log_prob(one, z[b : b + 1]), value[b : b + 1])


def test_float32_copy():
    model = _model(coupling=True, nuisance=1)
    m, z = _modality(model), _rand(3, 9, 2)
    small = copy.deepcopy(model).to(torch.float32)
    got = small.log_prob(m.to(dtype=torch.float32), z.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), model.log_prob(m, z), rtol=1e-4, atol=1e-4)
    eta = small.features(z.float())
    assert small.sample_sequence(eta, 0, dt=DT).dtype == torch.float32


# ---- sampling -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coupling", [False, True])
def test_one_bin_after_a_given_past_has_its_distribution(kind, coupling):
    """Moments of the draws at every lag of the past, and the drive that says them."""
    model = _model(kind, coupling=coupling)
    past = torch.tensor([[0.0, 2, 1], [1, 0, 0], [3, 1, 0], [0, 0, 1], [1, 2, 0], [2, 1, 1]])
    past = past.double()
    eta = _rand(1, 3, seed=9)
    drive = model.history_drive(eta, past=past, dt=DT).detach()
    kernel = model.history_filter(DT).detach()
    recent = past.flip(0)[:5]
    rule = "lts,ls->t" if coupling else "lt,lt->t"
    torch.testing.assert_close(drive[0], torch.einsum(rule, kernel, recent))
    draws = model.sample_sequence(eta.expand(20000, 1, 3), 1, past=past, dt=DT)[:, 0]
    with torch.no_grad():
        given = model.distribution(eta[0] + drive[0])
        error = (draws.mean(0) - given.mean).abs() / (given.variance / 20000).sqrt()
    assert float(error.max()) < 4.5


def test_a_sequence_is_drawn_as_its_density_says():
    """Pearson residuals given the drawn past are standard and do not follow the past."""
    model = _model(coupling=True)
    model.history_weight = -0.5 * model.history_weight.detach().abs()
    eta = 0.3 * _rand(20, 400, 3, seed=2)
    y = model.sample_sequence(eta, 4, dt=DT)
    with torch.no_grad():
        rate = (eta + model.history_drive(y, dt=DT)).exp()
    residual = (y - rate) / rate.sqrt()
    n = residual[..., 0].numel()
    assert float(residual.mean((0, 1)).abs().max()) < 4 / n**0.5
    assert float((residual.square().mean((0, 1)) - 1).abs().max()) < 0.1
    for lag in (1, 2, 4):
        product = residual[:, lag:, :, None] * (y - y.mean((0, 1)))[:, :-lag, None, :]
        scale = product.std((0, 1)) / product[..., 0, 0].numel() ** 0.5
        assert float((product.mean((0, 1)).abs() / scale).max()) < 4
    alone = model.sample(eta, 4)
    assert float((alone.mean((0, 1)) - y.mean((0, 1))).abs().max()) > 0.1  # history matters


def test_self_inhibition_lowers_the_autocorrelation():
    weight = [[-3.0, -0.5]]
    eta = torch.zeros(4, 3000, 1, dtype=torch.float64)
    correlation = []
    for w in (weight, [[0.0, 0.0]]):
        model = Poisson.from_parameters([[1.0]], history=BASIS, history_weight=w, bin_seconds=1.0)
        y = model.sample_sequence(eta, 5, dt=DT)[..., 0].numpy()
        y = y - y.mean()
        correlation.append([(y[:, lag:] * y[:, :-lag]).mean() / y.var() for lag in (1, 2, 30)])
    inhibited, free = correlation
    assert inhibited[0] < -0.15 and inhibited[1] < 0.1
    assert abs(free[0]) < 0.04 and abs(inhibited[2]) < 0.04


def test_seeds_pasts_and_shapes_of_sequences():
    model = _model(coupling=False)
    eta = _rand(2, 3, 6, 3)
    before = torch.get_rng_state()
    one = model.sample_sequence(eta, 3, dt=DT)
    assert one.shape == eta.shape and not one.requires_grad
    assert torch.equal(one, model.sample_sequence(eta, 3, dt=DT))
    by_generator = [
        model.sample_sequence(eta, torch.Generator().manual_seed(3), dt=DT) for _ in range(2)
    ]
    assert torch.equal(*by_generator)
    assert torch.equal(before, torch.get_rng_state())
    # a short, a partly unknown and a full past; unknown bins count as expected ones
    expected = model.spike_history.expected_count
    short = torch.ones(3, 2, 3, dtype=torch.float64)
    full = torch.cat([expected.expand(3, 3, 3), short], dim=1)
    unknown = torch.cat([torch.full((3, 3, 3), torch.nan, dtype=torch.float64), short], dim=1)
    drawn = [model.sample_sequence(eta, 3, past=p, dt=DT) for p in (short, full, unknown)]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    plain = Poisson(3).bind(2)
    assert torch.equal(plain.sample_sequence(eta, 3), plain.sample(eta, 3))


def test_predictors_of_simulations_come_without_history():
    model = _model(nuisance=2)
    z, r = _rand(5, 9, 2), _rand(5, 9, 2, seed=1)
    wanted = z @ model.weight.mT + model.bias + r @ model.nuisance_weight[:, :2].mT
    torch.testing.assert_close(model.features_along(z, nuisance=r, dt=DT), wanted)
    clock = torch.tensor([0, 3])
    torch.testing.assert_close(
        model.features_along(z, clock=clock, dt=DT), (z @ model.weight.mT + model.bias)[:, clock]
    )
    with pytest.raises(ShapeError, match="covariates"):
        model.features(z, r)


def test_runaway_excitation_stays_finite():
    model = Poisson.from_parameters([[1.0]], history=BASIS, history_weight=[[2.0, 2.0]])
    y = model.sample_sequence(torch.zeros(1, 50, 1, dtype=torch.float64), 0, dt=DT)
    assert bool(torch.isfinite(y).all()) and float(y.max()) > 1e6


# ---- learning -----------------------------------------------------------------------------------
@pytest.mark.parametrize("coupling", [False, True])
def test_a_known_path_gives_the_filters_back(coupling):
    """Every weight within three standard errors of the truth, or a little more of many."""
    own = [[-1.5, 0.4], [-0.8, 0.2]]
    weight = [[own[0], [0.6, 0.0]], [[0.0, -0.5], own[1]]] if coupling else own
    truth = Poisson.from_parameters(
        [[0.5], [-0.4]],
        bias=[3.0, 3.2],
        bin_seconds=DT,
        history=BASIS,
        coupling=coupling,
        history_weight=weight,
    )
    z = _rand(4, 2500, 1, seed=7)
    y = truth.sample_sequence(truth.features_along(z).detach(), 8, dt=DT)
    mask = torch.ones_like(y, dtype=torch.bool)
    m = Modality(y, mask, None, None, DT)
    model = Poisson(2, bin_seconds=DT, history=BASIS, coupling=coupling).bind(1)
    model.init_from(m, z)
    x = torch.cat([z, torch.ones_like(z), model.covariates(m)], dim=-1)
    with torch.no_grad():
        rate = model.features_at(m, z).exp() * DT
    wanted = torch.cat([truth.weight, truth.bias[:, None], truth.nuisance_weight], 1).detach()
    got = torch.cat([model.weight, model.bias[:, None], model.nuisance_weight], 1).detach()
    for n in range(2):
        free = torch.ones(x.shape[-1], dtype=torch.bool)
        if not coupling:
            free[2:] = model.covariate_mask[n]
        design = x[..., free].flatten(0, 1)
        information = (design * rate[..., n].flatten()[:, None]).mT @ design
        error = torch.linalg.inv(information).diagonal().sqrt()
        assert float(error.max()) < 0.25
        assert bool(((got - wanted)[n, free].abs() < 3 * error).all())
        assert bool((got[n, ~free] == 0).all())
    torch.testing.assert_close(model.spike_history.expected_count, y.mean((0, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_m_step_raises_the_expectation_and_keeps_off_channel_weights_at_zero(kind):
    model = kind(3, history=BASIS).bind(2)
    m, z = _modality(model, steps=30), _rand(3, 30, 2)
    covariance = 0.2 * torch.eye(2, dtype=torch.float64).expand(3, 30, 2, 2)
    model.refresh(m)
    last = float(model.expected_log_prob(m, z, covariance).sum())
    for _ in range(3):
        model.m_step(m, z, covariance)
        now = float(model.expected_log_prob(m, z, covariance).sum())
        assert now >= last - 1e-9 * abs(last)
        last = now
    weight = model.nuisance_weight.detach()
    assert bool((weight[~model.covariate_mask] == 0).all())
    assert bool((weight[model.covariate_mask] != 0).all())


def test_expected_counts_are_observed_means_unless_the_filters_are_frozen():
    model = _model()
    m = _modality(model)
    wanted = [float(m.y[..., n][m.mask[..., n]].mean()) for n in range(3)]
    model.nuisance_weight.requires_grad_(False)
    before = model.spike_history.expected_count.clone()
    model.m_step(m, _rand(3, 9, 2), None)
    assert torch.equal(model.spike_history.expected_count, before)
    model.nuisance_weight.requires_grad_(True)
    model.refresh(m)
    np.testing.assert_allclose(model.spike_history.expected_count.numpy(), wanted)
    unseen = m.mask.clone()
    unseen[..., 1] = False
    model.refresh(Modality(m.y, unseen, None, None, DT))  # no news of channel 1
    assert float(model.spike_history.expected_count[1]) == pytest.approx(wanted[1])
    plain = Poisson(3).bind(2)
    plain.refresh(m)
    assert plain.spike_history is None


# ---- being an object ----------------------------------------------------------------------------
@pytest.mark.parametrize("coupling", [False, True])
def test_saved_and_rebuilt(coupling):
    model = _model(coupling=coupling, nuisance=1)
    config = json.loads(json.dumps(model.config()))
    twin = Poisson.from_config(config).bind(2)
    assert twin.history == BASIS and twin.coupling is coupling
    twin.load_state_dict(model.state_dict())
    m, z = _modality(model), _rand(3, 9, 2)
    assert torch.equal(twin.log_prob(m, z), model.log_prob(m, z))


def test_history_weights_are_set_and_read():
    own, all_of_them = _rand(3, 2), _rand(3, 3, 2)
    model = Poisson(3, history=BASIS, nuisance=1).bind(2)
    model.history_weight = own
    assert torch.equal(model.history_weight, own)
    assert bool((model.nuisance_weight[:, 0] == 0).all())
    basis = BASIS.values(DT)
    torch.testing.assert_close(model.history_filter(DT), basis @ own.mT)
    coupled = Poisson(3, history=BASIS, coupling=True).bind(2)
    coupled.history_weight = all_of_them
    assert torch.equal(coupled.history_weight, all_of_them)
    wanted = torch.einsum("lj,tsj->lts", basis, all_of_them)
    torch.testing.assert_close(coupled.history_filter(DT), wanted)
    with pytest.raises(ShapeError, match="history_weight"):
        coupled.history_weight = own
    with pytest.raises(PlssmError, match="without history"):
        Poisson(3).bind(2).history_filter(DT)
    with pytest.raises(PlssmError, match="without history"):
        Poisson.from_parameters([[1.0]], history_weight=[[1.0]])


# ---- refusals -----------------------------------------------------------------------------------
def test_samples_on_their_own_clock_are_refused():
    counts = np.ones((4, 3))
    data = Dataset.from_arrays(
        {"x": np.random.default_rng(0).normal(size=(40, 1)), "n": counts},
        dt=DT,
        kinds={"n": "count"},
        times={"n": np.arange(4) * 0.1},
    )
    with pytest.raises(DataError, match=r"'n', trial '0': a spike history needs .*latent clock"):
        Poisson(3, history=BASIS).check(data, "n")
    Poisson(3).check(data, "n")
    clocked = Modality(torch.ones(1, 4, 3), torch.ones(1, 4, 3).bool(), torch.arange(4)[None])
    with pytest.raises(DataError, match="spike history"):
        _model().covariates(clocked)


def test_bins_wider_than_the_history_are_refused():
    data = Dataset.from_arrays({"n": np.ones((9, 2))}, dt=0.08, kinds={"n": "count"})
    Poisson(2, history=BASIS).check(data, "n")
    with pytest.raises(DataError, match="3 functions on 2 bins of 0.08 s"):
        Poisson(2, history=RaisedCosine(functions=3, longest_seconds=0.1)).check(data, "n")


@pytest.mark.parametrize("coupling", [False, True])
def test_expected_counts_are_driven_by_expected_counts(coupling):
    """Each expected count is the mean given those before it, the drive summed by loops."""
    model = _model(coupling=coupling)
    eta = 0.3 * _rand(2, 6, 3, seed=3) - 1.0
    got = model.expected_sequence(eta, dt=DT).detach()
    m = Modality(got, torch.ones_like(got, dtype=torch.bool), None, None, DT)
    drive = torch.as_tensor(_brute_force_drive(model, m))
    torch.testing.assert_close(got, (eta + drive).exp())
