"""Newton steps of EM's map: derivatives by differences, dense algebra, and what fits gain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.inference import LaplaceEM, Stage, annealed_stages, held_stages
from plssm.inference.laplace import laplace_posterior
from plssm.inference.m_step import update_coefficients
from plssm.inference.map_newton import MapInformation, NewtonMove, NewtonSteps, newton_move
from plssm.inference.statistics import transition_statistics

D = ps.dynamics
M, K = 3, 2
LENGTHS = (14, 9, 2)
KINDS = {
    "linear": lambda **o: D.LinearDynamics(M, K, **o),
    "plrnn": lambda **o: D.PLRNN(M, K, **o),
    "mean centred": lambda **o: D.PLRNN(M, K, mean_centered=True, **o),
    "almost linear": lambda **o: D.AlmostLinearRNN(M, 2, K, **o),
}


def make(kind="plrnn", *, exact=False, missing=True, **options):
    """A model and ragged driven trials; `exact` ones are noise-free runs of the model."""
    generator = torch.Generator().manual_seed(4)
    dynamics = KINDS[kind](**options)
    with torch.no_grad():
        for p in dynamics.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    weight = np.random.default_rng(5).normal(size=(4, M))
    model = ps.StateSpaceModel(
        dynamics, {"x": ps.observations.Gaussian.from_parameters(weight, noise=0.3)}
    )
    rng = np.random.default_rng(6)
    s = [rng.normal(size=(n, K)) for n in LENGTHS]
    seen = [rng.normal(size=(n, 4)) for n in LENGTHS]
    if exact:
        first = dynamics.initial.mean.detach()
        for i, n in enumerate(LENGTHS):
            z = [
                first
                + (torch.from_numpy(s[i][0]) @ dynamics.C.mT if dynamics.input_at_start else 0)
            ]
            for t in range(1, n):
                z.append(dynamics.step(z[-1][None], torch.from_numpy(s[i][t])[None])[0])
            seen[i] = (torch.stack(z).detach().numpy()) @ weight.T
    if missing:
        seen[0][3:6, 1] = np.nan
        seen[1][4] = np.nan
    data = ps.Dataset.from_arrays({"x": seen}, inputs=s)
    return model, data.batch()


def information_of(model, batch, *, means=None, ridge=0.5):
    """The information, and the step of EM at the model's coefficients."""
    dynamics = model.dynamics
    before = dynamics.coefficients()[0].detach().clone()
    result = laplace_posterior(model, batch, trial_means=means, tolerance=1e-12)
    statistics = transition_statistics(dynamics, result.posterior, batch, result.slope)
    equations = update_coefficients(
        dynamics, statistics, result.posterior, batch, means, ridge=ridge
    )
    em = (dynamics.coefficients()[0].detach() - before).numpy()
    dynamics.assign_coefficients(before)
    found = MapInformation(equations, dynamics, result.posterior, result.slope, batch)
    return found, em, result


def some_move(information, size=1.0):
    free = information.equations.free
    return np.where(free, size * np.random.default_rng(8).normal(size=free.shape), 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"noise": "full", "initial_noise": "full", "input_at_start": True}, {"initial": "tied"}],
)
def test_the_path_follows_the_map(kind, options):
    """Without residuals the shift is the derivative of the mode, taken here by differences."""
    model, batch = make(kind, exact=True, **options)
    means = None
    if options.get("initial") == "tied":
        means = np.tile(model.dynamics.initial.mean.detach().numpy(), (len(LENGTHS), 1))
    information, _, here = information_of(model, batch, means=means)
    move, theta = some_move(information), model.dynamics.coefficients()[0].detach().clone()
    paths = []
    for step in (1e-6, -1e-6):
        model.dynamics.assign_coefficients(theta + step * torch.from_numpy(move))
        found = laplace_posterior(
            model, batch, start=here.path, trial_means=means, tolerance=1e-14
        )
        assert np.array_equal(found.slope, here.slope)
        paths.append(found.path)
    want = (paths[0] - paths[1]) / 2e-6
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(information.shift(move), want, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"noise": "full", "input_at_start": True}])
def test_the_information_is_symmetric_and_that_of_the_shift(kind, options):
    """d' (H - S) d is the information that shifts of the path carry: their squared length."""
    model, batch = make(kind, **options)
    information, _, result = information_of(model, batch)
    times = information.equations.times
    a, b = some_move(information), some_move(information)[::-1].copy()
    b = np.where(information.equations.free, b, 0.0)
    known = {
        k: times(v) - information.lost(information.shift(v)) for k, v in {"a": a, "b": b}.items()
    }
    np.testing.assert_allclose((b * known["a"]).sum(), (a * known["b"]).sum(), rtol=1e-9)
    shift = information.shift(a)
    precision = dense_precision(model, batch, result)
    lost = sum(
        shift[i, :n].ravel() @ precision[i] @ shift[i, :n].ravel() for i, n in enumerate(LENGTHS)
    )
    np.testing.assert_allclose((a * (times(a) - known["a"])).sum(), lost, rtol=1e-8)
    assert 0 < (a * known["a"]).sum() < (a * times(a)).sum()
    assert (shift[1, 9:] == 0).all()
    assert (known["a"][~information.equations.free] == 0).all()


def dense_precision(model, batch, result):
    """Negative Hessians of the log joint of each trial within the region, by autograd."""
    theta, form = model.dynamics.coefficients()[0].detach(), model.dynamics.relu_form()
    inner, offset, found = torch.tensor(form.inner), torch.tensor(form.offset), []
    first = torch.linalg.inv(model.dynamics.initial.noise.covariance.detach())
    each = torch.linalg.inv(model.dynamics.noise.covariance.detach())
    for i, n in enumerate(LENGTHS):
        s, slope = batch.inputs[i, :n], torch.from_numpy(result.slope[i, : n - 1])
        mask, o = batch.modalities["x"].mask[i, :n], model.observations["x"]

        def joint(z, s=s, slope=slope, mask=mask, n=n, o=o):
            z = z.reshape(n, M)
            parts = [
                z[:-1],
                slope * (z[:-1] @ inner.mT + offset),
                torch.ones_like(z[:-1, :1]),
                s[1:],
            ]
            e = z[1:] - torch.cat([p for p in parts if p.shape[1]], 1) @ theta.mT
            error = torch.where(mask, z @ o.weight.mT, 0.0)
            value = z[0] @ first @ z[0] + (e @ each * e).sum() + (error.square() / o.noise).sum()
            return -0.5 * value

        hessian = torch.autograd.functional.hessian(joint, torch.zeros(n * M, dtype=torch.float64))
        found.append(-hessian.detach().numpy())
    return found


def dense_information(information):
    """S over the free entries, column by column."""
    free = information.equations.free
    columns = []
    for i in zip(*np.nonzero(free), strict=True):
        unit = np.zeros(free.shape)
        unit[i] = 1.0
        columns.append(
            (information.equations.times(unit) - information.lost(information.shift(unit)))[free]
        )
    return np.array(columns)


def test_a_move_within_reach_solves_the_newton_equations(monkeypatch):
    monkeypatch.setattr("plssm.inference.map_newton.ENOUGH", 1e-26)
    monkeypatch.setattr("plssm.inference.map_newton.PRODUCTS", 60)
    model, batch = make()
    information, em, _ = information_of(model, batch)
    found = newton_move(information, em, 1e6)
    free, gradient = information.equations.free, information.equations.times(em)
    matrix = dense_information(information)
    want = np.linalg.solve(matrix, gradient[free])
    np.testing.assert_allclose(found.move[free], want, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.gain, 0.5 * gradient[free] @ want, rtol=1e-8)
    np.testing.assert_allclose(found.shift, information.shift(found.move), atol=1e-8)
    assert found.length > 1.0
    assert not found.limited


def test_a_move_ends_at_the_reach_in_lengths_of_the_em_step():
    model, batch = make()
    information, em, _ = information_of(model, batch)
    times = information.equations.times
    whole = newton_move(information, em, 1e6)
    reach = 0.5 * whole.length
    found = newton_move(information, em, reach)
    assert found.limited
    np.testing.assert_allclose(found.length, reach, rtol=1e-9)
    length = np.sqrt((found.move * times(found.move)).sum() / (em * times(em)).sum())
    np.testing.assert_allclose(length, reach, rtol=1e-9)
    known = times(found.move) - information.lost(information.shift(found.move))
    gain = (times(em) * found.move).sum() - 0.5 * (found.move * known).sum()
    np.testing.assert_allclose(found.gain, gain, rtol=1e-9)
    assert found.gain < whole.gain
    tiny = newton_move(information, em, 1e-3)
    np.testing.assert_allclose(tiny.move, 1e-3 * em, rtol=1e-9, atol=1e-15)


def test_paths_that_are_known_leave_the_step_of_em():
    model, batch = make(missing=False)
    model.observations["x"] = ps.observations.Gaussian.from_parameters(
        model.observations["x"].weight.detach().numpy(), noise=1e-9
    )
    information, em, _ = information_of(model, batch)
    found = newton_move(information, em, 1e6)
    np.testing.assert_allclose(found.move, em, rtol=1e-3, atol=1e-6 * np.abs(em).max())


def test_noise_that_changes_after_the_equations_changes_nothing():
    model, batch = make(noise="full", input_at_start=True)
    information, em, result = information_of(model, batch)
    model.dynamics.noise.covariance = 7.0 * torch.eye(M, dtype=torch.float64)
    model.dynamics.initial.noise.variance = 9.0
    again = MapInformation(
        information.equations, model.dynamics, result.posterior, result.slope, batch
    )
    shift = information.shift(em)
    np.testing.assert_array_equal(again.shift(em), shift)
    np.testing.assert_array_equal(again.lost(shift), information.lost(shift))


def test_what_the_data_say_nothing_about_goes_where_em_sends_it():
    """A hinge that no step opens has no weight after the M-step, nor after a Newton step."""
    dynamics = D.PLRNN.from_parameters(
        A=[0.9, 0.8, 0.5], W=[[0.0, -0.2, 0.3], [0.3, 0.0, -0.2], [0.0, 0.0, 0.0]],
        h=[0.3, -0.2, -2.0], process_noise=[0.01, 0.01, 1e-4], initial_mean=[0.0, 0.0, -4.0],
        initial_noise=1e-4,
    )  # fmt: skip
    seen = ps.observations.Gaussian.from_parameters(np.eye(3)[:2], noise=0.3)
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    data = model.simulate(40, trials=3, seed=0)
    model.dynamics.assign_coefficients(0.9 * dynamics.coefficients()[0].detach())
    information, em, result = information_of(model, data.batch(), ridge=0.0)
    assert (result.slope[..., 2] == 0).all() and (result.slope[..., :2] > 0).any()
    found = newton_move(information, em, 1e6)
    dead, theta = M + 2, information.equations.theta
    assert np.abs(theta[:2, dead]).min() > 0.1
    np.testing.assert_allclose((theta + found.move)[:2, dead], 0.0, atol=1e-12)
    assert found.length > 1.5


def test_no_step_of_em_no_step():
    model, batch = make()
    information, em, _ = information_of(model, batch)
    assert newton_move(information, 0 * em, 4.0) is None
    assert newton_move(information, np.nan * em, 4.0) is None


def test_the_reach_follows_what_steps_gained():
    model, batch = make()
    information, em, _ = information_of(model, batch)
    steps = NewtonSteps(values=100)
    steps.gained(np.inf)
    steps.gained(11.0)
    assert not steps.begun
    steps.gained(9.0)
    assert steps.begun
    assert steps.after(information, em).length <= 4.0 + 1e-9
    reaches = []
    for gained in (1e9, 1e9, -1e9, None, None, None):
        steps._last = limited_move(steps._reach)
        if gained is None:
            steps.forget()
        else:
            steps.gained(gained)
        reaches.append(steps._reach)
    assert reaches == [8.0, 16.0, 8.0, 2.0, 2.0, 2.0]
    steps._last = replace(limited_move(16.0), limited=False)
    steps.gained(1e9)  # as good as promised, and not in want of more
    assert steps._reach == 2.0


def limited_move(length):
    """A move that promised one nat, and ended at the reach."""
    return NewtonMove(np.zeros((1, 1)), np.zeros((1, 1, 1)), 1.0, length, True)


def oscillator(seed=0, steps=300):
    """A slow noisy rotation seen through much noise: EM learns its frequency slowly."""
    c, s = 0.995 * np.cos(0.2), 0.995 * np.sin(0.2)
    dynamics = D.LinearDynamics.from_parameters(
        A=[[c, -s], [s, c]], h=[0.0, 0.0], process_noise=1e-4, initial_noise=1.0
    )
    seen = ps.observations.Gaussian.from_parameters(np.eye(2), noise=0.5)
    return ps.StateSpaceModel(dynamics, {"x": seen}).simulate(steps, trials=3, seed=seed)


def fits(iterations, newton, model, data, **options):
    stage = Stage("em", iterations, process_noise=1e-4, newton=newton, **options)
    engine = LaplaceEM(stages=(stage,), start="model", tolerance=-1.0)
    return engine.fit(model, data, progress=False)


def test_em_reaches_the_same_maximum_in_a_tenth_of_the_iterations():
    data = oscillator()
    dynamics = D.LinearDynamics.from_parameters(
        A=[[0.98, 0.0], [0.05, 0.9]], h=[0.0, 0.0], process_noise=1e-4, initial_noise=1.0
    )
    seen = ps.observations.Gaussian.from_parameters(np.eye(2), noise=0.5)
    model = ps.StateSpaceModel(dynamics, {"x": seen})
    plain, newton, much = (
        fits(n, kind, model, data, learn=("dynamics",))
        for n, kind in ((40, False), (40, True), (1500, False))
    )
    ends = [fit.history.evidence.iloc[-1] for fit in (plain, newton, much)]
    assert ends[1] > ends[0] + 1.0
    assert ends[1] > ends[2] - 0.01
    assert (np.diff(newton.history.evidence) > -1e-6).all()
    information, em, _ = information_of(newton.model, data.batch(), ridge=1.0)
    assert newton_move(information, em, 1e6).gain < 1e-3  # nats left


@pytest.mark.parametrize("kind", ["plrnn", "labels", "bold"])
def test_fits_get_farther_in_as_many_iterations(kind):
    """Hinges, observations that are expanded anew, banded posteriors; frozen entries stay."""
    truth = D.PLRNN.from_parameters(
        A=[0.9, 0.8], W=[[0.0, -0.4], [0.5, 0.0]], h=[0.3, -0.2], process_noise=1e-3,
        initial_noise=1.0,
    )  # fmt: skip
    rng = np.random.default_rng(2)
    seen = {"x": ps.observations.Gaussian.from_parameters(rng.normal(size=(3, 2)), noise=0.3)}
    if kind == "labels":
        seen["label"] = ps.observations.Categorical.from_parameters([[2.0, -1.0], [-1.0, 2.0]])
    if kind == "bold":
        seen = {"x": ps.observations.BOLD.from_parameters(np.eye(2), noise=0.01, tr_seconds=1.0)}
    data = ps.StateSpaceModel(truth, seen).simulate(120, trials=3, dt=1.0, seed=1)
    start = D.PLRNN.from_parameters(
        A=[0.7, 0.7], W=[[0.0, 0.1], [0.1, 0.0]], h=[0.0, 0.0], process_noise=1e-3,
        initial_noise=1.0,
    )  # fmt: skip
    start.h.requires_grad_(False)
    model = ps.StateSpaceModel(start, seen)
    plain, newton = (fits(15, kind, model, data, learn=("dynamics",)) for kind in (False, True))
    assert newton.history.evidence.iloc[-1] > plain.history.evidence.iloc[-1] + 0.5
    assert (np.diff(newton.history.evidence) > -1e-6 * 720).all()
    assert (newton.model.dynamics.h == 0).all()


@pytest.mark.parametrize("factor", [-50.0, 1e20])
def test_steps_that_lose_are_taken_back(factor, monkeypatch):
    """Every step, or every second one, goes far astray: EM goes on from where it was."""
    data = oscillator()
    model = ps.StateSpaceModel(D.LinearDynamics(2), {"x": ps.observations.Gaussian(2)})
    model = LaplaceEM(iterations=3).fit(model, data, progress=False).model
    calls = []

    def astray(*arguments):
        found = newton_move(*arguments)
        calls.append(found)
        if factor < 0 and len(calls) % 2:
            return found
        return replace(found, move=factor * found.move, shift=factor * found.shift)

    monkeypatch.setattr("plssm.inference.map_newton.newton_move", astray)
    plain, newton = (fits(12, kind, model, data) for kind in (False, True))
    assert len(calls) >= 8
    assert (np.diff(newton.history.evidence) > -1e-6).all()
    if factor > 0:
        np.testing.assert_allclose(newton.history.evidence, plain.history.evidence, rtol=1e-9)
    else:
        assert newton.history.evidence.iloc[-1] > plain.history.evidence.iloc[-1]


def test_a_step_that_fails_keeps_the_last_good_state(monkeypatch):
    def breaks(*_):
        raise np.linalg.LinAlgError("did not converge")

    data = oscillator()
    model = ps.StateSpaceModel(D.LinearDynamics(2), {"x": ps.observations.Gaussian(2)})
    model = LaplaceEM(iterations=3).fit(model, data, progress=False).model
    plain = fits(12, False, model, data)
    monkeypatch.setattr("plssm.inference.map_newton.newton_move", breaks)
    with pytest.warns(RuntimeWarning, match="did not converge.; the last good parameters"):
        broken = fits(12, True, model, data)
    done = len(broken.history)
    assert 1 < done < len(plain.history)
    np.testing.assert_allclose(broken.history.evidence, plain.history.evidence[:done], rtol=1e-12)
    shorter = fits(done - 1, False, model, data)
    for key, value in shorter.model.state_dict().items():
        torch.testing.assert_close(value, broken.model.state_dict()[key])


def test_steps_beside_free_noise():
    """The default stages of a wide map, whose noise and read-outs are learned at the same time."""
    rng = np.random.default_rng(0)
    turn = np.cumsum(0.3 + 0.05 * rng.normal(size=(3, 150)), axis=1)
    y = np.stack([np.cos(turn), np.sin(turn), np.cos(2 * turn)], -1)
    data = ps.Dataset.from_arrays({"x": y + 0.1 * rng.normal(size=y.shape)})
    ends = []
    for newton in (False, True):
        model = ps.StateSpaceModel(D.PLRNN(6), {"x": ps.observations.Gaussian(3)})
        engine = LaplaceEM(seed=0, stages=annealed_stages(30, newton=newton))
        fit = engine.fit(model, data, progress=False)
        last = fit.history[fit.history.stage == "free"].evidence
        assert (np.diff(last) > -1e-6 * 1350).all()
        ends.append(last.iloc[-1])
    assert ends[1] > ends[0] + 5.0


def test_a_stage_that_holds_the_map_is_plain():
    data = oscillator()
    model = ps.StateSpaceModel(D.LinearDynamics(2), {"x": ps.observations.Gaussian(2)})
    model = LaplaceEM(iterations=3).fit(model, data, progress=False).model
    learn = ("observations", "initial")
    plain, newton = (fits(6, kind, model, data, learn=learn) for kind in (False, True))
    for key, value in plain.model.state_dict().items():
        assert torch.equal(value, newton.model.state_dict()[key]), key


def test_trials_of_one_step():
    data = ps.Dataset.from_arrays({"x": np.random.default_rng(0).normal(size=(4, 1, 2))})
    model = ps.StateSpaceModel(
        D.PLRNN.from_parameters(
            A=[0.5, 0.5], W=np.zeros((2, 2)), h=[0.0, 0.0], process_noise=0.1, initial_noise=1.0
        ),
        {"x": ps.observations.Gaussian.from_parameters(np.eye(2), noise=0.5)},
    )
    fit = fits(5, True, model, data)
    assert np.isfinite(fit.history.evidence).all()


def test_stages_of_wide_maps_take_newton_steps_unless_told_not_to():
    assert [s.newton for s in annealed_stages(30)] == [False] + 5 * [True]
    assert not any(s.newton for s in annealed_stages(30, newton=False))
    assert [s.newton for s in held_stages(8)] == [False, True, True]
    assert not any(s.newton for s in held_stages(8, newton=False))
