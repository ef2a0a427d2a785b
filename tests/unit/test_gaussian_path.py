"""Gaussian paths against dense normal distributions, the plain twin, differences and Pyro."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from plssm.inference.path_distribution import GaussianPath
from plssm.kernels import _path_blocks as loops
from plssm.kernels import _path_vectors as vectors
from plssm.kernels._compile import compiled
from plssm.kernels.gaussian_path import PathFactor, gaussian_path_plain, path_terms

CASES = [(3, 5, 3), (1, 4, 2), (3, 1, 2), (3, 4, 1), (2, 3, 6), (2, 4, 10)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


def problem(trials, steps, m, seed=0):
    """Shift, diagonal blocks and couplings of positive definite chains, as leaves."""
    lower = 0.5 * randn(seed, trials, steps, m, m) / math.sqrt(m)
    lower = lower + 1.5 * torch.eye(m, dtype=torch.float64)
    couple = randn(seed + 1, trials, steps - 1, m, m) / math.sqrt(m)
    diag = lower @ lower.mT
    diag[:, 1:] += couple @ couple.mT
    off = lower[:, :-1] @ couple.mT
    return tuple(x.requires_grad_() for x in (randn(seed + 2, trials, steps, m), diag, off))


def dense(diag, off):
    """The whole precision of one trial."""
    n, m = diag.shape[:2]
    rows = []
    for t in range(n):
        row = [diag.new_zeros(m, m) for _ in range(n)]
        row[t] = 0.5 * (diag[t] + diag[t].mT)
        if off is not None and t + 1 < n:
            row[t + 1] = off[t]
        if off is not None and t > 0:
            row[t - 1] = off[t - 1].mT
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


def normal(shift, diag, off):
    """The distribution of one trial as a multivariate normal, and its covariance in blocks."""
    n, m = shift.shape
    precision = dense(diag, off)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ shift.reshape(-1)
    both = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    return both, covariance.reshape(n, m, n, m)


def gradients(result, weight, leaves):
    found = torch.autograd.grad(
        (result * weight).sum(), leaves, retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def agree(got, wanted, leaves, tolerance=1e-9):
    """Values and the gradients of a random projection."""
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    if wanted.requires_grad:
        weight = randn(9, *wanted.shape)
        for a, b in zip(
            gradients(got, weight, leaves), gradients(wanted, weight, leaves), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def spoil(x, length, shorter=0):
    """NaN beyond the trials' ends."""
    x = x.detach().clone()
    for b, n in enumerate(length.tolist()):
        x[b, n - shorter :] = torch.nan
    return x.requires_grad_()


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize(("trials", "steps", "m"), CASES)
def test_equals_a_dense_normal(trials, steps, m, coupled):
    shift, diag, off = problem(trials, steps, m)
    length = torch.tensor([steps, max(1, steps - 2), 1][:trials])
    shift, diag, off = spoil(shift, length), spoil(diag, length), spoil(off, length, 1)
    value = torch.stack([spoil(x, length) for x in randn(5, 2, trials, steps, m)])
    value = value.detach().requires_grad_()
    path = GaussianPath(shift, diag, off if coupled else None, length)
    got = (
        path.log_prob(value).T, path.entropy(), path.entropy_terms().sum(-1), path.mean,
        path.covariance(), path.cross_covariance(), path.variance,
    )  # fmt: skip
    leaves = (value, shift, diag, off) if coupled else (value, shift, diag)
    for b, n in enumerate(length.tolist()):
        both, blocks = normal(shift[b, :n], diag[b, :n], off[b, : n - 1] if coupled else None)
        lag = [blocks[t, :, t + 1] for t in range(n - 1)]
        covariance = torch.stack([blocks[t, :, t] for t in range(n)])
        wanted = (
            both.log_prob(value[:, b, :n].reshape(2, -1)), both.entropy(), both.entropy(),
            both.mean.view(n, m), covariance, torch.stack(lag) if lag else None,
            covariance.diagonal(dim1=-2, dim2=-1),
        )  # fmt: skip
        for x, y in zip(got, wanted, strict=True):
            if y is not None:
                agree(x[b, : len(y)] if y.ndim > 1 else x[b], y, leaves)
        for x, first in zip(got[3:], (n, n, max(n - 1, 0), n), strict=True):
            assert not x[b, first:].any()


def test_entropy_terms_are_conditional_entropies():
    shift, diag, off = problem(3, 5, 3)
    length = torch.tensor([5, 3, 1])
    terms = GaussianPath(shift, diag, off, length).entropy_terms()
    for b, n in enumerate(length.tolist()):
        _, blocks = normal(shift[b, :n], diag[b, :n], off[b, : n - 1])
        for t in range(n):
            given = blocks[t, :, t]
            if t + 1 < n:
                cross = blocks[t, :, t + 1]
                given = given - cross @ torch.linalg.solve(blocks[t + 1, :, t + 1], cross.mT)
            wanted = 0.5 * torch.linalg.slogdet(2 * math.pi * math.e * given)[1]
            agree(terms[b, t], wanted, (diag, off))
        assert not terms[b, n:].any()


@pytest.mark.parametrize("samples", [0, 1, 3])
@pytest.mark.parametrize(("trials", "steps", "m"), [*CASES, (3, 30, 3), (1, 3, 13)])
def test_equals_the_plain_twin(trials, steps, m, samples):
    leaves = problem(trials, steps, m)
    noise = randn(7, samples, trials, steps, m)
    terms = path_terms(PathFactor(*leaves, None), *leaves, noise=noise)
    wanted = gaussian_path_plain(*leaves, noise)
    for got, other in zip(terms, wanted, strict=False):
        agree(got, other, leaves, 1e-8)
    agree(sum(x.sum() for x in terms[:3]), sum(x.sum() for x in wanted), leaves, 1e-8)
    torch.testing.assert_close(terms.squares, noise.square().sum((-2, -1)))


def test_samples_are_those_of_the_dense_factor():
    shift, diag, off = problem(3, 4, 2)
    drawn = GaussianPath(shift, diag, off, generator=generator(3)).rsample((5,))
    noise = torch.randn(5, 3, 4, 2, dtype=torch.float64, generator=generator(3))
    for b in range(3):
        lower = torch.linalg.cholesky(dense(diag[b], off[b]))
        mean = torch.cholesky_solve(shift[b].reshape(-1, 1), lower)[:, 0]
        away = torch.linalg.solve_triangular(lower.mT, noise[:, b].reshape(5, -1).T, upper=True)
        agree(drawn[:, b].reshape(5, -1), mean + away.T, (shift, diag, off))


def test_gradients_are_those_of_differences():
    length = torch.tensor([3, 2])
    shift, diag, off = problem(2, 3, 2)
    factor = torch.linalg.cholesky(diag.detach()).requires_grad_()
    value = randn(4, 2, 2, 3, 2).requires_grad_()

    def results(coupled):
        def function(shift, factor, off, value):
            path = GaussianPath(
                shift, factor @ factor.mT, off if coupled else None, length,
                generator=generator(1),
            )  # fmt: skip
            own = path.rsample((2,))
            return (
                own, path.log_prob(own), path.log_prob(value), path.mean, path.entropy_terms(),
                path.entropy(), path.covariance(), path.cross_covariance(),
            )  # fmt: skip

        return function

    inputs = (shift, factor, off, value)
    assert torch.autograd.gradcheck(results(True), inputs)
    assert torch.autograd.gradcheck(results(False), inputs)


@pytest.mark.parametrize("coupled", [True, False])
def test_what_lies_beyond_the_ends_changes_nothing(coupled):
    length = torch.tensor([4, 2, 1])
    clean = problem(3, 4, 3)
    value, results = randn(4, 3, 4, 3), []
    for spoiled in (False, True):
        leaves = clean
        if spoiled:
            leaves = [spoil(x, length, k) for x, k in zip(clean, (0, 0, 1), strict=True)]
        given = spoil(value, length).detach() if spoiled else value
        given = given.clone().requires_grad_()
        path = GaussianPath(
            *leaves[:2], leaves[2] if coupled else None, length, generator=generator(2)
        )
        own = path.rsample((2,))
        found = [
            own, path.log_prob(own), path.log_prob(given), path.mean, path.entropy_terms(),
            path.covariance(), path.cross_covariance(),
        ]  # fmt: skip
        inputs = (given, *leaves) if coupled else (given, *leaves[:2])
        results.append(found + gradients(sum((x * x).sum() for x in found), 1.0, inputs))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for b, n in enumerate(length.tolist()):
        assert not any(g[b, n:].any() for g in results[1][7:10])
        assert not coupled or not results[1][10][b, n - 1 :].any()


def test_trials_do_not_touch_each_other():
    length = torch.tensor([4, 2, 3])
    leaves = problem(3, 4, 3)
    value = randn(4, 3, 4, 3)
    together = GaussianPath(*leaves, length)
    for b, n in enumerate(length.tolist()):
        alone = GaussianPath(
            *(x[b : b + 1, : n - k] for x, k in zip(leaves, (0, 0, 1), strict=True))
        )
        density = together.log_prob(value)[b : b + 1]
        agree(density, alone.log_prob(value[b : b + 1, :n]), leaves, 1e-12)
        agree(together.mean[b : b + 1, :n], alone.mean, leaves, 1e-12)


@pytest.mark.parametrize("coupled", [True, False])
def test_single_precision_in_single_precision_out(coupled):
    leaves = problem(3, 5, 3)
    single = [x.detach().float().requires_grad_() for x in leaves]
    double = [x.detach().double().requires_grad_() for x in single]
    results = []
    for given in (single, double):
        path = GaussianPath(*given[:2], given[2] if coupled else None, generator=generator(1))
        own = path.rsample()
        found = [
            own, path.log_prob(own), path.log_prob(torch.ones(3, 5, 3)), path.mean,
            path.entropy(), path.entropy_terms(), path.covariance(), path.cross_covariance(),
        ]  # fmt: skip
        assert all(x.dtype == given[0].dtype for x in found)
        slopes = gradients(sum(x.sum() for x in found), 1.0, given)
        assert all(x.dtype == given[0].dtype for x in slopes)
        results.append(found + slopes)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)


def test_moments_of_samples():
    shift, diag, off = problem(2, 3, 2)
    count = 100_000
    drawn = GaussianPath(shift, diag, off, generator=generator(5)).sample((count,))
    for b in range(2):
        both, _ = normal(shift[b], diag[b], off[b])
        covariance = both.covariance_matrix.detach()
        scale = covariance.diagonal().sqrt()
        away = (drawn[:, b].reshape(count, -1) - both.mean.detach()) / scale
        assert away.mean(0).abs().max() < 5 / math.sqrt(count)
        wanted = covariance / torch.outer(scale, scale)
        assert (away.T @ away / count - wanted).abs().max() < 5 * math.sqrt(2 / count)


def test_own_density_has_the_whole_gradient():
    leaves = problem(3, 4, 3)
    path = GaussianPath(*leaves)
    drawn = path.rsample((2,))
    agree(path.log_prob(drawn), GaussianPath(*leaves).log_prob(drawn), leaves)
    # another tensor of the same values is an arbitrary path, with a gradient of its own
    constant = drawn.detach().requires_grad_()
    inputs = (constant, *leaves)
    agree(path.log_prob(constant), GaussianPath(*leaves).log_prob(constant), inputs)


def test_own_density_of_a_constant_or_changed_sample():
    leaves = problem(3, 4, 3)
    path = GaussianPath(*leaves)
    drawn = path.sample()
    agree(path.log_prob(drawn), GaussianPath(*leaves).log_prob(drawn.clone()), leaves)
    with torch.no_grad():
        drawn += 1.0
    agree(path.log_prob(drawn), GaussianPath(*leaves).log_prob(drawn.clone()), leaves)
    fixed = GaussianPath(*(x.detach() for x in leaves))
    drawn = fixed.rsample()
    drawn.requires_grad_()
    agree(fixed.log_prob(drawn), GaussianPath(*leaves).log_prob(drawn), (drawn,))


def test_results_without_gradients_do_not_stay_so():
    leaves = problem(2, 3, 2)
    path = GaussianPath(*leaves)
    with torch.no_grad():
        path.rsample(), path.mean, path.covariance(), path.log_prob(torch.ones(2, 3, 2))
    other = GaussianPath(*leaves)
    for name in ("entropy", "entropy_terms", "covariance", "cross_covariance"):
        agree(getattr(path, name)(), getattr(other, name)(), leaves)
    agree(path.mean, other.mean, leaves)
    agree(path.log_prob(torch.ones(2, 3, 2)), other.log_prob(torch.ones(2, 3, 2)), leaves)


@pytest.mark.parametrize("bad", [-1.0, 0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("coupled", [True, False])
def test_a_failed_trial_is_infinite_never_nan(bad, coupled):
    shift, diag, off = problem(3, 5, 2)
    broken = diag.detach().clone()
    broken[1, 2] = bad * torch.eye(2) if math.isfinite(bad) else bad
    broken.requires_grad_()
    given = off if coupled else None
    path = GaussianPath(shift, broken, given, generator=generator(1))
    own = path.rsample((2,))
    value = torch.ones(3, 5, 2, dtype=torch.float64)
    good = GaussianPath(shift, diag, given, generator=generator(1))
    assert torch.isfinite(own).all() and torch.isfinite(path.mean).all()
    assert path.entropy()[1] == torch.inf
    assert path.entropy_terms()[1, 2] == torch.inf
    assert path.log_prob(own)[0, 1] == -torch.inf and path.log_prob(value)[1] == -torch.inf
    assert torch.isfinite(path.covariance()).all()
    for a, b in (
        (own[:, ::2], good.rsample((2,))[:, ::2]), (path.entropy()[::2], good.entropy()[::2]),
        (path.log_prob(value)[::2], good.log_prob(value)[::2]),
    ):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    total = own.sum() + path.entropy().sum() + path.log_prob(value).sum()
    total = total + path.covariance().sum()
    assert all(torch.isfinite(g).all() for g in gradients(total, 1.0, (shift, broken)))


def test_wrong_shapes_are_refused():
    shift, diag, off = (x.detach() for x in problem(2, 3, 2))
    wrong = [
        ("shift", (shift[0], diag, off)),
        ("diag", (shift, diag[..., :1], off)),
        ("off", (shift, diag, diag)),
        ("length", (shift, diag, off, torch.tensor([3]))),
        ("length", (shift, diag, off, torch.tensor([3, 4]))),
        ("length", (shift, diag, off, torch.tensor([0, 3]))),
    ]
    for name, arguments in wrong:
        with pytest.raises(ValueError, match=name):
            GaussianPath(*arguments)
    with pytest.raises(ValueError, match="value"):
        GaussianPath(shift, diag, off).log_prob(shift[:, :2])
    with pytest.raises(ValueError, match="expand"):
        GaussianPath(shift, diag, off).expand([5])


def test_further_axes_are_samples():
    leaves = problem(3, 4, 2)
    path = GaussianPath(*leaves)
    wide = path.expand([2, 3])
    drawn = wide.rsample((5,))
    assert drawn.shape == (5, 2, 3, 4, 2) and wide.entropy().shape == (2, 3)
    assert wide.entropy_terms().shape == (2, 3, 4) and wide.mean.shape == (2, 3, 4, 2)
    assert wide.covariance().shape == (2, 3, 4, 2, 2)
    agree(wide.log_prob(drawn), GaussianPath(*leaves).log_prob(drawn), leaves)
    value = randn(1, 3, 4, 2)
    agree(wide.log_prob(value), path.log_prob(value).expand(2, 3), leaves)


def test_one_trial_for_many():
    leaves = problem(1, 4, 2)
    many = GaussianPath(*leaves, torch.tensor([3])).expand([5, 3])
    drawn = many.rsample()
    assert drawn.shape == (5, 3, 4, 2) and not drawn[:, :, 3:].any()
    wanted = GaussianPath(*(x.expand(3, *x.shape[1:]) for x in leaves), torch.tensor([3, 3, 3]))
    agree(many.log_prob(drawn), wanted.log_prob(drawn), leaves)


def test_pyro_trace_of_a_guide():
    leaves = problem(3, 4, 2)
    mask = torch.tensor([True, False, True])

    def guide():
        with pyro.plate("trials", 3):
            return pyro.sample("z", GaussianPath(*leaves).mask(mask))

    trace = pyro.poutine.trace(guide).get_trace()
    wanted = GaussianPath(*leaves).log_prob(trace.nodes["z"]["value"])
    agree(trace.log_prob_sum(), wanted[mask].sum(), leaves)


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_bound_of_the_exact_posterior_is_the_evidence(vectorize):
    """For every single sample: only then do prior, likelihood and posterior fit together."""
    shift, diag, off = problem(3, 4, 2)
    gain = torch.eye(2, dtype=torch.float64)
    data = randn(6, 3, 4, 2)
    prior = (torch.zeros_like(data), diag, off)
    posterior = (data @ gain, diag + gain @ gain.mT, off)

    def model():
        with pyro.plate("trials", 3):
            z = pyro.sample("z", GaussianPath(*prior))
            pyro.sample("y", dist.Normal(z @ gain.mT, 1.0).to_event(2), obs=data)

    def guide():
        with pyro.plate("trials", 3):
            pyro.sample("z", GaussianPath(*posterior))

    evidence = 0.0
    for b in range(3):
        covariance = torch.linalg.inv(dense(diag[b], off[b])) + torch.eye(8, dtype=torch.float64)
        both = torch.distributions.MultivariateNormal(
            torch.zeros(8, dtype=torch.float64), covariance
        )
        evidence = evidence + both.log_prob(data[b].reshape(-1))
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=vectorize, max_plate_nesting=1)
    loss = elbo.differentiable_loss(model, guide)
    torch.testing.assert_close(loss, -evidence, rtol=1e-10, atol=1e-10)


def test_learning_in_pyro_finds_the_posterior():
    """A few hundred steps of SVI bring the guide's mean to that of the posterior."""
    pyro.clear_param_store()
    shift, diag, off = (x.detach() for x in problem(2, 4, 2))
    data = randn(6, 2, 4, 2)

    def model():
        with pyro.plate("trials", 2):
            z = pyro.sample("z", GaussianPath(shift, diag, off))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(2), obs=data)

    def guide():
        learned = pyro.param("shift", torch.zeros_like(shift))
        with pyro.plate("trials", 2):
            made = GaussianPath(learned, diag + torch.eye(2), off, generator=source)
            pyro.sample("z", made)

    source = generator(1)
    optimiser = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.99})
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    svi = pyro.infer.SVI(model, guide, optimiser, elbo)
    for _ in range(400):
        svi.step()
    learned = pyro.param("shift").detach()
    pyro.clear_param_store()
    precision = diag + torch.eye(2)
    found = GaussianPath(learned, precision, off)
    wanted = GaussianPath(shift + data, precision, off)
    away = (found.mean - wanted.mean) / wanted.variance.sqrt()
    assert away.abs().max() < 0.1


def test_threads_do_not_change_the_result():
    leaves, threads, results = problem(8, 400, 10), torch.get_num_threads(), []
    value = randn(1, 8, 400, 10)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            path = GaussianPath(*leaves, generator=generator(1))
            total = path.rsample().sum() + path.entropy().sum() + path.log_prob(value).sum()
            results.append([total, *gradients(total, 1.0, leaves), path.covariance()])
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@compiled
def _vector_steps(rows, kept, p, x, cross, diag, size):
    """One call of every vector operation."""
    m = len(size)
    half = kept.size // 2
    block = 2 * half
    vectors.place_last(rows, 0, diag, 0, size)
    vectors.place(rows, block, diag, 0, diag, m * m, size)
    vectors.gain(kept, half, rows, block, kept, 0, size)
    vectors.ascend(x, 0, m, kept, 0, half, size)
    vectors.pull(x, m, kept, 0, size)
    vectors.descend(x, 2 * m, x, 3 * m, m, kept, 0, half, size)
    vectors.weigh_order(p, half, kept, 0, x, 0, x, m, x, 4 * m, size)
    vectors.combine(p, 0, kept, 0, p, half, size)
    vectors.combine(p, block, kept, 0, kept, 0, size)
    vectors.carry(p, 0, block, cross, 0, kept, half, size)
    vectors.subtract_symmetric(p, 0, x, 0, x, m, size)
    vectors.finish_diagonal(diag, 0, p, 0, x, 2 * m, x, 3 * m, size)
    vectors.subtract_outer(cross, 0, x, 0, x, m, size)
    vectors.subtract_dots(x, 0, x, m, cross, 0, size)


def _loop_steps(rows, kept, p, x, cross, diag, size):
    """The same with the ordinary loops."""
    m = len(size)
    half = kept.size // 2
    block = 2 * half
    loops.place_last.py_func(rows, 0, diag, 0, size)
    loops.place.py_func(rows, block, diag, 0, diag, m * m, size)
    loops.gain.py_func(kept, half, rows, block, kept, 0, size)
    loops.ascend.py_func(x, 0, m, kept, 0, half, size)
    loops.pull.py_func(x, m, kept, 0, size)
    loops.descend.py_func(x, 2 * m, x, 3 * m, m, kept, 0, half, size)
    loops.weigh_order.py_func(p, half, kept, 0, x, 0, x, m, x, 4 * m, size)
    loops.combine.py_func(p, 0, kept, 0, p, half, size)
    loops.combine.py_func(p, block, kept, 0, kept, 0, size)
    loops.carry.py_func(p, 0, block, cross, 0, kept, half, size)
    loops.subtract_symmetric.py_func(p, 0, x, 0, x, m, size)
    loops.finish_diagonal.py_func(diag, 0, p, 0, x, 2 * m, x, 3 * m, size)
    loops.subtract_outer.py_func(cross, 0, x, 0, x, m, size)
    loops.subtract_dots.py_func(x, 0, x, m, cross, 0, size)


def test_vector_operations_equal_ordinary_loops():
    m, w = 6, 8
    rng = np.random.default_rng(0)
    kept, p, x = np.zeros((2, m, w)), np.zeros((3, m, w)), rng.normal(size=5 * m)
    kept[0, :, :m] = np.tril(rng.normal(size=(m, m)))
    x[4 * m :] = 0.0
    diag = rng.normal(size=(2, m, m))
    start = [np.zeros((2, m, 2 * w)), kept, p, x, np.zeros((m, m)), diag]
    results = []
    for steps in (_vector_steps, _loop_steps):
        arrays = [a.ravel().copy() for a in start]
        steps(*arrays, (0,) * m)
        arrays[3] = arrays[3][: 4 * m]  # the rest is room for running sums
        results.append(arrays)
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("shared", [(True, True), (True, False), (False, True)])
def test_shared_blocks_equal_expanded_ones(shared, coupled, steps):
    """Axes of length 1 are shared by all trials or steps."""
    shift, diag, off = problem(3, max(steps, 2), 3)
    shift, value = shift[:, :steps], randn(4, 2, 3, steps, 3)
    small = [x[:1] if shared[0] else x for x in (diag, 0.3 * off)]
    small = [x[:, :1] if shared[1] else x for x in small]
    if not shared[1]:
        small = [small[0][:, :steps], small[1][:, : steps - 1]]
    small = [x.detach().clone().requires_grad_() for x in small]
    length, results = torch.tensor([steps, max(1, steps - 2), 1]), []
    for whole in (False, True):
        blocks, coupling = small
        if whole:
            blocks, coupling = blocks.expand(3, steps, 3, 3), coupling.expand(3, steps - 1, 3, 3)
        path = GaussianPath(
            shift, blocks, coupling if coupled else None, length, generator=generator(1)
        )
        own = path.rsample()
        found = [
            own, path.log_prob(own), path.log_prob(value), path.mean, path.entropy_terms(),
            path.covariance(), path.cross_covariance(),
        ]  # fmt: skip
        total = sum((x * x).sum() for x in found)
        inputs = small if coupled and steps > 1 else small[:1]
        results.append(found + gradients(total, 1.0, inputs))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradients_may_come_in_any_layout():
    """Transposed and expanded gradients of covariances are those of contiguous ones."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root, off, shift = rand(3, 6, 2, 2), 0.3 * rand(3, 5, 2, 2), rand(3, 6, 2)
    diag = root @ root.mT + 3 * torch.eye(2, dtype=torch.float64)
    length, weight, one = torch.tensor([6, 4, 1]), rand(3, 5, 2, 2), rand(2, 2)

    def gradients(loss):
        given = [x.clone().requires_grad_() for x in (shift, diag, off)]
        return torch.autograd.grad(loss(GaussianPath(*given, length)), given[1:])

    for got, want in (
        (
            lambda path: (path.cross_covariance().mT * weight).sum(),
            lambda path: (path.cross_covariance() * weight.mT.contiguous()).sum(),
        ),
        (
            lambda path: (path.cross_covariance() * one.expand(3, 5, 2, 2)).sum(),
            lambda path: (path.cross_covariance() * one.expand(3, 5, 2, 2).contiguous()).sum(),
        ),
        (
            lambda path: (path.covariance().transpose(1, 2).transpose(0, 3)[0]).sum(),
            lambda path: path.covariance()[..., 0].sum(),
        ),
    ):
        for a, b in zip(gradients(got), gradients(want), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
