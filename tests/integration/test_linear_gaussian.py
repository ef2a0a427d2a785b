"""Linear-Gaussian models: everything equals the dense joint Gaussian and two other packages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import plssm as ps
from plssm.inference.augmented_states import LagStates
from plssm.inference.base import working_copy
from plssm.inference.filter_form import filter_form
from plssm.inference.innovations import innovations

M, N, K = 3, 4, 2
LENGTHS = (9, 6, 1)


def make_model(seed, *, inputs=K, nuisance=0, input_at_start=False, full=False):
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(M, M)))[0]
    root = rng.normal(size=(M, M))
    noise = 0.2 * np.eye(M) + 0.1 * root @ root.T
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        A=0.9 * rotation + 0.05 * rng.normal(size=(M, M)),
        h=0.3 * rng.normal(size=M),
        C=0.5 * rng.normal(size=(M, inputs)) if inputs else None,
        process_noise=noise if full else np.diag(noise),
        initial_mean=rng.normal(size=M),
        initial_noise=noise[::-1, ::-1] if full else rng.uniform(0.3, 2.0, M),
        input_at_start=input_at_start,
    )
    observation = ps.observations.Gaussian.from_parameters(
        rng.normal(size=(N, M)),
        rng.normal(size=N),
        noise=rng.uniform(0.1, 1.0, N),
        nuisance_weight=rng.normal(size=(N, nuisance)) if nuisance else None,
    )
    return ps.StateSpaceModel(dynamics, {"x": observation})


def make_data(model, seed, *, lengths=LENGTHS, missing="entries", nuisance=0):
    """Ragged trials of any values (the posterior is exact for whatever was seen)."""
    rng = np.random.default_rng(seed)
    y, s, r = [], [], []
    for n in lengths:
        values = 2.0 * rng.normal(size=(n, N))
        if missing == "entries":
            values[rng.random((n, N)) < 0.3] = np.nan
        elif missing == "steps":
            values[rng.random(n) < 0.3] = np.nan
        y.append(values)
        s.append(rng.normal(size=(n, K)))
        r.append(rng.normal(size=(n, nuisance)))
    return ps.Dataset.from_arrays(
        {"x": y},
        inputs=s if model.dynamics.n_inputs else None,
        nuisance={"x": r} if nuisance else None,
    )


def numbers(model):
    d, o = model.dynamics, model.observations["x"]
    values = {
        "A": d.A, "h": d.h, "C": d.C, "Q": d.noise.covariance, "m": d.initial.mean,
        "S": d.initial.noise.covariance, "B": o.weight, "b": o.bias, "J": o.nuisance_weight,
        "R": o.noise,
    }  # fmt: skip
    return {name: value.detach().numpy() for name, value in values.items()}


def dense(model, trial, weights=None):
    """Posterior mean [T, M], covariance [T, M, T, M] and log evidence by one big Gaussian."""
    p, steps = numbers(model), trial.length
    drive = np.zeros((steps, M)) if trial.inputs is None else trial.inputs @ p["C"].T
    mean, cov = np.zeros((steps, M)), np.zeros((steps, M, steps, M))
    mean[0] = p["m"] + (drive[0] if model.dynamics.input_at_start else 0.0)
    cov[0, :, 0, :] = p["S"]
    for t in range(1, steps):
        mean[t] = p["A"] @ mean[t - 1] + p["h"] + drive[t]
        for u in range(t):
            cov[t, :, u, :] = p["A"] @ cov[t - 1, :, u, :]
            cov[u, :, t, :] = cov[t, :, u, :].T
        cov[t, :, t, :] = p["A"] @ cov[t - 1, :, t - 1, :] @ p["A"].T + p["Q"]
    y, clock = trial.values["x"], trial.steps("x")
    seen = np.isfinite(y)
    offset = np.tile(p["b"], (len(y), 1))
    if "x" in trial.nuisance:
        offset = offset + trial.nuisance["x"] @ p["J"].T
    design = np.zeros((len(y), N, steps, M))
    for i, k in enumerate(clock):
        design[i, :, k] = p["B"]
    H = design[seen].reshape(-1, steps * M)
    prior = cov.reshape(steps * M, steps * M)
    noise = np.diag(np.tile(p["R"], (len(y), 1))[seen])
    total = H @ prior @ H.T + noise
    residual = (y - offset)[seen] - H @ mean.ravel()
    gain = np.linalg.solve(total, H @ prior).T
    evidence = 0.0
    if seen.any():
        evidence = multivariate_normal(np.zeros(len(residual)), total).logpdf(residual)
    posterior = prior - gain @ H @ prior
    return (
        (mean.ravel() + gain @ residual).reshape(steps, M),
        posterior.reshape(steps, M, steps, M),
        evidence,
    )


CASES = {
    "plain": dict(inputs=0),
    "inputs": dict(inputs=K),
    "inputs at the start": dict(inputs=K, input_at_start=True),
    "full noise": dict(inputs=K, full=True),
    "nuisance": dict(inputs=K, nuisance=2, input_at_start=True, full=True),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("missing", ["none", "entries", "steps"])
def test_posterior_and_evidence_equal_the_dense_joint_gaussian(name, missing):
    model = make_model(1, **CASES[name])
    data = make_data(model, 2, missing=missing, nuisance=CASES[name].get("nuisance", 0))
    posterior = ps.smooth(model, data)
    assert posterior.evidence_kind == "exact"
    assert posterior.length.tolist() == list(LENGTHS)
    covariance, cross = posterior.covariance().numpy(), posterior.cross_covariance().numpy()
    for b, trial in enumerate(data.trials):
        mean, cov, evidence = dense(model, trial)
        steps = np.arange(trial.length)
        want = {
            "mean": (posterior.mean[b, : trial.length].numpy(), mean),
            "covariance": (covariance[b, : trial.length], cov[steps, :, steps]),
            "cross": (cross[b, : trial.length - 1], cov[steps[:-1], :, steps[1:]]),
            "evidence": (float(posterior.log_evidence[b]), evidence),
        }
        for what, (got, reference) in want.items():
            np.testing.assert_allclose(got, reference, rtol=1e-8, atol=1e-8, err_msg=what)
        assert np.isnan(posterior.mean[b, trial.length :].numpy()).all()
        assert np.isnan(covariance[b, trial.length :]).all()
        assert np.isnan(cross[b, max(trial.length - 1, 0) :]).all()


def test_causal_filter_equals_the_dense_posterior_of_each_prefix():
    model = make_model(3, inputs=K, input_at_start=True, full=True)
    data = make_data(model, 4, lengths=(6, 4))
    filtered = ps.smooth(model, data, causal=True)
    smoothed = ps.smooth(model, data)
    assert filtered.evidence_kind == "exact"
    np.testing.assert_allclose(
        filtered.log_evidence.numpy(), smoothed.log_evidence.numpy(), rtol=0, atol=1e-8
    )
    for b, trial in enumerate(data.trials):
        last = trial.length - 1
        for t in range(trial.length):
            mean, cov, _ = dense(model, trial.cut(0, t + 1, data.dt))
            np.testing.assert_allclose(filtered.mean[b, t].numpy(), mean[t], atol=1e-8)
            np.testing.assert_allclose(
                filtered.covariance()[b, t].numpy(), cov[t, :, t], atol=1e-8
            )
        np.testing.assert_allclose(
            filtered.mean[b, last].numpy(), smoothed.mean[b, last].numpy(), atol=1e-9
        )
        np.testing.assert_allclose(
            filtered.covariance()[b, last].numpy(),
            smoothed.covariance()[b, last].numpy(),
            atol=1e-9,
        )
        assert np.isnan(filtered.mean[b, trial.length :].numpy()).all()


def test_a_modality_on_its_own_clock_with_repeats_equals_the_dense_joint_gaussian():
    model = make_model(5, inputs=0)
    rng = np.random.default_rng(6)
    times = [np.array([0.0, 1.0, 1.2, 4.0, 7.9]), np.array([0.1, 2.0])]
    values = [rng.normal(size=(len(t), N)) for t in times]
    values[0][2, 1] = np.nan
    data = ps.Dataset.from_arrays({"x": values}, times={"x": times})
    assert data.batch().modalities["x"].clock is not None
    posterior = ps.smooth(model, data)
    filtered = ps.smooth(model, data, causal=True)
    for b, trial in enumerate(data.trials):
        mean, cov, evidence = dense(model, trial)
        n = np.arange(trial.length)
        np.testing.assert_allclose(posterior.mean[b, n].numpy(), mean, atol=1e-8)
        np.testing.assert_allclose(posterior.covariance()[b, n].numpy(), cov[n, :, n], atol=1e-8)
        for one in (posterior, filtered):
            np.testing.assert_allclose(float(one.log_evidence[b]), evidence, atol=1e-8)


def test_two_modalities_are_two_halves_of_one():
    model = make_model(7)
    data = make_data(model, 8)
    p = numbers(model)
    parts = {"front": slice(0, 1), "back": slice(1, N)}
    halves = ps.StateSpaceModel(
        model.dynamics,
        {
            name: ps.observations.Gaussian.from_parameters(p["B"][s], p["b"][s], noise=p["R"][s])
            for name, s in parts.items()
        },
    )
    split = ps.Dataset.from_arrays(
        {name: [t.values["x"][:, s] for t in data.trials] for name, s in parts.items()},
        inputs=[t.inputs for t in data.trials],
    )
    whole, both = ps.smooth(model, data), ps.smooth(halves, split)
    np.testing.assert_allclose(both.log_evidence.numpy(), whole.log_evidence.numpy(), atol=1e-9)
    np.testing.assert_allclose(both.mean.numpy(), whole.mean.numpy(), atol=1e-9)


def test_smoother_equals_pykalman():
    pykalman = pytest.importorskip("pykalman")
    model = make_model(9, full=True)
    data = make_data(model, 10, lengths=(12,), missing="steps")
    p, trial = numbers(model), data.trials[0]
    assert np.isnan(trial.values["x"]).any()
    kalman = pykalman.KalmanFilter(
        transition_matrices=p["A"],
        transition_offsets=p["h"] + trial.inputs[1:] @ p["C"].T,
        transition_covariance=p["Q"],
        observation_matrices=p["B"],
        observation_offsets=p["b"],
        observation_covariance=np.diag(p["R"]),
        initial_state_mean=p["m"],
        initial_state_covariance=p["S"],
    )
    masked = np.ma.masked_invalid(trial.values["x"])
    mean, covariance = kalman.smooth(masked)
    posterior = ps.smooth(model, data)
    np.testing.assert_allclose(posterior.mean[0].numpy(), mean, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(posterior.covariance()[0].numpy(), covariance, rtol=1e-8, atol=1e-8)
    filtered, spread = kalman.filter(masked)
    causal = ps.smooth(model, data, causal=True)
    np.testing.assert_allclose(causal.mean[0].numpy(), filtered, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(causal.covariance()[0].numpy(), spread, rtol=1e-8, atol=1e-8)
    evidence = kalman.loglikelihood(masked)
    np.testing.assert_allclose(float(causal.log_evidence[0]), evidence, rtol=1e-8, atol=1e-8)


def test_evidence_equals_statsmodels():
    pytest.importorskip("statsmodels")
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    model = make_model(11, full=True, input_at_start=True)
    data = make_data(model, 12, lengths=(30,), missing="entries")
    p, trial = numbers(model), data.trials[0]
    drive = trial.inputs @ p["C"].T
    kalman = KalmanSmoother(k_endog=N, k_states=M, tolerance=0)  # never taken as stationary
    kalman.bind(np.ascontiguousarray(trial.values["x"]))
    kalman["design"], kalman["obs_cov"] = p["B"], np.diag(p["R"])
    kalman["obs_intercept"] = p["b"][:, None]
    kalman["transition"], kalman["selection"] = p["A"], np.eye(M)
    kalman["state_cov"] = p["Q"]
    kalman["state_intercept"] = np.vstack([p["h"] + drive[1:], np.zeros(M)]).T
    kalman.initialize_known(p["m"] + drive[0], p["S"])
    reference = kalman.smooth()
    posterior, filtered = ps.smooth(model, data), ps.smooth(model, data, causal=True)
    for name, got, want in (
        ("evidence", posterior.log_evidence[0], reference.llf_obs.sum()),
        ("mean", posterior.mean[0], reference.smoothed_state.T),
        ("covariance", posterior.covariance()[0],
         np.moveaxis(reference.smoothed_state_cov, -1, 0)),
        ("filtered mean", filtered.mean[0], reference.filtered_state.T),
        ("filtered covariance", filtered.covariance()[0],
         np.moveaxis(reference.filtered_state_cov, -1, 0)),
    ):  # fmt: skip
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-8, atol=1e-8, err_msg=name)


def dense_log_likelihood(model, data):
    """Log-likelihood of all trials by big Gaussians, as a differentiable tensor."""
    d, o = model.dynamics, model.observations["x"]
    total = 0.0
    for trial in data.trials:
        steps, y = trial.length, torch.from_numpy(trial.values["x"])
        drive = torch.from_numpy(trial.inputs) @ d.C.T
        means, blocks = [d.initial.mean], [[d.initial.noise.covariance]]
        for t in range(1, steps):
            means.append(d.A @ means[-1] + d.h + drive[t])
            row = [d.A @ block for block in blocks[-1]]
            blocks.append([*row, row[-1] @ d.A.T + d.noise.covariance])
        blocks = [[blocks[max(t, u)][min(t, u)] if t >= u else blocks[u][t].T
                   for u in range(steps)] for t in range(steps)]  # fmt: skip
        prior = torch.cat([torch.cat(row, 1) for row in blocks])
        design, seen = torch.block_diag(*[o.weight] * steps), ~y.isnan().flatten()
        centre = design @ torch.cat(means) + o.bias.repeat(steps)
        spread = design @ prior @ design.T + torch.diag(o.noise.repeat(steps))
        normal = torch.distributions.MultivariateNormal(centre[seen], spread[seen][:, seen])
        total = total + normal.log_prob(y.flatten()[seen])
    return total


def test_gradient_of_the_likelihood_equals_autograd_of_the_joint_gaussian():
    model = working_copy(make_model(15))
    data = make_data(model, 16, lengths=(8, 5, 1))
    batch = data.batch()
    states = LagStates(model, batch.dt)
    parameters = dict(model.named_parameters())
    found = innovations(model, batch, states, filter_form(model, batch, states))
    values = found.increment.sum(), dense_log_likelihood(model, data)
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-10)
    got, want = (
        torch.autograd.grad(v, list(parameters.values()), allow_unused=True) for v in values
    )
    for name, a, b in zip(parameters, got, want, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and a.numel():
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=name)


def test_forecast_has_the_closed_form_mean_and_variance():
    model = make_model(13, full=True)
    data = make_data(model, 14, lengths=(8, 5))
    p, steps = numbers(model), 4
    rng = np.random.default_rng(15)
    future = rng.normal(size=(2, steps, K))
    draws = 20_000
    made = ps.Fit(model).forecast(data, steps, samples=draws, inputs=future, seed=3)["x"]
    assert made.samples.shape == (draws, 2, steps, N)
    np.testing.assert_allclose(made.times, [1.0, 2.0, 3.0, 4.0])
    variance = made.moments()[1].numpy()
    low, high = made.interval(0.9)
    inside = ((made.samples >= low) & (made.samples <= high)).double().mean(0)
    np.testing.assert_allclose(inside.numpy(), 0.9, atol=1e-3)
    for b, trial in enumerate(data.trials):
        mean, cov, _ = dense(model, trial)
        m, P = mean[-1], cov[-1, :, -1]
        for k in range(steps):
            m = p["A"] @ m + p["h"] + p["C"] @ future[b, k]
            P = p["A"] @ P @ p["A"].T + p["Q"]
            want, spread = p["B"] @ m + p["b"], np.diag(p["B"] @ P @ p["B"].T) + p["R"]
            error = 5 * np.sqrt(spread / draws)
            assert (np.abs(made.mean[b, k].numpy() - want) < error).all()
            np.testing.assert_allclose(variance[b, k], spread, rtol=0.06)
            np.testing.assert_allclose(made.samples[:, b, k].var(0).numpy(), spread, rtol=0.06)
