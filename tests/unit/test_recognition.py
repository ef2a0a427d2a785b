"""Recognition models: chains against dense joint densities, windows, linearisation, free ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.errors import PlssmError
from plssm.inference.batch_windows import BatchWindows
from plssm.inference.chains import LinearChain, chain_mean, couple, linearised
from plssm.inference.encoders import Encoder, Potentials
from plssm.inference.free_evidence import FreeEvidence
from plssm.inference.path_distribution import GaussianPath
from plssm.inference.recognition import Recognition
from plssm.inference.recognition_start import start_recognition
from plssm.inference.variational_posterior import variational_posterior
from plssm.inference.variational_start import rough_path

o = ps.observations
LENGTHS = (6, 4, 1)
M = 2


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(*shape, seed=0):
    root = rand(*shape, M, M, seed=seed)
    return root @ root.mT + 0.3 * torch.eye(M, dtype=torch.float64)


def potentials(steps=6, trials=3, seed=1):
    return Potentials(rand(trials, steps, M, seed=seed), spd(trials, steps, seed=seed + 1))


def chain(steps=6, trials=3, *, moving=True):
    jacobian = rand(trials, steps - 1, M, M, seed=4) if moving else rand(M, M, seed=4)
    return LinearChain(
        jacobian, rand(trials, steps - 1, M, seed=5), spd(seed=6), spd(trials, seed=7),
        rand(trials, M, seed=8),
    )  # fmt: skip


def log_density(z, evidence, link, b):
    """Of one path z [T, M] of trial b, but for a constant: a loop over the definition."""
    steps = len(z)
    total = link.first_shift[b] @ z[0] - 0.5 * z[0] @ link.first_precision[b] @ z[0]
    for t in range(steps):
        total = total + evidence.shift[b, t] @ z[t] - 0.5 * z[t] @ evidence.precision[b, t] @ z[t]
    for t in range(1, steps):
        j = link.jacobian if link.jacobian.ndim == 2 else link.jacobian[b, t - 1]
        gap = z[t] - j @ z[t - 1] - link.offset[b, t - 1]
        total = total - 0.5 * gap @ link.precision @ gap
    return total


def dense(evidence, link, b, steps):
    """Natural parameters of a trial's whole path by derivatives of its log-density."""
    zero = torch.zeros(steps * M, dtype=torch.float64)

    def value(v):
        return log_density(v.view(steps, M), evidence, link, b)

    hessian = torch.autograd.functional.hessian(value, zero)
    return torch.autograd.functional.jacobian(value, zero), -hessian


def blocks(terms, b, steps):
    """A trial's precision as a dense matrix, and its shift."""
    full = torch.zeros(steps, M, steps, M, dtype=torch.float64)
    for t in range(steps):
        full[t, :, t] = terms.diag[b, t]
        if t + 1 < steps and terms.off is not None:
            off = terms.off.expand(*terms.diag[:, 1:].shape)[b, t]  # may be shared
            full[t, :, t + 1], full[t + 1, :, t] = off, off.T
    return terms.shift[b, :steps].flatten(), full.view(steps * M, steps * M)


def same(got, want, **options):
    torch.testing.assert_close(got, want, **({"rtol": 1e-9, "atol": 1e-9} | options))


# ---- the coupling -------------------------------------------------------------------------------
@pytest.mark.parametrize("moving", [True, False])
def test_coupling_is_the_product_of_densities(moving):
    evidence, link = potentials(), chain(moving=moving)
    length = torch.tensor(LENGTHS)
    terms = couple(evidence, link, length)
    mean = chain_mean(evidence, link, length)
    path = GaussianPath(*terms)
    for b, steps in enumerate(LENGTHS):
        shift, precision = dense(evidence, link, b, steps)
        for got, want in zip(blocks(terms, b, steps), (shift, precision), strict=True):
            same(got, want)
        solution = torch.linalg.solve(precision, shift).view(steps, M)
        same(mean[b, :steps], solution)
        same(path.mean[b, :steps], solution)


@pytest.mark.parametrize("moving", [True, False])
def test_coupling_of_trials_of_one_step(moving):
    evidence, link = potentials(steps=1), chain(steps=1, moving=moving)
    terms = couple(evidence, link, torch.ones(3, dtype=torch.int64))
    same(terms.diag[:, 0], evidence.precision[:, 0] + link.first_precision)
    same(terms.shift[:, 0], evidence.shift[:, 0] + link.first_shift)
    want = torch.linalg.solve(terms.diag[:, 0], terms.shift[:, 0])
    same(chain_mean(evidence, link, torch.ones(3, dtype=torch.int64))[:, 0], want)
    path = GaussianPath(*terms)
    same(path.mean[:, 0], want)
    same(path.covariance()[:, 0], torch.linalg.inv(terms.diag[:, 0]))


def test_gradients_reach_chain_and_evidence():
    evidence, link = potentials(), chain()
    for x in (*evidence, *link):
        x.requires_grad_()
    path = GaussianPath(*couple(evidence, link, torch.tensor(LENGTHS)))
    path.entropy().sum().backward()
    assert link.jacobian.grad[0].abs().sum() > 0
    assert (link.jacobian.grad[1, 3:] == 0).all()  # beyond the end of the second trial
    assert (evidence.precision.grad[2, 1:] == 0).all()


# ---- recognition models -------------------------------------------------------------------------
def recording(seed=0, lengths=LENGTHS):
    rng = np.random.default_rng(seed)
    x = [rng.standard_normal((n, 3)) for n in lengths]
    for values in x:
        values[rng.random(values.shape) < 0.25] = np.nan
    counts = [rng.poisson(1.0, (n, 2)).astype(float) for n in lengths]
    return ps.Dataset.from_arrays(
        {"x": x, "n": counts},
        kinds={"n": "count"},
        inputs=[rng.standard_normal((n, 1)) for n in lengths],
        check_channels=False,
    )


def model(dynamics=None):
    dynamics = (
        ps.dynamics.PLRNN(2, inputs=1, input_at_start=True) if dynamics is None else dynamics
    )
    spec = ps.StateSpaceModel(dynamics, {"x": o.Gaussian(3), "n": o.Poisson(2)})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in spec.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        spec.dynamics.W.fill_diagonal_(0.0)
    return spec


def recognition(kind, spec, data, network="none"):
    encoder = Encoder.for_model(spec, data.batch(), network=network, hidden=4)
    made = Recognition(encoder, M, inputs=1, chain=kind)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        made.typical_precision.copy_(spd(seed=9))
    return made


def test_evidence_of_modalities_adds():
    data, spec = recording(), model()
    made = recognition("learned", spec, data)
    parts = made.encoder(spec, data.batch())
    total = made.evidence(spec, data.batch())
    same(total.shift, parts["x"].shift + parts["n"].shift)
    same(total.precision, parts["x"].precision + parts["n"].precision)
    nothing = made.evidence(spec, replace(data.batch(), modalities={}))
    assert (nothing.shift == 0).all() and (nothing.precision == 0).all()


@pytest.mark.parametrize("start", [None, (0, 3, 0)])
def test_a_learned_chain_is_what_its_parameters_say(start):
    """First states have their own density; inside a recording the typical one."""
    data, spec = recording(), model()
    batch, made = data.batch(), recognition("learned", spec, data)
    start = None if start is None else torch.tensor(start)
    terms, evidence = made(spec, batch, start), made.evidence(spec, batch)
    lower = made.factor.tril(-1) + made.factor.diagonal().exp().diag()
    first = made.initial_factor.tril(-1) + made.initial_factor.diagonal().exp().diag()
    own = (first @ first.T, made.initial_mean)
    inner = (made.typical_precision, made.typical_mean)
    for b, steps in enumerate(LENGTHS):
        precision, mean = own if start is None or start[b] == 0 else inner
        offset = made.b + batch.inputs[:, 1:] @ made.C.T
        link = LinearChain(
            made.A, offset, lower @ lower.T, precision.expand(3, M, M),
            (precision @ mean).expand(3, M),
        )  # fmt: skip
        for got, want in zip(
            blocks(terms, b, steps), dense(evidence, link, b, steps), strict=True
        ):
            same(got, want)


def test_a_mean_field_has_the_mean_and_the_blocks_of_the_model_chain():
    data, spec = recording(), model()
    batch, made = data.batch(), recognition("none", spec, data)
    terms, evidence = made(spec, batch), made.evidence(spec, batch)
    assert terms.off is None
    link = made.model_chain(spec, batch, made.point(spec, batch, evidence, None), None)
    path = GaussianPath(*terms)
    for b, steps in enumerate(LENGTHS):
        shift, precision = dense(evidence, link, b, steps)
        mean = torch.linalg.solve(precision, shift).view(steps, M)
        own = precision.view(steps, M, steps, M).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        same(terms.diag[b, :steps], own)
        same(path.mean[b, :steps], mean)
        same(path.covariance()[b, :steps], torch.linalg.inv(own))
    assert (path.cross_covariance() == 0).all()
    path.mean.sum().backward()
    assert spec.dynamics.W.grad.abs().sum() > 0  # also through the mean


MAPS = {
    "plrnn": lambda: ps.dynamics.PLRNN(2, inputs=1, input_at_start=True),
    "shallow": lambda: ps.dynamics.ShallowPLRNN(2, 4, inputs=1),
    "linear": lambda: ps.dynamics.LinearDynamics(2, inputs=1),
}


@pytest.mark.parametrize("name", list(MAPS))
def test_the_model_chain_is_the_model_around_the_path(name):
    """Jacobians by automatic differentiation; the joint density of the linearised model."""
    data = recording()
    spec = ps.StateSpaceModel(MAPS[name](), {"x": o.Gaussian(3), "n": o.Poisson(2)})
    batch, made = data.batch(), recognition("model", spec, data)
    path = rand(3, 6, M, seed=11)
    jacobian, offset = linearised(spec.dynamics, path, batch.inputs)
    jacobian = jacobian.expand(3, 5, M, M)
    for b in range(3):
        for t in range(5):
            s = batch.inputs[b, t + 1]
            want = torch.autograd.functional.jacobian(
                lambda z, s=s: spec.dynamics.step(z, s), path[b, t]
            )
            same(jacobian[b, t], want)
            same(offset[b, t], spec.dynamics.step(path[b, t], s) - want @ path[b, t])
    terms, evidence = made(spec, batch), made.evidence(spec, batch)
    around = made.point(spec, batch, evidence, None)
    jacobian, offset = linearised(spec.dynamics, around, batch.inputs)
    own = spec.dynamics.initial.noise.precision
    first = spec.dynamics.first_mean(batch.inputs).expand(3, M)
    link = LinearChain(
        jacobian, offset, spec.dynamics.noise.precision, own.expand(3, M, M), first @ own
    )
    for b, steps in enumerate(LENGTHS):
        for got, want in zip(
            blocks(terms, b, steps), dense(evidence, link, b, steps), strict=True
        ):
            same(got, want)


def test_the_point_of_a_linear_map_stays_after_one_pass():
    data = recording()
    spec = ps.StateSpaceModel(
        ps.dynamics.LinearDynamics(2, inputs=1), {"x": o.Gaussian(3), "n": o.Poisson(2)}
    )  # fmt: skip
    batch, made = data.batch(), recognition("model", spec, data)
    evidence = made.evidence(spec, batch)
    anywhere = made.model_chain(spec, batch, rand(3, 6, M, seed=12), None)
    once = chain_mean(evidence, anywhere, batch.length)
    point = made.point(spec, batch, evidence, None)
    mean = GaussianPath(*made(spec, batch)).mean
    for b, steps in enumerate(LENGTHS):
        same(point[b, :steps], once[b, :steps])
        same(point[b, :steps], mean[b, :steps])


def test_the_point_lies_where_the_mean_of_the_path_is_in_a_settled_region():
    """A PLRNN whose path keeps its signs is linear there: the point is the mean."""
    dynamics = ps.dynamics.PLRNN.from_parameters(
        [0.9, 0.8], [[0.0, 0.1], [0.1, 0.0]], h=[1.0, 1.0], process_noise=[1e-2, 1e-2]
    )
    spec = ps.StateSpaceModel(dynamics, {"x": o.Gaussian(3)})
    data = spec.simulate(30, trials=2, seed=0)
    batch = data.batch()
    made = Recognition(Encoder.for_model(spec, batch, network="none"), M)
    start_recognition(made, spec, batch, rough_path(spec, data))
    evidence = made.evidence(spec, batch)
    point, mean = made.point(spec, batch, evidence, None), GaussianPath(*made(spec, batch)).mean
    assert (mean[:, 3:] > 0).all()
    same(point[:, 5:], mean[:, 5:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["model", "learned", "none"])
def test_trials_are_apart(kind):
    data, spec = recording(), model()
    made = recognition(kind, spec, data, network="conv")
    whole = GaussianPath(*made(spec, data.batch()))
    for b, steps in enumerate(LENGTHS):
        alone = GaussianPath(*made(spec, data.select(trials=[b]).batch()))
        same(alone.mean[0], whole.mean[b, :steps])
        same(alone.covariance()[0], whole.covariance()[b, :steps])
        same(alone.entropy()[0], whole.entropy()[b])


@pytest.mark.parametrize("kind", ["model", "learned", "none"])
def test_a_window_with_wide_context_is_the_trial(kind):
    """Inner steps of windows whose context reaches the ends of the trial."""
    data, spec = recording(lengths=(30, 22)), model()
    batch, made = data.batch(), recognition(kind, spec, data)
    whole = GaussianPath(*made(spec, batch)).mean
    windows = BatchWindows(batch, steps=4, context=30)
    window = windows.cut(torch.tensor([0, 1]), torch.tensor([10, 3]))
    got = GaussianPath(*made(spec, window.batch, window.start)).mean
    same(got, whole[:, : got.shape[1]])


@pytest.mark.parametrize("kind", ["model", "learned", "none"])
def test_single_precision(kind):
    data, spec = recording(), model()
    made = recognition(kind, spec, data, network="gru")
    want = GaussianPath(*made(spec, data.batch())).mean
    batch = data.batch().to(dtype=torch.float32)
    terms = made.to(torch.float32)(spec.to(torch.float32), batch)
    assert all(x.dtype == torch.float32 for x in terms[:2])
    for b, steps in enumerate(LENGTHS):
        got = GaussianPath(*terms).mean[b, :steps]
        same(got.double(), want[b, :steps], rtol=1e-3, atol=1e-3)


def test_chains_are_checked():
    data, spec = recording(), model()
    with pytest.raises(PlssmError, match="chain"):
        recognition("markov", spec, data)


# ---- free evidence ------------------------------------------------------------------------------
def test_free_evidence_starts_at_the_expansion():
    """Exact for linear-Gaussian models, whatever is missing."""
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        [[0.8, 0.2], [-0.2, 0.7]], h=[0.3, -0.1], process_noise=[0.3, 0.2], initial_noise=[1.0, 1]
    )
    spec = ps.StateSpaceModel(dynamics, {"x": o.Gaussian(3)})
    full = spec.simulate(12, trials=2, seed=0)
    data = ps.Dataset.from_arrays(
        {"x": [full.trials[0].values["x"], full.trials[1].values["x"][:7]]}
    )
    batch = data.batch()
    free = FreeEvidence(2, 12, M)
    free.start(spec, batch, rough_path(spec, data))
    made = Recognition(free, M)
    start_recognition(made, spec, batch, rough_path(spec, data))
    got, want = variational_posterior(spec, batch, made, draws=2, seed=0), ps.smooth(spec, data)
    same(got.mean, want.mean, equal_nan=True, rtol=1e-6, atol=1e-6)
    same(got.log_evidence, want.log_evidence, rtol=1e-6, atol=1e-6)


def test_free_evidence_of_some_trials():
    free = FreeEvidence(3, 5, M)
    with torch.no_grad():
        free.shift.copy_(rand(3, 5, M))
        free.factor.copy_(rand(3, 5, M, M, seed=1))
        free.root.copy_(rand(3, 5, M, M, seed=2).triu())
        free.centre.copy_(rand(3, 5, M, seed=3))
    some, every = free.potentials(torch.tensor([2, 0])), free.potentials(None)
    same(some.shift, every.shift[[2, 0]])
    same(some.precision, every.precision[[2, 0]])

    def log_evidence(z):  # of trial 2, step 4
        x = free.root[2, 4] @ (z - free.centre[2, 4])
        return free.shift[2, 4] @ x - 0.5 * (free.factor[2, 4] @ x).square().sum()

    zero = torch.zeros(M, dtype=torch.float64)
    same(every.shift[2, 4], torch.autograd.functional.jacobian(log_evidence, zero))
    same(every.precision[2, 4], -torch.autograd.functional.hessian(log_evidence, zero))


def linear_gaussian(lengths=(12, 7, 1)):
    """A model and its data, with missing entries and steps, and the precision of whole paths."""
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        [[0.8, 0.2], [-0.2, 0.7]], h=[0.3, -0.1], process_noise=[0.3, 0.2], initial_noise=[1.0, 1]
    )
    spec = ps.StateSpaceModel(dynamics, {"x": o.Gaussian(3)})
    full, rng = spec.simulate(max(lengths), trials=len(lengths), seed=0), np.random.default_rng(0)
    x = [t.values["x"][:n].copy() for t, n in zip(full.trials, lengths, strict=True)]
    for values in x:
        values[rng.random(values.shape) < 0.2] = np.nan
        values[3:6] = np.nan
    data = ps.Dataset.from_arrays({"x": x})
    precisions = []
    for b, steps in enumerate(lengths):
        alone = data.select(trials=[b]).batch()
        zero = torch.zeros(steps * M, dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(
            lambda v, alone=alone, n=steps: spec.log_joint(alone, v.view(1, n, M)).sum(), zero
        )
        precisions.append(-hessian)
    return spec, data, precisions


@pytest.mark.parametrize(("encoder", "off"), [("free", 1e-4), ("conv", 2e-2), ("mlp", 2e-2)])
def test_a_mean_field_starts_at_the_best_one(encoder, off):
    r"""The least gap is half of sum log|U_tt| - log|U|, U by automatic differentiation."""
    spec, data, precisions = linear_gaussian()
    engine = ps.inference.VariationalInference(guide="mean-field", encoder=encoder, hidden=4)
    made = engine._new_recognition(spec, data, rough_path(spec, data))
    got = variational_posterior(spec, data.batch(), made, draws=2, seed=0)
    want = ps.smooth(spec, data)
    same(got.mean, want.mean, equal_nan=True, rtol=0, atol=off)
    for b, whole in enumerate(precisions):
        steps = len(whole) // M
        own = whole.view(steps, M, steps, M).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        least = 0.5 * (torch.logdet(own).sum() - torch.logdet(whole))
        gap = want.log_evidence[b] - got.log_evidence[b]
        assert -1e-9 <= float(gap - least) < off
        spread = torch.linalg.inv(own)  # steps 3 to 5 are without data
        same(got.covariance()[b, :steps], spread, rtol=0, atol=off)


def test_free_evidence_comes_back_from_far():
    """From numbers with noise of half their size to the exact evidence."""
    spec, data, _ = linear_gaussian()
    spec.requires_grad_(False)

    class Far(ps.inference.VariationalInference):
        def _new_recognition(self, *given):
            made = super()._new_recognition(*given)
            with torch.no_grad():
                for k, p in enumerate(made.parameters()):
                    p += 0.5 * p.abs().clamp_min(0.1) * rand(*p.shape, seed=k)
            return made

    engine = Far(
        guide="model", encoder="free", start="model", steps=600, learning_rate=(5e-2, 1e-3),
        batch_size=3, dtype="float64",
    )  # fmt: skip
    fit = engine.fit(spec, data, progress=False)
    exact = ps.smooth(spec, data).log_evidence
    got = variational_posterior(spec, data.batch(), fit.recognition, draws=2, seed=0)
    first = float(exact.sum()) - fit.history["elbo"].iloc[0] * 20
    assert first > 0.3
    same(got.log_evidence, exact, rtol=0, atol=5e-3)
