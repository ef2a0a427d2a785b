"""The contract of inference engines as a pytest test case."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from plssm.data import Dataset
from plssm.dynamics import PLRNN
from plssm.errors import DataError
from plssm.fit import Fit
from plssm.inference import Engine
from plssm.model import StateSpaceModel
from plssm.observations import Gaussian

__all__ = ["EngineContract"]

_TRIALS, _STEPS = 3, 16
_LENGTHS = (16, 11, 5)
_MISSING = 0.2


class EngineContract(ABC):
    """Tests that an inference engine keeps its promises.

    Subclass it in a test file, with a name that starts with ``Test``, and write `create`, and
    `model` where the engine should meet something other than a small PLRNN with Gaussian
    observations. Every inherited test runs on tiny data.

    Attributes:
        tolerance: Tolerance of comparisons that are exact in theory.

    Example:
        A test file::

            class TestMyEngine(EngineContract):
                def create(self):
                    return MyEngine(seed=0, steps=20)
    """

    tolerance = 1e-6

    # ---- what a subclass says -----------------------------------------------------------------
    @abstractmethod
    def create(self) -> Engine:
        """Returns the engine under test, with settings for a short fit, the same in every call."""

    def model(self) -> StateSpaceModel:
        """Returns a fresh model, the same in every call."""
        return StateSpaceModel(PLRNN(2), {"x": Gaussian(3)})

    # ---- the problem --------------------------------------------------------------------------
    def truth(self) -> StateSpaceModel:
        """Returns the model that makes the data: the fresh one with moved parameters."""
        model = self.model()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                size = 0.1 if name.startswith("dynamics") else 1.0
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                zero = name == "dynamics.W" and parameter.ndim == 2
                parameter.add_(size * noise * (parameter != 0) if zero else size * noise)
        return model

    def dataset(self, *, missing: bool = True, clock: bool = False, trials: int = 3) -> Dataset:
        """Returns ragged trials of the model's modalities.

        Args:
            missing: Whether a fifth of the entries are missing.
            clock: Whether every modality has its own clock, with irregular samples.
            trials: Number of trials.
        """
        rng = np.random.default_rng(6)
        truth = self.truth()
        inputs = rng.standard_normal((trials, _STEPS, truth.dynamics.n_inputs))
        nuisance = {
            name: rng.standard_normal((trials, _STEPS, o.nuisance))
            for name, o in truth.observations.items()
            if o.nuisance
        }
        full = truth.simulate(
            _STEPS,
            trials=trials,
            inputs=inputs if inputs.shape[-1] else None,
            nuisance=nuisance or None,
            seed=7,
        )
        return _ragged(full, rng, missing=missing, clock=clock)

    # ---- fitting ------------------------------------------------------------------------------
    def test_fitting_raises_the_evidence(self) -> None:
        """The fitted model explains the data better than the fresh one, with a finite record."""
        data, engine = self.dataset(), self.create()
        fit = engine.fit(self.model(), data)
        before = float(engine.infer(self.model(), data).log_evidence.sum())
        after = float(fit.posterior(data).log_evidence.sum())
        assert np.isfinite(after)
        assert after > before
        assert len(fit.history) > 0
        assert fit.seconds >= 0
        assert type(fit.engine) is type(engine)
        for name, value in fit.model.state_dict().items():
            assert torch.isfinite(value).all(), name

    def test_a_second_fit_starts_where_the_first_ended(self) -> None:
        """Fitting a fitted model again does not lose what was gained."""
        data, engine = self.dataset(), self.create()
        first = engine.fit(self.model(), data)
        second = engine.fit(first.model, data)
        was = float(first.posterior(data).log_evidence.sum())
        now = float(second.posterior(data).log_evidence.sum())
        assert now >= was - 1e-6 * abs(was)

    def test_the_given_model_is_never_changed(self) -> None:
        """Parameters, their flags and the start flags of the given model stay as they are."""
        model = self.model()
        before = copy.deepcopy(model)
        fit = self.create().fit(model, self.dataset())
        _same_state(model, before)
        for one, other in zip(model.parameters(), before.parameters(), strict=True):
            assert one.requires_grad == other.requires_grad
            assert one.grad is None
        assert model.dynamics.initialised == before.dynamics.initialised
        assert fit.model is not model
        assert fit.model.dynamics.initialised

    def test_frozen_parameters_stay(self) -> None:
        """Each parameter that is frozen comes out of a fit as it went in, to the bit."""
        names = [n for n, p in self.model().named_parameters() if p.numel()]
        for name in names:
            model = self.truth()
            model.get_parameter(name).requires_grad_(False)
            value = model.get_parameter(name).clone()
            for part in (model.dynamics, *model.observations.values()):
                part.initialised = False
            fit = self.create().fit(model, self.dataset())
            assert torch.equal(fit.model.get_parameter(name), value), f"{name} has moved"
            assert not fit.model.get_parameter(name).requires_grad, name

    def test_a_wholly_frozen_model_stays(self) -> None:
        """With nothing to learn the engine still gives a fit."""
        model = self.truth().requires_grad_(False)
        fit = self.create().fit(model, self.dataset())
        _same_state(fit.model, model)

    def test_seeds_reproduce_bit_exactly(self) -> None:
        """The same engine on the same data gives the same numbers to the last bit."""
        data = self.dataset()
        one, other = (self.create().fit(self.model(), data) for _ in range(2))
        _same_state(one.model, other.model)
        columns = [c for c in one.history if "seconds" not in c]
        pd.testing.assert_frame_equal(one.history[columns], other.history[columns])

    def test_the_global_random_state_is_left_alone(self) -> None:
        """A fit neither uses nor moves the global generators."""
        data = self.dataset()
        torch.manual_seed(1)
        np.random.seed(1)
        first = self.create().fit(self.model(), data)
        drawn = float(torch.rand(())), float(np.random.rand())
        torch.manual_seed(1)
        np.random.seed(1)
        assert drawn == (float(torch.rand(())), float(np.random.rand()))
        _same_state(self.create().fit(self.model(), data).model, first.model)

    # ---- data of all sorts --------------------------------------------------------------------
    def test_refuses_data_that_do_not_match_before_any_work(self) -> None:
        """Modalities, channels, inputs: a clear error that names what differs."""
        engine, data = self.create(), self.dataset()
        name = data.names[0]
        values = [t.values[name] for t in data.trials]
        rest = {n: [t.values[n] for t in data.trials] for n in data.names[1:]}
        beside = {n: [t.nuisance[n] for t in data.trials] for n in data.trials[0].nuisance}
        inputs = [np.ones((len(v), self.model().dynamics.n_inputs + 1)) for v in values]
        wrong = {
            "modality": ({f"{name}_other": values, **rest}, None, name),
            "channel": ({name: [np.hstack([v, v]) for v in values], **rest}, None, "channel"),
            "input": ({name: values, **rest}, inputs, "input"),
        }
        for what, (arrays, given, word) in wrong.items():
            kinds = {n: data.kinds.get(n, data.kinds[name]) for n in arrays}
            regressors = {n: r for n, r in beside.items() if n in arrays} or None
            other = Dataset.from_arrays(arrays, inputs=given, kinds=kinds, nuisance=regressors)
            for call in (engine.fit, engine.infer):
                with pytest.raises(DataError, match=word):
                    call(self.model(), other)
            with pytest.raises(DataError, match=word):
                engine.fit(self.model(), data, validation=other)
            assert what

    @pytest.mark.parametrize("clock", [False, True])
    def test_masks_ragged_trials_and_own_clocks(self, clock: bool) -> None:
        """Missing entries, unequal trials and samples on own clocks are fitted as they are."""
        data = self.dataset(clock=clock)
        assert any(t.clock[data.names[0]] is not None for t in data.trials) == clock
        fit = self.create().fit(self.model(), data)
        posterior = fit.posterior(data)
        assert posterior.length.tolist() == data.lengths.tolist()
        beyond = np.arange(max(data.lengths)) >= data.lengths[:, None]
        for value in (posterior.mean, posterior.covariance(), posterior.sample(2)[1]):
            finite = torch.isfinite(value).flatten(2).all(-1).numpy()
            assert (finite == ~beyond).all()
        for b in range(len(data)):
            alone = fit.posterior(data.select(trials=[b]))
            steps = int(data.lengths[b])
            self.close(alone.mean[0], posterior.mean[b, :steps])
            self.close(alone.covariance()[0], posterior.covariance()[b, :steps])
            self.close(alone.log_evidence[0], posterior.log_evidence[b])

    def test_trials_of_one_step(self) -> None:
        """Trials without a single transition are data like any other."""
        data = Dataset.concat([self.dataset(), self.dataset(missing=False).select(time=(0, 1))])
        assert data.lengths.min() == 1
        fit = self.create().fit(self.model(), data)
        assert torch.isfinite(fit.posterior(data).log_evidence).all()

    def test_hidden_entries_are_not_learned_from(self) -> None:
        """Held-out values can be anything: the fit does not see them."""
        name = self.dataset().names[0]
        held = self.dataset(missing=False).hold_out(name, channels=[0], times=(2.0, 5.0))
        blank = _without_hidden(held)
        one, other = (self.create().fit(self.model(), d) for d in (held, blank))
        _same_state(one.model, other.model)

    # ---- what a fit can do --------------------------------------------------------------------
    def test_the_fit_can_do_everything(self) -> None:
        """Posterior, filter, forecast, simulation and scores have the promised shapes."""
        data = self.dataset()
        fit = self.create().fit(self.model(), data)
        dim, inputs = fit.model.dim, fit.model.dynamics.n_inputs
        for causal in (False, True):
            posterior = fit.posterior(data, causal=causal)
            assert posterior.mean.shape == (_TRIALS, _STEPS, dim)
            assert posterior.covariance().shape == (_TRIALS, _STEPS, dim, dim)
            assert isinstance(posterior.evidence_kind, str)
            low, high = posterior.interval(0.95)
            assert (torch.nan_to_num(high - low) >= 0).all()
        future = np.zeros((4, inputs)) if inputs else None
        made = fit.forecast(data, 4, samples=20, inputs=future)
        free = fit.simulate(5, trials=2, inputs=_zeros(inputs, 5), nuisance=self._regressors(5))
        assert free.latent is not None
        assert free.latent.shape == (2, 5, dim)
        for name, observation in fit.model.observations.items():
            assert made[name].samples.shape == (20, _TRIALS, 4, observation.channels)
            assert torch.isfinite(made[name].mean).all()
            assert free.values(name).shape == (2, 5, observation.channels)
        table = fit.score(data, steps=(1, 2), warmup=3, samples=8)
        wanted = {"evidence", "log_likelihood", "coverage_95", "error_1", "persistence_2"}
        assert wanted <= set(table.columns)
        assert list(table.index) == list(fit.model.observations)
        assert np.isfinite(table[["log_likelihood", "error_1", "error_2"]].to_numpy()).all()

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        """A loaded fit gives the same posterior, scores and next fit, to the bit."""
        data = self.dataset()
        fit = self.create().fit(self.model(), data)
        json.dumps(fit.engine.settings())
        again = Fit.load(fit.save(tmp_path / "fit"))
        _same_state(again.model, fit.model)
        assert again.engine == fit.engine
        pd.testing.assert_frame_equal(again.history, fit.history, check_dtype=False)
        one, other = (torch.nan_to_num(f.posterior(data).mean) for f in (fit, again))
        assert torch.equal(one, other)
        scores = [f.score(data, steps=(1,), warmup=3, samples=4) for f in (fit, again)]
        pd.testing.assert_frame_equal(*scores, check_exact=True)
        _same_state(*(f.engine.fit(f.model, data).model for f in (fit, again)))

    # ---- helpers ------------------------------------------------------------------------------
    def close(self, got: Tensor, want: Tensor) -> None:
        """Asserts equality to the contract's tolerance."""
        torch.testing.assert_close(got, want, rtol=self.tolerance, atol=self.tolerance)

    def _regressors(self, steps: int) -> dict[str, np.ndarray] | None:
        found = {
            name: np.zeros((steps, o.nuisance))
            for name, o in self.model().observations.items()
            if o.nuisance
        }
        return found or None


def _zeros(inputs: int, steps: int) -> np.ndarray | None:
    return np.zeros((steps, inputs)) if inputs else None


def _same_state(one: StateSpaceModel, other: StateSpaceModel) -> None:
    """Asserts that two models have the same parameters, bit by bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), f"{name} differs"


def _ragged(full: Dataset, rng: np.random.Generator, *, missing: bool, clock: bool) -> Dataset:
    """Cuts trials to unequal lengths, drops entries, and thins samples to clocks of their own."""
    lengths = [_LENGTHS[b % len(_LENGTHS)] for b in range(len(full))]
    arrays: dict[str, list] = {name: [] for name in full.names}
    times: dict[str, list] = {name: [] for name in full.names}
    nuisance: dict[str, list] = {n: [] for n in full.names if full.nuisance(n) is not None}
    for steps, trial in zip(lengths, full.trials, strict=True):
        for name in full.names:
            keep = np.arange(steps)
            if clock:  # some steps have two samples, some none
                keep = np.sort(np.append(rng.permutation(steps)[: steps // 2 + 1], steps - 1))
            values = np.array(trial.values[name][keep])
            if missing:
                values[rng.random(values.shape) < _MISSING] = np.nan
            arrays[name].append(values)
            times[name].append(keep + 0.2 * rng.random() + 0.1 * (np.diff(keep, prepend=-1) == 0))
            if name in nuisance:
                nuisance[name].append(trial.nuisance[name][keep])
    inputs = None if full.inputs is None else [t.inputs[:n] for n, t in zip(lengths, full.trials)]
    return Dataset.from_arrays(
        arrays,
        inputs=inputs,
        kinds=full.kinds,
        times=times if clock else None,
        nuisance=nuisance or None,
    )


def _without_hidden(data: Dataset) -> Dataset:
    """The visible entries as a dataset of their own."""
    nuisance = {n: [t.nuisance[n] for t in data.trials] for n in data.trials[0].nuisance}
    return Dataset.from_arrays(
        {n: [t.values[n] for t in data.trials] for n in data.names},
        data.dt,
        kinds=data.kinds,
        inputs=None if data.inputs is None else [t.inputs for t in data.trials],
        nuisance=nuisance or None,
    )
