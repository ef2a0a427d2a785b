"""Compiled free runs against a plain loop."""

import numpy as np
import pytest

from plssm.kernels.rollout import rollout, rollout_plain


def random_form(rng, size, gates, inputs=2):
    """Arrays of a ReLU form; gates None means identity gates."""
    linear = np.diag(rng.uniform(0.3, 0.9, size))
    inner = np.eye(size) if gates is None else rng.normal(size=(gates, size))
    offset = np.zeros(size) if gates is None else rng.normal(size=gates)
    outer = rng.normal(size=(size, offset.size)) * 0.2
    return linear, rng.normal(size=size), outer, inner, offset, rng.normal(size=(size, inputs))


@pytest.mark.parametrize("gates", [None, 0, 1, 7])
@pytest.mark.parametrize("driven", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_equals_the_plain_loop(gates, driven, noisy):
    rng = np.random.default_rng(0)
    form = random_form(rng, 3, gates)
    start = rng.normal(size=(3, 3))
    drive = rng.normal(size=(3, 20, 2)) if driven else None
    noise = rng.normal(size=(3, 20, 3)) if noisy else None
    got = rollout(*form, start, 20, drive, noise)
    assert got.shape == (3, 20, 3)
    np.testing.assert_allclose(got, rollout_plain(*form, start, 20, drive, noise), atol=1e-12)


def test_identity_gates_equal_the_general_path():
    rng = np.random.default_rng(1)
    linear, bias, outer, inner, offset, inputs = random_form(rng, 4, None)
    start = rng.normal(size=(3, 4))
    twice = rollout(
        linear, bias, np.hstack([outer / 2, outer / 2]), np.vstack([inner, inner]),
        np.zeros(8), inputs, start, 30,
    )  # fmt: skip
    got = rollout(linear, bias, outer, inner, offset, inputs, start, 30)
    np.testing.assert_allclose(got, twice, atol=1e-12)


def test_one_dimension_and_closed_form():
    half = np.full((1, 1), 0.5)
    no_gates = (np.zeros((1, 0)), np.zeros((0, 1)), np.zeros(0), np.zeros((1, 0)))
    got = rollout(half, np.ones(1), *no_gates, np.array([[4.0]]), 10)
    np.testing.assert_allclose(got[0, :, 0], 2 + 2 * 0.5 ** np.arange(1, 11), rtol=1e-15)


def test_runs_that_leave_the_finite_numbers_go_on():
    form = (2 * np.eye(2), np.zeros(2), np.zeros((2, 2)), np.eye(2), np.zeros(2), np.zeros((2, 0)))
    start = np.array([[1.0, 1.0], [np.nan, 1.0], [0.0, 0.0]])
    got = rollout(*form, start, 1100)
    assert not np.isfinite(got[0, -1]).any()
    assert np.isnan(got[1, -1, 0])
    assert (got[2] == 0).all()


def test_no_steps_and_wrong_shapes():
    form = random_form(np.random.default_rng(2), 2, 3)
    assert rollout(*form, np.zeros((3, 2)), 0).shape == (3, 0, 2)
    with pytest.raises(ValueError, match="drive"):
        rollout(*form, np.zeros((3, 2)), 5, np.zeros((3, 4, 2)))
    with pytest.raises(ValueError, match="start"):
        rollout(*form, np.zeros((3, 4)), 5)
    with pytest.raises(ValueError, match="noise"):
        rollout(*form, np.zeros((3, 2)), 5, None, np.zeros((3, 5, 1)))


def test_read_only_arrays_are_accepted():
    form = random_form(np.random.default_rng(3), 3, None)
    start = np.ones((3, 3))
    for array in (*form, start):
        array.setflags(write=False)
    assert np.isfinite(rollout(*form, start, 5)).all()
