"""The state-space model: latent dynamics joined to one observation model per modality."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from plssm.data import Batch, Dataset
from plssm.dynamics.base import LatentDynamics
from plssm.errors import CapabilityError, DataError, PlssmError, ShapeError
from plssm.observations.base import ObservationModel

__all__ = ["StateSpaceModel"]


class StateSpaceModel(nn.Module):
    r"""Latent dynamics and observation models, joined.

    .. math:: p(Z, Y) = p(z_1) \prod_{t>1} p(z_t \mid z_{t-1}, s_t) \prod_m p(y^{(m)} \mid Z)

    Args:
        dynamics: The latent prior.
        observations: One observation model per modality name. Each learns the latent size here.

    Raises:
        ShapeError: If an observation model was built for another latent size.
        PlssmError: If a modality's name cannot be used.

    Example:
        >>> import plssm as ps
        >>> model = ps.StateSpaceModel(ps.dynamics.PLRNN(4), {"x": ps.observations.Gaussian(3)})
        >>> model.simulate(20, trials=2).values("x").shape
        (2, 20, 3)
    """

    def __init__(
        self, dynamics: LatentDynamics, observations: Mapping[str, ObservationModel]
    ) -> None:
        super().__init__()
        if not observations:
            raise ShapeError("StateSpaceModel needs at least one observation model.")
        self.dynamics = dynamics
        for name, observation in observations.items():
            if not name or "." in name or hasattr(nn.ModuleDict, name):
                raise PlssmError(
                    f"{name!r} cannot be the name of a modality: it is empty, has a dot in it or "
                    "is a method of torch's containers; choose another name."
                )
            if not isinstance(observation, ObservationModel):
                raise ShapeError(
                    f"observations[{name!r}] is a {type(observation).__name__}, wanted an "
                    "observation model such as plssm.observations.Gaussian(channels)."
                )
            if sum(other is observation for other in observations.values()) > 1:
                raise ShapeError(
                    f"observation model {name!r} stands for two modalities; give each its own."
                )
            try:
                observation.bind(dynamics.dim)
            except ShapeError as error:
                raise ShapeError(f"observation model {name!r}: {error}") from error
        self.observations = nn.ModuleDict(dict(observations))

    @property
    def dim(self) -> int:
        """Number of latent dimensions M."""
        return self.dynamics.dim

    def only(self, *names: str) -> StateSpaceModel:
        """The same parts with some modalities only; parameters are shared.

        Args:
            *names: The modalities.
        """
        part = copy.copy(self)
        part._modules = dict(self._modules)
        part._modules["observations"] = nn.ModuleDict({n: self.observations[n] for n in names})
        return part

    def check(self, data: Dataset) -> None:
        """Refuse data that this model cannot describe, before any work starts.

        Args:
            data: The dataset to be fitted, smoothed or scored.

        Raises:
            DataError: If a modality is missing, or sizes, kinds, inputs or nuisance regressors
                do not match the model.
        """
        if not isinstance(data, Dataset):
            raise DataError(
                "the data are not a Dataset",
                got=type(data).__name__,
                wanted="Dataset",
                fix="use Dataset.from_arrays({'x': array}, dt=...)",
            )
        for name, observation in self.observations.items():
            if name not in data.names:
                raise DataError(
                    "the model observes a modality the data do not have",
                    modality=name,
                    got=", ".join(data.names),
                    wanted=name,
                    fix="name the modality in the Dataset, or leave it out of the model",
                )
            self._check_modality(name, observation, data)
        if data.n_inputs != self.dynamics.n_inputs:
            raise DataError(
                "the number of inputs differs",
                axis="input",
                got=data.n_inputs,
                wanted=self.dynamics.n_inputs,
                fix=f"build the dynamics with inputs={data.n_inputs}, or pass matching inputs",
            )

    @staticmethod
    def _check_modality(name: str, observation: ObservationModel, data: Dataset) -> None:
        if data.kinds[name] not in observation.kinds:
            raise DataError(
                "the observation model does not describe this kind of data",
                modality=name,
                got=data.kinds[name],
                wanted=" or ".join(observation.kinds),
                fix=f"state kinds={{{name!r}: ...}} or choose another observation model",
            )
        if data.channels[name] != observation.channels:
            raise DataError(
                "the number of channels differs",
                modality=name,
                axis="channel",
                got=data.channels[name],
                wanted=observation.channels,
                fix=f"build the observation model with channels={data.channels[name]}",
            )
        regressors = data.nuisance(name)
        got = 0 if regressors is None else regressors.shape[-1]
        if got != observation.nuisance:
            raise DataError(
                "the number of nuisance regressors differs",
                modality=name,
                axis="nuisance",
                got=got,
                wanted=observation.nuisance,
                fix=f"build the observation model with nuisance={got}, or pass the regressors",
            )
        observation.check(data, name)

    def log_joint(self, batch: Batch, z: Tensor) -> Tensor:
        """Log joint density of latent paths and data.

        Args:
            batch: The data.
            z: Latent paths ``[..., B, T, M]``.

        Returns:
            Log density ``[..., B]`` in nats.
        """
        total = self.dynamics.log_prob(z, batch.inputs, batch.length)
        for name, observation in self.observations.items():
            total = total + observation.log_prob(batch.modalities[name], z)
        return total

    def simulate(
        self,
        steps: int,
        trials: int = 1,
        noise: bool = True,
        inputs: np.ndarray | Tensor | None = None,
        seed: int = 0,
        *,
        nuisance: Mapping[str, np.ndarray] | None = None,
        dt: float = 1.0,
        every: Mapping[str, int] | None = None,
    ) -> Dataset:
        """Draw latent paths from the prior and data from the observation models.

        Args:
            steps: Latent steps T.
            trials: Number of trials B.
            noise: Draw process noise, the initial state and observations; without it, the
                deterministic path from the initial mean and the expected observations.
            inputs: External inputs ``[T, K]`` or ``[B, T, K]``.
            seed: Seed of all random draws.
            nuisance: Nuisance regressors ``[n, R]`` or ``[B, n, R]`` by modality, on its samples.
            dt: Seconds per latent step.
            every: Latent steps between the samples of some modalities (see :meth:`observe`).

        Returns:
            A Dataset whose ``.latent`` holds the true paths ``[B, T, M]``.

        Raises:
            ShapeError: If steps or trials are not at least 1, or the inputs do not fit.
            PlssmError: If the run leaves the finite numbers.
        """
        for name, count in (("steps", steps), ("trials", trials)):
            if int(count) != count or count < 1:
                raise ShapeError(f"simulate: {name} is {count!r}, wanted a whole number >= 1.")
        generator = torch.Generator().manual_seed(seed)
        stacked = self.stacked_inputs(inputs, steps, trials)
        with torch.no_grad():
            z = self.dynamics.sample(
                steps, trials=trials, inputs=stacked, noise=noise, generator=generator
            )
        if not torch.isfinite(z).all():
            step = int((~torch.isfinite(z)).any(-1).any(0).nonzero()[0, 0])
            raise PlssmError(
                f"simulate: the free run left the finite numbers at step {step}: the map is not "
                f"bounded from its initial state. Simulate fewer than {step} steps, or fit again "
                "with other restarts."
            )
        return self.observe(
            z, inputs=inputs, nuisance=nuisance, noise=noise, dt=dt, seed=seed + 1, every=every
        )

    def stacked_inputs(
        self, inputs: np.ndarray | Tensor | None, steps: int, trials: int
    ) -> Tensor | None:
        """Check inputs and give every trial its own, ``[B, T, K]`` (None without inputs).

        Args:
            inputs: ``[T, K]`` or ``[B, T, K]``.
            steps: Latent steps T.
            trials: Number of trials B.

        Raises:
            ShapeError: If inputs are missing or have another shape.
        """
        wanted = self.dynamics.n_inputs
        if inputs is None:
            if wanted:
                raise ShapeError(
                    f"the dynamics take {wanted} inputs, none were given; pass inputs="
                    f"[{steps}, {wanted}] or [{trials}, {steps}, {wanted}]."
                )
            return None
        stacked = torch.from_numpy(np.array(np.asarray(inputs), dtype=np.float64))
        if stacked.ndim == 2:
            stacked = stacked.expand(trials, *stacked.shape)
        if tuple(stacked.shape) != (trials, steps, wanted):
            raise ShapeError(
                f"inputs: got {tuple(stacked.shape)}, wanted {(trials, steps, wanted)} "
                "(trials, steps, inputs)."
            )
        return stacked

    def observe(
        self,
        z: np.ndarray | Tensor,
        *,
        inputs: np.ndarray | Tensor | None = None,
        nuisance: Mapping[str, np.ndarray] | None = None,
        noise: bool = True,
        dt: float = 1.0,
        seed: int = 0,
        every: Mapping[str, int] | None = None,
    ) -> Dataset:
        """Put the observation models on given latent paths.

        Args:
            z: Latent paths ``[T, M]`` or ``[B, T, M]``, e.g. of a simulator.
            inputs: External inputs to be carried along, ``[T, K]`` or ``[B, T, K]``.
            nuisance: Nuisance regressors by modality on its samples, ``[n, R]`` or ``[B, n, R]``.
            noise: Draw observations; otherwise their expected values, which for counts, levels
                and binary channels are of the kind "continuous"; of labels the most probable.
            dt: Seconds per latent step.
            seed: Seed of the draws.
            every: Latent steps between the samples of a modality, e.g. ``{"choice": 20}``; BOLD
                otherwise comes at its repetition time, everything else at every step.

        Returns:
            A Dataset with ``.latent`` set to ``z``.
        """
        path = torch.from_numpy(np.array(np.asarray(z), dtype=np.float64))
        path = path.expand(1, *path.shape) if path.ndim == 2 else path
        if path.ndim != 3 or path.shape[-1] != self.dim:
            raise ShapeError(
                f"observe: latent path has shape {tuple(path.shape)}, wanted [T, {self.dim}] or "
                f"[trials, T, {self.dim}]."
            )
        gaps = {n: o.interval(dt) for n, o in self.observations.items()} | dict(every or {})
        self._check_gaps(gaps)
        arrays, regressors, times = {}, {}, {}
        for k, (name, observation) in enumerate(self.observations.items()):
            at, r = torch.arange(0, path.shape[1], gaps[name]), None
            if gaps[name] > 1:
                times[name] = [at.numpy() * dt] * len(path)
            if observation.nuisance:
                r = self._nuisance(name, observation, nuisance, (len(path), len(at)))
                regressors[name] = list(r.numpy())
            with torch.no_grad():
                features = observation.features_along(path, clock=at, nuisance=r, dt=dt)
                drawn = (
                    observation.sample_sequence(features, seed=seed * 1009 + k, dt=dt)
                    if noise
                    else observation.expected_sequence(features, dt=dt)
                )
            arrays[name] = list(drawn.to(torch.float64).numpy())
        stacked = self.stacked_inputs(inputs, path.shape[1], path.shape[0])
        return Dataset.from_arrays(
            arrays,
            dt,
            kinds={
                n: o.kinds[0] if noise else o.expected_kind for n, o in self.observations.items()
            },
            inputs=None if stacked is None else list(stacked.numpy()),
            times=times or None,
            nuisance=regressors or None,
            latent=list(path.numpy()),
            check_channels=False,
        )

    def _check_gaps(self, gaps: Mapping[str, int]) -> None:
        for name, gap in gaps.items():
            if name not in self.observations or int(gap) != gap or gap < 1:
                raise PlssmError(
                    f"every[{name!r}] is {gap!r}; wanted a whole number of latent steps, for one "
                    f"of {list(self.observations)}."
                )

    @staticmethod
    def _nuisance(
        name: str,
        observation: ObservationModel,
        nuisance: Mapping[str, np.ndarray] | None,
        shape: tuple[int, int],
    ) -> Tensor:
        if nuisance is None or name not in nuisance:
            raise CapabilityError(
                f"modality {name!r} has {observation.nuisance} nuisance regressors; pass "
                f"nuisance={{{name!r}: [{shape[1]}, {observation.nuisance}]}}."
            )
        r = torch.from_numpy(np.array(np.asarray(nuisance[name]), dtype=np.float64))
        r = r.expand(shape[0], *r.shape) if r.ndim == 2 else r
        if tuple(r.shape) != (*shape, observation.nuisance):
            raise ShapeError(
                f"nuisance of {name!r}: got {tuple(r.shape)}, wanted "
                f"{(*shape, observation.nuisance)}."
            )
        return r
