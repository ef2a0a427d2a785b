"""The differentiable filter against its twin, differences and other filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plssm.kernels.gaussian_filter import gaussian_filter
from plssm.kernels.innovation_filter import FilterPass, Hinges, filter_plain, innovation_filter

NAMES = ("linear", "bias", "outer", "inner", "offset", "noise", "first_mean",
         "first_covariance", "score", "information", "drive")  # fmt: skip
SYMMETRIC = ("noise", "first_covariance", "information", "predicted_covariance",
             "filtered_covariance")  # fmt: skip


class Problem:
    """Random arguments of the filter, as leaves."""

    def __init__(self, batch=3, steps=6, dim=3, units=4, seed=0, *, leads=None):
        self.generator = torch.Generator().manual_seed(seed)
        self.batch, self.steps, self.dim = batch, steps, dim
        lead = leads or (batch, steps)
        shapes = (dim, dim), (dim,), (dim, units), (units, dim), (units,)
        self.values = [0.5 * self.randn(*s) / max(1, dim) ** 0.5 for s in shapes]
        self.values += [
            0.2 * self.positive(), self.randn(batch, dim), self.positive(batch),
            self.randn(batch, steps, dim), self.positive(*lead), self.randn(batch, steps, dim),
        ]  # fmt: skip
        self.options = {}

    def randn(self, *shape):
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def positive(self, *lead):
        root = self.randn(*lead, self.dim, self.dim)
        return root @ root.mT / self.dim + 0.3 * torch.eye(self.dim, dtype=torch.float64)

    def third(self):
        """Random slopes of the information, symmetric in their first two axes."""
        x = 0.1 * self.randn(self.batch, self.steps, self.dim, self.dim, self.dim)
        return x + x.transpose(2, 3)

    def set(self, name, value):
        self.values[NAMES.index(name)] = value

    def get(self, name):
        return self.values[NAMES.index(name)]

    def run(self, method, values=None):
        values = self.values if values is None else values
        return method(Hinges(*values[:5]), *values[5:], **self.options)

    def gradients(self, method, weights, wanted=None):
        """Results, and gradients of their weighted sum."""
        values = [x.detach().clone().requires_grad_(x.numel() > 0) for x in self.values]
        found = self.run(method, values)
        total = sum(
            (x * w).sum()
            for name, x, w in zip(FilterPass._fields, found, weights, strict=True)
            if wanted is None or name in wanted
        )
        leaves = [x for x in values if x.requires_grad]
        slopes = torch.autograd.grad(total, leaves, materialize_grads=True)
        names = [n for n, x in zip(NAMES, values, strict=True) if x.requires_grad]
        results = {n: x.detach() for n, x in zip(FilterPass._fields, found, strict=True)}
        return results, dict(zip(names, slopes, strict=True))

    def weights(self):
        with torch.no_grad():
            return [self.randn(*x.shape) for x in self.run(filter_plain)]


def close(got, wanted, tolerance=1e-10):
    """Compares dictionaries of tensors, each relative to its largest number."""
    assert got.keys() == wanted.keys()
    for name in wanted:
        a, b = got[name], wanted[name]
        if name in SYMMETRIC:
            a, b = (0.5 * (x + x.mT) for x in (a, b))
        assert a.shape == b.shape, name
        error, largest = (float(x.abs().max()) for x in (a - b, b)) if b.numel() else (0.0, 0.0)
        assert error <= tolerance * (1e-12 + largest), f"{name}: {error} of {largest}"


def like_twin(problem, wanted=None, tolerance=1e-10):
    weights = problem.weights()
    ours = problem.gradients(innovation_filter, weights, wanted)
    plain = problem.gradients(filter_plain, weights, wanted)
    close(ours[0], plain[0], tolerance)
    close(ours[1], plain[1], tolerance)


@pytest.mark.parametrize("batch", [1, 3, 5, 8, 16, 17])
def test_values_and_gradients_are_those_of_the_twin(batch):
    like_twin(Problem(batch))


@pytest.mark.parametrize(
    ("steps", "dim", "units"), [(1, 3, 4), (2, 1, 0), (6, 1, 1), (5, 4, 0), (4, 9, 30), (3, 23, 5)]
)
def test_any_size(steps, dim, units):
    like_twin(Problem(3, steps, dim, units, seed=1))


@pytest.mark.parametrize("leads", [(1, 1), (1, 6), (3, 1)])
@pytest.mark.parametrize("ragged", [False, True])
def test_shared_information_gets_the_sum_of_its_gradients(leads, ragged):
    problem = Problem(leads=leads)
    if ragged:
        problem.options["length"] = torch.tensor([6, 1, 4])
    like_twin(problem)


@pytest.mark.parametrize(
    "wanted",
    [
        ("increment",),
        ("predicted_mean", "predicted_covariance"),
        ("filtered_mean",),
        ("filtered_covariance",),
    ],
)
def test_cotangents_of_some_results(wanted):
    like_twin(Problem(), wanted)


def test_steps_whose_data_do_not_change_the_state():
    problem = Problem()
    problem.options["updates"] = torch.tensor([True, False, True, False, False, True])
    like_twin(problem)
    problem.options["updates"] = torch.zeros(6, dtype=torch.bool)
    like_twin(problem)


@pytest.mark.parametrize("updates", [None, torch.tensor([True, False, True, True, False, True])])
def test_information_that_moves_with_the_mean(updates):
    problem = Problem(9)
    problem.options |= {"third": problem.third(), "updates": updates}
    problem.options["length"] = torch.tensor([6, 3, 6, 1, 5, 6, 6, 2, 4])
    like_twin(problem)


def test_missing_data():
    problem = Problem(5)
    seen = torch.rand(5, 6, generator=problem.generator) > 0.5
    seen[:, 2] = False
    problem.set("score", problem.get("score") * seen[..., None])
    problem.set("information", problem.get("information") * seen[..., None, None])
    like_twin(problem)


def test_nothing_depends_on_what_is_beyond_the_end():
    problem = Problem(9)
    length = torch.tensor([6, 2, 1, 4, 6, 6, 3, 5, 2])
    problem.options["length"] = length
    like_twin(problem)
    weights = problem.weights()
    wanted = problem.gradients(innovation_filter, weights)
    beyond = torch.arange(6) >= length[:, None]
    for name in ("score", "information", "drive"):
        problem.get(name)[beyond] = torch.nan
    for weight in weights:
        weight[beyond] = torch.nan
    results, slopes = problem.gradients(innovation_filter, [w.nan_to_num() for w in weights])
    close(results, wanted[0], 1e-14)
    close(slopes, wanted[1], 1e-14)
    for x in (*results.values(), slopes["score"], slopes["information"], slopes["drive"]):
        assert (x[beyond] == 0).all()


def test_states_that_carry_their_past_along():
    """Singular noise and first covariance: state (z_t, z_{t-1}), where only z_t is new."""
    problem = Problem(4, 8, 6, 3)
    front = torch.zeros(6, 6, dtype=torch.float64)
    front[:3, :3] = torch.eye(3)
    linear = front @ problem.get("linear") @ front
    linear[3:, :3] = torch.eye(3, dtype=torch.float64)
    problem.set("linear", linear)
    problem.set("outer", front @ problem.get("outer"))
    for name in ("noise", "first_covariance"):
        problem.set(name, front @ problem.get(name) @ front)
    problem.set("bias", front @ problem.get("bias"))
    problem.set("drive", problem.get("drive") @ front)
    assert torch.linalg.matrix_rank(problem.get("noise")) == 3
    like_twin(problem)


def test_first_covariance_of_zero():
    problem = Problem()
    problem.set("first_covariance", torch.zeros(3, 3, 3, dtype=torch.float64))
    like_twin(problem)


@pytest.mark.parametrize("method", [filter_plain, innovation_filter])
def test_gradients_against_differences(method):
    problem = Problem(2, 3, 2, 2, seed=3, leads=(1, 3))
    problem.options = {
        "length": torch.tensor([3, 2]),
        "updates": torch.tensor([True, False, True]),
    }
    roots = {name: torch.linalg.cholesky(problem.get(name)) for name in SYMMETRIC[:3]}
    inputs = [roots.get(n, x).clone().requires_grad_() for n, x in zip(NAMES, problem.values)]

    def results(*values):
        whole = [x @ x.mT if n in roots else x for n, x in zip(NAMES, values, strict=True)]
        return tuple(problem.run(method, whole))

    assert torch.autograd.gradcheck(results, inputs, atol=1e-7)


def test_only_what_is_asked_for_gets_a_gradient():
    problem = Problem()
    whole = problem.gradients(innovation_filter, problem.weights())[1]
    for name in NAMES:
        problem = Problem()
        weights = problem.weights()
        leaf = problem.get(name).requires_grad_()
        found = problem.run(innovation_filter)
        total = sum((x * w).sum() for x, w in zip(found, weights, strict=True))
        close({name: torch.autograd.grad(total, leaf)[0]}, {name: whole[name]}, 1e-14)
    assert not Problem().run(innovation_filter).increment.requires_grad


def test_single_precision():
    problem = Problem()
    double = problem.gradients(innovation_filter, problem.weights())
    problem = Problem()
    weights = [w.float() for w in problem.weights()]
    problem.values = [x.float() for x in problem.values]
    results, slopes = problem.gradients(innovation_filter, weights)
    for x in (*results.values(), *slopes.values()):
        assert x.dtype == torch.float32
    close({k: x.double() for k, x in results.items()}, double[0], 1e-5)
    close({k: x.double() for k, x in slopes.items()}, double[1], 1e-5)


def test_two_threads_give_the_same():
    problem = Problem(17, 40, 12, 12)
    weights = problem.weights()
    one = problem.gradients(innovation_filter, weights)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = problem.gradients(innovation_filter, weights)
    finally:
        torch.set_num_threads(threads)
    close(two[0], one[0], 0.0)
    close(two[1], one[1], 1e-13)


# other filters ----------------------------------------------------------------------------------
def test_values_of_the_filter_without_gradients():
    problem = Problem(4, 30, 5, 7)
    first = problem.positive()
    problem.set("first_covariance", first.expand(4, 5, 5))
    length = torch.tensor([30, 12, 1, 29])
    problem.options["length"] = length
    found = problem.run(innovation_filter)
    v = [x.numpy() for x in problem.values]
    known = gaussian_filter(
        *v[:5], np.eye(5), v[5], v[6], first.numpy(), v[9], v[8], length.numpy(), drive=v[10]
    )
    for name in FilterPass._fields:
        wanted = getattr(known, "log_increment" if name == "increment" else name)
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-10, atol=1e-11)


class LinearModel:
    """z' = A z + h + noise, y = B z + d + noise, in the parameters of a flat vector."""

    def __init__(self, seed=0, dim=2, channels=3, steps=25):
        self.dim, self.channels = dim, channels
        rng = np.random.default_rng(seed)
        self.y = rng.standard_normal((steps, channels)).cumsum(0) * 0.3
        shapes = (dim, dim), (dim,), (channels, dim), (channels,), (dim,), (channels,), (dim,)
        self.sizes = [(int(np.prod(s)), s) for s in shapes]
        scale = (0.4, 0.3, 1.0, 1.0, 0.3, 0.3, 1.0)
        parts = [s * rng.standard_normal(n) for s, (n, _) in zip(scale, self.sizes, strict=True)]
        self.start = np.concatenate(parts)

    def parts(self, vector):
        sizes = [n for n, _ in self.sizes]
        cuts = np.split(np.arange(len(vector)), np.cumsum(sizes)[:-1])
        return [vector[c].reshape(s) for c, (_, s) in zip(cuts, self.sizes, strict=True)]

    def ours(self, vector):
        a, h, b, d, log_q, log_r, first = self.parts(vector)
        none = torch.zeros(self.dim, 0, dtype=torch.float64)
        away = torch.as_tensor(self.y) - d
        q = (away / log_r.exp()) @ b
        r = b.mT / log_r.exp() @ b
        constant = (away.square() / log_r.exp() + log_r + np.log(2 * np.pi)).sum()
        found = innovation_filter(
            Hinges(a, h, none, none.mT, none[0]), log_q.exp().diag(), first[None],
            torch.eye(self.dim, dtype=torch.float64)[None], q[None], r[None, None],
            torch.zeros_like(q)[None],
        )  # fmt: skip
        return found.increment.sum() - 0.5 * constant

    def theirs(self, vector):
        module = pytest.importorskip("statsmodels.tsa.statespace.kalman_filter")
        a, h, b, d, log_q, log_r, first = self.parts(vector)
        peer = module.KalmanFilter(
            self.channels, self.dim, design=b, obs_intercept=d, transition=a, state_intercept=h,
            obs_cov=np.diag(np.exp(log_r)), state_cov=np.diag(np.exp(log_q)),
            selection=np.eye(self.dim), loglikelihood_burn=0, tolerance=0,
        )  # fmt: skip
        peer.bind(np.ascontiguousarray(self.y))
        peer.initialize_known(first, np.eye(self.dim))
        return peer.loglike()


def test_likelihood_and_gradient_are_those_of_statsmodels():
    model = LinearModel()
    vector = torch.tensor(model.start, requires_grad=True)
    value = model.ours(vector)
    assert value.item() == pytest.approx(model.theirs(model.start), rel=1e-10)
    step = 1e-5
    slopes = [
        (model.theirs(model.start + e) - model.theirs(model.start - e)) / (2 * step)
        for e in step * np.eye(len(model.start))
    ]
    got = torch.autograd.grad(value, vector)[0]
    np.testing.assert_allclose(got, slopes, rtol=1e-6, atol=1e-6)


def test_gradient_at_a_fixed_point_of_counts():
    """Poisson terms expanded around the filtered mean: the slope of the whole iteration."""
    problem = Problem(2, 4, 2, 3, seed=5)
    counts = torch.poisson(torch.ones(2, 4, 3, dtype=torch.float64), generator=problem.generator)
    loads = 0.5 * problem.randn(3, 2)

    def terms(z, c):
        rate = (z @ c.mT).exp()
        slope, info = (counts - rate) @ c, torch.einsum("btn,ni,nj->btij", rate, c, c)
        pull = torch.einsum("btij,btj->bti", info, z)
        constant = (counts * (z @ c.mT) - rate).sum(-1) - (slope * z).sum(-1)
        third = torch.einsum("btn,ni,nj,nk->btijk", rate, c, c, c)
        return slope + pull, info, constant - 0.5 * (pull * z).sum(-1), third.detach()

    def value(c, linear):
        z = torch.zeros(2, 4, 2, dtype=torch.float64)
        hinges = Hinges(linear, *problem.values[1:5])
        rest, drive = problem.values[5:8], problem.get("drive")
        for _ in range(100):
            with torch.no_grad():
                q, r, *_ = terms(z, c)
                before, z = z, innovation_filter(hinges, *rest, q, r, drive).filtered_mean
            if float((z - before).abs().max()) < 1e-13:
                break
        q, r, constant, third = terms(z, c)
        found = innovation_filter(hinges, *rest, q, r, drive, third=third)
        return (found.increment + constant).sum()

    given = loads, problem.get("linear")
    leaves = [x.clone().requires_grad_() for x in given]
    got = torch.autograd.grad(value(*leaves), leaves)
    for k, gradient in enumerate(got):
        for i in range(gradient.numel()):
            ends = []
            for sign in (1, -1):
                moved = [x.clone() for x in given]
                moved[k].view(-1)[i] += sign * 1e-5
                ends.append(float(value(*moved)))
            slope = (ends[0] - ends[1]) / 2e-5
            assert float(gradient.reshape(-1)[i]) == pytest.approx(slope, rel=1e-6, abs=1e-7)


# what goes wrong --------------------------------------------------------------------------------
def test_an_impossible_update_is_nan_from_there_on_for_its_trial_only():
    problem = Problem(9, 5)
    wanted = problem.run(innovation_filter)
    problem.get("information")[4, 2] = -50.0 * torch.eye(3, dtype=torch.float64)
    leaf = problem.get("linear").requires_grad_()
    found = problem.run(innovation_filter)
    failed = torch.zeros(9, 5, dtype=torch.bool)
    failed[4, 2:] = True
    torch.testing.assert_close(found.increment.isnan(), failed)
    others = torch.arange(9) != 4
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a[others], b[others], rtol=0, atol=0)
    assert not torch.isfinite(found.increment.sum())
    assert torch.autograd.grad(found.increment.sum(), leaf)[0].isnan().any()


def test_an_impossible_update_counts_where_updates_are_left_out():
    problem = Problem(1, 5)
    problem.get("information")[0, 2] = -50.0 * torch.eye(3, dtype=torch.float64)
    problem.options["updates"] = torch.zeros(5, dtype=torch.bool)
    found = problem.run(innovation_filter)
    assert found.increment.isnan().tolist() == [[False, False, True, True, True]]
    assert found.predicted_mean.isfinite().all()


def test_results_changed_in_place_are_refused():
    problem = Problem()
    problem.get("bias").requires_grad_()
    found = problem.run(innovation_filter)
    total = found.increment.sum()
    with torch.no_grad():
        found.filtered_mean.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_arguments_may_change_before_the_gradient_is_taken():
    problem = Problem(8, leads=(1, 1))
    weights = problem.weights()
    wanted = problem.gradients(innovation_filter, weights)[1]
    leaves = [x.requires_grad_() for x in problem.values]
    found = problem.run(innovation_filter)
    total = sum((x * w).sum() for x, w in zip(found, weights, strict=True))
    with torch.no_grad():
        for x in leaves:
            x.fill_(torch.nan)
    close(dict(zip(NAMES, torch.autograd.grad(total, leaves), strict=True)), wanted, 1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit_are_refused(name):
    problem = Problem()
    if name == "score":  # says the shape of everything else
        problem.set(name, problem.get(name)[..., :2])
        name = "linear"
    else:
        problem.set(name, problem.get(name)[..., :-1])
    name = {"offset": "outer"}.get(name, name)
    with pytest.raises(ValueError, match=name):
        problem.run(innovation_filter)


def test_third_of_another_shape_is_refused():
    problem = Problem()
    problem.options["third"] = problem.third()[:, :2]
    with pytest.raises(ValueError, match="third"):
        problem.run(innovation_filter)
