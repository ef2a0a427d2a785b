"""Encoders: trials apart, missing data silent, several samples of a step, exact starts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.errors import PlssmError
from plssm.inference.encoder_networks import NETWORKS
from plssm.inference.encoders import Encoder, on_steps
from plssm.inference.free_evidence import FreeEvidence
from plssm.inference.recognition import Recognition
from plssm.inference.recognition_start import start_recognition
from plssm.inference.variational_posterior import variational_posterior
from plssm.inference.variational_start import rough_path

o = ps.observations
LENGTHS = (12, 7, 1)


def recording(seed=0, lengths=LENGTHS):
    """Ragged trials: one modality per step, counts on an own clock, labels; gaps in all."""
    rng = np.random.default_rng(seed)
    x = [rng.standard_normal((n, 3)) for n in lengths]
    times = [np.sort(np.append(rng.random(n) * (n - 0.1), 0.2)) for n in lengths]
    counts = [rng.poisson(1.5, (len(t), 2)).astype(float) for t in times]
    labels = [rng.integers(0, 3, (n, 1)).astype(float) for n in lengths]
    for values in (*x, *counts, *labels):
        values[rng.random(values.shape) < 0.25] = np.nan
    return ps.Dataset.from_arrays(
        {"x": x, "n": counts, "c": labels},
        kinds={"n": "count", "c": "label"},
        times={"n": times},
        inputs=[rng.standard_normal((n, 2)) for n in lengths],
        nuisance={
            "x": [rng.standard_normal((n, 2)) for n in lengths],
            "n": [rng.standard_normal((len(t), 1)) for t in times],
        },
        check_channels=False,
    )


def model():
    return ps.StateSpaceModel(
        ps.dynamics.PLRNN(2, inputs=2),
        {"x": o.Gaussian(3, nuisance=2), "n": o.Poisson(2, nuisance=1), "c": o.Categorical(3)},
    )


def stirred(module, size=0.3, seed=3):
    """The module with noise on all of its parameters, so that nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return module


def encoder(network, data):
    return stirred(Encoder.for_model(model(), data.batch(), network=network, hidden=5))


def same(got, want, **options):
    torch.testing.assert_close(got, want, **({"rtol": 1e-10, "atol": 1e-12} | options))


# ---- trials apart -------------------------------------------------------------------------------
@pytest.mark.parametrize("network", NETWORKS)
def test_a_trial_alone_and_in_any_order(network):
    data = recording()
    enc, spec = encoder(network, data), model()
    whole = enc(spec, data.batch())
    for b, steps in enumerate(LENGTHS):
        alone = enc(spec, data.select(trials=[b]).batch())
        for name, found in alone.items():
            for got, want in zip(found, whole[name], strict=True):
                same(got[0], want[b, :steps])
                assert (want[b, steps:] == 0).all()
    order = [2, 0, 1]
    turned = enc(spec, data.select(trials=order).batch())
    for name in whole:
        for got, want in zip(turned[name], whole[name], strict=True):
            same(got, want[order])


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_of_a_trial_reach_no_other(network):
    data = recording()
    batch, enc = data.batch(), encoder(network, data)
    values = {n: m.y.clone().requires_grad_() for n, m in batch.modalities.items() if n != "c"}
    shown = {n: replace(m, y=values.get(n, m.y)) for n, m in batch.modalities.items()}
    inputs = batch.inputs.clone().requires_grad_()
    found = enc(model(), replace(batch, modalities=shown, inputs=inputs))
    total = sum(p.shift[1].square().sum() + p.precision[1].sum() for p in found.values())
    found = torch.autograd.grad(total, [*values.values(), inputs], allow_unused=True)
    for gradient in found:
        if gradient is None:  # a linear encoder does not look at inputs
            assert network == "none"
            continue
        assert (gradient[[0, 2]] == 0).all()
        assert gradient[1].abs().sum() > 0
        assert torch.isfinite(gradient).all()
    for name, gradient in zip(values, found, strict=False):  # what is missing has no influence
        assert (gradient[~batch.modalities[name].mask] == 0).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_missing_may_be_anything(network):
    data = recording()
    batch, enc = data.batch(), encoder(network, data)
    filled = {
        n: replace(m, y=torch.where(m.mask, m.y, torch.nan)) for n, m in batch.modalities.items()
    }
    got, want = enc(model(), replace(batch, modalities=filled)), enc(model(), batch)
    for name in want:
        for one, other in zip(got[name], want[name], strict=True):
            assert torch.equal(one, other)
            assert torch.isfinite(one).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_steps_without_a_sample_give_nothing(network):
    data = recording()
    batch, enc = data.batch(), encoder(network, data)
    for name, found in enc(model(), batch).items():
        m = batch.modalities[name]
        seen = torch.zeros(3, batch.steps, dtype=torch.bool)
        for b in range(3):
            for i in range(m.y.shape[1]):
                step = i if m.clock is None else int(m.clock[b, i])
                seen[b, step] |= bool(m.mask[b, i].any())
        assert (found.shift[~seen] == 0).all()
        assert (found.precision[~seen] == 0).all()
        assert (found.shift[seen].abs().sum(-1) > 0).all()
        assert (torch.linalg.eigvalsh(found.precision[seen]) > 0).all()
    m = batch.modalities["x"]
    gone = {**batch.modalities, "x": replace(m, mask=torch.zeros_like(m.mask))}
    silent = enc(model(), replace(batch, modalities=gone))
    assert (silent["x"].shift == 0).all() and (silent["x"].precision == 0).all()
    without = {n: v for n, v in batch.modalities.items() if n != "x"}
    fewer = enc(model(), replace(batch, modalities=without))
    assert set(fewer) == {"n", "c"}
    for name in fewer:
        for a, b in zip(fewer[name], silent[name], strict=True):
            assert torch.equal(a, b)


def test_the_linear_part_adds_over_the_samples_of_a_step():
    """A loop over samples: shift and precision of each by itself."""
    data = recording()
    batch, enc, spec = data.batch(), encoder("none", data), model()
    clocks = batch.modalities["n"].clock[0]
    assert (torch.bincount(clocks) > 1).any()
    found = enc(spec, batch)
    for name, part in enc.modalities.items():
        observation, m = spec.observations[name], batch.modalities[name]
        read, share = observation.encoding(m), part.size.columns // part.size.channels
        own = part.size.channels * part.rank
        for b in range(3):
            shift = torch.zeros(batch.steps, 2, dtype=torch.float64)
            precision = torch.zeros(batch.steps, 2, 2, dtype=torch.float64)
            weight = part.log_weight.exp()
            for i in range(m.y.shape[1]):
                step = i if m.clock is None else int(m.clock[b, i])
                mask = m.mask[b, i].double()
                if not mask.any():
                    continue
                wide = mask.repeat_interleave(share)
                x = torch.where(wide > 0, (read[b, i] - part.mean) * part.scale, 0.0)
                beside = mask.new_zeros(part.size.channels, part.size.nuisance)
                if m.nuisance is not None:
                    beside = mask[:, None] * m.nuisance[b, i]
                shift[step] += part.linear @ torch.cat([x, mask, beside.flatten()])
                on = (weight[:own] * mask.repeat_interleave(part.rank))[:, None]
                precision[step] += (on * part.factors[:own]).T @ part.factors[:own]
            there = precision.abs().sum((-2, -1)) > 0
            faint = part.factors[own:].T @ (weight[own:, None] * part.factors[own:])
            precision[there] += faint.detach()  # once a step
            same(found[name].shift[b], shift)
            same(found[name].precision[b], precision)


@pytest.mark.parametrize("network", NETWORKS)
def test_single_precision(network):
    data = recording()
    enc = encoder(network, data)
    want = enc(model(), data.batch())
    got = enc.to(torch.float32)(model(), data.batch().to(dtype=torch.float32))
    for name in want:
        for one, other in zip(got[name], want[name], strict=True):
            assert one.dtype == torch.float32
            same(one.double(), other, rtol=1e-3, atol=1e-4)


def test_the_scale_is_that_of_what_is_observed():
    data = recording()
    enc = Encoder.for_model(model(), data.batch(), network="none")
    x = np.concatenate([t.values["x"] for t in data.trials])
    part = enc.modalities["x"]
    same(part.mean.numpy(), np.nanmean(x, 0), rtol=1e-12)
    same(part.scale.numpy(), 1 / np.nanstd(x, 0), rtol=1e-12)


def test_sizes_are_remembered_and_choices_checked():
    data = recording()
    enc = encoder("conv", data)
    again = Encoder.from_config(enc.config())
    again.load_state_dict(enc.state_dict())
    for name, found in again(model(), data.batch()).items():
        assert torch.equal(found.shift, enc(model(), data.batch())[name].shift)
    assert {n: encoder(n, data).reach for n in NETWORKS} == {
        "conv": 10, "gru": 50, "mlp": 0, "none": 0,
    }  # fmt: skip
    with pytest.raises(PlssmError, match="network"):
        Encoder.for_model(model(), data.batch(), network="transformer")
    with pytest.raises(PlssmError, match="hidden"):
        Encoder.for_model(model(), data.batch(), hidden=0)


def test_a_convolution_reaches_as_far_as_it_says():
    data = recording(lengths=(40, 40))
    batch, enc = data.batch(), encoder("conv", data)
    m = batch.modalities["x"]
    y = m.y.clone()
    assert m.mask[0, 20].any()
    y[0, 20] += 1.0
    moved = enc(model(), replace(batch, modalities={**batch.modalities, "x": replace(m, y=y)}))
    far = (moved["x"].shift - enc(model(), batch)["x"].shift)[0].abs().sum(-1) > 0
    at = far.nonzero()[:, 0]
    assert int(at.min()) >= 20 - enc.reach and int(at.max()) <= 20 + enc.reach


# ---- starts -------------------------------------------------------------------------------------
def linear_model(observations):
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        [[0.8, 0.2], [-0.2, 0.7]], h=[0.3, -0.1], process_noise=[[0.3, 0.1], [0.1, 0.2]],
        C=[[0.5, 0.0], [0.2, -0.4]], initial_mean=[1.0, -1.0],
        initial_noise=[[1.0, 0.3], [0.3, 0.5]],
    )  # fmt: skip
    return ps.StateSpaceModel(dynamics, observations)


def started(spec, data, network="none"):
    recognition = Recognition(
        Encoder.for_model(spec, data.batch(), network=network, hidden=4), spec.dim,
        inputs=data.n_inputs,
    )  # fmt: skip
    start_recognition(recognition, spec, data.batch(), rough_path(spec, data))
    return recognition


@pytest.mark.parametrize(("network", "power"), [("none", 1.0), ("gru", 1.0), ("none", 2.5)])
def test_the_start_is_the_kalman_smoother(network, power):
    """Masks, nuisance regressors, several samples in a step; from the start of any network."""
    rng = np.random.default_rng(1)
    spec = linear_model({"x": o.Gaussian(3, nuisance=1), "y": o.Gaussian(2, nuisance=2)})
    stirred(spec.observations, 0.5)
    spec.observations["y"].tempering.fill_(power)
    full = recording(seed=2, lengths=(30, 18, 1))
    data = ps.Dataset.from_arrays(
        {"x": [t.values["x"] for t in full.trials], "y": [t.values["n"] for t in full.trials]},
        times={"y": [t.seconds("n", 1.0) for t in full.trials]},
        inputs=[t.inputs for t in full.trials],
        nuisance={
            "x": [t.nuisance["x"][:, :1] for t in full.trials],
            "y": [rng.standard_normal((len(t.values["n"]), 2)) for t in full.trials],
        },
        check_channels=False,
    )
    recognition, want = started(spec, data, network), ps.smooth(spec, data)
    free = Recognition(FreeEvidence(3, 30, 2), 2, inputs=2)
    free.encoder.start(spec, data.batch(), rough_path(spec, data))
    start_recognition(free, spec, data.batch(), rough_path(spec, data))

    def distance(faint):
        with torch.no_grad():
            for part in recognition.encoder.modalities.values():
                part.log_weight[part.size.channels * part.rank :] = faint
        got = variational_posterior(spec, data.batch(), recognition, draws=4, seed=0)
        pairs = ((got.mean, want.mean), (got.covariance(), want.covariance()))
        gap = max(float(torch.nan_to_num(a - b).abs().max()) for a, b in pairs)
        return gap, (want.log_evidence - got.log_evidence)

    gap, below = distance(-5.0)
    assert gap < 0.03
    assert (below > -1e-9).all() and (below < 0.1).all()
    gap, below = distance(-30.0)
    assert gap < 1e-6
    assert below.abs().max() < 1e-6
    got = variational_posterior(spec, data.batch(), free, draws=4, seed=0)
    assert float(torch.nan_to_num(got.mean - want.mean).abs().max()) < 1e-3  # small blocks only


def test_a_precision_that_changes_leaves_the_state_where_it_is():
    """The state that the evidence gives with the prior of the start; shifts that are held."""
    spec = linear_model({"x": o.Gaussian(3)})
    data = spec.simulate(25, trials=2, inputs=np.zeros((2, 25, 2)), seed=0)
    recognition, batch = started(spec, data), data.batch()
    part = recognition.encoder.modalities["x"]
    assert (part.linear == 0).all() and (part.held != 0).any()

    def found():
        with torch.no_grad():
            shift, precision = recognition.encoder(spec, batch)["x"]
        prior = part.prior_precision
        return torch.linalg.solve(precision + prior, shift + part.prior_shift), precision

    before = found()
    with torch.no_grad():
        for p in (part.factors, part.log_weight):
            p += 0.3 * torch.randn(p.shape, dtype=torch.float64)
    after = found()
    assert float((after[1] - before[1]).abs().max()) > 0.3
    same(after[0], before[0])


COUNTS = ("poisson", "softplus", "negative_binomial", "zero_inflated")
TRUTHS = {
    "poisson": lambda: o.Poisson(6),
    "softplus": lambda: o.Poisson(6, link="softplus"),
    "negative_binomial": lambda: o.NegativeBinomial(6),
    "zero_inflated": lambda: o.ZeroInflatedPoisson(6),
    "categorical": lambda: o.Categorical(4),
    "bernoulli": lambda: o.Bernoulli(6),
    "ordinal": lambda: o.Ordinal(4, 4),
    "bold": lambda: o.BOLD(4, tr_seconds=1.0, hrf=o.DoubleGamma(length_seconds=6.0)),
}


@pytest.mark.parametrize("name", list(TRUTHS))
def test_the_start_knows_the_truth_of_other_observations(name):
    """Close to the Laplace smoother of the same model, and to the true path."""
    turn = 0.97 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        turn, h=[0.0, 0.0], process_noise=[0.1, 0.1], initial_noise=[1.0, 1.0]
    )
    spec = ps.StateSpaceModel(dynamics, {"y": TRUTHS[name]()})
    with torch.no_grad():
        weight = spec.observations["y"].get_parameter("weight")
        generator = torch.Generator().manual_seed(0)
        size = 0.3 if name in COUNTS else 1.0  # of unit weights, rates would reach hundreds
        weight.copy_(size * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    data = spec.simulate(300, trials=2, dt=1.0, seed=1)
    recognition = started(spec, data)
    got = variational_posterior(spec, data.batch(), recognition, draws=2, seed=0)
    laplace = ps.smooth(spec, data)

    def share(path, of):
        return 1 - float((path - of).square().mean() / of.var())

    truth = torch.as_tensor(np.asarray(data.latent))
    assert torch.isfinite(got.log_evidence).all()
    assert share(got.mean, truth) > share(laplace.mean, truth) - 0.2
    assert share(got.mean, laplace.mean) > 0.7
    if name != "bold":  # its own factors begin silent
        gap = laplace.log_evidence - got.log_evidence
        assert (gap < 0.05 * laplace.log_evidence.abs()).all()


def test_the_samples_of_a_step_are_averaged():
    data = recording()
    batch, spec = data.batch(), model()
    found = on_steps(spec.observations["n"], batch.modalities["n"], batch.inputs, batch.steps)
    trial = data.trials[0]
    at = trial.steps("n")
    for step in range(LENGTHS[0]):
        values = trial.values["n"][at == step]
        seen = np.isfinite(values)
        assert found.count[0, step].tolist() == seen.sum(0).tolist()
        for n in range(2):
            for column, read in ((2 * n, values), (2 * n + 1, np.log1p(values))):
                want = read[seen[:, n], n].mean() if seen[:, n].any() else 0.0
                assert float(found.x[0, step, column]) == pytest.approx(want, abs=1e-12)
