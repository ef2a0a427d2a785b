"""Compiled sums for labels against plain arrays, automatic derivatives and the general class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plssm.data.batch import Modality
from plssm.kernels.predictor_newton import BLOCK
from plssm.kernels.softmax_expectation import (
    expected_softmax,
    expected_softmax_plain,
    softmax_residuals,
    softmax_samples,
)
from plssm.observations import Bernoulli, Categorical
from plssm.observations.labels.expectation import SoftmaxExpectation
from plssm.observations.learning.expected_fit import make_expectation
from plssm.observations.learning.point_expectation import PointExpectation


# ---- the kernel ------------------------------------------------------------------------------
def _arrays(samples, channels, classes, size, extra, pairs, *, observed=0.7, known=False, seed=0):
    """Arguments of `softmax_samples`, then coefficients."""
    rng = np.random.default_rng(seed)
    predictors = channels * (classes - 1)
    given = {
        "regressors": rng.normal(size=(samples, size + extra)),
        "label": rng.integers(0, classes, (samples, channels)),
        "mask": rng.random((samples, channels)) < observed,
        "classes": classes,
        "root": rng.normal(size=(samples, size, size)) if pairs else None,
        "points": rng.normal(size=(pairs, size)) if pairs else None,
        "offset": rng.normal(size=(samples, predictors)) if known else None,
    }
    return given, rng.normal(size=(predictors, size + extra))


def _assert_close(got, wanted, tolerance=1e-12):
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("observed", [1.0, 0.6])
@pytest.mark.parametrize(
    ("samples", "channels", "classes", "size", "extra", "pairs"),
    [
        (1, 1, 2, 1, 1, 16),
        (9, 1, 8, 3, 1, 16),
        (BLOCK, 1, 3, 2, 3, 5),
        (BLOCK + 1, 1, 8, 5, 1, 4),
        (2 * BLOCK - 3, 3, 2, 4, 2, 7),
        (70, 2, 4, 3, 1, 3),
        (12, 1, 3, 18, 1, 18),
        (BLOCK + 2, 1, 8, 5, 2, 0),
        (5, 4, 2, 3, 0, 0),
    ],
)
def test_equals_the_twin(samples, channels, classes, size, extra, pairs, observed):
    given, theta = _arrays(samples, channels, classes, size, extra, pairs, observed=observed)
    wanted = expected_softmax_plain(**given, theta=theta)
    laid_out = softmax_samples(**given)
    _assert_close(expected_softmax(laid_out, theta), wanted)
    value, gradient, curvature = expected_softmax(laid_out, theta, curvature=False)
    _assert_close((value, gradient), wanted[:2])
    assert curvature is None


def test_a_known_part_of_the_predictors():
    given, theta = _arrays(BLOCK + 4, 1, 5, 3, 1, 6, known=True)
    wanted = expected_softmax_plain(**given, theta=theta)
    _assert_close(expected_softmax(softmax_samples(**given), theta), wanted)


def test_threads_give_the_same():
    given, theta = _arrays(20 * BLOCK, 1, 6, 9, 1, 16)
    laid_out = softmax_samples(**given)
    wanted = expected_softmax(laid_out, theta)
    for threads in (2, 3):
        _assert_close(expected_softmax(laid_out, theta, threads=threads), wanted)


def test_numbers_of_samples_without_an_observation_do_not_matter():
    given, theta = _arrays(40, 1, 4, 3, 1, 8)
    wanted = expected_softmax(softmax_samples(**given), theta)
    unseen = ~given["mask"][:, 0]
    given["regressors"][unseen] = given["root"][unseen] = np.nan
    given["label"] = np.where(unseen[:, None], -7, given["label"])
    _assert_close(expected_softmax(softmax_samples(**given), theta), wanted, 0.0)
    given["mask"][:] = False
    for part in expected_softmax(softmax_samples(**given), theta):
        assert not part.any()


def test_residuals_are_derivatives_in_the_known_part():
    given, theta = _arrays(30, 2, 3, 3, 1, 8, known=True)
    X, offset = (torch.from_numpy(given[k]) for k in ("regressors", "offset"))
    points = torch.from_numpy(np.concatenate([given["points"], -given["points"]]))
    states = X.expand(len(points), -1, -1).clone()
    states[..., :3] += torch.einsum("sij,cj->csi", torch.from_numpy(given["root"]), points)
    hit = torch.from_numpy(given["label"][..., None] == np.arange(3))
    hit &= torch.from_numpy(given["mask"])[..., None]

    def value(offset):
        eta = (states @ torch.from_numpy(theta).mT + offset).unflatten(-1, (2, 2))
        logits = torch.log_softmax(torch.nn.functional.pad(eta, (0, 1)), -1)
        return torch.where(hit, logits, 0.0).sum() / len(points)

    laid_out = softmax_samples(**given)
    wanted = torch.autograd.functional.jacobian(value, offset).numpy()
    got = softmax_residuals(laid_out, theta)
    np.testing.assert_allclose(got, wanted[laid_out.rows], rtol=1e-11, atol=1e-13)
    assert not wanted[np.setdiff1d(np.arange(30), laid_out.rows)].any()
    np.testing.assert_allclose(expected_softmax(laid_out, theta)[0].sum(), value(offset))


@pytest.mark.parametrize("far", [30.0, 800.0, 1e6])
def test_certain_classes_keep_digits(far):
    """Two classes: p (1 - p) and the value where one is nearly certain, by exponentials alone."""
    given, _ = _arrays(1, 1, 2, 1, 0, 0, observed=1.1)
    given["regressors"][:], given["label"][:] = 1.0, 0
    value, _, curvature = expected_softmax(softmax_samples(**given), np.array([[far]]))
    np.testing.assert_allclose(curvature, np.exp(-far), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(value, -np.exp(-far), atol=1e-16)
    given["label"][:] = 1
    value, gradient, _ = expected_softmax(softmax_samples(**given), np.array([[far]]))
    np.testing.assert_allclose([value[0], gradient[0, 0]], [-far, -1.0], rtol=1e-12)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_predictors_that_overflow_have_no_value(bad):
    given, theta = _arrays(6, 1, 3, 2, 1, 4, observed=1.1)
    theta[0, 0] = bad
    assert not np.isfinite(expected_softmax(softmax_samples(**given), theta)[0]).any()


# ---- the class that models use ---------------------------------------------------------------
def _problem(model, *, dim=3, steps=40, seed=0):
    """A bound model, three trials with masks and a clock, and the moments of their states."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    model.bind(dim)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(normal(*p.shape).to(torch.float32))  # the same numbers in both types
    mean, root = normal(3, steps, dim), 0.6 * normal(3, steps, dim, dim)
    mask = torch.rand(3, steps, model.channels, generator=generator) > 0.3
    mask[1, steps // 2 :] = False
    mask[0, 0] = True
    clock = torch.arange(steps).expand(3, -1).flip(0)
    nuisance = normal(3, steps, model.nuisance) if model.nuisance else None
    y = torch.randint(0, model.levels, mask.shape, generator=generator).to(torch.float64)
    m = Modality(torch.where(mask, y, 0.0), mask, clock, nuisance)
    return model.to(torch.float64), m, mean, root @ root.mT


MODELS = [
    Categorical(2),
    Categorical(3, nuisance=2),
    Categorical(8),
    Categorical(8, bias=False),
    Categorical(3, readout="identity"),
    Categorical(2, readout="relu"),
    Categorical(8, readout="relu", nuisance=1),
    Bernoulli(3),
    Bernoulli(3, readout="relu", nuisance=2),
]


@pytest.mark.parametrize("steps", [40, 1])
@pytest.mark.parametrize("certain", [False, True])
@pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{type(m).__name__}{m.levels}")
def test_equals_the_general_class(model, certain, steps):
    model, m, mean, covariance = _problem(model, steps=steps)
    centre, spread = model.at_samples(mean, m), model.at_samples(covariance, m, event=2)
    kinds = (SoftmaxExpectation, PointExpectation)
    compiled, general = (k(model, m, centre, None if certain else spread) for k in kinds)
    theta = general.coefficients.read().detach()
    for scale in (1.0, -0.3):
        got, wanted = compiled.expand(scale * theta), general.expand(scale * theta)
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
        slim = compiled.expand(scale * theta, curvature=False)
        assert torch.equal(slim.gradient, got.gradient)
        assert slim.curvature is None
        values = general.values(scale * theta)
        torch.testing.assert_close(compiled.values(scale * theta), values, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(compiled.score(), general.score(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{type(m).__name__}{m.levels}")
def test_float32_models_are_summed_in_float64(model):
    model, m, *moments = _problem(model)

    def expand(kind, dtype):
        mean, covariance = (x.to(torch.float32).to(dtype) for x in moments)
        nuisance = None if m.nuisance is None else m.nuisance.to(torch.float32).to(dtype)
        own = replace(m, y=m.y.to(dtype), nuisance=nuisance)
        model.to(dtype)
        centre, spread = model.at_samples(mean, own), model.at_samples(covariance, own, event=2)
        expectation = kind(model, own, centre, spread)
        return expectation.expand(expectation.coefficients.read().detach())

    got, rounded = (expand(k, torch.float32) for k in (SoftmaxExpectation, PointExpectation))
    for a, b, c in zip(got, expand(PointExpectation, torch.float64), rounded, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)


def test_models_with_a_softmax_use_it():
    for model in (Categorical(4), Categorical(3, readout="relu"), Bernoulli(2, readout="relu")):
        problem = _problem(model)
        assert type(make_expectation(*problem)) is SoftmaxExpectation
        assert type(make_expectation(*problem[:3], None)) is SoftmaxExpectation


@pytest.mark.parametrize("model", [Categorical(5, nuisance=1), Categorical(4, readout="relu")])
def test_m_steps_of_both_classes_end_alike(model, monkeypatch):
    model, *problem = _problem(model, steps=60)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ends = []
    for kind in (SoftmaxExpectation, PointExpectation):
        monkeypatch.setattr(Categorical, "point_expectation", kind)
        model.load_state_dict(before)
        model.m_step(*problem)
        ends.append({k: v.clone() for k, v in model.state_dict().items()})
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-9, atol=1e-10)
