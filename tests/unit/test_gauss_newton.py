"""Gauss-Newton updates: normal equations against autograd, known maps, resuming, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.dynamics import PLRNN, AlmostLinearRNN, DendriticPLRNN, ShallowPLRNN
from plssm.errors import CapabilityError, PlssmError
from plssm.inference import GTF, MTF, GaussNewton, SparseTF, TeacherForcing
from plssm.inference.compiled_map import compiled_map, draw_windows
from plssm.inference.forced_readouts import start_readouts
from plssm.inference.forced_training import ForcedTraining
from plssm.inference.gauss_newton import LeastSquaresUpdates
from plssm.inference.trainer import Trainer, as_parts_of_one
from plssm.kernels.forced_least_squares import ForcedLeastSquares
from plssm.kernels.forced_path import forced_path_plain

FAMILY = {
    "plrnn": lambda: PLRNN(3),
    "hidden states and inputs": lambda: PLRNN(5, inputs=2),
    "manifold attractor": lambda: PLRNN(4, regularizer=ps.dynamics.ManifoldAttractor(tau=10.0)),
    "shallow": lambda: ShallowPLRNN(3, 7, clipped=False),
    "shallow clipped": lambda: ShallowPLRNN(4, 6, inputs=2),
    "dendritic": lambda: DendriticPLRNN(4, 3, inputs=2, clipped=False),
    "dendritic clipped": lambda: DendriticPLRNN(5, 2),
    "almost linear": lambda: AlmostLinearRNN(6, 2),
}
SETTINGS = {
    "plain": {},
    "noise": {"noise": 0.1, "scheme": GTF(0.3, final_alpha=0.01)},
    "shrink": {"shrink": 0.1},
    "sparse": {"scheme": SparseTF(4, spread=2)},
    "free": {"scheme": SparseTF(0), "sequence": 5},
    "one step": {"sequence": 1},
}


def series(kind, channels=3):
    """Three trials: whole ones, ones with gaps, and ones of all lengths; with two inputs."""
    rng = np.random.default_rng(0)
    lengths = (40, 7, 22) if kind == "ragged" else (30, 30, 30)
    values = [rng.standard_normal((n, channels)).cumsum(0) * 0.3 for n in lengths]
    if kind == "gaps":
        for v in values:
            v[rng.random(v.shape) < 0.2] = np.nan
    return values, [rng.standard_normal((n, 2)) for n in lengths]


def made_problem(dynamics, kind="whole", *, frozen=(), model=None, data=None, **options):
    """A problem in double precision, and its parameters as one vector."""
    values, inputs = series(kind)
    if data is None:
        inputs = inputs if dynamics.n_inputs else None
        data = ps.Dataset.from_arrays({"x": values}, 0.1, inputs=inputs)
    dynamics.draw_start(torch.Generator().manual_seed(1))
    for name in frozen:
        getattr(dynamics, name).requires_grad_(False)
    if model is None:
        observation = ps.observations.Gaussian(3, readout="identity")
        model = ps.StateSpaceModel(dynamics, {"x": observation})
    engine = TeacherForcing(**({"sequence": 9, "optimiser": GaussNewton()} | options))
    batch = data.batch()
    problem = ForcedTraining(engine, model, batch, batch, seed=2)
    return problem, as_parts_of_one(list(problem.parameters()))


def squares_of(problem, vector, windows=5):
    """The compiled least squares with windows taken, and the state of the generator before."""
    found = compiled_map(problem, vector)
    squares = ForcedLeastSquares(**found._asdict(), steps=problem.windows.steps - 1)
    generator = torch.Generator().manual_seed(5)
    squares.take(draw_windows(problem, windows, np.array([0.3]), generator))
    return squares


def error_rows(problem, squares, windows=5):
    """The errors by plain steps and automatic differentiation, with their derivatives."""
    generator, engine = torch.Generator().manual_seed(5), problem.engine
    y, mask, inputs = problem.windows.draw(windows, generator)
    before = None if mask is None else mask[:, :-1]
    teacher, known = problem.signal.teacher(y[:, :-1], before)
    if engine.noise:
        draws = torch.randn(teacher.shape, generator=generator, dtype=teacher.dtype)
        teacher = teacher + draws * problem.jitter
    share = problem.forcing.shares(teacher.shape[1], 0.3, generator).to(teacher)
    drive = None if inputs is None else problem.model.dynamics.drive(inputs[:, 1:])
    path = forced_path_plain(
        problem.model.dynamics.step, problem.start(teacher[:, 0]), teacher=teacher,
        weight=known * share[:, None], drive=drive,
    )  # fmt: skip
    lead, n = problem.signal.lead, problem.signal.data.shape[-1]
    pred = problem.signal.predict(path)
    seen = torch.ones_like(pred, dtype=bool) if mask is None else mask[:, 1 + lead :, :n]
    error = (pred - y[:, 1 + lead :, :n]) / problem.signal.sd
    flat = error[seen]
    rows = []
    for e in flat:
        slopes = torch.autograd.grad(
            e, list(problem.parameters()), allow_unused=True, retain_graph=True
        )
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for g, p in zip(slopes, problem.parameters(), strict=True)
                ]
            )
        )
    return flat.detach().numpy(), torch.stack(rows).numpy()


def assert_equations(problem, vector):
    """Value, gradient and curvature are those of the errors by automatic differentiation."""
    squares = squares_of(problem, vector)
    at = vector.detach().numpy().copy()
    found = squares.equations(at)
    errors, rows = error_rows(problem, squares)
    penalty = squares.penalty
    value = (errors**2).mean() + penalty.constant[0]
    value += (0.5 * penalty.quadratic * at + penalty.linear) @ at
    gradient = 2 / len(errors) * rows.T @ errors + penalty.quadratic * at + penalty.linear
    curvature = 2 / len(errors) * rows.T @ rows + np.diag(penalty.quadratic)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert squares.value(at) == pytest.approx(value, rel=1e-12)
    scale = np.abs(curvature).max()
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-9, atol=1e-12 * scale)
    np.testing.assert_allclose(found.curvature, curvature, rtol=1e-9, atol=1e-12 * scale)
    assert scale > 0 and np.abs(gradient).max() > 0
    assert np.array_equal(at, vector.detach().numpy())


@pytest.mark.parametrize("kind", ["whole", "gaps", "ragged"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", FAMILY)
def test_normal_equations_equal_automatic_differentiation(name, setting, kind):
    assert_equations(*made_problem(FAMILY[name](), kind, **SETTINGS[setting]))


@pytest.mark.parametrize("frozen", [("W2",), ("A", "C"), ("W1", "h1", "h2")])
def test_frozen_parameters_have_no_column(frozen):
    assert_equations(*made_problem(FAMILY["shallow clipped"](), frozen=frozen))


@pytest.mark.parametrize(("dim", "mixed"), [(3, False), (5, False), (4, True)])
def test_normal_equations_through_a_response(dim, mixed):
    rng = np.random.default_rng(1)
    x = [rng.standard_normal((n, 3)).cumsum(0) for n in (40, 31)]
    x[0][22, 0] = np.nan
    response = ps.observations.DoubleGamma(1.5, 3.0, length_seconds=5.0)
    values, kinds = {"bold": x}, {"bold": "bold"}
    observations = {"bold": ps.observations.BOLD(3, tr_seconds=1.0, hrf=response)}
    if mixed:
        values["eeg"] = [rng.standard_normal((n, 1)) for n in (40, 31)]
        observations["eeg"] = ps.observations.Gaussian(1)
    data = ps.Dataset.from_arrays(values, 1.0, kinds=kinds)
    dynamics = ShallowPLRNN(dim, 6)
    model = ps.StateSpaceModel(dynamics, observations)
    start_readouts(model, data.batch())
    assert_equations(*made_problem(dynamics, model=model, data=data, scheme=GTF(0.2)))


def test_threads_and_blocks_do_not_change_the_equations(monkeypatch):
    problem, vector = made_problem(ShallowPLRNN(3, 20), sequence=20)
    at = vector.detach().numpy()
    one = squares_of(problem, vector, 40).equations(at)
    asked = []

    def ranges(count, work):
        asked.append(count)
        return [(0, count // 3), (count // 3, count)] if count > 2 else [(0, count)]

    monkeypatch.setattr("plssm.kernels.forced_least_squares.even_ranges", ranges)
    monkeypatch.setattr("plssm.kernels.forced_least_squares._ROOM", 100_000)
    many = squares_of(problem, vector, 40).equations(at)
    assert len(asked) > 2 and max(asked) > 2
    assert many.value == pytest.approx(one.value, rel=1e-13)
    np.testing.assert_allclose(many.gradient, one.gradient, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(many.curvature, one.curvature, rtol=1e-10, atol=1e-14)


def one_update(problem, vector, **settings):
    """An update, its loss, and the loss of the same windows after it."""
    updates = LeastSquaresUpdates(problem, vector, GaussNewton(**settings))
    loss = updates.update(vector, 0.0, torch.Generator().manual_seed(0))
    return updates, loss, updates.squares.value(vector.detach().numpy())


def test_one_undamped_update_of_a_linear_problem_is_least_squares():
    """One step ahead a PLRNN is linear in all its parameters."""
    problem, vector = made_problem(PLRNN(3), sequence=1)
    updates, loss, after = one_update(problem, vector, damping=1e-8, samples=1000)
    _, teacher, _, targets, _ = updates.squares._signals  # the windows as they were drawn
    z, target, left = teacher[0].T, targets[0].T, 0.0
    for i in range(3):
        others = np.delete(np.maximum(z, 0), i, axis=1)  # W has no diagonal
        read = np.column_stack([z[:, i], others, np.ones(len(z))])
        rest = target[:, i] - read @ np.linalg.lstsq(read, target[:, i], rcond=None)[0]
        left += (rest**2).mean() / (3 * problem.signal.sd[i].item() ** 2)
    assert len(np.unique(z, axis=0)) == 87  # all there are, each once
    assert after == pytest.approx(left, rel=1e-6) and after < 0.9 * loss


def test_a_known_map_is_found_to_the_last_digit():
    """Noise-free data of a map of the class: errors fall to rounding, parameters are the truth."""
    truth = PLRNN.from_parameters(
        A=[0.6, 0.5, 0.7], W=[[0, 0.9, -0.8], [-0.9, 0, 0.7], [0.6, -0.8, 0]], h=[0.3, -0.2, 0.1]
    )
    rng = np.random.default_rng(3)
    starts = torch.from_numpy(rng.standard_normal((30, 3)) * 2)
    paths = truth.rollout(starts, 12, noise=False).detach().numpy()
    data = ps.Dataset.from_arrays({"x": list(paths)}, 1.0)
    observation = ps.observations.Gaussian(3, readout="identity")
    engine = TeacherForcing(
        optimiser=GaussNewton(updates=40), sequence=6, checks=40, fit_noise=False, scheme=GTF(0.2)
    )
    fit = engine.fit(ps.StateSpaceModel(PLRNN(3), {"x": observation}), data, progress=False)
    assert fit.history["loss"].min() < 1e-20
    last = fit.history["loss"].iloc[-1]
    assert last < 1e-20
    for name in ("A", "W", "h"):
        torch.testing.assert_close(
            getattr(fit.model.dynamics, name), getattr(truth, name), rtol=1e-5, atol=1e-6
        )


def test_updates_never_raise_the_loss_of_their_windows_and_damping_follows():
    problem, vector = made_problem(ShallowPLRNN(3, 10), scheme=GTF(0.2))
    updates = LeastSquaresUpdates(problem, vector, GaussNewton(damping=1e-4))
    generator, dampings = torch.Generator().manual_seed(0), [1e-4]
    for _ in range(15):
        loss = updates.update(vector, 0.0, generator)
        after = updates.squares.value(vector.detach().numpy())
        assert after <= loss
        dampings.append(updates.damping)
    assert (np.diff(dampings) < 0).any()
    updates.went_back()
    assert updates.damping == pytest.approx(min(100 * dampings[-1], 1e8))


def test_the_smallest_possible_loss_is_kept():
    """Where no step is better the parameters stay, to the bit."""
    problem, vector = made_problem(PLRNN(3), sequence=1)
    updates = LeastSquaresUpdates(problem, vector, GaussNewton())
    updates.squares.value = lambda at: float("nan")
    before = vector.detach().clone()
    updates.update(vector, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(vector, before)
    assert updates.damping == pytest.approx(
        4 * GaussNewton().damping
    )  # next windows may be better


def test_decays_stay_within_their_limit():
    grows = [1.2 ** np.arange(20.0)[:, None] * np.array([[1.0, -2.0, 0.5]])]
    data = ps.Dataset.from_arrays({"x": grows}, 1.0)
    for bounded in (True, False):
        dynamics = ShallowPLRNN(3, 4)
        problem, vector = made_problem(dynamics, data=data, bounded=bounded, sequence=2)
        updates = LeastSquaresUpdates(problem, vector, GaussNewton())
        for _ in range(20):
            updates.update(vector, 0.0, torch.Generator().manual_seed(0))
        assert (dynamics.A.abs().max() <= dynamics.decay_limit) == bounded


@pytest.mark.parametrize("stop_at", [3, 12])
def test_resuming_is_exact_to_the_bit(tmp_path, stop_at):
    class Killed(Exception):
        pass

    def kill(step, row):
        if step > stop_at:
            raise Killed

    file, found = tmp_path / "run", []
    for checkpoint, report in ((None, None), (str(file), kill), (str(file), None)):
        problem, vector = made_problem(
            ShallowPLRNN(3, 10), "gaps", checkpoint=checkpoint, checkpoint_seconds=0.0, checks=10,
            optimiser=GaussNewton(updates=20), scheme=GTF(0.3, adaptive_by="product"), noise=0.05,
        )  # fmt: skip
        trainer = Trainer(problem, problem.engine.training(), seed=3)
        if report is None:
            found.append((trainer.run(), trainer.vector.detach().clone(), problem.state()))
        else:
            with pytest.raises(Killed):
                trainer.run(report)
    (rows, vector, state), (again, resumed, other) = found
    assert torch.equal(vector, resumed) and state == other
    assert rows["loss"].tolist()[1:] == again["loss"].tolist()[1:]
    assert rows["learning_rate"].isna().all()
    assert state["steps_done"] == 20 and state["alpha"] != 0.3


def test_a_loss_that_is_not_finite_goes_back_and_damps():
    problem, vector = made_problem(PLRNN(3), optimiser=GaussNewton(updates=5), checks=5)
    trainer = Trainer(problem, problem.engine.training(), seed=0)
    own = trainer._own
    real, calls = own.squares.equations, []

    def sometimes(at):
        calls.append(0)
        found = real(at)
        return found._replace(value=np.nan) if len(calls) == 3 else found

    own.squares.equations = sometimes
    trainer.update_some(), trainer.update_some()
    assert not torch.equal(trainer.vector, trainer.good)
    before = own.damping
    with pytest.warns(RuntimeWarning, match="last good parameters with smaller steps"):
        assert trainer.update_some() == []
    assert torch.equal(trainer.vector, trainer.good)
    assert own.damping == pytest.approx(100 * before)
    assert len(trainer.run()) > 0 and trainer.step == 5


def test_derivatives_that_explode_are_not_finite():
    """Clipping bounds the states of a steep map, not the squares of their derivatives."""
    problem, vector = made_problem(ShallowPLRNN(3, 10))
    updates = LeastSquaresUpdates(problem, vector, GaussNewton())
    real, before = updates.squares.equations, vector.detach().clone()
    endless = np.full((len(vector), len(vector)), np.inf)
    updates.squares.equations = lambda at: real(at)._replace(curvature=endless)
    assert updates.update(vector, 0.0, torch.Generator().manual_seed(0)) is None
    assert torch.equal(vector, before)


def test_fresh_maps_start_by_regression_where_all_states_are_seen():
    data = ps.Dataset.from_arrays({"x": series("gaps")[0]}, 0.1)
    for dim, regressed in ((3, True), (5, False)):
        dynamics = ShallowPLRNN(dim, 8)
        observation = ps.observations.Gaussian(3, readout="identity")
        model = ps.StateSpaceModel(dynamics, {"x": observation})
        before = dynamics.W1.detach().clone()
        GaussNewton().start(model, data.batch(), torch.Generator().manual_seed(0))
        assert torch.equal(dynamics.W1, before) != regressed


def test_no_pairs_of_samples_leave_the_drawn_start():
    values = series("whole")[0]
    for v in values:
        v[::2, 0] = np.nan
    data = ps.Dataset.from_arrays({"x": values}, 0.1)
    observation = ps.observations.Gaussian(3, readout="identity")
    engine = TeacherForcing(
        optimiser=GaussNewton(updates=3), checks=1, sequence=5, fit_noise=False
    )
    fit = engine.fit(
        ps.StateSpaceModel(ShallowPLRNN(3, 5), {"x": observation}), data, progress=False
    )
    assert np.isfinite(fit.history["loss"].iloc[-1])


def test_known_maps_are_trained_on():
    data = ps.Dataset.from_arrays({"x": series("whole")[0]}, 0.1)
    dynamics = ShallowPLRNN(3, 8)
    start = ShallowPLRNN.from_parameters(
        A=dynamics.A.detach(), W1=dynamics.W1.detach(), W2=dynamics.W2.detach(),
        h1=dynamics.h1.detach(), h2=dynamics.h2.detach(),
    )  # fmt: skip
    observation = ps.observations.Gaussian(3, readout="identity")
    model = ps.StateSpaceModel(start, {"x": observation})
    engine = TeacherForcing(
        optimiser=GaussNewton(updates=1, damping=1e8), checks=1, sequence=5, fit_noise=False
    )
    fit = engine.fit(model, data, progress=False)
    torch.testing.assert_close(fit.model.dynamics.W1, start.W1, rtol=0, atol=1e-6)


# ---- settings and refusals ----------------------------------------------------------------------
def test_settings_go_there_and_back():
    engine = TeacherForcing(optimiser=GaussNewton(updates=7, samples=100), scheme=SparseTF(4))
    again = TeacherForcing(**engine.settings())
    assert again == engine and again.optimiser.updates == 7
    assert TeacherForcing(**TeacherForcing().settings()).optimiser is None


@pytest.mark.parametrize(
    "bad", [{"updates": 0}, {"updates": 2.5}, {"samples": 0}, {"damping": 0.0}, {"damping": 1e9}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(PlssmError, match="GaussNewton"):
        GaussNewton(**bad)


@pytest.mark.parametrize("other", ["adam", {"class": "GTF"}, {}])
def test_other_things_are_no_optimiser(other):
    with pytest.raises(PlssmError, match="wanted GaussNewton"):
        TeacherForcing(optimiser=other)


def test_large_maps_are_refused():
    problem, vector = made_problem(ShallowPLRNN(3, 500))
    with pytest.raises(CapabilityError, match="3506 parameters"):
        LeastSquaresUpdates(problem, vector, GaussNewton())


def test_an_encoder_is_not_least_squares():
    with pytest.raises(PlssmError, match="MTF is not least squares"):
        TeacherForcing(scheme=MTF(), optimiser=GaussNewton())


@pytest.mark.parametrize(
    ("dynamics", "readout"),
    [(ShallowPLRNN(3, 5, mean_centered=True), "identity"), (PLRNN(2), "linear")],
)
def test_what_is_no_sum_over_states_is_refused(dynamics, readout):
    data = ps.Dataset.from_arrays({"x": series("whole")[0]}, 0.1)
    model = ps.StateSpaceModel(dynamics, {"x": ps.observations.Gaussian(3, readout=readout)})
    with pytest.raises(CapabilityError, match="optimiser=None"):
        TeacherForcing(optimiser=GaussNewton(), sequence=5).fit(model, data, progress=False)
