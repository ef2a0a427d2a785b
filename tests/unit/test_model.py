"""StateSpaceModel: densities, simulation, observation, and refusals before work starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plssm as ps
from plssm.errors import DataError, PlssmError, ShapeError


def plrnn_model(inputs=0, nuisance=0):
    dynamics = ps.dynamics.PLRNN.from_parameters(
        [0.8, 0.5], [[0.0, 0.4], [-0.3, 0.0]], h=[0.1, 0.2],
        C=np.ones((2, inputs)) if inputs else None, process_noise=[0.1, 0.2],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x = ps.observations.Gaussian.from_parameters(
        rng.normal(size=(3, 2)), rng.normal(size=3), noise=[0.1, 0.2, 0.3],
        nuisance_weight=rng.normal(size=(3, nuisance)) if nuisance else None,
    )  # fmt: skip
    u = ps.observations.Gaussian.from_parameters(rng.normal(size=(1, 2)), noise=[0.5])
    return ps.StateSpaceModel(dynamics, {"x": x, "u": u})


def test_log_joint_is_prior_plus_every_modality_for_any_leading_axes():
    model = plrnn_model()
    data = model.simulate(6, trials=2, seed=1)
    batch = data.batch()
    z = torch.randn(4, 2, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        together = model.log_joint(batch, z)
        assert together.shape == (4, 2)
        for s in range(4):
            for b in range(2):
                one = model.dynamics.log_prob(z[s, b])
                for name, o in model.observations.items():
                    y = torch.from_numpy(data.values(name)[b])
                    one = one + o.distribution(o.features(z[s, b])).log_prob(y).sum()
                torch.testing.assert_close(together[s, b], one, rtol=1e-12, atol=1e-12)


def test_simulation_has_the_right_moments_and_reproduces():
    model = plrnn_model()
    one, again, other = (model.simulate(3, trials=4000, seed=s) for s in (5, 5, 6))
    assert np.array_equal(one.values("x"), again.values("x"))
    assert np.array_equal(one.latent, again.latent)
    assert not np.array_equal(one.values("x"), other.values("x"))
    for name, o in model.observations.items():
        with torch.no_grad():
            expected = o.features(torch.from_numpy(one.latent)).numpy()
        residual = (one.values(name) - expected).reshape(-1, o.channels)
        np.testing.assert_allclose(
            np.cov(residual.T).reshape(o.channels, -1), np.diag(o.noise.detach()), atol=0.03
        )
    z = one.latent
    step = model.dynamics.step(torch.from_numpy(z[:, :-1])).detach().numpy()
    np.testing.assert_allclose((z[:, 1:] - step).var((0, 1)), [0.1, 0.2], rtol=0.05)


def test_modalities_and_paths_do_not_share_their_noise():
    """Seeds of the path, of x and of u are different streams."""
    x, u = (ps.observations.Gaussian.from_parameters([[0.0, 0.0]], noise=[1.0]) for _ in range(2))
    model = ps.StateSpaceModel(plrnn_model().dynamics, {"x": x, "u": u})
    data = model.simulate(2000, seed=3)
    first, second = data.values("x")[0, :, 0], data.values("u")[0, :, 0]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    again = model.simulate(2000, seed=4)
    for one in (first, second):
        for other in (again.values("x")[0, :, 0], again.values("u")[0, :, 0]):
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_without_noise_it_is_the_deterministic_path_and_its_expected_observations():
    model = plrnn_model(inputs=1)
    inputs = np.arange(5.0)[:, None]
    data = model.simulate(5, trials=2, inputs=inputs, noise=False)
    z = model.dynamics.initial.mean
    for t in range(5):
        z = z if t == 0 else model.dynamics.step(z, torch.tensor([inputs[t, 0]]))
        np.testing.assert_allclose(data.latent[1, t], z.detach().numpy(), atol=1e-12)
        want = model.observations["x"].features(z[None])[0].detach().numpy()
        np.testing.assert_allclose(data.values("x")[1, t], want, atol=1e-12)


def test_without_noise_counts_and_levels_are_means_and_labels_the_most_probable():
    """Against averages over many draws along the same path."""
    o = ps.observations
    parts = {
        "count": o.Poisson(2), "label": o.Categorical(3), "binary": o.Bernoulli(2),
        "level": o.Ordinal(1, 4),
    }  # fmt: skip
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), parts)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in parts:
            weight = model.observations[name].weight
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    z = np.random.default_rng(0).normal(size=(5, 2))
    data = model.observe(z, noise=False)
    drawn = model.observe(np.repeat(z[None], 4000, axis=0), seed=1)
    assert data.kinds == {
        "count": "continuous", "label": "label", "binary": "continuous", "level": "continuous",
    }  # fmt: skip
    for name in ("count", "binary", "level"):
        values = drawn.values(name)
        error = values.std(0) / np.sqrt(len(values)) + 1e-3
        assert (np.abs(values.mean(0) - data.values(name)[0]) < 5 * error).all(), name
    labels = drawn.values("label")[..., 0].astype(int)
    share = np.stack([(labels == k).mean(0) for k in range(3)], axis=-1)
    took = data.values("label")[0, :, 0].astype(int)
    np.testing.assert_allclose(share[np.arange(5), took], share.max(-1), atol=0.03)


def test_a_constant_simulation_is_still_a_simulation():
    """A noise-free run that rests at a fixed point has channels that never vary."""
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": ps.observations.Gaussian(3)})
    data = model.simulate(10, noise=False)
    assert data.values("x").shape == (1, 10, 3)
    assert np.ptp(data.values("x"), axis=1).max() == 0


def test_observe_puts_observations_on_a_given_path():
    model = plrnn_model(nuisance=2)
    z = np.random.default_rng(1).normal(size=(7, 2))
    r = np.random.default_rng(2).normal(size=(7, 2))
    data = model.observe(z, nuisance={"x": r}, noise=False, dt=0.5)
    assert data.dt == 0.5
    np.testing.assert_array_equal(data.latent[0], z)
    o = model.observations["x"]
    weights = [v.detach().numpy() for v in (o.weight, o.bias, o.nuisance_weight)]
    np.testing.assert_allclose(
        data.values("x")[0], z @ weights[0].T + weights[1] + r @ weights[2].T, atol=1e-12
    )
    np.testing.assert_array_equal(data.nuisance("x")[0], r)
    assert torch.isfinite(ps.smooth(model, model.observe(z, nuisance={"x": r})).mean).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.simulate(4), "inputs"),
        (lambda m: m.simulate(4, inputs=np.ones((3, 1))), "inputs"),
        (lambda m: m.simulate(4, inputs=np.ones((4, 2))), "inputs"),
        (lambda m: m.simulate(4, trials=2, inputs=np.ones((3, 4, 1))), "inputs"),
        (lambda m: m.simulate(4, inputs=np.ones((4, 1))), "nuisance"),
        (
            lambda m: m.simulate(4, inputs=np.ones((4, 1)), nuisance={"x": np.ones((4, 3))}),
            "nuisance",
        ),
        (lambda m: m.observe(np.ones((4, 3))), "latent path"),
        (lambda m: ps.Fit(m).simulate(4), "inputs"),
    ],
)
def test_simulation_refuses_what_does_not_fit(call, message):
    with pytest.raises(PlssmError, match=message):
        call(plrnn_model(inputs=1, nuisance=2))


def test_check_names_what_differs():
    model = plrnn_model()
    rng = np.random.default_rng(0)
    x, u = rng.normal(size=(9, 3)), rng.normal(size=(9, 1))
    counts = rng.integers(0, 5, size=(9, 3))
    model.check(ps.Dataset.from_arrays({"x": x, "u": u, "more": u}))
    wrong = {
        "the data do not have": ps.Dataset.from_arrays({"x": x}),
        "channel": ps.Dataset.from_arrays({"x": x[:, :2], "u": u}),
        "kind": ps.Dataset.from_arrays({"x": counts, "u": u}, kinds={"x": "count"}),
        "input": ps.Dataset.from_arrays({"x": x, "u": u}, inputs=u),
        "nuisance": ps.Dataset.from_arrays({"x": x, "u": u}, nuisance={"x": u}),
    }
    for message, data in wrong.items():
        with pytest.raises(DataError, match=message) as caught:
            model.check(data)
        assert caught.value.wanted is not None
        assert caught.value.fix


@pytest.mark.parametrize("name", ["values", "a.b", "", "keys"])
def test_modality_names_that_cannot_be_are_refused_clearly(name):
    with pytest.raises(PlssmError, match="name"):
        ps.StateSpaceModel(ps.dynamics.PLRNN(2), {name: ps.observations.Gaussian(1)})


def test_an_observation_model_of_another_latent_size_is_refused():
    bound = ps.observations.Gaussian.from_parameters(np.ones((2, 3)), noise=[1.0, 1.0])
    with pytest.raises(ShapeError, match="'x'"):
        ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": bound})
    with pytest.raises(ShapeError):
        ps.StateSpaceModel(ps.dynamics.PLRNN(2), {})


def test_observations_must_be_observation_models_of_their_own():
    gaussian = ps.observations.Gaussian(2)
    with pytest.raises(ShapeError, match="wanted an observation model"):
        ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": 3})
    with pytest.raises(ShapeError, match="two modalities"):
        ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": gaussian, "y": gaussian})
