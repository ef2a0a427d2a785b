"""The Laplace E-step of piecewise-linear maps against autograd, quadrature, and Monte Carlo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import plssm as ps
from plssm.errors import CapabilityError
from plssm.inference import LaplaceEM
from plssm.inference.chain_prior import ChainPrior
from plssm.inference.laplace import laplace_posterior
from plssm.inference.newton import expand
from plssm.inference.statistics import exact_statistics, regional_statistics


class ShallowPLRNN(ps.dynamics.base.PiecewiseLinear):
    """z' = A z + W1 relu(W2 z + h2) + h1 through region and affine alone."""

    def __init__(self, dim, hidden, inputs=0, *, seed=0, scale=0.4):
        super().__init__(dim, inputs, noise="full")
        rng = np.random.default_rng(seed)
        self.A = nn.Parameter(torch.from_numpy(rng.uniform(0.2, 0.7, dim)))
        self.W1 = nn.Parameter(torch.from_numpy(scale * rng.normal(size=(dim, hidden))))
        self.W2 = nn.Parameter(torch.from_numpy(rng.normal(size=(hidden, dim))))
        self.h1 = nn.Parameter(torch.from_numpy(0.3 * rng.normal(size=dim)))
        self.h2 = nn.Parameter(torch.from_numpy(rng.normal(size=hidden)))

    def region(self, z):
        return z @ self.W2.T + self.h2 > 0

    def affine(self, region):
        gated = self.W1 * region.to(self.W1.dtype)[..., None, :]
        return torch.diag(self.A) + gated @ self.W2, self.h1 + gated @ self.h2


def plrnn(seed, dim=2, *, process=0.2, strength=0.5, inputs=0):
    rng = np.random.default_rng(seed)
    return ps.dynamics.PLRNN.from_parameters(
        rng.uniform(0.3, 0.9, dim),
        strength * rng.normal(size=(dim, dim)) * (1 - np.eye(dim)),
        h=0.3 * rng.normal(size=dim),
        C=rng.normal(size=(dim, inputs)) if inputs else None,
        process_noise=process * rng.uniform(0.5, 1.5, dim),
        initial_mean=0.5 * rng.normal(size=dim),
        initial_noise=process * rng.uniform(0.5, 1.5, dim),
        input_at_start=inputs > 0,
    )


def with_gaussian(dynamics, seed, channels=3, noise=0.3):
    rng = np.random.default_rng(1000 + seed)
    observation = ps.observations.Gaussian.from_parameters(
        rng.normal(size=(channels, dynamics.dim)), rng.normal(size=channels),
        noise=noise * rng.uniform(0.5, 1.5, channels),
    )  # fmt: skip
    return ps.StateSpaceModel(dynamics, {"x": observation})


def some_data(model, seed, lengths=(7, 4, 1), missing=0.25):
    rng = np.random.default_rng(seed)
    K = model.dynamics.n_inputs
    inputs = rng.normal(size=(len(lengths), max(lengths), K)) if K else None
    full = model.simulate(max(lengths), trials=len(lengths), inputs=inputs, seed=seed)
    values = full.values("x")
    values[rng.random(values.shape) < missing] = np.nan
    return ps.Dataset.from_arrays(
        {"x": [v[:n] for v, n in zip(values, lengths)]},
        inputs=None if inputs is None else [s[:n] for s, n in zip(inputs, lengths)],
    )


MAPS = {
    "plrnn": lambda seed: plrnn(seed, 3, inputs=2),
    "shallow": lambda seed: ShallowPLRNN(2, 5, seed=seed),
    "shallow with inputs": lambda seed: ShallowPLRNN(3, 2, inputs=1, seed=seed),
}


def precision(factor, b, steps):
    """Dense precision of one trial from its factor, ``[T, M, T, M]``."""
    R, C = factor.R[b], factor.C[b]
    dim = R.shape[-1]
    out = np.zeros((steps, dim, steps, dim))
    for t in range(steps):
        upper = np.triu(R[t])
        out[t, :, t, :] = upper.T @ upper
        if t:
            out[t, :, t, :] += C[t - 1].T @ C[t - 1]
        if t + 1 < steps:
            out[t, :, t + 1, :] = upper.T @ C[t]
            out[t + 1, :, t, :] = out[t, :, t + 1, :].T
    return out


@pytest.mark.parametrize("name", MAPS)
def test_objective_gradient_and_hessian_equal_autograd(name):
    checked = 0
    for seed in range(4):
        model = with_gaussian(MAPS[name](seed), seed, channels=2)
        data = some_data(model, seed)
        batch = data.batch()
        prior = ChainPrior.of(model.dynamics, batch)
        terms = expand(model, batch, np.zeros((3, batch.steps, model.dim)))
        inside = batch.time_mask.numpy()[..., None]
        z = torch.randn(3, batch.steps, model.dim, generator=torch.Generator().manual_seed(seed))
        z = torch.where(torch.from_numpy(inside), z.double(), 0.0)
        with torch.no_grad():
            joint = model.log_joint(batch, z).numpy()
        np.testing.assert_allclose(
            prior.log_prob(z.numpy()) + terms.value(z.numpy()), joint, rtol=1e-10
        )
        result = laplace_posterior(model, batch)
        assert set(result.status) == {"stationary"}
        np.testing.assert_allclose(
            result.joint, model.log_joint(batch, torch.from_numpy(result.path)).detach(),
            rtol=1e-10,
        )  # fmt: skip
        if result.pinned:
            continue  # a kink has no Hessian; its slopes are tested with the mode search
        for b, trial in enumerate(data.trials):
            one, steps = data.batch([b]), trial.length
            mode = torch.from_numpy(result.path[b : b + 1, :steps]).clone()

            def joint(z, one=one, model=model):
                return model.log_joint(one, z).sum()

            slope = torch.autograd.functional.jacobian(joint, mode)
            assert float(slope.abs().max()) < 1e-8
            hessian = torch.autograd.functional.hessian(joint, mode)[0, :, :, 0].numpy()
            got = precision(result.posterior._factor, b, steps)
            np.testing.assert_allclose(got, -hessian, atol=1e-8)
            flat = got.reshape(steps * model.dim, -1)
            np.testing.assert_allclose(result.logdet[b], np.linalg.slogdet(flat)[1], atol=1e-9)
            inverse = np.linalg.inv(flat).reshape(got.shape)
            n = np.arange(steps)
            np.testing.assert_allclose(
                result.posterior.covariance()[b, n].numpy(), inverse[n, :, n], atol=1e-10
            )
            np.testing.assert_allclose(
                result.posterior.cross_covariance()[b, n[:-1]].numpy(),
                inverse[n[:-1], :, n[1:]],
                atol=1e-10,
            )
            checked += 1
    assert checked >= 6


@pytest.mark.parametrize("name", MAPS)
def test_the_mode_against_a_general_optimiser_from_many_starts(name):
    best = 0
    for seed in range(3):
        model = with_gaussian(MAPS[name](seed), seed, channels=2)
        batch = some_data(model, 10 + seed, lengths=(3,), missing=0.0).batch()
        mode = laplace_posterior(model, batch)
        shape = mode.path.shape

        def negative(x, model=model, batch=batch, shape=shape):
            z = torch.from_numpy(x.reshape(shape)).clone().requires_grad_()
            value = -model.log_joint(batch, z).sum()
            value.backward()
            return float(value.detach()), z.grad.numpy().ravel()

        polished = minimize(negative, mode.path.ravel(), jac=True, method="L-BFGS-B")
        assert -polished.fun <= mode.joint[0] + 1e-8  # nothing to gain nearby
        starts = np.random.default_rng(seed).normal(size=(4, mode.path.size))
        found = [minimize(negative, s, jac=True, method="L-BFGS-B") for s in starts]
        top = max(-f.fun for f in found)
        best += mode.joint[0] >= top - 1e-4
        winner = min(found, key=lambda f: f.fun).x.reshape(shape)
        if abs(top - mode.joint[0]) < 1e-6:
            np.testing.assert_allclose(winner, mode.path, atol=1e-2)
        warm = laplace_posterior(model, batch, start=winner)
        assert warm.joint[0] >= top - 1e-6
    assert best >= 2  # the promise is a local maximum


def test_a_map_without_closed_form_updates_is_smoothed_but_not_fitted_by_em():
    model = with_gaussian(ShallowPLRNN(2, 4), 0)
    data = some_data(model, 0)
    assert ps.smooth(model, data).status == ("stationary",) * 3
    assert torch.isfinite(ps.smooth(model, data, causal=True).log_evidence).all()
    with pytest.raises(CapabilityError, match="closed-form"):
        LaplaceEM(iterations=1).fit(model, data)
    made = ps.Fit(model).forecast(data, 3, samples=10)["x"]
    assert torch.isfinite(made.mean).all()


# ---- moments ----------------------------------------------------------------------------------
@pytest.mark.parametrize("linearised", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_expected_statistics_equal_monte_carlo(name, linearised):
    """The sums of the M-step against draws of whole paths from the same posterior."""
    model = with_gaussian(MAPS[name](1), 1)
    data = some_data(model, 5, lengths=(5, 3))
    batch = data.batch()
    posterior = ps.smooth(model, data)
    form = model.dynamics.relu_form()
    slope = np.random.default_rng(2).random((2, batch.steps - 1, form.offset.size))
    if linearised:
        got = regional_statistics(model.dynamics, posterior, batch, slope)
    else:
        got = exact_statistics(model.dynamics, posterior, batch)
    paths = posterior.sample(40_000, seed=1).numpy()
    parts = []
    for b, trial in enumerate(data.trials):
        z = paths[:, b, : trial.length]
        gates = form.gates(z[:, :-1])
        hinges = slope[b, : trial.length - 1] * gates if linearised else np.maximum(gates, 0)
        fixed = [np.ones((*hinges.shape[:-1], 1))]
        if trial.inputs is not None:
            known = trial.inputs[1:]
            fixed.append(np.broadcast_to(known, (len(z), *known.shape)))
        parts.append((np.concatenate([z[:, :-1], hinges, *fixed], -1), z[:, 1:]))
    count = 0
    sums = {"regressors": 0.0, "targets": 0.0, "squares": 0.0}
    for y, after in parts:
        count += after.shape[1]
        for key, (one, other) in {
            "regressors": (y, y), "targets": (after, y), "squares": (after, after),
        }.items():  # fmt: skip
            sums[key] = sums[key] + np.einsum("sti,stj->sij", one, other)
    assert got.count == count == 6
    for key, draws in sums.items():
        error = 5 * draws.std(0) / np.sqrt(len(draws)) + 1e-9
        assert (np.abs(getattr(got, key) - draws.mean(0)) < error).all(), key


# ---- quadrature -------------------------------------------------------------------------------
def nodes(centre, spread, count=12, reach=6.0):
    """Gauss-Legendre nodes of a plane, split along both axes, where the density has kinks."""
    x, w = np.polynomial.legendre.leggauss(count)
    axes = []
    for m, s in zip(centre, spread):
        low, high = m - reach * s, m + reach * s
        cuts = sorted({low, m, high, min(max(0.0, low), high)})
        pieces = [
            ((b - a) / 2 * x + (a + b) / 2, (b - a) / 2 * w) for a, b in zip(cuts[:-1], cuts[1:])
        ]
        axes.append([np.concatenate(part) for part in zip(*pieces)])
    (p, wp), (q, wq) = axes
    points = np.stack(np.meshgrid(p, q, indexing="ij"), -1).reshape(-1, 2)
    return points, np.outer(wp, wq).ravel()


def normal_log(x, mean, covariance):
    """Log density of independent normal variables; the noises here are diagonal."""
    variance = np.diag(covariance)
    e = x - mean
    return -0.5 * ((e * e) @ (1 / variance) + np.log(2 * np.pi * variance).sum())


def by_quadrature(model, y, centre, spread):
    """Exact evidence, means ``[3, 2]`` and covariances ``[3, 2, 3, 2]`` of M=2, T=3."""
    d, o = model.dynamics, model.observations["x"]
    with torch.no_grad():
        Q, S = d.noise.covariance.numpy(), d.initial.noise.covariance.numpy()
        mu, B, b, G = (v.numpy() for v in (d.initial.mean, o.weight, o.bias, torch.diag(o.noise)))
    grids = [nodes(centre[t], spread[t]) for t in range(3)]
    seen = [w * np.exp(normal_log(y[t], z @ B.T + b, G)) for t, (z, w) in enumerate(grids)]
    seen[0] = seen[0] * np.exp(normal_log(grids[0][0], mu, S))
    form = d.relu_form()
    kernels = [
        np.exp(normal_log(grids[t + 1][0][None], form.step(grids[t][0])[:, None], Q))
        for t in range(2)
    ]
    one, two = seen[0][:, None] * kernels[0] * seen[1], kernels[1] * seen[2]
    into, onward = one.sum(0), two.sum(1)
    total = into @ onward
    weights = [(one @ onward) / total, into * onward / total, (into @ two) / total]
    pairs = {
        (0, 1): one * onward / total,
        (1, 2): into[:, None] * two / total,
        (0, 2): (one @ two) / total,
    }
    mean = np.stack([w @ z for w, (z, _) in zip(weights, grids)])
    cov = np.zeros((3, 2, 3, 2))
    for t in range(3):
        z = grids[t][0] - mean[t]
        cov[t, :, t] = (z * weights[t][:, None]).T @ z
        for u in range(t + 1, 3):
            cov[t, :, u] = z.T @ pairs[t, u] @ (grids[u][0] - mean[u])
            cov[u, :, t] = cov[t, :, u].T
    return np.log(total), mean, cov


def compare(model, data):
    """Error of evidence (nats), mean (posterior sd) and covariance (relative to the sd's)."""
    posterior = ps.smooth(model, data)
    laplace = posterior.covariance()[0].numpy()
    spread = np.sqrt(np.diagonal(laplace, axis1=1, axis2=2))
    rough = posterior.mean[0].numpy()
    for _ in range(2):  # the box follows the exact posterior
        evidence, mean, cov = by_quadrature(model, data.values("x")[0], rough, spread)
        n = np.arange(3)
        exact = np.sqrt(np.stack([np.diag(cov[t, :, t]) for t in n]))
        rough, spread = mean, 1.3 * exact
    sd = exact[:, :, None] * exact[:, None, :]
    cross = exact[:-1, :, None] * exact[1:, None, :]
    return {
        "evidence": abs(float(posterior.log_evidence[0]) - evidence),
        "mean": (np.abs(posterior.mean[0].numpy() - mean) / exact).max(),
        "covariance": (np.abs(laplace - cov[n, :, n]) / sd).max(),
        "cross": (
            np.abs(posterior.cross_covariance()[0].numpy() - cov[n[:-1], :, n[1:]]) / cross
        ).max(),
    }


def tiny(seed, *, process, noise, strength=0.5):
    model = with_gaussian(plrnn(seed, process=process, strength=strength), seed, 2, noise)
    return model, model.simulate(3, seed=seed)


def test_quadrature_is_exact_where_the_answer_is_known():
    """Without couplings the model is linear and Laplace exact: equal to the rule's accuracy."""
    for seed in range(3):
        errors = compare(*tiny(seed, process=0.3, noise=0.5, strength=0.0))
        assert max(errors.values()) < 2e-5, errors


# Medians over draws of the error in evidence (nats), mean (posterior sd), covariance (relative):
# a few times what is measured. The worst draws at 0.1 are off by 0.5 nats and 0.55 sd.
LIMITS = {0.001: (1e-3, 2e-3, 2e-3), 0.01: (0.02, 0.04, 0.04), 0.1: (0.08, 0.1, 0.15)}


@pytest.mark.parametrize("noise", LIMITS)
def test_laplace_is_close_to_quadrature_over_all_regions(noise):
    errors = [compare(*tiny(seed, process=noise, noise=noise)) for seed in range(6)]
    evidence, mean, covariance = LIMITS[noise]
    median = {key: np.median([e[key] for e in errors]) for key in errors[0]}
    assert median["evidence"] < evidence, median
    assert median["mean"] < mean, median
    assert max(median["covariance"], median["cross"]) < covariance, median
    assert min(e["covariance"] for e in errors) < 0.3 * covariance  # away from kinks: far better


def test_laplace_must_differ_where_the_posterior_straddles_kinks():
    """Strong hinges under weak data: no Gaussian is the posterior, and the numbers say so."""
    for seed in range(4):
        errors = compare(*tiny(seed, process=1.0, noise=3.0, strength=2.0))
        assert errors["evidence"] > 0.05, errors
        assert errors["mean"] > 0.1, errors
        assert errors["covariance"] > 0.2, errors
        assert errors["evidence"] < 0.5, errors
