"""Scans over time against the filter in a loop, its gradients, and the sequential smoother."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm import observations as o
from plssm.kernels.innovation_filter import filter_plain
from plssm.kernels.parallel_smoother import associative_scan, parallel_filter, parallel_smoother

SIZES = [(1, 3), (2, 3), (7, 2), (100, 3)]


class Problem:
    """Affine maps of every step, terms with steps without data, ragged trials."""

    def __init__(self, steps, dim, batch=3, seed=0):
        g = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(shape, generator=g, dtype=torch.float64)

        def spread(*lead):
            a = randn(*lead, dim, dim)
            return a @ a.mT / dim + 0.1 * torch.eye(dim, dtype=torch.float64)

        rows = randn(batch, steps, 2, dim)
        self.score, self.information = randn(batch, steps, dim), rows.mT @ rows
        if steps > 3:
            self.score[:, 2] = 0.0
            self.information[:, 2] = 0.0
        self.transition = 0.7 * randn(batch, max(steps - 1, 0), dim, dim)
        self.offset = randn(batch, max(steps - 1, 0), dim)
        self.noise, self.mean, self.first = spread(), randn(batch, dim), spread(batch)
        self.length = torch.tensor([steps, max(steps // 2, 1), 1])

    def tensors(self):
        return (self.transition, self.offset, self.noise, self.mean, self.first, self.score,
                self.information)  # fmt: skip

    def parallel(self, *tensors):
        run = parallel_filter(*tensors, length=self.length)
        return (*run, *parallel_smoother(tensors[0], run, length=self.length))

    def sequential(self, *tensors):
        """A filter and a Rauch-Tung-Striebel smoother in loops over time."""
        transition, offset, noise, mean, first, score, information = tensors

        def step(z, t):
            f = transition[:, t - 1]
            return (f @ z[..., None])[..., 0] + offset[:, t - 1], f

        run = filter_plain(step, noise, mean, first, score, information,
                           torch.zeros_like(score), length=self.length)  # fmt: skip
        _, ahead, ahead_cov, m, p = run
        steps = score.shape[1]
        means, covariances, crossed = [m[:, -1]], [p[:, -1]], []
        eye = torch.eye(score.shape[-1], dtype=torch.float64)
        for t in range(steps - 2, -1, -1):
            later = (t + 1 < self.length)[:, None, None]
            before = torch.where(later, ahead_cov[:, t + 1], eye)
            gain = p[:, t] @ transition[:, t].mT @ torch.linalg.inv(before)
            gain = torch.where(later, gain, 0.0)
            crossed.append(gain @ covariances[-1])
            change = gain @ (covariances[-1] - ahead_cov[:, t + 1]) @ gain.mT
            covariances.append(p[:, t] + change)
            move = means[-1] - ahead[:, t + 1]
            means.append(m[:, t] + (gain @ move[..., None])[..., 0])
        stacked = [torch.stack(x[::-1], 1) for x in (means, covariances)]
        cross = torch.stack(crossed[::-1], 1) if crossed else p[:, :0]
        return (*run, *stacked, cross)


def test_a_scan_gives_all_prefixes():
    for steps in range(1, 12):
        x = torch.randn(2, steps, 3, 3, generator=torch.Generator().manual_seed(steps))
        (got,) = associative_scan(lambda a, b: (a[0] @ b[0],), (x,))
        want, here = [], torch.eye(3)
        for t in range(steps):
            here = here @ x[:, t]
            want.append(here)
        torch.testing.assert_close(got, torch.stack(want, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("steps", "dim"), SIZES)
def test_filter_and_smoother_equal_loops(steps, dim):
    problem = Problem(steps, dim)
    got, want = problem.parallel(*problem.tensors()), problem.sequential(*problem.tensors())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_shared_information_and_singular_noise_of_the_filter():
    problem = Problem(9, 3)
    tensors = list(problem.tensors())
    tensors[2] = torch.diag(torch.tensor([0.4, 0.0, 0.0], dtype=torch.float64))
    tensors[6] = tensors[6][:1, :1]
    got = parallel_filter(*tensors, length=problem.length)
    want = problem.sequential(*tensors)
    for a, b in zip(got, want, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("steps", "dim"), [(1, 2), (2, 2), (7, 3), (40, 2)])
def test_gradients_equal_those_of_loops(steps, dim):
    problem = Problem(steps, dim, seed=1)
    gradients = []
    for method in (problem.parallel, problem.sequential):
        leaves = [x.clone().requires_grad_() for x in problem.tensors()]
        # symmetric arguments, so that both see the same function of them
        tensors = [0.5 * (x + x.mT) if i in (2, 4, 6) else x for i, x in enumerate(leaves)]
        g = torch.Generator().manual_seed(2)
        value = 0.0
        for x in method(*tensors):
            weight = torch.randn(x.shape, generator=g, dtype=x.dtype)
            weight = 0.5 * (weight + weight.mT) if x.ndim == 4 and x.shape[1] == steps else weight
            value = value + (weight * x).sum()
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        gradients.append([torch.zeros_like(x) if f is None else f
                          for f, x in zip(found, leaves, strict=True)])  # fmt: skip
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_a_long_series_of_an_unstable_map():
    """Products of Jacobians overflow in 20000 steps, elements of the scan do not."""
    steps = 20_000
    transition = torch.full((1, steps - 1, 1, 1), 1.5, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    score = torch.randn(1, steps, 1, generator=torch.Generator().manual_seed(0)).double()
    run = parallel_filter(
        transition, torch.zeros(1, steps - 1, 1).double(), one, one[0][None], one[None], score,
        one[None, None],
    )  # fmt: skip
    smooth = parallel_smoother(transition, run)
    # stationary solution of the scalar Riccati equation P = (2.25 P + 1) / (2.25 P + 2)
    p = float(np.roots([2.25, -0.25, -1.0]).max())
    torch.testing.assert_close(run.filtered_covariance[0, 50:, 0, 0],
                               torch.full((steps - 50,), p).double())  # fmt: skip
    gain = 1.5 * p / (2.25 * p + 1)
    want = (p - gain**2 * (2.25 * p + 1)) / (1 - gain**2)
    torch.testing.assert_close(smooth.covariance[0, 50:-50, 0, 0],
                               torch.full((steps - 100,), want).double())  # fmt: skip


# ---- of models ----------------------------------------------------------------------------------


def model_of(kind, observations, inputs=0):
    rng = np.random.default_rng(0)
    options = dict(
        C=rng.normal(size=(2, inputs)) if inputs else None, h=[0.2, -0.1],
        process_noise=[0.2, 0.3], initial_mean=[0.3, 0.1], initial_noise=[0.6, 0.5],
    )  # fmt: skip
    if kind == "linear":
        d = ps.dynamics.LinearDynamics.from_parameters([[0.8, 0.3], [-0.4, 0.7]], **options)
    else:
        d = ps.dynamics.PLRNN.from_parameters([0.8, 0.6], [[0.0, 0.7], [-0.8, 0.0]], **options)
    for observation in observations.values():
        observation.bind(2)
        with torch.no_grad():
            observation.weight.copy_(torch.from_numpy(rng.normal(size=observation.weight.shape)))
    return ps.StateSpaceModel(d, observations)


def data_of(model, lengths, inputs=0):
    rng = np.random.default_rng(1)
    values, drives = {n: [] for n in model.observations}, []
    for k, n in enumerate(lengths):
        s = rng.normal(size=(n, inputs)) if inputs else None
        drawn = model.simulate(n, inputs=s, seed=k)
        for name in values:
            y = drawn.values(name)[0].astype(float)
            if n > 3:
                y[rng.random(n) < 0.2] = np.nan
            values[name].append(y)
        drives.append(s)
    kinds = {n: v.kinds[0] for n, v in model.observations.items()}
    return ps.Dataset.from_arrays(values, kinds=kinds, inputs=drives if inputs else None)


OBSERVATIONS = {
    "normal": lambda: {"x": o.Gaussian(3)},
    "counts": lambda: {"n": o.Poisson(3)},
    "labels and numbers": lambda: {"c": o.Categorical(3), "x": o.Gaussian(2)},
}


@pytest.mark.parametrize("lengths", [(1,), (2, 1), (100, 7, 2)])
@pytest.mark.parametrize("observation", list(OBSERVATIONS))
@pytest.mark.parametrize("kind", ["linear", "plrnn"])
def test_models_are_filtered_and_smoothed_as_in_sequence(kind, observation, lengths):
    model = model_of(kind, OBSERVATIONS[observation](), inputs=1)
    data = data_of(model, lengths, inputs=1)
    got, want = (ps.smooth(model, data, causal=True, parallel=p) for p in (True, False))
    names = ["mean", "predicted_mean", "predicted_covariance", "log_evidence"]
    for name in names:
        a, b = getattr(got, name), getattr(want, name)
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7, equal_nan=True)
    assert got.evidence_kind == want.evidence_kind
    got, want = (ps.smooth(model, data, "ekf", parallel=p) for p in (True, False))
    assert got.evidence_kind == want.evidence_kind
    for b, status in enumerate(want.status):
        if status != "stationary":  # a smoothed path that jumps between regions
            assert got.status[b] != "stationary"
            continue
        n = lengths[b]
        torch.testing.assert_close(got.mean[b, :n], want.mean[b, :n], rtol=0, atol=1e-7)
        for name in ("covariance", "cross_covariance"):
            a, c = (getattr(p, name)()[b] for p in (got, want))
            torch.testing.assert_close(a, c, rtol=0, atol=1e-7, equal_nan=True)
        torch.testing.assert_close(got.log_evidence[b], want.log_evidence[b], rtol=0, atol=1e-6)
