"""Random start values of dynamics: the published distributions, and what they leave alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from plssm.dynamics import (
    PLRNN,
    AlmostLinearRNN,
    DendriticPLRNN,
    LatentDynamics,
    LinearDynamics,
    ShallowPLRNN,
)
from plssm.errors import CapabilityError

FRESH = {
    "plrnn": lambda: PLRNN(6, 2),
    "shallow": lambda: ShallowPLRNN(6, 25, 2),
    "unclipped": lambda: ShallowPLRNN(6, 25, 2, clipped=False),
    "dendritic": lambda: DendriticPLRNN(6, 9, 2),
    "almost linear": lambda: AlmostLinearRNN(6, 2, 2),
}


@pytest.mark.parametrize("name", FRESH)
def test_start_values_are_the_published_ones(name):
    """Supports from the formulas; means within five standard errors over 300 draws."""
    dynamics, generator = FRESH[name](), torch.Generator().manual_seed(7)
    drawn = {n: [] for n, p in dynamics.named_parameters() if "." not in n}
    for _ in range(300):
        dynamics.draw_start(generator)
        for n, values in drawn.items():
            values.append(dynamics.get_parameter(n).detach().clone())
    drawn = {n: torch.stack(values).numpy() for n, values in drawn.items()}
    bounds = {"C": (6 / 8) ** 0.5, "W1": 1 / 5, "W2": 6**-0.5, "alpha": 1 / 3, "thresholds": 2.0}
    bounds["h2"] = 1 / 5 if getattr(dynamics, "clipped", False) else 0.0
    for n, bound in {n: b for n, b in bounds.items() if n in drawn}.items():
        sd = drawn[n].std()
        assert np.abs(drawn[n]).max() <= bound, n
        np.testing.assert_allclose(sd, bound / 3**0.5, rtol=0.02, err_msg=n)
        assert np.abs(drawn[n].mean()) <= 5 * sd / drawn[n].size ** 0.5, n
    assert ((drawn["A"] > 0) & (drawn["A"] < 1)).all()
    assert not any(np.any(drawn[n]) for n in ("h", "h1") if n in drawn)
    if name in ("plrnn", "dendritic"):
        together = drawn["W"] + drawn["A"][:, :, None] * np.eye(6)
        spectrum = np.linalg.eigvalsh(together)
        np.testing.assert_allclose(spectrum[:, -1], 1.0, rtol=1e-12)
        assert spectrum[:, 0].min() > 0
    if name == "almost linear":
        np.testing.assert_allclose(drawn["W"].std(), 0.01, rtol=0.02)


@pytest.mark.parametrize("name", [n for n in FRESH if n != "plrnn"])
def test_fresh_members_are_the_same_every_time(name):
    one, other = FRESH[name](), FRESH[name]()
    again = copy.deepcopy(one)
    again.draw_start(torch.Generator().manual_seed(0))
    for n, p in one.named_parameters():
        assert torch.equal(p, other.get_parameter(n)), n
        assert torch.equal(p, again.get_parameter(n)), n
    assert not one.initialised


def test_drawing_respects_what_is_frozen_one_by_one_and_the_precision():
    dynamics = ShallowPLRNN(3, 5, 2).float()
    dynamics.h1 = [1.0, 2.0, 3.0]
    before = {n: p.detach().clone() for n, p in dynamics.named_parameters()}
    dynamics.W2.requires_grad_(False)
    dynamics.draw_start(torch.Generator().manual_seed(3))
    for n in ("A", "W1", "W2", "h1", "h2", "C"):
        p = dynamics.get_parameter(n)
        assert p.dtype == torch.float32
        assert torch.equal(p, before[n]) == (n == "W2"), n


def test_linear_start_values_are_stable_and_other_classes_say_they_have_none():
    linear = LinearDynamics(5, 1)
    for seed in range(20):
        linear.draw_start(torch.Generator().manual_seed(seed))
        assert np.abs(np.linalg.eigvals(linear.A.detach())).max() <= 0.95
    assert not linear.h.any()

    class Smooth(LatentDynamics):
        def step(self, z, s=None):
            return torch.tanh(z)

    with pytest.raises(CapabilityError, match="Smooth has no random start values"):
        Smooth(2).draw_start(torch.Generator())
