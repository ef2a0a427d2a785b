"""The chain solver against the plain twin, dense algebra and the density it maximises."""

from __future__ import annotations

import numpy as np
import pytest

from plssm.kernels._chain_twin import assemble_twin, factor_twin, solve_twin
from plssm.kernels.chain import solve_chain


def random_model(rng, trials, steps, m):
    """Random arguments of solve_chain, nothing shared, full noise covariances."""
    root = rng.normal(size=(m, m + 3))
    curved = rng.normal(size=(trials, steps, m, m))
    return {
        "jacobian": rng.normal(size=(trials, steps - 1, m, m)) * 0.6,
        "offset": rng.normal(size=(trials, steps - 1, m)),
        "precision": np.linalg.inv(root @ root.T),
        "initial_mean": rng.normal(size=(trials, m)),
        "initial_precision": root @ root.T,
        "information": curved @ curved.transpose(0, 1, 3, 2),
        "score": rng.normal(size=(trials, steps, m)),
    }


def check_against_twin(model, length):
    mode, f = solve_chain(**model, length=length)
    assert not f.status.any()
    for b, n in enumerate(length):
        j = model["jacobian"][b if len(model["jacobian"]) > 1 else 0]
        r = model["information"][b if len(model["information"]) > 1 else 0]
        diag, off, v = assemble_twin(
            j if len(j) == 1 else j[: n - 1],
            model["offset"][b, : n - 1],
            model["precision"],
            model["initial_mean"][b],
            model["initial_precision"],
            r if len(r) == 1 else r[:n],
            model["score"][b, :n],
        )
        upper, coupling, logdet = factor_twin(diag, off)
        z = solve_twin(upper, coupling, v)
        np.testing.assert_allclose(mode[b, :n], z, atol=1e-8, rtol=1e-8)
        np.testing.assert_allclose(f.logdet[b], logdet, rtol=1e-11, atol=1e-10)
        np.testing.assert_allclose(f.quadratic[b], (v * z).sum(), rtol=1e-8)
        np.testing.assert_allclose(f.R[b, :n], upper, atol=1e-8)
        assert not mode[b, n:].any()


@pytest.mark.parametrize(("trials", "steps", "m"), [(3, 7, 3), (3, 1, 2), (3, 5, 1), (2, 6, 10)])
def test_equals_twin(trials, steps, m):
    rng = np.random.default_rng(steps)
    model = random_model(rng, trials, steps, m)
    length = rng.integers(1, steps + 1, size=trials)
    length[-1] = steps
    check_against_twin(model, length)


@pytest.mark.parametrize("jacobian", ["trials", "steps", "both"])
@pytest.mark.parametrize("information", ["trials", "steps", "both"])
def test_shared_axes(jacobian, information):
    rng = np.random.default_rng(5)
    model = random_model(rng, 3, 6, 3)
    for name, shared in (("jacobian", jacobian), ("information", information)):
        trials = slice(None) if shared == "steps" else slice(1)
        steps = slice(None) if shared == "trials" else slice(1)
        model[name] = model[name][trials, steps]
    check_against_twin(model, np.array([6, 1, 4]))


def test_mode_is_where_the_gradient_of_the_density_vanishes():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    model = {k: torch.from_numpy(v) for k, v in random_model(rng, 3, 5, 2).items()}
    mode, f = solve_chain(**{k: v.numpy() for k, v in model.items()})

    def log_joint(z):
        first = z[:, 0] - model["initial_mean"]
        e = z[:, 1:] - torch.einsum("btij,btj->bti", model["jacobian"], z[:, :-1])
        e = e - model["offset"]
        curved = torch.einsum("btij,btj->bti", model["information"], z)
        return (
            -0.5 * ((first @ model["initial_precision"]) * first).sum()
            - 0.5 * ((e @ model["precision"]) * e).sum()
            + ((model["score"] - 0.5 * curved) * z).sum()
        )

    z = torch.from_numpy(mode).requires_grad_()
    (gradient,) = torch.autograd.grad(log_joint(z), z)
    assert gradient.abs().max() < 1e-9
    hessian = torch.autograd.functional.hessian(log_joint, z.detach())
    for b in range(3):
        u = -hessian[b, :, :, b].reshape(10, 10).numpy()
        np.testing.assert_allclose(f.logdet[b], np.linalg.slogdet(u)[1], rtol=1e-11)


def test_failed_trial_gives_zeros_and_leaves_the_others_alone():
    rng = np.random.default_rng(7)
    model = random_model(rng, 3, 5, 3)
    good, _ = solve_chain(**model)
    model["information"][1, 2] = -1e6 * np.eye(3)
    mode, f = solve_chain(**model)
    np.testing.assert_array_equal(f.status, [0, 3, 0])
    assert not mode[1].any()
    assert f.quadratic[1] == 0
    np.testing.assert_array_equal(mode[[0, 2]], good[[0, 2]])


def test_inputs_are_not_changed():
    rng = np.random.default_rng(8)
    model = random_model(rng, 2, 4, 2)
    before = {k: v.copy() for k, v in model.items()}
    solve_chain(**model)
    for name, array in model.items():
        np.testing.assert_array_equal(array, before[name])


def test_wrong_shape_names_the_argument():
    model = random_model(np.random.default_rng(9), 2, 4, 2)
    model["offset"] = model["offset"][:, :1]
    with pytest.raises(ValueError, match=r"offset must be \(2, 3, 2\)"):
        solve_chain(**model)
