"""Teacher forcing of BOLD: the loss through the response, its gradients, what is forced."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.errors import CapabilityError, DataError
from plssm.inference import GTF, SparseTF, TeacherForcing
from plssm.inference.convolved_signal import ConvolvedSignal
from plssm.inference.forced_readouts import refuse_unforceable, start_readouts, teacher_signal
from plssm.inference.forced_training import ForcedTraining
from plssm.inference.residual_noise import _enough, _shortened
from plssm.inference.teacher_signal import AffineSignal, ForcedRun
from plssm.observations import BOLD, DoubleGamma, Gaussian

SHORT = {"time_to_peak": 1.5, "time_to_undershoot": 3.0, "length_seconds": 5.0}


def bold(channels=3, tr=1.0, **options):
    learn = options.pop("learn", False)
    return BOLD(channels, tr_seconds=tr, hrf=DoubleGamma(**SHORT, learn=learn), **options)


def dataset(channels=3, lengths=(40, 30), *, missing=True, seed=0, **more):
    rng = np.random.default_rng(seed)
    x = [rng.standard_normal((n, channels)).cumsum(0) for n in lengths]
    if missing:
        x[0][12, 0] = np.nan
    return ps.Dataset.from_arrays({"bold": x}, 1.0, kinds={"bold": "bold"}, **more)


def model(dim=2, channels=3, **options):
    dynamics = ps.dynamics.ShallowPLRNN(dim, 4)
    dynamics.draw_start(torch.Generator().manual_seed(0))
    return ps.StateSpaceModel(dynamics, {"bold": bold(channels, **options)})


def started(whole, data):
    start_readouts(whole, data.batch())
    return ConvolvedSignal(whole, data.batch())


def problem(whole, data, **options):
    start_readouts(whole, data.batch())
    engine = TeacherForcing(scheme=GTF(alpha=0.2), sequence=6, batch_size=3, **options)
    return ForcedTraining(engine, whole, data.batch(), data.batch(), seed=0)


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_the_loss_is_that_of_a_plain_loop(dim):
    """Every scored sample is the weighted sum of the states up to its step."""
    whole, data = model(dim), dataset()
    signal = started(whole, data)
    y, mask = signal.y[:1, 9:24], signal.mask[:1, 9:24]
    teacher, known = signal.teacher(y[:, :-1], mask[:, :-1])
    share = 0.3 * known
    run = ForcedRun(whole.dynamics, teacher[:, 0], teacher, share, None)
    found = signal.loss(run, y[:, 1:], mask[:, 1:])
    observation, h = whole.observations["bold"], whole.observations["bold"].hrf.kernel(1.0)
    z, path = teacher[:, 0], []
    for t in range(14):
        z = whole.dynamics.step(z + share[:, t] * (teacher[:, t] - z))
        path.append(z)
    total, count = 0.0, 0
    for t in range(len(h) - 1, 14):
        seen = sum(h[lag] * path[t - lag] for lag in range(len(h)))
        error = (seen @ observation.weight.T + observation.bias - y[:, t + 1, :3]) / signal.sd
        total = total + (error.square() * mask[:, t + 1, :3]).sum()
        count += int(mask[:, t + 1, :3].sum())
    assert signal.lead == len(h) - 1
    torch.testing.assert_close(found, total / count)


@pytest.mark.parametrize("learn", [False, True])
def test_gradients(learn):
    """Against finite differences: the map, a mixing read-out, the response."""
    whole, data = model(2, learn=learn), dataset()
    signal = started(whole, data)
    y, mask = signal.y[:, 8:20], signal.mask[:, 8:20]
    teacher, known = signal.teacher(y[:, :-1], mask[:, :-1])
    parameters = [p for p in whole.dynamics.parameters() if p.requires_grad]
    fixed = {*whole.dynamics.noise.parameters(), *whole.dynamics.initial.parameters()}
    parameters = [p for p in parameters if p not in fixed]
    parameters += signal.parameters()
    assert len(signal.parameters()) == (4 if learn else 2)

    def loss(*_):
        run = ForcedRun(whole.dynamics, teacher[:, 0], teacher, 0.2 * known, None)
        return signal.loss(run, y[:, 1:], mask[:, 1:])

    assert torch.autograd.gradcheck(loss, parameters, atol=1e-7)


def test_edges_are_never_forced_but_scored():
    """Changing the deconvolved signal at the edges changes nothing; changing data there does."""
    whole, data = model(), dataset()
    signal = started(whole, data)
    states, known = signal.teacher(signal.y, signal.mask)
    left, right = int(0.25 * 6), int(0.5 * 6)
    for b, n in enumerate(data.lengths):
        assert not known[b, :left].any() and not known[b, n - right :].any()
    assert not known[0, 12].any() and (states[~known] == 0).all()
    assert signal.seen[0, 39].all()
    one = problem(whole, data)
    starts = {int(i) for i in one.windows.starts}
    assert starts and all(left <= i < 40 - right or 40 + left <= i < 70 - right for i in starts)
    assert 12 not in starts


def test_windows_leave_room_for_the_memory():
    one = problem(model(), dataset())
    assert one.windows.steps == 6 + 1 + one.signal.lead
    value = float(one.loss(0.0, torch.Generator().manual_seed(0)).detach())
    assert np.isfinite(value) and value > 0
    with pytest.raises(DataError, match="too short for the memory"):
        problem(model(), dataset(lengths=(7, 7), missing=False))


def test_free_runs_are_those_of_the_map_and_their_samples_those_of_the_data():
    """Runs from the first known state, convolved; compared where something was observed."""
    one = problem(model(), dataset())
    with torch.no_grad():
        runs, truth = one.free.runs(one.model.dynamics, one.start), one.free.truth
        alike = one.free.observed(runs)
        states, _ = one.signal.teacher(one.signal.y, one.signal.mask)
        path = one.model.dynamics.rollout(states[:, 1], 50 + one.signal.lead, noise=False)
        observation, h = one.model.observations["bold"], one.model.observations["bold"].hrf
        lags = [path[0, 7 + one.signal.lead - lag] for lag in range(6)]
        seen = sum(w * z for w, z in zip(h.kernel(1.0), lags, strict=True))
        x = (seen @ observation.weight.T + observation.bias - one.signal.mean) / one.signal.sd
    assert [len(r) for r in runs] == [40, 30]
    np.testing.assert_allclose(runs[0][7], x, atol=1e-10)
    assert [len(t) for t in alike] == [len(t) for t in truth] == [39, 30]
    np.testing.assert_array_equal(alike[0], np.delete(runs[0][:40], 12, axis=0))


def test_nuisance_is_taken_away_before_deconvolution():
    """Data plus nuisance give the teacher, the loss and the scored data of the data alone."""
    rng = np.random.default_rng(3)
    plain = dataset(missing=False)
    drift = [rng.standard_normal((n, 2)) for n in plain.lengths]
    J = rng.standard_normal((3, 2))
    values = [t.values["bold"] + r @ J.T for t, r in zip(plain.trials, drift, strict=True)]
    data = ps.Dataset.from_arrays(
        {"bold": values}, 1.0, kinds={"bold": "bold"}, nuisance={"bold": drift}
    )
    whole = model(nuisance=2)
    signal = started(whole, data)
    x, r = np.concatenate(values), np.concatenate(drift)
    design = np.c_[np.ones(len(x)), r]
    theta = np.linalg.lstsq(design, x, rcond=None)[0][1:].T
    np.testing.assert_allclose(whole.observations["bold"].nuisance_weight.detach(), theta)
    cleaned = values[0] - drift[0] @ theta.T
    np.testing.assert_allclose(signal.data[0], cleaned, atol=1e-10)
    apart = ps.Dataset.from_arrays(
        {"bold": [v - d @ theta.T for v, d in zip(values, drift, strict=True)]}, 1.0,
        kinds={"bold": "bold"},
    )  # fmt: skip
    other = started(model(), apart)
    torch.testing.assert_close(signal.y, other.y)


def test_the_scale_of_states_is_that_of_the_activity():
    """A state for every channel: unit spread of what is forced, and a held read-out."""
    signal = started(model(3), dataset(missing=False))
    states, known = signal.teacher(signal.y, signal.mask)
    seen = states[known.all(-1)]
    torch.testing.assert_close(seen.std(0, unbiased=False), torch.ones(3, dtype=torch.float64))
    assert signal.parameters() == []


def test_gaussian_channels_beside_bold_keep_their_own_samples():
    rng = np.random.default_rng(5)
    data = ps.Dataset.from_arrays(
        {"bold": rng.standard_normal((40, 2)).cumsum(0), "x": rng.standard_normal((40, 1))},
        1.0, kinds={"bold": "bold"},
    )  # fmt: skip
    dynamics = ps.dynamics.ShallowPLRNN(3, 4)
    whole = ps.StateSpaceModel(dynamics, {"bold": bold(2), "x": Gaussian(1)})
    start_readouts(whole, data.batch())
    signal = teacher_signal(whole, data.batch())
    states, known = signal.teacher(signal.y, signal.mask)
    x, observation = torch.from_numpy(data.trials[0].values["x"]), whole.observations["x"]
    back = states[0] @ observation.weight.T + observation.bias
    torch.testing.assert_close(back, x)
    assert known[0, :, 2].all() and not known[0, 0, :2].any()
    z = torch.randn(2, 12, 3, dtype=torch.float64)
    torch.testing.assert_close(
        signal.predict(z)[..., 2:], (z @ observation.weight.T + observation.bias)[:, signal.lead :]
    )


def test_which_signal_a_model_has_and_what_is_refused():
    gaussian = ps.StateSpaceModel(ps.dynamics.ShallowPLRNN(2, 4), {"x": Gaussian(2)})
    data = ps.Dataset.from_arrays({"x": np.random.default_rng(0).standard_normal((9, 2))})
    assert isinstance(teacher_signal(gaussian, data.batch()), AffineSignal)
    refuse_unforceable(model(nuisance=1))
    for other, why in (
        (ps.observations.Poisson(2), "Poisson observations"),
        (Gaussian(2, nuisance=1), "nuisance regressors"),
        (Gaussian(2, readout="relu"), "a rectified read-out"),
    ):
        mixed = ps.StateSpaceModel(
            ps.dynamics.ShallowPLRNN(2, 4), {"bold": bold(), "other": other}
        )
        with pytest.raises(CapabilityError, match=f"{why} \\('other'\\)"):
            refuse_unforceable(mixed)


def test_finer_steps_than_scans():
    """Forced between scans too, compared at scans only, also in the measures."""
    rng = np.random.default_rng(6)
    data = ps.Dataset.from_arrays(
        {"bold": rng.standard_normal((30, 3)).cumsum(0)}, 0.5, kinds={"bold": "bold"},
        times={"bold": np.arange(30.0)},
    )  # fmt: skip
    one = problem(model(), data)
    signal, batch = one.signal, data.batch()
    assert signal.lead == 10
    scans = torch.zeros(batch.steps, dtype=torch.bool)
    scans[batch.modalities["bold"].clock[0]] = True
    assert torch.equal(signal.seen[0, :, 0], scans)
    _, known = signal.teacher(signal.y, signal.mask)
    rows = known[0].all(-1).nonzero()[:, 0]
    assert (rows.diff() == 1).all() and len(rows) > 40
    assert int(rows[0]) == 2 and int(rows[-1]) == 2 * (29 - 3)
    value = float(one.loss(0.0, torch.Generator().manual_seed(0)).detach())
    assert np.isfinite(value)
    with torch.no_grad():
        runs, truth = one.free.runs(one.model.dynamics, one.start), one.free.truth
        alike = one.free.observed(runs)
    assert len(alike[0]) == len(truth[0]) == 30


def test_the_interval_of_sparse_forcing_comes_from_bold():
    whole, data = model(), dataset(missing=False, lengths=(120, 110))
    engine = TeacherForcing(scheme=SparseTF(), steps=3, sequence=5, checks=1, fit_noise=False)
    assert len(engine.fit(whole, data).history) == 2


def test_noise_is_fitted_on_as_many_steps_as_the_memory_allows():
    """All of a recording with a short response, five responses of one sampled finely."""
    assert _enough(model(), 1.0, 4000) == 4000
    assert _enough(model(), 0.01, 4000) == 5 * 500
    assert _enough(model(), 0.1, 4000) == int(2e6 / 51**2)
    data = dataset(missing=False, lengths=(40, 30))
    assert sum(t.length for t in _shortened(data, 45).trials) == 70
    assert [t.length for t in _shortened(data, 25).trials] == [25]
