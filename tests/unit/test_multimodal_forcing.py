"""Multimodal teacher forcing: its loss against a plain loop, gradients, masks, refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.errors import CapabilityError, PlssmError
from plssm.inference import MTF, TeacherForcing
from plssm.inference.base import working_copy
from plssm.inference.batch_windows import BatchWindow
from plssm.inference.forcing import make_scheme
from plssm.inference.multimodal_training import first_known, forced_steps
from plssm.inference.parts import part_settings
from plssm.inference.teacher_encoder import Belief, TeacherEncoder

LENGTHS = (14, 9, 1, 6)


def recording(seed=0, lengths=LENGTHS, inputs=0, missing=0.3):
    """Ragged trials of three modalities, one on an own clock, with whole steps missing."""
    rng = np.random.default_rng(seed)
    x = [rng.standard_normal((n, 2)) for n in lengths]
    count = [rng.poisson(1.0, (n, 3)).astype(float) for n in lengths]
    times = [np.sort(rng.choice(2 * n, n // 2 + 1, replace=False)) / 2 for n in lengths]
    times = [np.unique(np.minimum(t, n - 0.6)) for t, n in zip(times, lengths)]
    level = [rng.integers(0, 4, (len(t), 2)).astype(float) for t in times]
    for values in (*x, *count):
        values[rng.random(len(values)) < missing] = np.nan
        values[rng.random(values.shape) < 0.1] = np.nan
    return ps.Dataset.from_arrays(
        {"x": x, "count": count, "level": level},
        kinds={"count": "count", "level": "ordinal"},
        times={"level": times},
        inputs=[rng.standard_normal((n, inputs)) for n in lengths] if inputs else None,
        check_channels=False,
    )


def a_model(dim=5, inputs=0, names=("x", "count", "level")):
    parts = {
        "x": ps.observations.Gaussian(2),
        "count": ps.observations.Poisson(3),
        "level": ps.observations.Ordinal(2, 4),
    }
    dynamics = ps.dynamics.DendriticPLRNN(dim, 3, inputs, mean_centered=True)
    dynamics.draw_start(torch.Generator().manual_seed(1))
    return ps.StateSpaceModel(dynamics, {n: parts[n] for n in names})


def a_problem(scheme, data, model, **options):
    engine = TeacherForcing(scheme=scheme, dtype="float64", **{"sequence": 20, **options})
    whole = working_copy(model)
    scheme.start(whole, data.batch())
    problem = scheme.problem(engine, whole, data.batch(), data.batch(), seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in problem.parameters():  # so that precisions and spreads differ
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return problem


def drawn(problem, seed=5):
    window = problem.windows.draw(10, torch.Generator().manual_seed(seed))
    belief = problem.encoder(problem.model, window.batch)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(belief.mean.shape, generator=generator, dtype=torch.float64)
    return window, belief, noise


def plain_parts(problem, window, belief, teacher, share):
    """The loss by loops over trials and steps, one density at a time."""
    model, K, batch = problem.model, problem.states, window.batch
    totals = dict.fromkeys(("reconstruction", "observation", "consistency", "entropy"), 0.0)
    for b, length in enumerate(batch.length.tolist()):
        known = belief.known[b].tolist()
        begin = known.index(True) if any(known) else None
        z, path, used = None, [], {}
        for t in range(batch.steps):
            block = sum(1 for s in range(1, t + 1) if share[s] > 0)
            if t == 0:
                z = torch.cat([teacher[b, 0], problem.first_state @ teacher[b, 0]])
            else:
                s = None if batch.inputs is None else batch.inputs[b, t]
                z = model.dynamics.step(z, s)
            path.append(z)
            if known[t] and block not in used:
                used[block] = t
                if begin == t:
                    z = torch.cat([teacher[b, t], problem.first_state @ teacher[b, t]])
                elif t > 0 and share[max(s for s in range(t + 1) if s == 0 or share[s] > 0)] > 0:
                    z = torch.cat([teacher[b, t], z[K:]])
        path = torch.stack(path)
        for t in range(length):
            w, after = float(window.weight[b, t]), begin is not None and t > begin
            own = teacher[b, t] if known[t] else path[t, :K]
            both = torch.stack([torch.cat([own, path[t, K:]]), path[t]])
            for name, o in model.observations.items():
                seen, free = both
                if name != "count":  # which is known, and sees all states
                    hide = torch.arange(model.dim) < K
                    seen, free = both * hide
                m = batch.modalities[name]
                for i in range(m.y.shape[1]):
                    at = i if m.clock is None else int(m.clock[b, i])
                    if at != t:
                        continue
                    for n in range(o.channels):
                        if not m.mask[b, i, n]:
                            continue
                        y = m.y[b, i].clone()
                        value = o.distribution(o.features(seen)).log_prob(y)[n]
                        totals["reconstruction"] -= w * value
                        if after:
                            value = o.distribution(o.features(free)).log_prob(y)[n]
                            totals["observation"] -= w * value
            if known[t] and after:
                sd = (0.5 * problem.log_spread).exp()
                normal = torch.distributions.Normal(path[t, :K], sd)
                totals["consistency"] -= w * normal.log_prob(teacher[b, t]).sum()
            if known[t]:
                normal = torch.distributions.Normal(0.0, belief.precision[b, t].rsqrt())
                totals["entropy"] -= w * normal.entropy().sum()
    scale = problem.windows.scale(len(window.row)) / problem.total
    return {name: scale * value for name, value in totals.items()}


@pytest.mark.parametrize("states", [None, 3])
@pytest.mark.parametrize("sequence", [20, 4])
@pytest.mark.parametrize("inputs", [0, 2])
def test_the_loss_is_that_of_a_plain_loop(states, sequence, inputs):
    """All four terms: ragged trials, own clocks, missing entries and steps, windows, inputs."""
    data = recording(inputs=inputs)
    scheme = MTF(3, states=states)
    model = a_model(inputs=inputs)
    model.observations["count"].initialised = True
    problem = a_problem(scheme, data, model, sequence=sequence)
    window, belief, noise = drawn(problem)
    teacher = belief.sample(noise)
    share = torch.zeros(teacher.shape[1], dtype=torch.float64)
    share[3::3] = 1.0
    got = problem.parts(window, belief, teacher, share)
    want = plain_parts(problem, window, belief, teacher, share)
    for name, value in want.items():
        assert got[name].item() == pytest.approx(value.item(), rel=1e-9), name


def test_the_sum_of_windows_is_unbiased():
    """Terms of single steps do not depend on where a window is cut, but for the forcing."""
    data = recording(missing=0.0, lengths=(14, 9, 6))
    problem = a_problem(MTF(1), data, a_model(), sequence=4)
    whole = a_problem(MTF(1), data, a_model(), sequence=20)
    window, belief, _ = drawn(whole)
    entropy = -(window.weight * belief.known * belief.entropy()).sum().item() / 29
    found = []
    for seed in range(300):
        window, belief, noise = drawn(problem, seed)
        share = torch.ones(noise.shape[1], dtype=torch.float64)
        share[0] = 0.0
        parts = problem.parts(window, belief, belief.sample(noise), share)
        found.append(parts["entropy"].item())
    assert abs(np.mean(found) - entropy) < 4 * np.std(found) / len(found) ** 0.5


def test_the_entropy_is_rewarded():
    """With the data terms and the consistency switched off, training widens q."""
    scheme = MTF(3, reconstruction=0.0, observation=0.0, consistency=0.0)
    problem = a_problem(scheme, recording(), a_model())
    belief = drawn(problem)[1]
    before = belief.precision[belief.known].log().mean().item()
    optimiser = torch.optim.SGD(problem.encoder.parameters(), lr=0.05)
    for _ in range(20):
        optimiser.zero_grad()
        loss = problem.loss(0.5, torch.Generator().manual_seed(0))
        loss.backward()
        optimiser.step()
    belief = drawn(problem)[1]
    assert belief.precision[belief.known].log().mean().item() < before - 0.1


def test_consistency_and_entropy_balance_at_the_spread():
    """One state, a path that is known: the best variance of q under N(0, R) is R."""
    variance, R = torch.tensor(0.3, dtype=torch.float64, requires_grad=True), 0.3
    belief = Belief(torch.zeros(1, 1, 1), (1 / variance).reshape(1, 1, 1), torch.ones(1, 1) > 0)
    expected = 0.5 * (math.log(2 * math.pi * R) + variance / R)
    (gradient,) = torch.autograd.grad(expected - belief.entropy().sum(), variance)
    assert abs(gradient.item()) < 1e-12
    want = torch.distributions.Normal(0.0, 0.3**0.5).entropy()
    assert belief.entropy().item() == pytest.approx(want.item())


def test_gradients_through_the_sampled_teacher():
    """The whole loss against finite differences: encoder, map, decoders, spread, first state."""
    data = recording(lengths=(7, 5))
    problem = a_problem(MTF(3, states=2), data, a_model(dim=3))
    window, _, noise = drawn(problem)
    share = torch.zeros(noise.shape[1], dtype=torch.float64)
    share[3::3] = 1.0
    parameters = [p for p in problem.parameters() if p.requires_grad]

    def loss():
        belief = problem.encoder(problem.model, window.batch)
        parts = problem.parts(window, belief, belief.sample(noise), share)
        return sum(parts.values())

    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(8)
    for p, g in zip(parameters, gradients, strict=True):
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        want = 0.0 if g is None else (g * direction).sum().item()
        with torch.no_grad():
            values = []
            for step in (1e-6, -1e-6):
                p.add_(step * direction)
                values.append(loss().item())
                p.sub_(step * direction)
        got = (values[0] - values[1]) / 2e-6
        assert got == pytest.approx(want, rel=2e-5, abs=1e-7)


# ---- the encoder -----------------------------------------------------------------------------
def an_encoder(model, batch, states=3, **options):
    encoder = TeacherEncoder.for_model(model, batch, states, seed=1, **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return encoder


def test_beliefs_of_modalities_multiply():
    """The product of one Gaussian for each modality and a unit Gaussian, by densities."""
    data, model = recording(missing=0.0), a_model()
    encoder = an_encoder(model, data.batch())
    whole = encoder(model, data.batch())
    shift, precision = torch.zeros_like(whole.mean), torch.ones_like(whole.precision)
    for name in model.observations:
        alone = ps.StateSpaceModel(model.dynamics, {name: model.observations[name]})
        part = encoder(alone, data.batch())
        precision = precision + part.precision - 1
        shift = shift + part.mean * part.precision
    torch.testing.assert_close(whole.precision, precision)
    torch.testing.assert_close(whole.mean, shift / precision)


def test_steps_without_data_are_the_unit_gaussian():
    data = recording(missing=0.5)
    model = a_model()
    belief = an_encoder(model, data.batch())(model, data.batch())
    batch = data.batch()
    known = torch.zeros_like(belief.known)
    for name in ("x", "count"):
        known |= batch.modalities[name].mask.any(-1)
    level = batch.modalities["level"]
    for b, i in level.mask.any(-1).nonzero().tolist():
        known[b, level.clock[b, i]] = True
    assert torch.equal(belief.known, known)
    assert (belief.mean[~known] == 0).all()
    assert (belief.precision[~known] == 1).all()
    assert (belief.precision[known] > 1).all()


def test_a_trial_depends_on_no_other():
    data, model = recording(), a_model()
    encoder = an_encoder(model, data.batch())
    whole = encoder(model, data.batch())
    for b, length in enumerate(LENGTHS):
        alone = encoder(model, data.select(trials=[b]).batch())
        torch.testing.assert_close(alone.mean[0], whole.mean[b, :length])
        torch.testing.assert_close(alone.precision[0], whole.precision[b, :length])


@pytest.mark.parametrize("causal", [False, True])
def test_how_far_an_encoder_looks(causal):
    """A sample changes the beliefs within reach of it, and of a causal one only later ones."""
    data, model = recording(lengths=(60,), missing=0.0), a_model()
    encoder = an_encoder(model, data.batch(), causal=causal)
    batch = data.batch()
    before = encoder(model, batch)
    batch.modalities["x"].y[0, 30] += 1.0
    after = encoder(model, batch)
    moved = (after.mean != before.mean).any(-1)[0].nonzero()[:, 0].tolist()
    first = 30 if causal else 30 - encoder.reach
    assert encoder.reach == (16 if causal else 8)
    seen = batch.modalities["x"].mask.any(-1)[0]
    assert moved == [t for t in range(first, 30 + encoder.reach + 1) if seen[t]]


@pytest.mark.parametrize("causal", [False, True])
def test_a_lasting_encoder_tells_steps_within_reach_of_a_sample(causal):
    """Others are a unit Gaussian."""
    data, model = recording(lengths=(60,), missing=0.0), a_model()
    batch = data.batch()
    assert bool(batch.modalities["x"].mask[0, 30].any())
    for m in batch.modalities.values():
        steps = torch.arange(m.mask.shape[1])[None] if m.clock is None else m.clock
        m.mask[steps != 30] = False
    found = an_encoder(model, batch, causal=causal, lasting=True)(model, batch)
    told = (found.precision != 1.0).any(-1)[0].nonzero()[:, 0].tolist()
    reach = (0, 16) if causal else (8, 8)
    assert told == list(range(30 - reach[0], 30 + reach[1] + 1))
    assert found.known[0].nonzero()[:, 0].tolist() == told
    assert not bool(found.mean[0, ~found.known[0]].any())
    alone = an_encoder(model, batch, causal=causal)(model, batch)
    torch.testing.assert_close(found.mean[0, 30], alone.mean[0, 30])
    assert alone.known[0].nonzero()[:, 0].tolist() == [30]


def test_what_is_missing_may_hold_anything():
    """Values under a mask change neither belief nor loss."""
    data = recording()
    problem = a_problem(MTF(3), data, a_model())
    window, belief, noise = drawn(problem)
    share = torch.zeros(noise.shape[1], dtype=torch.float64)
    batch = window.batch
    for m in batch.modalities.values():
        m.y[~m.mask] = 3.0
    again = problem.encoder(problem.model, batch)
    torch.testing.assert_close(again.mean, belief.mean)
    one = problem.parts(window, belief, belief.sample(noise), share)
    for m in batch.modalities.values():
        m.y[~m.mask] = 1.0
    other = problem.parts(window, belief, belief.sample(noise), share)
    assert {k: v.item() for k, v in one.items()} == {k: v.item() for k, v in other.items()}


def test_a_missing_modality_adds_nothing():
    """A modality that is missing in all windows gives no evidence and no likelihood."""
    data = recording(missing=0.0)
    problem = a_problem(MTF(3), data, a_model())
    window = drawn(problem)[0]
    window.batch.modalities["count"].mask[:] = False
    belief = problem.encoder(problem.model, window.batch)
    noise = torch.zeros_like(belief.mean)
    share = torch.zeros(noise.shape[1], dtype=torch.float64)
    got = problem.parts(window, belief, belief.sample(noise), share)
    kept = {n: o for n, o in problem.model.observations.items() if n != "count"}
    problem.model = ps.StateSpaceModel(problem.model.dynamics, kept)
    del window.batch.modalities["count"]
    alone = problem.encoder(problem.model, window.batch)
    torch.testing.assert_close(alone.mean, belief.mean)
    want = problem.parts(window, alone, alone.sample(noise), share)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value)


# ---- forcing ---------------------------------------------------------------------------------
def test_the_teacher_comes_in_at_the_first_known_step_of_each_interval():
    known = torch.ones(3, 10, dtype=torch.bool)
    known[1, 3:5] = False
    known[2, :4] = False
    share = torch.zeros(10)
    share[3::3] = 1.0
    forced = forced_steps(known, share)
    assert forced[0].nonzero()[:, 0].tolist() == [3, 6, 9]
    assert forced[1].nonzero()[:, 0].tolist() == [5, 6, 9]
    assert forced[2].nonzero()[:, 0].tolist() == [4, 6, 9]
    informed, begin = first_known(known)
    assert begin.nonzero()[:, 1].tolist() == [0, 0, 4]
    assert informed[2].nonzero()[:, 0].tolist() == [5, 6, 7, 8, 9]


def test_annealing():
    weights = MTF(annealed=True).weights
    assert weights(0.05)["observation"] == 0.0
    assert weights(0.5) == {
        "reconstruction": 0.5, "observation": 1.0, "consistency": 1.0, "entropy": 1.0
    }  # fmt: skip
    assert set(MTF().weights(0.0).values()) == {1.0}


@pytest.mark.parametrize("scheme", [MTF(7, states=3, annealed=True), MTF("auto", hidden=32)])
def test_the_scheme_survives_json(scheme):
    plain = json.loads(json.dumps(part_settings(scheme)))
    assert plain["class"] == "MTF"
    assert make_scheme(plain) == scheme
    engine = TeacherForcing(scheme=scheme, steps=3)
    assert TeacherForcing(**json.loads(json.dumps(engine.settings()))) == engine


@pytest.mark.parametrize("options", [{"interval": -1}, {"states": 0}, {"hidden": 0},
                                     {"consistency": -1.0}])  # fmt: skip
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(PlssmError):
        MTF(**options)


def test_more_forced_states_than_there_are_are_refused():
    data = recording()
    with pytest.raises(CapabilityError, match="forced"):
        TeacherForcing(scheme=MTF(states=9), steps=2).fit(a_model(), data)


def test_free_states_stay_invisible():
    """With K < M the weights of fresh decoders on the other states stay zero."""
    data = recording()
    engine = TeacherForcing(
        scheme=MTF(3, states=3), steps=20, sequence=8, checks=1, fit_noise=False
    )
    fit = engine.fit(a_model(), data, progress=False)
    for observation in fit.model.observations.values():
        assert (observation.weight[:, 3:] == 0).all()
        assert (observation.weight[:, :3] != 0).any()
    assert fit.recognition.states == 3


def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path):
    """Half a training and the rest of it are the whole one, encoder included."""
    data = recording()
    path = tmp_path / "training"
    options = {"scheme": MTF(3), "steps": 12, "sequence": 8, "checks": 4, "fit_noise": False}
    whole = TeacherForcing(**options).fit(a_model(), data, progress=False)

    class Stop(Exception):
        pass

    engine = TeacherForcing(**options, checkpoint=str(path), checkpoint_seconds=0.0)
    original = MTF.weights

    def weights(self, progress):
        if progress >= 0.5:
            raise Stop
        return original(self, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MTF, "weights", weights)
        with pytest.raises(Stop):
            engine.fit(a_model(), data, progress=False)
    assert path.exists()
    resumed = engine.fit(a_model(), data, progress=False)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for name, value in whole.recognition.state_dict().items():
        assert torch.equal(value, resumed.recognition.state_dict()[name]), name


def test_window_type_is_kept():
    """Whole trials come as windows too."""
    problem = a_problem(MTF(3), recording(), a_model())
    assert isinstance(drawn(problem)[0], BatchWindow)


def test_features_of_windows_are_those_of_the_data():
    """What is read of all training trials at once is what is read of the windows themselves."""
    problem = a_problem(MTF(3), recording(inputs=2), a_model(inputs=2), sequence=4)
    window, belief, _ = drawn(problem)
    quick = problem.belief(window)
    for one, other in zip(quick, belief, strict=True):
        torch.testing.assert_close(one, other)
