"""The differentiable filter that carries exact moments: twin, another filter, its own score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import plssm as ps
from plssm.errors import CapabilityError, PlssmError
from plssm.inference import EKF
from plssm.inference.filter_form import filter_form
from plssm.inference.innovations import innovations
from plssm.inference.state_smoother import joined_states
from plssm.kernels._moment_twin import matched_moments
from plssm.kernels.innovation_filter import FilterPass, Hinges, filter_plain, innovation_filter
from plssm.kernels.moment_filter import moment_filter, propagate_moments

MATCHED = {"matched": True}


def problem(batch=3, steps=6, dim=3, units=4, seed=0):
    """Random arguments of the filter, as leaves."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def positive(*lead):
        root = randn(*lead, dim, dim)
        return root @ root.mT / dim + 0.2 * torch.eye(dim, dtype=torch.float64)

    values = [
        0.3 * randn(dim, dim), 0.3 * randn(dim), 0.7 * randn(dim, units) / max(units, 1) ** 0.5,
        randn(units, dim), 0.3 * randn(units), 0.2 * positive(), randn(batch, dim),
        positive(batch), randn(batch, steps, dim), positive(batch, steps),
        0.3 * randn(batch, steps, dim),
    ]  # fmt: skip
    return [x.requires_grad_(x.numel() > 0) for x in values]


def run(method, values, **options):
    return method(Hinges(*values[:5]), *values[5:], **MATCHED, **options)


def slopes(found, values, seed=1):
    """Gradients of a weighted sum of all results, symmetric where the argument is."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for x in found:
        weight = torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype)
        total = total + (x * (weight + weight.mT if x.ndim == 4 else weight)).sum()
    leaves = [x for x in values if x.requires_grad]
    got = torch.autograd.grad(total, leaves, materialize_grads=True)
    square = [x is values[5] or x is values[7] or x is values[9] for x in leaves]
    return [0.5 * (g + g.mT) if s else g for g, s in zip(got, square, strict=True)]


def agree(got, wanted, tolerance):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        error, largest = float((a - b).abs().max().detach()), float(b.abs().max().detach())
        assert error <= tolerance * (1e-12 + largest)


def like_twin(values, tolerance=1e-10, **options):
    ours, plain = run(innovation_filter, values, **options), run(filter_plain, values, **options)
    agree(ours, plain, tolerance)
    agree(slopes(ours, values), slopes(plain, values), tolerance)


@pytest.mark.parametrize("batch", [1, 3, 8, 17])
def test_values_and_gradients_are_those_of_the_twin(batch):
    like_twin(problem(batch))


@pytest.mark.parametrize(
    ("steps", "dim", "units"), [(1, 3, 4), (2, 1, 0), (6, 1, 1), (5, 4, 2), (3, 9, 12)]
)
def test_any_size(steps, dim, units):
    like_twin(problem(3, steps, dim, units, seed=1))


def test_ragged_trials_and_steps_that_do_not_change_the_state():
    options = {"length": torch.tensor([6, 1, 4]), "updates": torch.tensor([1, 0, 1, 1, 0, 1]) > 0}
    like_twin(problem(), **options)


def test_single_precision():
    values = problem()
    double = run(innovation_filter, values)
    single = [x.detach().float().requires_grad_() for x in values]
    found = run(innovation_filter, single)
    assert all(x.dtype == torch.float32 for x in found)
    agree([x.double() for x in found], double, 1e-5)
    wanted = slopes(double, values)
    agree([x.double() for x in slopes(found, single)], wanted, 1e-5)


def test_moments_are_those_of_the_map_without_gradients():
    linear, bias, outer, inner, offset, *rest = (x.detach() for x in problem(dim=4, units=6))
    mean, covariance = rest[1], rest[2]
    got = matched_moments(linear, bias, outer, inner, offset, mean, covariance)
    maps = [x.numpy() for x in (linear, bias, outer, inner, offset)]
    after, jacobian, more = propagate_moments(*maps, mean.numpy(), covariance.numpy())
    np.testing.assert_allclose(got[0], after, rtol=0, atol=1e-12)
    whole = jacobian @ covariance.numpy() @ jacobian.swapaxes(1, 2) + more
    np.testing.assert_allclose(got[1], whole, rtol=0, atol=1e-12)


def other_filter(values):
    """The filter without gradients, whose pairs go another way."""
    linear, bias, outer, inner, offset, noise, mean, covariance, q, r, drive = (
        np.ascontiguousarray(x.detach().numpy()) for x in values
    )
    found = moment_filter(
        linear, bias, outer, inner, offset, noise, mean, covariance[0], r, q, drive,
        np.full(len(q), q.shape[1]),
    )  # fmt: skip
    return FilterPass(
        found.log_increment, found.predicted_mean, found.predicted_covariance,
        found.filtered_mean, found.filtered_covariance,
    )  # fmt: skip


CORRELATED = {
    "any": [[1.0, 0.2, 0.1], [-0.4, 1.0, 0.3]],
    "the same hinge twice": [[1.0, 0.2, 0.1], [1.0, 0.2, 0.1]],
    "two sides of a hinge": [[1.0, 0.2, 0.1], [-1.0, -0.2, -0.1]],
    "nearly the same": [[1.0, 0.2, 0.1], [1.0, 0.25, 0.1]],
    "nearly opposite": [[1.0, 0.2, 0.1], [-1.0, -0.3, -0.1]],
}


@pytest.mark.parametrize("kind", CORRELATED)
def test_pairs_of_any_correlation(kind):
    """Values against the other filter, gradients against its differences."""
    values = problem(3, 8, 3, 2, seed=4)
    start = values[7].detach()[:1].expand(3, 3, 3).clone()
    values[7] = start.requires_grad_()
    values[3] = torch.tensor(CORRELATED[kind], dtype=torch.float64, requires_grad=True)
    values[4] = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    found, wanted = run(innovation_filter, values), other_filter(values)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.detach(), b, rtol=0, atol=1e-11)
    got = torch.autograd.grad(found.increment.sum(), values)
    generator = torch.Generator().manual_seed(3)
    for place in (0, 1, 2, 4, 5, 6, 8, 10):  # not the hinges' slopes: those leave the case
        along = torch.randn(values[place].shape, dtype=torch.float64, generator=generator)
        along = along + along.mT if place == 5 else along
        ends = []
        for sign in (1, -1):
            moved = [x.detach().clone() for x in values]
            moved[place] += sign * 1e-5 * along
            ends.append(other_filter(moved).increment.sum())
        slope = (ends[0] - ends[1]) / 2e-5
        assert float((got[place] * along).sum()) == pytest.approx(slope, abs=1e-7, rel=1e-6), place


def test_states_that_are_known_have_gradients():
    values = problem(3, 5, 2, 2)
    values[7] = torch.zeros(3, 2, 2, dtype=torch.float64, requires_grad=True)
    found = run(innovation_filter, values)
    plain = Hinges(*values[:5])(values[6])[0] + values[10][:, 1]
    after = found.filtered_mean[:, 0]
    torch.testing.assert_close(after, values[6], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.predicted_mean[:, 1], plain, rtol=0, atol=1e-9)
    assert all(bool(x.isfinite().all()) for x in slopes(found, values))


def test_known_states_on_a_kink():
    """Nothing depends on the spread there: gradients are those of a hinge half open."""
    values = problem(3, 3, 2, 2)
    for place, shape in ((6, (3, 2)), (7, (3, 2, 2)), (4, (2,))):
        values[place] = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    values[9] = torch.zeros(3, 3, 2, 2, dtype=torch.float64)
    values[8] = torch.zeros(3, 3, 2, dtype=torch.float64)
    found = run(innovation_filter, values)
    half = values[0] + 0.5 * values[2] @ values[3]
    got = torch.autograd.grad(found.predicted_mean[:, 1].sum(), values[6])[0]
    torch.testing.assert_close(got, half.sum(0).expand(3, 2), rtol=0, atol=1e-9)


def test_an_impossible_update_is_nan_for_its_trial_only():
    values = problem()
    with torch.no_grad():
        values[9][1, 2] = -50.0 * torch.eye(3, dtype=torch.float64)
    found = run(innovation_filter, values).increment
    assert bool(found[1, 2:].isnan().all()) and bool(found[[0, 2]].isfinite().all())


# what it is for ---------------------------------------------------------------------------------
def spread_over_a_kink():
    """A tent map with so much noise that states span its kink."""
    tent = ps.dynamics.ShallowPLRNN.from_parameters(
        [0.9], [[-1.7]], [[1.0]], h1=[0.5], h2=[0.0], clipped=False, process_noise=[0.3],
        initial_mean=[0.3], initial_noise=[0.5],
    )  # fmt: skip
    seen = ps.observations.Gaussian.from_parameters([[1.0]], noise=[0.5])
    return ps.StateSpaceModel(tent, {"x": seen})


def mean_score(model, propagation, trials=400, steps=40):
    """Chi-square of the mean score of trials of a known model, and its degrees of freedom."""
    data = model.simulate(steps, trials=trials, seed=0)
    named = {n: p for n, p in model.dynamics.named_parameters() if p.requires_grad and p.numel()}
    scores = []
    for trial in range(trials):
        batch = data.select(trials=[trial]).batch()
        states = joined_states(model, batch.dt)
        form = filter_form(model, batch, states, propagation=propagation)
        value = innovations(model, batch, states, form).increment.sum()
        slope = torch.autograd.grad(value, list(named.values()), materialize_grads=True)
        scores.append(torch.cat([x.flatten() for x in slope]))
    scores = torch.stack(scores)
    mean, covariance = scores.mean(0), torch.cov(scores.T)
    return float(mean @ torch.linalg.pinv(covariance) @ mean) * trials, torch.linalg.matrix_rank(
        covariance
    )


def test_score_at_the_truth_is_zero_on_average():
    """That of the linearised filter is not: estimates by it are biased."""
    model = spread_over_a_kink()
    square, degrees = mean_score(model, "moments")
    assert square < chi2.ppf(0.999, float(degrees))
    assert mean_score(model, "linearised")[0] > 3 * chi2.ppf(0.999, float(degrees))


def test_training_by_it():
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
    data = model.simulate(60, trials=3, seed=0)
    engine = EKF(steps=20, checks=4, propagation="moments", start_iterations=2)
    fit = engine.fit(ps.StateSpaceModel(ps.dynamics.PLRNN(2), model.observations), data)
    rows = fit.history["log_likelihood"]
    assert rows.max() > rows.iloc[0]
    post = fit.posterior(data)
    assert post.evidence_kind == "moments"
    evidence = float(post.log_evidence.sum())
    assert evidence == pytest.approx(float(rows.max()) * 180, abs=1e-6)
    draws = fit.parameter_draws(5, data=data, progress=False)
    assert len(draws) == 5
    assert EKF(**engine.settings()) == engine


def test_paths_are_drawn_from_the_smoother():
    """Draws have its marginals and covariances of neighbours, up to a trial's end."""
    model = spread_over_a_kink()
    whole = model.simulate(9, trials=3, seed=4)
    data = ps.Dataset.from_arrays(
        {"x": [whole.trials[b].values["x"][:n] for b, n in enumerate((9, 5, 1))]}, dt=1.0
    )
    post = ps.smooth(model, data, method="ekf", propagation="moments")
    drawn = post.sample(40_000, seed=0)
    assert drawn.shape == (40_000, 3, 9, 1)
    for b, n in enumerate((9, 5, 1)):
        z = drawn[:, b, :n, 0]
        assert bool(drawn[:, b, n:].isnan().all())
        mean, variance = post.mean[b, :n, 0], post.covariance()[b, :n, 0, 0]
        assert float(((z.mean(0) - mean) / variance.sqrt()).abs().max()) < 0.03
        np.testing.assert_allclose(z.var(0) / variance, 1.0, atol=0.04)
        lag = post.cross_covariance()[b, : n - 1, 0, 0]
        seen = torch.cov(z.T).reshape(n, n).diagonal(1)
        np.testing.assert_allclose(seen, lag, atol=0.03 * float(variance.max()))


def test_smoothing_with_hardly_any_process_noise():
    """The path of a map without noise is that of its first state."""
    dynamics = ps.dynamics.PLRNN.from_parameters(
        A=[0.9, 0.8], W=[[0.0, 0.1], [0.1, 0.0]], h=[0.5, 0.5], process_noise=[1e-14] * 2,
        initial_mean=[3.0, 3.0], initial_noise=[0.1, 0.1],
    )  # fmt: skip
    seen = ps.observations.Gaussian.from_parameters(np.eye(2), noise=[0.1, 0.1])
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    data = model.simulate(60, trials=2, seed=1)
    post = ps.smooth(model, data, method="ekf", propagation="moments")
    path = post.mean.double()
    torch.testing.assert_close(dynamics.step(path[:, :-1]), path[:, 1:], rtol=0, atol=1e-5)
    assert bool(post.sample(2).isfinite().all())


class Wave(ps.dynamics.LatentDynamics):
    """A smooth map."""

    def __init__(self):
        super().__init__(1)
        self.rate = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def step(self, z, s=None):
        return z + self.rate * torch.sin(z)


def test_maps_without_hinges_and_unknown_ways_are_refused():
    with pytest.raises(PlssmError, match="propagation"):
        EKF(propagation="exact")
    model = ps.StateSpaceModel(Wave(), {"x": ps.observations.Gaussian(3)})
    with pytest.raises(CapabilityError, match="one layer of hinges"):
        EKF(propagation="moments").fit(model, model.simulate(30, seed=0))
