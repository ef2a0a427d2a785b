"""Forcing schemes: when and how strongly, and the estimates of the strength."""

from __future__ import annotations

import json

import pytest
import torch

from plssm.dynamics import PLRNN
from plssm.errors import PlssmError
from plssm.inference import GTF, SparseTF, TeacherForcing
from plssm.inference.forcing import make_scheme
from plssm.inference.forcing_strength import ESTIMATORS, optimal_alpha, spectral_size
from plssm.inference.parts import part_settings


def shares(scheme, steps=13, progress=0.0, seed=0):
    return scheme.begin().shares(steps, progress, torch.Generator().manual_seed(seed))


def test_sparse_forcing_replaces_the_state_at_the_interval():
    share = shares(SparseTF(4))
    assert share.nonzero()[:, 0].tolist() == [4, 8, 12]
    assert set(share.tolist()) == {0.0, 1.0}
    assert not shares(SparseTF(0)).any()


def test_random_intervals_stay_within_the_spread():
    found = {
        int(shares(SparseTF(5, spread=2), seed=s).nonzero()[0, 0]) for s in range(60)
    }  # fmt: skip
    assert found == {3, 4, 5, 6, 7}


def test_annealed_intervals_grow_from_one():
    scheme = SparseTF(6, annealed=True)
    first = [int(shares(scheme, progress=p).nonzero()[0, 0]) for p in (0.0, 0.5, 0.999, 1.0)]
    assert first == [1, 3, 5, 6]


def test_gtf_is_constant_or_falls_exponentially():
    assert torch.allclose(shares(GTF(0.3)), torch.tensor([0.0] + 12 * [0.3]))
    falling = GTF(0.2, final_alpha=0.02)
    for progress, alpha in ((0.0, 0.2), (0.5, 0.2 * 0.1**0.5), (1.0, 0.02)):
        assert float(shares(falling, progress=progress)[1]) == pytest.approx(alpha)


def test_estimates_of_constant_jacobians():
    """For one symmetric matrix all along, every estimate is its spectral norm."""
    matrix = torch.tensor([[1.2, 0.3], [0.3, 0.7]]).double()
    norm = float(torch.linalg.eigvalsh(matrix)[-1])
    jacobians = matrix.expand(3, 7, 2, 2)
    for name in ESTIMATORS:
        assert spectral_size(jacobians, name) == pytest.approx(norm, rel=1e-10)
    assert optimal_alpha(norm) == pytest.approx(1 - 1 / norm)
    assert optimal_alpha(0.5) == 0.0


def test_estimates_by_their_definition():
    jacobians = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    norms = torch.linalg.svdvals(jacobians)[..., 0]
    wanted = {
        "product": float(norms.prod(1).pow(1 / 5).max()),
        "mean": float(torch.linalg.svdvals(jacobians.mean(1))[:, 0].max()),
        "maximum": float(norms.max()),
    }
    for name, value in wanted.items():
        assert spectral_size(jacobians, name) == pytest.approx(value, rel=1e-10)


def test_explog_of_commuting_matrices_is_the_geometric_mean():
    first = torch.tensor([[1.5, 0.2], [0.2, 0.9]]).double()
    second = first @ first
    jacobians = torch.stack([first, second])[None]
    norm = float(torch.linalg.eigvalsh(first)[-1])
    assert spectral_size(jacobians, "explog") == pytest.approx(norm**1.5, rel=1e-9)


def test_adaptive_strength_rises_at_once_and_falls_slowly():
    scheme = GTF(alpha=0.5, adaptive_by="product", hold=0.9)
    forcing = scheme.begin()
    scheme.adapt(4.0 * torch.eye(2).expand(1, 3, 2, 2), forcing)
    assert forcing.alpha == pytest.approx(0.75)
    scheme.adapt(0.5 * torch.eye(2).expand(1, 3, 2, 2), forcing)
    assert forcing.alpha == pytest.approx(0.9 * 0.75)


@pytest.mark.parametrize("scheme", [GTF(0.2, adaptive_by="mean"), SparseTF(7, spread=2)])
def test_schemes_survive_json(scheme):
    plain = json.loads(json.dumps(part_settings(scheme)))
    assert make_scheme(plain) == scheme
    engine = TeacherForcing(scheme=scheme, steps=3)
    assert TeacherForcing(**json.loads(json.dumps(engine.settings()))) == engine


@pytest.mark.parametrize(
    "make",
    [
        lambda: GTF(1.5),
        lambda: GTF(0.0, final_alpha=0.1),
        lambda: GTF(adaptive_by="guess"),
        lambda: SparseTF(-1),
        lambda: SparseTF("often"),
        lambda: SparseTF(3, spread=3),
        lambda: TeacherForcing(scheme="gtf"),
        lambda: TeacherForcing(steps=0),
        lambda: TeacherForcing(restarts=2, checkpoint="x"),
        lambda: TeacherForcing(dtype="float16"),
        lambda: TeacherForcing(modality_weights={"x": 2.0}),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(PlssmError):
        make()


def test_jacobians_of_the_model_set_the_strength():
    dynamics = PLRNN.from_parameters(A=[3.0, 0.5], W=[[0.0, 0.0], [0.0, 0.0]])
    forcing = GTF(adaptive_by="maximum").begin()
    forcing.scheme.adapt(dynamics.jacobian(torch.randn(2, 4, 2).double()), forcing)
    assert forcing.alpha == pytest.approx(2 / 3)
