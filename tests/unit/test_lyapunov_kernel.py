"""Lyapunov sums against closed forms, published values and a Householder twin."""

import numpy as np
import pytest

from plssm.kernels.lyapunov import lyapunov_sums, lyapunov_sums_plain


def linear_form(matrix, bias=None):
    size = len(matrix)
    bias = np.zeros(size) if bias is None else bias
    none = np.zeros((size, 0))
    return matrix, bias, none, none.T, np.zeros(0), none


def lozi(a=1.7, b=0.5):
    """x' = 1 - a|x| + y, y' = b x, with |x| = 2 relu(x) - x."""
    return (
        np.array([[a, 1.0], [b, 0.0]]), np.array([1.0, 0.0]), np.array([[-2 * a], [0.0]]),
        np.array([[1.0, 0.0]]), np.zeros(1), np.zeros((2, 0)),
    )  # fmt: skip


def test_linear_map_has_the_logarithms_of_its_eigenvalues():
    rng = np.random.default_rng(0)
    basis = np.eye(4) + 0.3 * rng.normal(size=(4, 4))
    values = np.array([0.95, 0.7, -0.5, 0.1])
    matrix = basis @ np.diag(values) @ np.linalg.inv(basis)
    for every in (1, 4):
        sums, _, failed = lyapunov_sums(
            *linear_form(matrix), np.ones(4), 200, warmup=400, every=every
        )
        assert failed == 0
        np.testing.assert_allclose(np.sort(sums / 200)[::-1], np.log(np.abs(values)), atol=1e-10)


def test_rotation_has_exponents_of_its_modulus():
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    sums, _, _ = lyapunov_sums(*linear_form(0.9 * turn), np.ones(2), 100)
    np.testing.assert_allclose(sums / 100, np.log(0.9), atol=1e-13)


def test_tent_map_has_the_logarithm_of_its_slope():
    slope = 1.9  # x' = slope min(x, 1 - x) = slope x - 2 slope relu(x - 1/2)
    form = (
        np.array([[slope]]), np.zeros(1), np.array([[-2 * slope]]), np.ones((1, 1)),
        np.array([-0.5]), np.zeros((1, 0)),
    )  # fmt: skip
    sums, state, failed = lyapunov_sums(*form, np.array([0.3]), 5000, transient=100)
    assert failed == 0 and 0 < state[0] < 1
    assert sums[0] / 5000 == pytest.approx(np.log(slope), abs=1e-12)


def test_lozi_map_has_the_published_exponents():
    # Sprott 2003, Chaos and Time-Series Analysis, appendix A: 0.4702, -1.1634
    steps = 400_000
    sums, _, failed = lyapunov_sums(*lozi(), np.array([0.1, 0.1]), steps, transient=1000,
                                    warmup=100)  # fmt: skip
    assert failed == 0
    np.testing.assert_allclose(sums / steps, [0.4702, -1.1634], atol=2e-3)
    assert sums.sum() / steps == pytest.approx(np.log(0.5), abs=1e-9)  # |det J| = b


@pytest.mark.parametrize("gates", [None, 6])
@pytest.mark.parametrize("driven", [False, True])
def test_equals_the_householder_twin(gates, driven):
    rng = np.random.default_rng(1)
    size = 4
    inner = np.eye(size) if gates is None else rng.normal(size=(gates, size))
    offset = np.zeros(size) if gates is None else rng.normal(size=gates)
    form = (
        np.diag(rng.uniform(0.2, 0.6, size)), rng.normal(size=size),
        rng.normal(size=(size, offset.size)) * 0.2, inner, offset, rng.normal(size=(size, 2)),
    )  # fmt: skip
    options = {"transient": 7, "warmup": 15}
    options["drive"] = rng.normal(size=(82, 2)) if driven else None
    options["tangent"] = np.linalg.qr(rng.normal(size=(size, size)))[0]
    start = rng.normal(size=size)
    sums, _, failed = lyapunov_sums(*form, start, 60, **options)
    assert failed == 0
    np.testing.assert_allclose(sums, lyapunov_sums_plain(*form, start, 60, **options), atol=1e-9)
    fewer, _, _ = lyapunov_sums(*form, start, 60, every=7, **options)
    np.testing.assert_allclose(fewer, sums, atol=1e-6)


def test_twin_agrees_on_a_chaotic_orbit():
    start = np.array([0.1, 0.1])
    got = lyapunov_sums(*lozi(), start, 40)[0]  # too short for rounding to part the orbits
    np.testing.assert_allclose(got, lyapunov_sums_plain(*lozi(), start, 40), atol=1e-6)


def test_strong_contraction_stays_resolved():
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    values = 10.0 ** -np.arange(0.0, 12.0, 2.0)
    sums, _, _ = lyapunov_sums(*linear_form(basis @ np.diag(values) @ basis.T), np.ones(6), 50,
                               warmup=20)  # fmt: skip
    np.testing.assert_allclose(sums / 50, np.log(values), rtol=1e-4, atol=1e-12)


def test_collapsed_directions_and_divergence_are_reported():
    matrix = np.array([[0.5, 1.0, 0.3], [0.0, 0.0, 0.0], [0.2, 0.1, 0.4]])
    sums, _, failed = lyapunov_sums(*linear_form(matrix), np.ones(3), 30)
    assert failed == 0
    assert np.isfinite(np.sort(sums)[1:]).all() and np.sort(sums)[0] == -np.inf
    _, _, failed = lyapunov_sums(*linear_form(3 * np.eye(2)), np.ones(2), 2000)
    assert 600 < failed < 700
    assert lyapunov_sums(*linear_form(np.eye(2)), np.array([np.nan, 0.0]), 5)[2] == 1


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="drive"):
        lyapunov_sums(*lozi(), np.zeros(2), 5, drive=np.zeros((5, 1)))
    with pytest.raises(ValueError, match="tangent"):
        lyapunov_sums(*lozi(), np.zeros(2), 5, tangent=np.eye(3))
    with pytest.raises(ValueError, match="start"):
        lyapunov_sums(*lozi(), np.zeros(3), 5)
