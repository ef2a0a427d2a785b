"""Compiled particle steps and backward draws against their plain twins and exact odds."""

import numpy as np
import pytest

from plssm.inference.particle_guide import Tilt
from plssm.kernels.particle_steps import (
    backward_draws,
    backward_draws_plain,
    particle_steps,
    particle_steps_plain,
    systematic,
)

GATES = {"linear": 0, "identity": 3, "shallow": 5}


def problem(gates, *, shared, seed=0, size=3, steps=9, count=60):
    rng = np.random.default_rng(seed)
    outer = 0.4 * rng.normal(size=(size, gates))
    inner = np.eye(size) if gates == size else rng.normal(size=(gates, size))
    offset = np.zeros(gates) if gates == size else rng.normal(size=gates)
    form = 0.5 * np.eye(size), 0.2 * rng.normal(size=size), outer, inner, offset
    a = rng.normal(size=(1 if shared else steps, 2, size))
    information, score = a.swapaxes(1, 2) @ a, rng.normal(size=(steps, size))
    covariance = 0.2 * np.eye(size) + 0.1
    return {
        "form": form,
        "z": rng.normal(size=(count, size)),
        "weight": 0.1 * rng.normal(size=count),
        "drive": 0.3 * rng.normal(size=(steps, size)),
        "terms": (score, information),
        "root": np.linalg.cholesky(covariance),
        "covariance": covariance,
    }


def guide_of(p, share=1.0):
    score, information = p["terms"]
    return Tilt.of(p["covariance"], share * information[None], share * score[None]).of_trial(
        0, 0, len(score)
    )


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("mode", ["trusted", "bootstrap", "careful"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("gates", list(GATES))
def test_steps_equal_the_plain_twin(gates, shared, mode, threshold):
    p = problem(GATES[gates], shared=shared)
    options = {"drive": p["drive"], "threshold": threshold, "guide": guide_of(p)}
    if mode == "bootstrap":
        options |= {"guide": guide_of(p, 0.0), "terms": p["terms"]}
    if mode == "careful":
        score, information = p["terms"]
        guide = 0.1, 0.7 * score, 0.7 * information, p["root"]
        options |= {"guide": guide_of(p, 0.7), "terms": p["terms"], "careful": guide}
    start = p["z"].copy(), p["weight"].copy()
    one, two = (np.random.default_rng(1) for _ in range(2))
    got = particle_steps(p["form"], *start, one, **options)
    wanted = particle_steps_plain(p["form"], *start, two, **options)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    assert one.random() == two.random()  # as many random numbers were used
    np.testing.assert_array_equal(start[0], p["z"])


def test_an_overflowing_particle_dies():
    p = problem(0, shared=True)
    p["z"][3] = 1e200
    form = 1e200 * np.eye(3), *p["form"][1:]
    options = {"drive": p["drive"][:1], "guide": tuple(g[:1] for g in guide_of(p))}
    z = np.zeros_like(p["z"])
    z[3] = 1e200
    _, weight, effective = particle_steps(
        form, z, p["weight"], np.random.default_rng(0), **options, threshold=0.0
    )
    assert weight[0, 3] <= -1e299 and np.isfinite(np.delete(weight[0], 3)).all()
    assert 1 <= effective[0] <= 59


def test_wrong_shapes_are_refused():
    p = problem(0, shared=True)
    with pytest.raises(ValueError, match="drive"):
        particle_steps(
            p["form"], p["z"], p["weight"], np.random.default_rng(0),
            drive=p["drive"][:, :2], guide=guide_of(p),
        )  # fmt: skip


def test_systematic_resampling_keeps_whole_shares_and_is_unbiased():
    weight = np.log([0.5, 0.25, 0.15, 0.1])
    counts = np.array(
        [np.bincount(systematic(weight, (k + 0.5) / 1000, 10), minlength=4) for k in range(1000)]
    )
    np.testing.assert_allclose(counts.mean(0), [5, 2.5, 1.5, 1], atol=1e-12)
    assert (np.abs(counts - [5, 2.5, 1.5, 1]) < 1).all()


def test_backward_draws_equal_the_plain_twin_and_the_odds():
    rng = np.random.default_rng(2)
    candidates, weight = rng.normal(size=(2, 40)), rng.normal(size=40)
    x, place = rng.normal(size=(200, 2)), rng.random(200)
    got = backward_draws(candidates, weight, x, place)
    np.testing.assert_array_equal(got, backward_draws_plain(candidates, weight, x, place))
    count = 20_000
    drawn = backward_draws(
        candidates, weight, np.tile(x[:1], (count, 1)), (np.arange(count) + 0.5) / count
    )
    odds = np.exp(weight - 0.5 * ((x[0][:, None] - candidates) ** 2).sum(0))
    share = np.bincount(drawn, minlength=40) / count
    np.testing.assert_allclose(share, odds / odds.sum(), atol=2 / count)


def test_a_tilt_is_the_product_of_a_gaussian_and_its_terms():
    """Against the definition, at points of the plane."""
    rng = np.random.default_rng(3)
    p = problem(0, shared=True, size=2)
    q, information = p["terms"][0][0], p["terms"][1][0]
    gain, shift, root, slope, bend, level = (part[0] for part in guide_of(p))
    f, z = rng.normal(size=2), rng.normal(size=(5, 2))

    def log_normal(x, mean, cov):
        e = x - mean
        return (
            -0.5 * ((e @ np.linalg.inv(cov)) * e).sum(1)
            - 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]
        )

    left = log_normal(z, f, p["covariance"]) + z @ q - 0.5 * ((z @ information) * z).sum(1)
    right = log_normal(z, gain @ f + shift, root @ root.T)
    np.testing.assert_allclose(left, right + level + slope @ f - 0.5 * f @ bend @ f, atol=1e-12)
