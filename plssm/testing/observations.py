"""Contract of an observation model, as test cases that users run on their own models."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from plssm.data.batch import Modality
from plssm.observations.base import ObservationModel
from plssm.testing.observation_problem import ObservationProblem

__all__ = ["ObservationContract"]


class ObservationContract(ObservationProblem):
    """Tests that every observation model passes; collected by pytest through a subclass.

    A subclass says how to create the model, and may give an independent reference for its
    log-density. Nothing else is needed.

    Attributes:
        dim: Number of latent states to bind to.
        perturbation: Standard deviation of the noise put on the trainable parameters.
        tolerance: Relative tolerance of comparisons that are exact in theory.
        draws: Number of Monte Carlo draws.

    Example:
        >>> import plssm.observations as observations
        >>> class TestMine(ObservationContract):
        ...     def create(self):
        ...         return observations.Gaussian(2)
        >>> TestMine().test_local_equals_autograd()
    """

    # ---- what a subclass says -----------------------------------------------------------------
    def reference(self, features: np.ndarray, y: np.ndarray) -> np.ndarray | None:
        """Return the log-density of y ``[n, N]`` given predictors ``[n, predictors]``, or None.

        Parameters of the model at hand are in ``self.model``.
        """
        return None

    def simulate(self, features: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """Return draws of y ``[n, N]`` given predictors ``[n, predictors]``, or None."""
        return None

    # ---- density ------------------------------------------------------------------------------
    def test_log_prob_equals_the_reference(self) -> None:
        """Every entry of a batch of three with masks has the reference's log-density."""
        for clock in ("latent", "own"):
            model, m, z = self._problem(clock=clock)
            entries = model.log_prob_entries(m, z).detach()
            assert entries.shape == m.y.shape
            assert bool((entries[~m.mask] == 0).all())
            for b in range(3):
                for i in range(m.y.shape[1]):
                    step = i if m.clock is None else int(m.clock[b, i])
                    nuisance = None if m.nuisance is None else m.nuisance[b, None, i : i + 1]
                    at = torch.tensor([[step]])
                    with torch.no_grad():
                        features = self._features(z[b : b + 1], at, nuisance)[0]
                    seen = m.mask[b, i]
                    y = torch.where(seen, m.y[b, i], model.fill)[None]
                    wanted = self.reference(features.numpy(), y.numpy())
                    if wanted is None:
                        wanted = model.distribution(features).log_prob(y).detach()
                    wanted = torch.as_tensor(wanted)[0]
                    self._close(entries[b, i][seen], wanted[seen])
            self._close(model.log_prob(m, z), entries.sum((-2, -1)))

    def test_leading_sample_axes(self) -> None:
        """Paths with leading sample axes give one log-density for each."""
        for clock in ("latent", "own"):
            model, m, z = self._problem(clock=clock)
            other = self._path(model, z.shape[1], seed=8)
            both = model.log_prob(m, torch.stack([z, other]))
            self._close(both, torch.stack([model.log_prob(m, z), model.log_prob(m, other)]))

    def test_masked_entries_are_dropped(self) -> None:
        """What stands under the mask does not matter, and an unseen sample may be left out."""
        model, m, z = self._problem(clock="own")
        wanted = model.log_prob(m, z)
        for junk in (1e30, -7.5, float("nan")):
            changed = replace(m, y=torch.where(m.mask, m.y, junk))
            self._close(model.log_prob(changed, z), wanted)
            self._close(model.local(changed, z).score, model.local(m, z).score)
        unseen = 2
        keep = [i for i in range(m.y.shape[1]) if i != unseen]
        nuisance = None if m.nuisance is None else m.nuisance[:, keep]
        fewer = Modality(m.y[:, keep], m.mask[:, keep], m.clock[:, keep], nuisance, m.dt)
        self._close(model.log_prob(fewer, z)[0], wanted[0])
        nothing = replace(m, mask=torch.zeros_like(m.mask))
        self._close(model.log_prob(nothing, z), torch.zeros(3))

    def test_gradients_are_finite_with_missing_entries(self) -> None:
        """Neither NaN data nor NaN states of unseen samples reach a gradient."""
        model, m, z = self._problem()
        m = replace(m, y=torch.where(m.mask, m.y, torch.nan))
        seen = m.mask.any(-1)
        for _ in range(model.memory(1.0)):  # and the steps that a seen sample remembers
            seen[:, :-1] = seen[:, :-1] | seen[:, 1:]
        path = torch.where(seen[..., None], z, torch.nan).requires_grad_()
        value = model.log_prob(m, path)
        assert bool(torch.isfinite(value).all())
        free = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(value.sum(), [path, *free])
        assert all(bool(torch.isfinite(g).all()) for g in gradients)
        assert bool((gradients[0][~seen] == 0).all())
        local = model.local(m, path.detach())
        assert bool(torch.isfinite(local.score).all() and torch.isfinite(local.curvature).all())

    # ---- local expansion ----------------------------------------------------------------------
    def test_local_equals_autograd(self) -> None:
        """Score and curvature are gradient and negative Hessian of log_prob in the path."""
        for steps, clock in ((5, "latent"), (4, "own"), (6, "slow"), (1, "latent")):
            model, m, z = self._problem(steps=steps, clock=clock)
            local = model.local(m, z)
            self._close(local.log_prob, model.log_prob(m, z))
            path = z.clone().requires_grad_()
            (score,) = torch.autograd.grad(model.log_prob(m, path).sum(), path)
            self._close(local.score, score)
            hessian = torch.autograd.functional.hessian(lambda v: model.log_prob(m, v).sum(), z)  # noqa: B023
            wanted = torch.zeros_like(hessian).flatten(4).flatten(1, 2)
            shape = (3, steps, *local.curvature.shape[2:])
            curvature = self._dense(local.curvature.expand(shape))
            for b in range(3):
                wanted[b, :, b] = -curvature[b]
            self._close(wanted.reshape(hessian.shape), hessian)

    def test_local_equals_the_default(self) -> None:
        """A closed form agrees with the default by automatic differentiation."""
        for clock in ("latent", "own"):
            model, m, z = self._problem(clock=clock)
            if not model.memory(1.0):
                got, wanted = model.local(m, z), ObservationModel.local(model, m, z)
                self._close(got.log_prob, wanted.log_prob)
                self._close(got.score, wanted.score)
                self._close(got.curvature.expand_as(wanted.curvature), wanted.curvature)
            features = model.features_at(m, z).detach()
            value, gradient, curvature = model.derivatives(features, m)
            wanted = ObservationModel.derivatives(model, features, m)
            for a, b in zip((value, gradient, curvature), wanted, strict=True):
                self._close(a, b)

    def test_step_curvature_is_positive(self) -> None:
        """The curvature that steers Newton steps is positive semi-definite, also far out."""
        for scale in (1.0, 6.0):
            model, m, z = self._problem()
            far = self._modality(model, z * scale)
            local = model.local(far, z, positive=True)
            assert bool(torch.isfinite(local.curvature).all())
            values = torch.linalg.eigvalsh(self._dense(local.curvature))
            assert float(values.min()) > -1e-9 * max(1.0, float(values.max()))
            self._close(local.score, model.local(far, z).score)

    def test_quadratic_means_quadratic(self) -> None:
        """A model that calls itself quadratic has the same curvature everywhere."""
        model, m, z = self._problem()
        if model.quadratic:
            here, there = model.local(m, z), model.local(m, 3 * z + 1)
            self._close(here.curvature, there.curvature)

    # ---- moments and samples ------------------------------------------------------------------
    def _feature_gaussian(self, model: ObservationModel) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(5)
        k = model.predictors
        mean = torch.randn(3, k, generator=generator, dtype=torch.float64)
        root = torch.randn(3, k, k, generator=generator, dtype=torch.float64)
        return mean, 0.5 * root @ root.mT / k

    def test_moments_equal_monte_carlo(self) -> None:
        """Moments under Gaussian predictors agree with drawn predictors."""
        model = self._model()
        mean, covariance = self._feature_gaussian(model)
        first, second = model.moments(mean, covariance)
        generator = torch.Generator().manual_seed(6)
        xi = torch.randn((self.draws, *mean.shape), generator=generator, dtype=torch.float64)
        eta = mean + torch.einsum("bij,sbj->sbi", torch.linalg.cholesky(covariance), xi)
        given, spread = model.moments(eta, torch.zeros(*eta.shape, eta.shape[-1]).to(eta))
        self._within(given - first, "mean")
        centred = given - first
        self._within(centred[..., :, None] * centred[..., None, :] + spread - second, "covariance")

    def test_predictive_equals_monte_carlo(self) -> None:
        """Predictive moments under Gaussian latent states agree with drawn states."""
        model = self._model()
        z = self._path(model, 1)[:, 0]
        covariance = self._covariance(z)
        first, second = model.predictive(z, covariance)
        eta, spread = model.feature_moments(z, covariance)
        generator = torch.Generator().manual_seed(9)
        xi = torch.randn((self.draws, *z.shape), generator=generator, dtype=torch.float64)
        states = z + torch.einsum("bij,sbj->sbi", torch.linalg.cholesky(covariance), xi)
        drawn = model.features(states).detach()
        self._within(drawn - eta, "mean of the predictors")
        centred = drawn - eta
        self._within(centred[..., :, None] * centred[..., None, :] - spread, "their covariance")
        assert first.shape == (3, model.channels)
        assert second.shape == (3, model.channels, model.channels)
        wanted = model.moments(eta, spread)
        self._close(first, wanted[0])
        self._close(second, wanted[1])

    def _within(self, error: Tensor, what: str) -> None:
        """The mean of the draws along the first axis is zero within six standard errors."""
        limit = 6 * error.std(0) / error.shape[0] ** 0.5 + 1e-3
        assert bool((error.mean(0).abs() < limit).all()), f"{what} is off the Monte Carlo value"

    def test_samples_match_the_moments(self) -> None:
        """Drawn observations have the mean and the variance that the moments say."""
        model = self._model()
        features, _ = self._feature_gaussian(model)
        nothing = torch.zeros(3, model.predictors, model.predictors).to(features)
        first, second = model.moments(features, nothing)
        y = model.sample(features.expand(5 * self.draws, -1, -1), 7).to(torch.float64)
        variance = torch.diagonal(second, dim1=-2, dim2=-1)
        rows = features.repeat(5 * self.draws, 1).numpy()
        other = self.simulate(rows, np.random.default_rng(7))
        draws = [y] if other is None else [y, torch.as_tensor(other).reshape(y.shape)]
        for values in draws:
            self._within(values - first, "mean of the samples")
            self._within((values - first) ** 2 - variance, "variance of the samples")

    def test_randomness_comes_from_the_seed(self) -> None:
        """The same seed draws the same; the global random state is left alone."""
        model, m, z = self._problem()
        features = model.features(z).detach()
        before = torch.get_rng_state()
        one = model.sample(features, 3)
        assert torch.equal(one, model.sample(features, 3))
        by_generator = [model.sample(features, torch.Generator().manual_seed(3)) for _ in range(2)]
        assert torch.equal(*by_generator)
        assert not one.requires_grad
        covariance = self._covariance(z)
        values = [model.expected_log_prob(m, z, covariance) for _ in range(2)]
        assert torch.equal(*values)
        assert torch.equal(before, torch.get_rng_state())

    # ---- learning -----------------------------------------------------------------------------
    def test_expected_log_prob_equals_monte_carlo(self) -> None:
        """The expected log-density agrees with drawn latent states."""
        model, m, z = self._problem()
        covariance = self._covariance(z)
        got = model.expected_log_prob(m, z, covariance)
        states = self._draw_paths(z, covariance)
        with torch.no_grad():
            values = model.log_prob(m, states)
        by_draws = model.coupled or not model.readout.affine
        error = 6 * values.std(0) * (1 / self.draws + by_draws / 32) ** 0.5
        assert bool(((got - values.mean(0)).abs() < error + 1e-6).all())

    def test_expected_log_prob_equals_the_default(self) -> None:
        """A closed form agrees with quadrature, and a known path has no expectation to take."""
        model, m, z = self._problem(clock="own")
        self._close(model.expected_log_prob(m, z, None), model.log_prob(m, z))
        if model.readout.affine and not model.coupled and not model.memory(1.0):
            got = model.expected_log_prob(m, z, self._covariance(z))
            wanted = ObservationModel.expected_log_prob(model, m, z, self._covariance(z))
            self._close(got, wanted, tolerance=max(self.tolerance, 1e-6))

    def test_expected_derivatives_equal_the_default(self) -> None:
        """A closed form under Gaussian predictors agrees with quadrature."""
        model, m, z = self._problem(clock="own")
        if model.coupled:
            return
        mean = model.features_at(m, z).detach()
        generator = torch.Generator().manual_seed(10)
        variance = 0.5 * torch.rand(mean.shape, generator=generator, dtype=torch.float64)
        got = model.expected_derivatives(mean, variance, m)
        wanted = ObservationModel.expected_derivatives(model, mean, variance, m)
        for a, b in zip(got, wanted, strict=True):
            self._close(a, b, tolerance=max(self.tolerance, 1e-6))

    def test_m_step_never_lowers_the_expectation(self) -> None:
        """The M-step raises the expected log-density, or leaves it."""
        for clock in ("latent", "own"):
            model, m, z = self._problem(clock=clock)
            seen = torch.arange(z.shape[1]) < torch.tensor([[z.shape[1]], [z.shape[1] - 2], [1]])
            path = torch.where(seen[..., None], z, torch.nan)
            covariance = self._covariance(z)
            known = seen.reshape(*seen.shape, *(1,) * (covariance.ndim - 2))
            covariance = torch.where(known, covariance, torch.nan)
            last = float(model.expected_log_prob(m, path, covariance).sum())
            for _ in range(3):
                model.m_step(m, path, covariance)
                now = float(model.expected_log_prob(m, path, covariance).sum())
                assert now >= last - 1e-9 * abs(last)
                last = now
            assert all(bool(torch.isfinite(p).all()) for p in model.parameters())

    def test_m_step_respects_frozen_parameters(self) -> None:
        """A frozen parameter keeps its value; the others still do not make things worse."""
        names = [name for name, _ in self._model().named_parameters()]
        for frozen in [[name] for name in names] + [names]:
            model, m, z = self._problem()
            covariance = self._covariance(z)
            before = {k: v.clone() for k, v in model.state_dict().items()}
            for name in frozen:
                model.get_parameter(name).requires_grad_(False)
            value = float(model.expected_log_prob(m, z, covariance).sum())
            model.m_step(m, z, covariance)
            for name in frozen:
                assert torch.equal(model.get_parameter(name), before[name]), f"{name} has moved"
            after = float(model.expected_log_prob(m, z, covariance).sum())
            assert after >= value - 1e-9 * abs(value)

    def test_init_from_fits_a_path(self) -> None:
        """A data-driven start raises the log-density of the data given the path."""
        model, m, z = self._problem()
        before = float(model.log_prob(m, z).sum().detach())
        model.init_from(m, z)
        assert float(model.log_prob(m, z).sum().detach()) >= before - 1e-9 * abs(before)
        assert model.start_signal(m).shape[:2] == m.y.shape[:2]

    # ---- being an object ----------------------------------------------------------------------
    def test_saved_and_rebuilt(self) -> None:
        """Constructor arguments (JSON) and parameters (tensors) give the same model back."""
        model, m, z = self._problem()
        stream = io.BytesIO()
        torch.save(model.state_dict(), stream)
        stream.seek(0)
        config = json.loads(json.dumps(model.config()))
        twin = type(model).from_config(config).bind(model.dim)
        twin.load_state_dict(torch.load(stream, weights_only=True))
        assert torch.equal(twin.log_prob(m, z), model.log_prob(m, z))
        assert model.bind(model.dim) is model
        assert torch.equal(twin.log_prob(m, z), model.log_prob(m, z))

    def test_float32_copy(self) -> None:
        """A float32 copy computes in float32 and agrees to single precision."""
        model, m, z = self._problem()
        assert all(p.dtype == torch.float64 for p in model.parameters())
        small = copy.deepcopy(model).to(torch.float32)
        half, path = m.to(dtype=torch.float32), z.to(torch.float32)
        for got, wanted in (
            (small.log_prob(half, path), model.log_prob(m, z)),
            (small.local(half, path).score, model.local(m, z).score),
            (small.local(half, path).curvature, model.local(m, z).curvature),
        ):
            assert got.dtype == torch.float32
            self._close(got, wanted, tolerance=2e-3)
        assert next(model.parameters()).dtype == torch.float64

    def test_trials_are_independent(self) -> None:
        """Every trial alone gives what it gives in the batch, in any order."""
        for clock in ("latent", "own"):
            model, m, z = self._problem(clock=clock)
            whole = model.local(m, z)
            for b in (2, 0, 1):
                one = Modality(*(None if v is None else v[b : b + 1] for v in _fields(m)), m.dt)
                alone = model.local(one, z[b : b + 1])
                self._close(alone.log_prob, whole.log_prob[b : b + 1])
                self._close(alone.score, whole.score[b : b + 1])
                block = whole.curvature.expand(3, *whole.curvature.shape[1:])[b : b + 1]
                self._close(alone.curvature.expand_as(block), block)


def _fields(m: Modality) -> tuple[Tensor | None, ...]:
    return m.y, m.mask, m.clock, m.nuisance
