"""Mixtures of experts: densities, draws, bounds against numerics, the posterior's moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

import plssm as ps
from plssm.errors import PlssmError
from plssm.inference.encoders import Encoder
from plssm.inference.mixture_posterior import mixture_posterior
from plssm.inference.path_bound import PathBound, PathGuide, bound_terms
from plssm.inference.path_distribution import GaussianPath
from plssm.inference.path_mixture import PathMixture
from plssm.inference.pyro_bridge import PyroModel
from plssm.inference.recognition import Recognition
from plssm.inference.recognition_start import start_recognition
from plssm.inference.variational import VariationalInference
from plssm.inference.variational_start import rough_path
from plssm.inference.variational_training import PathTraining
from plssm.posterior import ChainMixture

o = ps.observations
LENGTHS = (6, 4, 1, 3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def model(dim=2):
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        0.8 * np.eye(dim), h=[0.2] * dim, process_noise=[0.3] * dim, initial_mean=[0.5] * dim,
        initial_noise=[0.8] * dim,
    )  # fmt: skip
    x = o.Gaussian.from_parameters(rand(3, dim), [0.1, 0.0, 0.0], noise=[1.5, 2.0, 2.5])
    y = o.Gaussian.from_parameters(rand(2, dim, seed=1), [0.3, 0.0], noise=[1.0, 1.5])
    return ps.StateSpaceModel(dynamics, {"x": x, "y": y})


def recording(spec, lengths=LENGTHS):
    """Ragged trials; the second has no x, the fourth no data at all."""
    full = spec.simulate(max(lengths), trials=len(lengths), seed=1)
    values = {n: [t.values[n][:k].copy() for t, k in zip(full.trials, lengths)] for n in "xy"}
    if len(lengths) > 3:
        values["x"][1][:] = np.nan
        values["x"][3][:] = values["y"][3][:] = np.nan
    return ps.Dataset.from_arrays(values, check_channels=False)


def recognition(spec, data, *, chain="model", experts="mixture", noise=0.1):
    batch = data.batch()
    encoder = Encoder.for_model(spec, batch, network="none")
    made = Recognition(encoder, spec.dim, chain=chain, experts=experts)
    start_recognition(made, spec, batch, rough_path(spec, data))
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.add_(noise * rand(*p.shape, seed=20 + i))
    return made


def components(spec, batch, made):
    terms, weight = made.mixture(spec, batch)
    return [GaussianPath(*t) for t in terms.values()], weight


def dense(path, b, steps):
    """Mean and covariance of a trial's whole path."""
    terms = path._work
    dim = terms.shift.shape[2]
    full = torch.zeros(steps, dim, steps, dim, dtype=torch.float64)
    for t in range(steps):
        full[t, :, t] = terms.diag.expand(*terms.shift.shape, dim)[b, t]
        if t + 1 < steps:
            full[t, :, t + 1] = terms.off.expand(len(terms.shift), -1, dim, dim)[b, min(
                t, terms.off.shape[1] - 1
            )]  # fmt: skip
            full[t + 1, :, t] = full[t, :, t + 1].T
    covariance = torch.linalg.inv(full.view(steps * dim, -1))
    return (covariance @ terms.shift[b, :steps].flatten()).detach(), covariance.detach()


def same(got, want, **options):
    torch.testing.assert_close(got, want, **({"rtol": 1e-9, "atol": 1e-9} | options))


# ---- the distribution ---------------------------------------------------------------------------
def test_the_density_is_that_of_the_mixture():
    """Against dense normals; weights differ by trial, and one is zero."""
    spec = model()
    data = recording(spec)
    made = recognition(spec, data)
    paths, _ = components(spec, data.batch(), made)
    weight = torch.tensor([[0.3, 0.7], [0.0, 1.0], [0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    mixture = PathMixture(paths, weight, count=3)
    z = mixture.rsample().detach()
    assert z.shape == (6, 4, 6, 2)
    got = mixture.log_prob(z)
    assert got.shape == (6, 4) == tuple(mixture.batch_shape)
    for b, steps in enumerate(LENGTHS):
        assert (z[:, b, steps:] == 0).all()
        flat, total = z[:, b, :steps].flatten(1).numpy(), 0.0
        for e, path in enumerate(paths):
            mean, covariance = dense(path, b, steps)
            total = total + float(weight[b, e]) * multivariate_normal(mean, covariance).pdf(flat)
        same(got[:, b].detach().numpy(), np.log(total))


def test_rows_come_from_their_components():
    spec = model()
    data = recording(spec)
    paths, weight = components(spec, data.batch(), recognition(spec, data))
    mixture = PathMixture(paths, weight, count=4000)
    with torch.no_grad():
        z = mixture.rsample()
        for e, path in enumerate(paths):
            mine = z[4000 * e : 4000 * (e + 1)]
            sd = path.variance.sqrt()
            assert ((mine.mean(0) - path.mean).abs() <= 5 * sd / 4000**0.5).all()
        same(mixture.share.sum(0), torch.ones(4, dtype=torch.float64))
        same(mixture.share[0], weight[:, 0] / 4000)
    with pytest.raises(ValueError, match="weight"):
        PathMixture(paths, weight.T)
    with pytest.raises(ValueError, match="expand"):
        mixture.expand((3, 4))


def test_a_broken_component_has_no_density():
    """So that training sees a loss that is not finite, and goes back."""
    eye = torch.eye(2, dtype=torch.float64).expand(2, 3, 2, 2)
    good = GaussianPath(torch.zeros(2, 3, 2, dtype=torch.float64), eye)
    bad = eye.clone()
    bad[1] *= -1
    broken = GaussianPath(torch.zeros(2, 3, 2, dtype=torch.float64), bad)
    mixture = PathMixture([good, broken], torch.full((2, 2), 0.5, dtype=torch.float64))
    found = mixture.log_prob(mixture.rsample())
    assert torch.isfinite(found[:, 0]).all()
    assert found[:, 1].isnan().all()


# ---- the experts --------------------------------------------------------------------------------
@pytest.mark.parametrize("chain", ["model", "learned", "none"])
def test_experts_see_their_own_modality(chain):
    """Each path is that of data with the other modality hidden; equal weights where there are."""
    spec = model()
    data = recording(spec)
    made = recognition(spec, data, chain=chain)
    paths, weight = components(spec, data.batch(), made)
    wanted = [[0.5, 0.5], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5]]
    assert weight.tolist() == wanted
    for name, path in zip("xy", paths, strict=True):
        part = ps.StateSpaceModel(spec.dynamics, {name: spec.observations[name]})
        alone = GaussianPath(*made(part, data.batch()))
        same(path.mean, alone.mean)
        same(path.covariance(), alone.covariance())
    none = ps.data.Batch({}, None, data.batch().length, [""] * 4, list("abcd"), 1.0)
    prior, one = components(spec, none, made)
    assert one.tolist() == [[1.0]] * 4
    for path in paths:  # in the trial without data
        same(path.mean[3], prior[0].mean[3])
        same(path.covariance()[3], prior[0].covariance()[3])
    same(paths[0].mean[1], prior[0].mean[1])


# ---- the bound ----------------------------------------------------------------------------------
def test_the_bound_of_two_experts_is_the_integral():
    """One latent number, so that everything is an integral over a line."""
    spec = model(dim=1)
    data = recording(spec, lengths=(1, 1))
    batch, made = data.batch(), recognition(spec, data, noise=0.3)
    paths, weight = components(spec, batch, made)
    line = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    z = line[:, None, None, None].expand(-1, 2, 1, 1)
    joint = spec.log_joint(batch, z).detach().numpy()
    step, parts = float(line[1] - line[0]), []
    for path in paths:
        mean, sd = path.mean[:, 0, 0], path.variance[:, 0, 0].sqrt()
        parts.append(norm.pdf(line[:, None].numpy(), mean.detach(), sd.detach()))
    density = (np.stack(parts, -1) * weight.numpy()).sum(-1)
    want = (density * (joint - np.log(density))).sum(0) * step
    evidence = np.log(np.exp(joint).sum(0) * step)
    same(evidence, ps.smooth(spec, data).log_evidence.numpy(), rtol=1e-6, atol=1e-6)
    assert (want < evidence - 1e-3).all()
    with torch.no_grad():
        guide = PathGuide(made, spec, samples=20_000, generator=generator())
        got = bound_terms(PyroModel(spec), guide, batch)
        assert got.entropy is None and got.share.shape == (40_000, 2)
        logs = (got.data + got.prior - got.log_guide).view(2, 20_000, 2)
        error = (0.25 * logs.var(1) / 20_000).sum(0).sqrt()
        each = PathBound().bound(PyroModel(spec), guide, batch)
        assert ((each - torch.from_numpy(want)).abs() < 3.5 * error).all()
        importance = PathBound("importance").bound(PyroModel(spec), guide, batch)
        ratio = (logs - torch.from_numpy(evidence)).exp()
        error = (0.25 * ratio.var(1) / 20_000).sum(0).sqrt()
        assert (error < 0.02).all()
        assert ((importance - torch.from_numpy(evidence)).abs() < 4 * error).all()


def test_importance_weights_of_experts_come_to_the_evidence():
    spec = model()
    data = recording(spec)
    made, want = recognition(spec, data, noise=0.02), ps.smooth(spec, data).log_evidence
    with torch.no_grad():
        guide = PathGuide(made, spec, samples=20_000, generator=generator())
        got = PathBound("importance").bound(PyroModel(spec), guide, data.batch())
        elbo = PathBound().bound(PyroModel(spec), guide, data.batch())
    assert (elbo < want + 0.02).all()
    assert ((got - want).abs() < 0.15).all()


def test_gradients_are_differences_of_the_bound():
    """With the same noise, in the parameters of recognition and model."""
    spec = model()
    data = recording(spec)
    made = recognition(spec, data)

    def value():
        guide = PathGuide(made, spec, samples=2, generator=generator())
        return PathBound().bound(PyroModel(spec), guide, data.batch(), beta=0.7).sum()

    checked = [
        made.encoder.modalities["x"].linear, made.encoder.modalities["y"].factors,
        spec.dynamics.A, spec.observations["x"].get_parameter("weight"),
    ]  # fmt: skip
    grads = torch.autograd.grad(value(), checked)
    for p, gradient in zip(checked, grads, strict=True):
        way = rand(*p.shape, seed=3)
        with torch.no_grad():
            p.add_(1e-5 * way)
            up = value()
            p.sub_(2e-5 * way)
            down = value()
            p.add_(1e-5 * way)
        same((gradient * way).sum(), (up - down) / 2e-5, rtol=1e-5, atol=1e-5)


def test_one_expert_is_the_product():
    full = model()
    spec = ps.StateSpaceModel(full.dynamics, {"x": full.observations["x"]})
    data = recording(full, lengths=(6, 4))
    found = []
    for experts in ("product", "mixture"):
        made = recognition(spec, data, experts=experts)
        guide = PathGuide(made, spec, generator=generator())
        found.append(PathBound("importance").bound(PyroModel(spec), guide, data.batch()))
    same(*found)


def test_trials_are_never_cut():
    spec = model()
    data = recording(spec, lengths=(90, 70))
    engine = VariationalInference(
        experts="mixture", encoder="none", window=10, dtype="float64", batch_size=5
    )
    batch, made = data.batch(), recognition(spec, data)
    work = PathTraining(engine, spec, made, batch, batch)
    assert work.windows.whole and not work.closed
    z = generator(3)
    guide = PathGuide(made, spec, generator=generator(3))
    want = -PathBound().bound(PyroModel(spec), guide, batch).sum() / 160
    same(work.loss(0.5, z), want)


# ---- the posterior ------------------------------------------------------------------------------
def test_moments_are_those_of_the_draws():
    spec = model()
    data = recording(spec)
    batch, made = data.batch(), recognition(spec, data)
    post = mixture_posterior(spec, batch, made, draws=32, seed=0)
    assert isinstance(post, ChainMixture)
    n = 40_000
    z = post.sample(n, seed=1)
    beyond = torch.arange(6) >= torch.tensor(LENGTHS)[:, None]
    assert torch.equal(post.mean.isnan().all(-1), beyond)
    sd = post.covariance().diagonal(dim1=-2, dim2=-1).sqrt()
    gap = (z.mean(0) - post.mean) / sd * n**0.5
    assert torch.nan_to_num(gap).abs().max() < 5
    apart = z - post.mean
    spread = torch.einsum("nbti,nbtj->btij", apart, apart) / n
    same(spread, post.covariance(), rtol=0.1, atol=0.03, equal_nan=True)
    lagged = torch.einsum("nbti,nbtj->btij", apart[:, :, :-1], apart[:, :, 1:]) / n
    same(lagged, post.cross_covariance(), rtol=0.1, atol=0.03, equal_nan=True)
    low, high = post.interval(0.9)
    same(high - low, 2 * 1.6448536269514722 * sd, equal_nan=True)
    assert (torch.nan_to_num((post.components[0].mean - post.mean)[1]).abs() > 1e-3).any()
    only = post.components[1]  # the second trial has no x
    same(post.mean[1], only.mean[1], equal_nan=True)
    same(post.covariance()[1], only.covariance()[1], equal_nan=True)


def test_draws_have_the_share_of_their_components():
    """Components far apart: every path stays with one of them."""
    eye = np.broadcast_to(np.eye(1), (1, 4, 1, 1)).copy()
    from plssm.linalg.block_tridiagonal import factor
    from plssm.posterior import GaussianChain

    chain = factor(100 * eye, np.zeros((1, 3, 1, 1)), np.array([4]))
    parts = [
        GaussianChain(
            np.full((1, 4, 1), m), chain, length=np.array([4]), log_evidence=np.zeros(1),
            evidence_kind="elbo",
        )
        for m in (-5.0, 5.0, 50.0)
    ]  # fmt: skip
    post = ChainMixture(
        parts, np.array([[0.25, 0.75, 0.0]]), log_evidence=np.zeros(1), evidence_kind="elbo"
    )
    z = post.sample(20_000, seed=0)
    sign = (z > 0).flatten(1)
    assert (sign.all(1) | ~sign.any(1)).all()
    assert z.max() < 10
    assert float(sign[:, 0].double().mean()) == pytest.approx(0.75, abs=4 * 0.43 / 20_000**0.5)
    same(post.mean, torch.full((1, 4, 1), 2.5, dtype=torch.float64))
    same(post.covariance(), torch.full((1, 4, 1, 1), 0.01 + 18.75, dtype=torch.float64))
    same(post.cross_covariance(), torch.full((1, 3, 1, 1), 18.75, dtype=torch.float64))
    assert torch.equal(post.sample(3, seed=5), post.sample(3, seed=5))
    assert "ChainMixture(trials=1, steps=4, dim=1" in repr(post)


@pytest.mark.parametrize("kind", ["elbo", "importance"])
def test_the_evidence_is_the_bound_of_pyro(kind):
    """Different draws: equal within their errors."""
    spec = model()
    data = recording(spec)
    batch, made = data.batch(), recognition(spec, data, noise=0.02)
    post = mixture_posterior(spec, batch, made, draws=8000, seed=0, bound=kind)
    assert post.evidence_kind == kind
    with torch.no_grad():
        guide = PathGuide(made, spec, samples=4000, generator=generator())
        terms = bound_terms(PyroModel(spec), guide, batch)
        got = PathBound(kind).bound(PyroModel(spec), guide, batch)
    logs = terms.data + terms.prior - terms.log_guide
    if kind == "importance":
        logs = (logs - got).exp()
    error = (terms.share.square() * logs.square()).sum(0).sqrt()
    assert ((post.log_evidence - got).abs() < 6 * error).all()
    again = mixture_posterior(spec, batch, made, draws=8000, seed=0, bound=kind)
    assert torch.equal(again.log_evidence, post.log_evidence)
    alone = mixture_posterior(
        spec, data.select(trials=[1]).batch(), made, draws=8000, seed=0, bound=kind
    )
    same(alone.log_evidence[0], post.log_evidence[1])
    spec.observations["x"].tempering.fill_(2.0)
    assert mixture_posterior(spec, batch, made, draws=4, seed=0).evidence_kind == "tempered"


def test_choices_are_checked():
    with pytest.raises(PlssmError, match="free evidence"):
        VariationalInference(experts="mixture", encoder="free")
    with pytest.raises(PlssmError, match="experts"):
        VariationalInference(experts="sum")
    spec = model()
    with pytest.raises(PlssmError, match="experts"):
        Recognition(Encoder.for_model(spec, recording(spec).batch()), 2, experts="sum")


def test_experts_by_the_engine(tmp_path):
    """Fitted, saved, loaded, and asked for one modality given the other."""
    spec = model()
    data = recording(spec, lengths=(30, 20))
    engine = VariationalInference(
        steps=30, checks=2, experts="mixture", encoder="none", start="model", dtype="float64"
    )
    fit = engine.fit(spec, data, progress=False)
    again = ps.Fit.load(fit.save(tmp_path / "fit"))
    assert again.recognition.experts == "mixture"
    one, other = fit.posterior(data), again.posterior(data)
    assert torch.equal(one.log_evidence, other.log_evidence)
    guess = fit.predict(data, "x", given=["y"], samples=8)
    assert torch.isfinite(guess.mean[0]).all()
    assert math.isfinite(float(one.log_evidence.sum()))
    assert float(one.log_evidence.sum()) <= float(ps.smooth(fit.model, data).log_evidence.sum())
