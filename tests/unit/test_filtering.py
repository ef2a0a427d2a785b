"""The causal filter: a plain extended Kalman filter written here, exactness, general terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributions as D

import plssm as ps


class NormalByHand(ps.observations.ObservationModel):
    """Unit-variance normal channels through the defaults: not known to be quadratic."""

    def distribution(self, features):
        return D.Normal(features, torch.ones_like(features))


def problem(kind, *, inputs=0, by_hand=False, seed=0):
    rng = np.random.default_rng(seed)
    options = dict(
        h=0.3 * rng.normal(size=2), C=rng.normal(size=(2, inputs)) if inputs else None,
        process_noise=[[0.3, 0.1], [0.1, 0.2]], initial_mean=[0.5, -0.4],
        initial_noise=[0.5, 0.7], input_at_start=inputs > 0,
    )  # fmt: skip
    if kind == "linear":
        dynamics = ps.dynamics.LinearDynamics.from_parameters([[0.8, 0.2], [-0.3, 0.7]], **options)
    else:
        dynamics = ps.dynamics.PLRNN.from_parameters(
            [0.8, 0.6], [[0.0, 0.9], [-0.8, 0.0]], **options
        )
    B, b = rng.normal(size=(3, 2)), rng.normal(size=3)
    if by_hand:
        observation = NormalByHand(3).bind(2)
        with torch.no_grad():
            observation.weight.copy_(torch.from_numpy(B))
            observation.bias.copy_(torch.from_numpy(b))
    else:
        observation = ps.observations.Gaussian.from_parameters(B, b, noise=[1.0] * 3)
    model = ps.StateSpaceModel(dynamics, {"x": observation})
    lengths = (12, 7, 1)
    y = [rng.normal(size=(n, 3)) for n in lengths]
    for v in y[:2]:
        v[rng.random(v.shape) < 0.3] = np.nan
        v[2] = np.nan
    s = [rng.normal(size=(n, inputs)) for n in lengths] if inputs else None
    return model, ps.Dataset.from_arrays({"x": y}, inputs=s)


def plain_filter(model, trial):
    """Textbook extended Kalman filter of one trial, missing rows dropped."""
    d, o = model.dynamics, model.observations["x"]
    with torch.no_grad():
        Q, P = d.noise.covariance.numpy(), d.initial.noise.covariance.numpy()
        m, B, b, C = (v.numpy() for v in (d.initial.mean, o.weight, o.bias, d.C))
    form, drive = d.relu_form(), np.zeros((trial.length, 2))
    if trial.inputs is not None:
        drive = trial.inputs @ C.T
    m, means, covariances, evidence = m + drive[0], [], [], 0.0
    for t, row in enumerate(trial.values["x"]):
        if t:
            J = form.jacobian(form.region(m))
            m, P = form.step(m) + drive[t], J @ P @ J.T + Q
        seen = np.isfinite(row)
        H = B[seen]
        S = H @ P @ H.T + np.eye(len(H))
        e = row[seen] - H @ m - b[seen]
        K = P @ H.T @ np.linalg.inv(S)
        evidence -= 0.5 * (
            e @ np.linalg.solve(S, e) + np.linalg.slogdet(S)[1] + len(e) * np.log(2 * np.pi)
        )
        m, P = m + K @ e, P - K @ H @ P
        means.append(m)
        covariances.append(P)
    return np.array(means), np.array(covariances), evidence


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("inputs", [0, 2])
@pytest.mark.parametrize("kind", ["linear", "plrnn"])
def test_equals_a_textbook_filter(kind, inputs, by_hand):
    model, data = problem(kind, inputs=inputs, by_hand=by_hand)
    got = ps.smooth(model, data, causal=True)
    exact = kind == "linear" and not by_hand
    assert got.evidence_kind == ("exact" if exact else "ekf")
    for b, trial in enumerate(data.trials):
        mean, covariance, evidence = plain_filter(model, trial)
        n = trial.length
        np.testing.assert_allclose(got.mean[b, :n].numpy(), mean, atol=1e-8)
        np.testing.assert_allclose(got.covariance()[b, :n].numpy(), covariance, atol=1e-8)
        np.testing.assert_allclose(float(got.log_evidence[b]), evidence, atol=1e-8)
    before = got.predicted_mean[0, 1:].numpy()
    drive = 0.0 if inputs == 0 else data.inputs[0][1:] @ model.dynamics.C.detach().numpy().T
    np.testing.assert_allclose(
        before, model.dynamics.relu_form().step(got.mean[0, :-1].numpy()) + drive, atol=1e-10
    )


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_last_filtered_state_is_the_last_smoothed_one_of_a_linear_model(by_hand):
    model, data = problem("linear", inputs=1, by_hand=by_hand)
    filtered, smoothed = (ps.smooth(model, data, causal=c) for c in (True, False))
    for b, n in enumerate(data.lengths):
        torch.testing.assert_close(filtered.mean[b, n - 1], smoothed.mean[b, n - 1])
        torch.testing.assert_close(
            filtered.covariance()[b, n - 1], smoothed.covariance()[b, n - 1]
        )
    torch.testing.assert_close(filtered.log_evidence, smoothed.log_evidence)


@pytest.mark.parametrize("by_hand", [False, True])
def test_causal_means_use_nothing_from_later(by_hand):
    model, data = problem("plrnn", by_hand=by_hand)
    before = ps.smooth(model, data, causal=True)
    y = [t.values["x"].copy() for t in data.trials]
    y[0][8:] += 100.0
    after = ps.smooth(model, ps.Dataset.from_arrays({"x": y}), causal=True)
    torch.testing.assert_close(after.mean[0, :8], before.mean[0, :8], rtol=0, atol=1e-12)
    assert not torch.allclose(after.mean[0, 8], before.mean[0, 8])


@pytest.mark.parametrize("kind", ["linear", "plrnn"])
def test_own_clocks_with_repeats_and_two_modalities(kind):
    """The general path and the compiled one agree on samples that share a step."""
    rng = np.random.default_rng(4)
    times = [np.array([0.0, 0.1, 3.0, 3.2, 3.3, 9.0]), np.array([1.0, 4.1])]
    x, u = ([rng.normal(size=(len(t), 3)) for t in times] for _ in range(2))
    x[0][1, 0] = x[0][3] = np.nan
    data = ps.Dataset.from_arrays({"x": x, "u": u}, times={"x": times, "u": times})
    results = []
    for by_hand in (False, True):
        model = ps.StateSpaceModel(
            problem(kind)[0].dynamics,
            {n: problem(kind, by_hand=by_hand, seed=k)[0].observations["x"] for k, n in
             enumerate(("x", "u"))},
        )  # fmt: skip
        results.append(ps.smooth(model, data, causal=True))
    compiled, general = results
    torch.testing.assert_close(compiled.mean, general.mean, equal_nan=True, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        compiled.covariance(), general.covariance(), equal_nan=True, rtol=0, atol=1e-8
    )
    torch.testing.assert_close(compiled.log_evidence, general.log_evidence, rtol=0, atol=1e-8)
