"""The PLRNN family in use: smoothing, EM, exponents, saved fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.dynamics import PLRNN, AlmostLinearRNN, DendriticPLRNN, ShallowPLRNN
from plssm.errors import CapabilityError
from plssm.inference import LaplaceEM

MEMBERS = {
    "centred PLRNN": lambda **o: PLRNN(2, mean_centered=True, **o),
    "shallow": lambda **o: ShallowPLRNN(2, 5, **o),
    "unclipped shallow": lambda **o: ShallowPLRNN(2, 5, clipped=False, mean_centered=True, **o),
    "dendritic": lambda **o: DendriticPLRNN(2, 3, **o),
    "unclipped dendritic": lambda **o: DendriticPLRNN(2, 3, clipped=False, **o),
    "almost linear": lambda **o: AlmostLinearRNN(2, 1, **o),
}
member = pytest.mark.parametrize("create", MEMBERS.values(), ids=MEMBERS.keys())


def randomise(dynamics, seed=3, gain=3.0):
    """Start values with larger weights, and kinks away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    dynamics.draw_start(generator)
    with torch.no_grad():
        for name in ("W", "W1", "h", "h1", "h2"):
            if hasattr(dynamics, name):
                p = getattr(dynamics, name)
                p.mul_(gain).add_(0.15 * torch.randn(p.shape, generator=generator).double())
        if hasattr(dynamics, "couplings"):
            dynamics.W.copy_(dynamics.couplings)
    return dynamics


def model_of(dynamics, channels=3):
    rng = np.random.default_rng(0)
    observation = ps.observations.Gaussian.from_parameters(
        B=rng.standard_normal((channels, dynamics.dim)), noise=np.full(channels, 0.2)
    )
    return ps.StateSpaceModel(dynamics, {"x": observation})


@member
def test_smoothing_ends_at_a_mode(create):
    """No path nearby has a higher joint density (kinks are met to about 1e-8)."""
    dynamics = randomise(create())
    dynamics.noise.variance = 0.1
    model = model_of(dynamics)
    data = model.simulate(25, trials=3, seed=1)
    posterior = ps.smooth(model, data)
    assert torch.isfinite(posterior.log_evidence).all()
    y = torch.from_numpy(data.values("x"))

    def joint(path):
        density = model.observations["x"].distribution(path @ read_out.T)
        return dynamics.log_prob(path) + density.log_prob(y).sum((-1, -2))

    read_out = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 2)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        at_mode = joint(posterior.mean)
        for size in (1e-4, 1e-2, 0.1):
            for _ in range(25):
                moved = torch.randn(posterior.mean.shape, generator=generator).double()
                assert (joint(posterior.mean + size * moved) < at_mode + 1e-7).all()
    assert torch.isfinite(ps.smooth(model, data, causal=True).mean).all()


@member
def test_exponents_are_those_of_the_products_of_jacobians(create):
    """Against QR of automatic derivatives along the orbit, step by step."""
    dynamics = randomise(create())
    z, steps, transient = dynamics.initial.mean.detach().clone(), 200, 20
    frame, logs = torch.eye(2).double(), torch.zeros(2).double()
    for t in range(transient + steps):
        jacobian = torch.autograd.functional.jacobian(dynamics.step, z)
        z = dynamics.step(z).detach()
        if t >= transient:
            frame, scale = torch.linalg.qr(jacobian @ frame)
            logs += scale.diagonal().abs().log()
    found = ps.analysis.lyapunov_spectrum(
        dynamics, steps=steps, dt=0.5, transient=transient, warmup=0
    )
    np.testing.assert_allclose(found, np.sort((logs / steps / 0.5).numpy())[::-1], atol=1e-9)


@member
def test_saved_and_loaded(create, tmp_path):
    dynamics = randomise(create(inputs=1, noise="full", initial="tied"))
    dynamics.A.requires_grad_(False)
    fit = ps.Fit(model_of(dynamics))
    again = ps.Fit.load(fit.save(tmp_path / "fit")).model.dynamics
    assert type(again) is type(dynamics)
    assert again.config() == dynamics.config()
    assert repr(again) == repr(dynamics)
    for name, p in dynamics.named_parameters():
        assert torch.equal(p, again.get_parameter(name)), name
        assert p.requires_grad == again.get_parameter(name).requires_grad, name
    z = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(again.step(z), dynamics.step(z))


def known_data(dynamics):
    model = model_of(dynamics)
    return model, model.simulate(60, trials=3, seed=4)


@pytest.mark.parametrize("start", ["model", "data"])
@pytest.mark.parametrize("name", ["almost linear", "centred PLRNN"])
def test_em_raises_the_evidence(name, start):
    """A few iterations gain; the evidence is that of smoothing with the fitted model."""
    truth = randomise(MEMBERS[name](), seed=1)
    truth.noise.variance = 0.1
    _, data = known_data(truth)
    fresh = ps.StateSpaceModel(MEMBERS[name](), {"x": ps.observations.Gaussian(3)})
    stages = None if start == "data" else (ps.inference.Stage("em", 6),)
    engine = LaplaceEM(iterations=6, seed=1, start=start, stages=stages, candidates=5)
    fit = engine.fit(fresh, data)
    history = fit.history[fit.history["stage"] == fit.history["stage"].iloc[-1]]
    evidence = history["evidence"].to_numpy()
    begun = fit.history.query("stage != 'linear'")["evidence"].iloc[0]
    # a search ends at one of two optima by rounding; at one the last stage gains nothing, and EM
    # steps raise the Laplace evidence only nearly: one ended .005 nats lower
    assert evidence.max() > begun and evidence[-1] >= evidence[0] - 0.02
    assert evidence[-1] > float(ps.smooth(fresh, data).log_evidence.sum())
    again = float(ps.smooth(fit.model, data).log_evidence.sum())
    np.testing.assert_allclose(again, evidence.max(), rtol=1e-3)


def test_em_with_known_path_is_least_squares():
    """M-step of the almost-linear RNN on a noise-free read-out, against numpy's lstsq."""
    truth = AlmostLinearRNN.from_parameters(
        A=[0.5, 0.2, 0.6], W=0.15 * np.random.default_rng(3).standard_normal((3, 3)), relu_units=1,
        h=[0.2, -0.3, 0.1], process_noise=0.3, initial_noise=1.0,
    )  # fmt: skip
    seen = ps.observations.Gaussian.from_parameters(np.eye(3), noise=np.full(3, 1e-10))
    data = ps.StateSpaceModel(truth, {"x": seen}).simulate(300, trials=2, seed=5)
    dynamics = AlmostLinearRNN(3, 1)
    fit = LaplaceEM(
        iterations=1, start="model", ridge=0.0, stages=(ps.inference.Stage("em", 1),)
    ).fit(ps.StateSpaceModel(dynamics, {"x": seen.requires_grad_(False)}), data)
    z = data.values("x")
    before, after = z[:, :-1].reshape(-1, 3), z[:, 1:].reshape(-1, 3)
    last, one = before[:, 2:], np.ones((len(before), 1))
    for i in range(3):
        own = last if i == 2 else last[:, :0]  # the decay of the rectified unit itself
        columns = np.concatenate([before[:, :2], np.maximum(last, 0.0), one, own], axis=1)
        want = np.linalg.lstsq(columns, after[:, i], rcond=None)[0]
        got = fit.model.dynamics
        linear = got.W[i, :2] + torch.diag(got.A)[i, :2]
        found = [*linear.tolist(), float(got.W[i, 2].detach()), float(got.h[i].detach())]
        np.testing.assert_allclose(found, want[:4], atol=1e-5)
    np.testing.assert_allclose(float(got.A[2].detach()), want[4], atol=1e-5)
    assert torch.equal(got.A[:2], dynamics.A[:2])


def test_frozen_parts_of_the_almost_linear_rnn_share_its_diagonal():
    """With W frozen the decay takes the change of a linear unit's diagonal, otherwise W does."""
    for frozen in ("W", "A"):
        dynamics = AlmostLinearRNN(3, 1)
        before = dynamics.coefficients()[0]
        getattr(dynamics, frozen).requires_grad_(False)
        kept = getattr(dynamics, frozen).detach().clone()
        theta, free = dynamics.coefficients()
        wanted = torch.zeros(3, 5).bool()
        if frozen == "W":
            wanted[:, :3].diagonal().fill_(True)
            wanted[:, 4] = True
        else:
            wanted[:] = True
            wanted[:, 2] = False
        assert torch.equal(free, wanted)
        dynamics.assign_coefficients(theta + 1.0)
        assert torch.equal(getattr(dynamics, frozen), kept)
        torch.testing.assert_close(dynamics.coefficients()[0], before + wanted)


@pytest.mark.parametrize("create", [MEMBERS["shallow"], MEMBERS["dendritic"]])
def test_em_refuses_maps_without_closed_form(create):
    model = ps.StateSpaceModel(create(), {"x": ps.observations.Gaussian(3)})
    data = model.simulate(10, seed=0)
    with pytest.raises(CapabilityError, match="no closed-form M-step"):
        LaplaceEM(iterations=1).fit(model, data)
