"""Make the simulated sets that plssm ships: ``python datasets/simulated/make.py [FOLDER]``.

Each npz holds a dataset (`plssm.Dataset.load` reads it), its true latent path, and the parameters
it was made with as arrays named ``truth_...``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import plssm as ps
from plssm.data.archive import write_npz

FOLDER = Path(ps.__file__).parent / "data" / "simulated"


def loadings(rng: np.random.Generator, channels: int, dim: int) -> np.ndarray:
    """Return an observation matrix [channels, dim], rounded so that it can be printed."""
    return np.round(rng.normal(size=(channels, dim)), 2)


def linear() -> dict[str, np.ndarray]:
    """A damped rotation and a slow decay, pushed by one input; 12 trials of 30 to 80 steps."""
    rng = np.random.default_rng(1)
    angle, radius = 0.3, 0.97
    turn = radius * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    A = np.round(np.block([[turn, np.zeros((2, 1))], [np.zeros((1, 2)), np.full((1, 1), 0.9)]]), 3)
    truth = dict(
        A=A,
        h=np.array([0.0, 0.0, 0.1]),
        C=np.array([[0.5], [0.0], [-0.5]]),
        process_noise=np.full(3, 0.02),
        initial_mean=np.array([1.0, 0.0, 0.0]),
        initial_noise=np.full(3, 0.1),
        B=loadings(rng, 6, 3),
        bias=np.round(rng.normal(size=6), 2),
        noise=np.full(6, 0.05),
    )
    dynamics = ps.dynamics.LinearDynamics.from_parameters(
        **{k: truth[k] for k in ("A", "h", "C", "process_noise", "initial_mean", "initial_noise")}
    )
    lengths = rng.integers(30, 81, size=12)
    pulses = (rng.random((12, 80, 1)) < 0.05).astype(float)
    full = _model(dynamics, truth).simulate(80, trials=12, inputs=pulses, dt=0.1, seed=1)
    x, z = full.values("x"), full.latent
    data = ps.Dataset.from_arrays(
        {"x": [x[i, :n] for i, n in enumerate(lengths)]},
        dt=0.1,
        inputs=[pulses[i, :n] for i, n in enumerate(lengths)],
        latent=[z[i, :n] for i, n in enumerate(lengths)],
    )
    return _arrays(data, truth)


def plrnn() -> dict[str, np.ndarray]:
    """A chaotic PLRNN with three states; 20 trials of 100 steps, 5 % of the entries missing."""
    rng = np.random.default_rng(2)
    truth = dict(
        A=np.array([0.55, 0.91, 0.95]),
        W=np.array([[0.0, 0.42, 1.02], [-0.29, 0.0, 1.45], [-1.23, -0.75, 0.0]]),
        h=np.array([-0.43, -0.32, 0.11]),
        process_noise=np.full(3, 2.5e-3),
        initial_mean=np.array([-0.5, -1.2, -0.3]),
        initial_noise=np.full(3, 0.5),
        B=loadings(rng, 10, 3),
        bias=np.round(rng.normal(size=10), 2),
        noise=np.full(10, 0.05),
    )
    names = ("A", "W", "h", "process_noise", "initial_mean", "initial_noise")
    dynamics = ps.dynamics.PLRNN.from_parameters(**{k: truth[k] for k in names})
    full = _model(dynamics, truth).simulate(100, trials=20, seed=2)
    x = np.where(rng.random((20, 100, 10)) < 0.05, np.nan, full.values("x"))
    data = ps.Dataset.from_arrays({"x": x}, latent=full.latent)
    return _arrays(data, truth)


def lorenz63() -> dict[str, np.ndarray]:
    """One orbit of the Lorenz system, 1000 steps of 0.02, z-scored, noise 0.1 added."""
    rng = np.random.default_rng(3)
    path = ps.data.synthetic.lorenz63(1000, 0.02, seed=3)[0]
    mean, scale = path.mean(axis=0), path.std(axis=0)
    z = (path - mean) / scale
    x = z + 0.1 * rng.normal(size=z.shape)
    data = ps.Dataset.from_arrays({"x": x[None]}, dt=0.02, latent=z[None])
    return _arrays(data, dict(mean=mean, scale=scale, noise=np.full(3, 0.01)))


def _model(dynamics: ps.dynamics.LatentDynamics, truth: dict) -> ps.StateSpaceModel:
    observe = ps.observations.Gaussian.from_parameters(
        truth["B"], bias=truth["bias"], noise=truth["noise"]
    )
    return ps.StateSpaceModel(dynamics, {"x": observe})


def _arrays(data: ps.Dataset, truth: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return data.to_dict() | {f"truth_{name}": value for name, value in truth.items()}


def main(folder: Path = FOLDER) -> None:
    """Write the three sets.

    Args:
        folder: Folder to write to.
    """
    for make in (linear, plrnn, lorenz63):
        path = write_npz(folder / f"simulated_{make.__name__}.npz", make())
        print(f"{path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
