"""BOLD inside the model: three ways to the same posterior, dense references, masks, clocks."""

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference.augmented_filter import run_filter, run_smoother
from plssm.inference.augmented_states import LagStates
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.laplace import laplace_posterior


def problem(tr, *, kind="linear", dim=2, steps=14, process=1.0, every=1, labels=False, seed=0):
    """A model with BOLD at dt = tr / every, ragged trials, missing entries."""
    rng = np.random.default_rng(seed)
    options = dict(h=0.2 * rng.normal(size=dim), process_noise=[process] * dim,
                   initial_mean=rng.normal(size=dim), initial_noise=[0.7] * dim)  # fmt: skip
    A = 0.6 * np.eye(dim) + 0.15 * rng.normal(size=(dim, dim))
    if kind == "linear":
        dynamics = ps.dynamics.LinearDynamics.from_parameters(A, **options)
    else:
        W = 0.4 * rng.normal(size=(dim, dim)) * (1 - np.eye(dim))
        dynamics = ps.dynamics.PLRNN.from_parameters(np.diag(A), W, **options)
    observations = {
        "bold": ps.observations.BOLD.from_parameters(
            B=rng.normal(size=(3, dim)),
            bias=rng.normal(size=3),
            noise=[0.3, 0.5, 0.4],
            tr_seconds=tr,
        )
    }
    if labels:
        observations["choice"] = ps.observations.Categorical.from_parameters(
            weight=rng.normal(size=(2, dim)), bias=rng.normal(size=2)
        )
    model = ps.StateSpaceModel(dynamics, observations)
    dt = tr / every
    lengths = [steps, steps - 3]
    values = {"bold": [rng.normal(size=(-(-n // every), 3)) for n in lengths]}
    for x in values["bold"]:
        x[rng.random(x.shape) < 0.2] = np.nan
        x[2] = np.nan
    times = {"bold": [np.arange(len(x)) * tr for x in values["bold"]]} if every > 1 else {}
    if labels:
        values["choice"] = [rng.integers(0, 3, n).astype(float) for n in lengths]
        times["choice"] = [dt * np.arange(n) for n in lengths]
    data = ps.Dataset.from_arrays(
        values,
        dt,
        kinds={"bold": "bold"} | ({"choice": "label"} if labels else {}),
        times=times or None,
        check_channels=False,
    )
    return model, data


def by_states(model, data):
    """Filter and Bryson-Frazier smoother on the last states, in covariance form."""
    batch = data.batch()
    prior = ChainPrior.of(model.dynamics, batch)
    states = LagStates(model, batch.dt)
    run = run_filter(model, batch, prior, states)
    return run, run_smoother(run, states, prior)


@pytest.mark.parametrize(("tr", "every"), [(3.0, 1), (2.0, 1), (3.0, 3)])
def test_banded_posterior_equals_the_smoother_on_lagged_states(tr, every):
    model, data = problem(tr, every=every, steps=36)
    post = ps.smooth(model, data)
    run, (mean, covariance, cross) = by_states(model, data)
    m = model.dim
    for b, n in enumerate(post.length):
        np.testing.assert_allclose(mean[b, :n, :m], post.mean[b, :n], atol=1e-8)
        np.testing.assert_allclose(covariance[b, :n, :m, :m], post.covariance()[b, :n], atol=1e-8)
        np.testing.assert_allclose(
            cross[b, : n - 1], post.cross_covariance()[b, : n - 1], atol=1e-8
        )
        assert run.evidence[b] == pytest.approx(float(post.log_evidence[b]), abs=1e-7)
    assert post.evidence_kind == "exact"


def test_causal_posterior_is_the_posterior_of_the_data_so_far():
    model, data = problem(3.0)
    causal = ps.smooth(model, data, causal=True)
    torch.testing.assert_close(
        causal.log_evidence, ps.smooth(model, data).log_evidence, rtol=0, atol=1e-7
    )
    for t in (1, 5, 9):
        part = data.select(time=(0.0, 3.0 * t))
        post = ps.smooth(model, part)
        torch.testing.assert_close(causal.mean[:, t - 1], post.mean[:, -1], atol=1e-8, rtol=0)
        torch.testing.assert_close(
            causal.covariance()[:, t - 1], post.covariance()[:, -1], atol=1e-8, rtol=0
        )
        draws = causal.histories(4000, seed=3)[:, 0, t - 1, -t:]
        whole = post.sample(4000)[:, 0]
        assert float((draws.mean(0) - whole.mean(0)).abs().max()) < 0.1
        lag = torch.einsum("sti,suj->tuij", draws - draws.mean(0), draws - draws.mean(0)) / 4000
        ref = torch.einsum("sti,suj->tuij", whole - whole.mean(0), whole - whole.mean(0)) / 4000
        assert float((lag - ref).abs().max()) < 0.15


@pytest.mark.parametrize("kind", ["linear", "plrnn"])
def test_mode_with_labels_is_stationary(kind):
    model, data = problem(2.0, kind=kind, labels=True, process=0.3, steps=25)
    batch = data.batch()
    result = laplace_posterior(model, batch)
    assert result.status == ("stationary",) * 2
    z = torch.from_numpy(result.path)
    with torch.no_grad():
        best = model.log_joint(batch, z)
        generator = torch.Generator().manual_seed(0)
        for _ in range(40):
            step = torch.randn(z.shape, generator=generator, dtype=torch.float64) * 1e-4
            step = torch.where(batch.time_mask[..., None], step, 0.0)
            assert bool((model.log_joint(batch, z + step) <= best + 1e-8).all())
    if kind == "linear":
        path = z[:1].clone().requires_grad_()
        one = data.select(trials=[0]).batch()
        hessian = torch.autograd.functional.hessian(lambda v: model.log_joint(one, v).sum(), path)
        dense = torch.linalg.inv(-hessian.reshape(path.numel(), -1)).reshape(25, 2, 25, 2)
        lags = torch.from_numpy(result.posterior.lagged(5))[0]
        for lag in range(6):
            for t in range(25 - lag):
                torch.testing.assert_close(lags[t, lag], dense[t, :, t + lag], atol=1e-8, rtol=0)


def test_draws_of_whole_paths_have_the_posterior_covariance():
    model, data = problem(3.0)
    post = ps.smooth(model, data)
    draws = post.sample(20000) - post.mean
    lags = torch.from_numpy(post.lagged(6))
    for lag in (0, 1, 3, 6):
        n = 11 - lag
        got = torch.einsum("sbti,sbtj->btij", draws[:, :, :n], draws[:, :, lag : lag + n]) / 20000
        assert float((got - lags[:, :n, lag]).abs().max()) < 0.06


@pytest.mark.parametrize("every", [1, 2])
def test_em_learns_bold_and_labels_together(every):
    truth, _ = problem(2.0, kind="plrnn", labels=True, process=0.2)
    data = truth.simulate(60 * every, trials=6, dt=2.0 / every, seed=4)
    if every > 1:
        rows = [t.values["bold"][::every] for t in data.trials]
        data = ps.Dataset.from_arrays(
            {"bold": rows, "choice": [t.values["choice"] for t in data.trials]},
            2.0 / every,
            kinds=data.kinds,
            times={"bold": [2.0 * np.arange(len(r)) for r in rows]},
        )
    model = ps.StateSpaceModel(
        ps.dynamics.PLRNN(2),
        {
            "bold": ps.observations.BOLD(3, tr_seconds=2.0),
            "choice": ps.observations.Categorical(3),
        },
    )
    fit = ps.inference.LaplaceEM(iterations=8).fit(model, data, progress=False)
    evidence = fit.history.groupby("stage")["evidence"]
    assert (evidence.last() >= evidence.first() - 1e-6).all()
    start = fit.history["evidence"].iloc[0]
    assert fit.history["evidence"].iloc[-1] > start


def test_tempering_is_a_power_of_the_likelihood():
    model, data = problem(3.0, labels=True, kind="plrnn", steps=16)
    engine = ps.inference.LaplaceEM(iterations=1, modality_weights={"choice": 3.0})
    fit = engine.fit(model, data, progress=False)
    assert float(fit.model.observations["choice"].tempering) == 3.0
    post = fit.posterior(data)
    assert post.evidence_kind == "tempered"
    assert fit.posterior(data, causal=True).evidence_kind == "tempered"
    assert ps.smooth(fit.model, data, method="ekf").evidence_kind == "tempered"
    batch = data.batch()
    with torch.no_grad():
        z = torch.nan_to_num(post.mean)

        def target(path):
            m = fit.model
            value = m.dynamics.log_prob(path, batch.inputs, batch.length)
            value = value + m.observations["bold"].log_prob(batch.modalities["bold"], path)
            choice = m.observations["choice"].log_prob(batch.modalities["choice"], path)
            return value + 3.0 * choice

        best = target(z)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            step = torch.randn(z.shape, generator=generator, dtype=torch.float64) * 1e-4
            step = torch.where(batch.time_mask[..., None], step, 0.0)
            assert bool((target(z + step) <= best + 1e-8).all())


def test_null_fisher_weights():
    rng = np.random.default_rng(0)
    data = ps.Dataset.from_arrays(
        {
            "x": 2.0 * rng.normal(size=(2, 300, 3)),
            "spikes": rng.poisson(0.25, size=(2, 300, 5)).astype(float),
            "choice": np.tile(np.arange(4.0), 75)[None, :, None].repeat(2, 0),
        },
        kinds={"spikes": "count", "choice": "label"},
    )
    model = ps.StateSpaceModel(
        ps.dynamics.PLRNN(2),
        {
            "x": ps.observations.Gaussian(3),
            "spikes": ps.observations.Poisson(5),
            "choice": ps.observations.Categorical(4),
        },
    )
    from plssm.inference.modality_weights import temper

    weights = temper(model, data, "null-fisher")
    values = np.concatenate([t.values["x"] for t in data.trials])
    counts = np.concatenate([t.values["spikes"] for t in data.trials])
    assert weights["x"] == pytest.approx(1 / np.mean(1 / values.var(0)), rel=1e-3)
    assert weights["spikes"] == pytest.approx(1 / counts.mean(), rel=1e-2)
    assert weights["choice"] == pytest.approx(16 / 3, rel=1e-2)
    for wrong in ({"y": 1.0}, {"x": -1.0}, "fisher", 3.0):
        with pytest.raises(ps.errors.PlssmError):
            temper(model, data, wrong)


def test_three_ways_to_read_bold_on_a_fine_clock():
    """TR 3 s on dt = TR/8: exact convolution against the response as five linear states."""
    model, data = problem(3.0, every=8, steps=8 * 30, process=0.05, seed=3)
    states = problem(3.0, every=8, steps=8 * 30, process=0.05, seed=3)[0]
    known = model.observations["bold"]
    states.observations["bold"] = ps.observations.BOLD(
        3, tr_seconds=3.0, kernel="states", order=5
    ).bind(model.dim)
    states.observations["bold"].load_state_dict(known.state_dict())
    post, by_states = ps.smooth(model, data), ps.smooth(states, data, method="ekf")
    assert by_states.evidence_kind == "exact"
    sd = torch.diagonal(post.covariance(), dim1=-2, dim2=-1).sqrt()
    assert float(torch.nan_to_num((by_states.mean - post.mean) / sd).abs().max()) < 0.05
    path = torch.nan_to_num(post.mean)
    with torch.no_grad():
        exact = known.features_along(path, dt=3 / 8)
        filtered = _linear_filter(known, path, 3 / 8)
    error = (exact - filtered).square().mean((0, 1)).sqrt() / exact.flatten(0, 1).std(0)
    assert float(error.max()) < 0.01


def _linear_filter(bold, path, dt):
    """Predicted BOLD by running the response's own linear states, one step after the other."""
    a, b, c, d = (torch.as_tensor(np.asarray(part)) for part in bold.response(dt))
    s = torch.zeros(len(path), len(b), path.shape[-1], dtype=torch.float64)
    out = []
    for t in range(path.shape[1]):
        if t:
            s = torch.einsum("ij,bjm->bim", a, s) + b[:, None] * path[:, t - 1, None, :]
        out.append(torch.einsum("i,bim->bm", c, s) + d * path[:, t])
    return bold.features(torch.stack(out, dim=1))


@pytest.mark.parametrize("kind", ["linear", "plrnn"])
def test_the_iterated_smoother_finds_the_laplace_mode(kind):
    model, data = problem(2.0, kind=kind, labels=True, process=0.3, steps=30, seed=5)
    laplace, ekf = ps.smooth(model, data), ps.smooth(model, data, method="ekf")
    settled = [s == "stationary" for s in ekf.status]
    assert any(settled) and (kind == "plrnn" or all(settled))
    for b in np.flatnonzero(settled):
        n = int(ekf.length[b])
        torch.testing.assert_close(ekf.mean[b, :n], laplace.mean[b, :n], atol=1e-6, rtol=0)
        torch.testing.assert_close(
            ekf.covariance()[b, :n], laplace.covariance()[b, :n], atol=1e-6, rtol=0
        )
        torch.testing.assert_close(ekf.log_evidence[b], laplace.log_evidence[b], atol=1e-5, rtol=0)
