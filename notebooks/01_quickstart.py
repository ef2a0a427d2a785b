# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: from noisy measurements to a dynamical system
#
# We measure a chaotic system through noise, in ten trials. From eight of them we fit a
# piecewise-linear recurrent network (PLRNN) and ask four questions of it: where was the system
# (latent paths), where will it be (forecasts), does it behave like the original when left alone
# (free run), and how much of this may we believe?
#
# The one thing to replace for data of your own is the array `x` below: `[trial, time, channel]`,
# or a list of `[time, channel]`; NaN is missing.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np

import plssm as ps

SMOKE = os.environ.get("PLSSM_SMOKE") == "1"  # a small size that only shows that everything runs
STEPS, DIM, ITERATIONS, RESTARTS, FREE = (60, 4, 6, 1, 300) if SMOKE else (250, 15, 120, 3, 10_000)

# %% [markdown]
# ## The data
#
# The Lorenz system, one sample every 0.03 time units, each coordinate with unit variance,
# measured with noise of standard deviation 0.1. The true paths go along as `latent`, for
# comparison only.

# %%
DT, NOISE = 0.03, 0.1
path = ps.data.synthetic.lorenz63(STEPS, DT, trials=10, seed=1)
center, spread = path.mean((0, 1)), path.std((0, 1))
path = (path - center) / spread
x = path + NOISE * np.random.default_rng(0).normal(size=path.shape)

data = ps.Dataset.from_arrays({"x": x}, dt=DT, latent=path)
train, test = data.split(by="trial", fractions=(0.8, 0.2), seed=0)
print(data)

# %% [markdown]
# ## Model and fit
#
# A model is latent dynamics and one observation model per modality. The engine fits a copy of it
# by expectation maximisation: the E-step finds the most probable latent path of each trial and
# the curvature around it (a global Laplace approximation), the M-step is closed-form. Restarts
# begin from different maps; the best evidence on the training data wins.

# %%
model = ps.StateSpaceModel(ps.dynamics.PLRNN(dim=DIM), {"x": ps.observations.Gaussian(3)})
engine = ps.inference.LaplaceEM(seed=0, iterations=ITERATIONS, restarts=RESTARTS)
fit = engine.fit(model, train)
print(fit)

# %% [markdown]
# The fit goes through stages (their names stand below the curves). The *joint* always likes
# small process noise; the *evidence* counts the uncertainty of the path as well and is the one
# to watch.

# %%
fit.plot_convergence()

# %% [markdown]
# ## Where was the system? Latent paths with bands
#
# The posterior of a trial that was never fitted. Single latent units have no meaning of their
# own: any change of coordinates would do as well. Their bands do have one: they say how well the
# state is known.

# %%
fit.plot_latents(test, units=range(4))

# %% [markdown]
# Through the observation model the latent path becomes a path of the observed system. Here we
# know the truth. The estimate should lie closer to it than the measurements, and the truth
# inside the band about as often as the band says.

# %%
posterior = fit.posterior(test)
observation = fit.model.observations["x"]
cleaned = observation.features(posterior.mean).detach().numpy()
draws = observation.features(posterior.sample(200, seed=0)).detach().numpy()
low, high = np.quantile(draws, [0.025, 0.975], axis=0)
truth = test.latent

print(f"error of the measurements  {np.sqrt(np.mean((test.values('x') - truth) ** 2)):.3f}")
print(f"error of the estimate      {np.sqrt(np.mean((cleaned - truth) ** 2)):.3f}")
print(f"truth inside the 95 % band {np.mean((low <= truth) & (truth <= high)):.3f}")

# %% [markdown]
# ## Where will it be? Forecasts
#
# Each sample beside its prediction from everything before it:

# %%
fit.plot_observed(test, names=["x", "y", "z"])

# %% [markdown]
# And further ahead: the first half of a trial is given, the fan is the forecast, the line is
# what came.

# %%
half, end = STEPS // 2 * DT, STEPS * DT
before, after = test.select(time=(0, half)), test.select(time=(half, end))
fit.plot_forecast(before, min(40, STEPS // 2), truth=after, names=["x", "y", "z"])

# %% [markdown]
# Numbers, on the held-out trials: squared errors of forecasts n steps ahead, z-scored, beside
# what persistence and a linear autoregression reach. A one-step error alone proves little:
# smooth data repeat themselves. `coverage_95` near 0.95 says that the bands are honest.

# %%
fit.score(test, steps=(1, 5, 20)).T.head(20)

# %% [markdown]
# ## Left alone: the free run
#
# The model simulates on its own, without data. Chaos makes following the true path impossible;
# what can be compared is the attractor: where it goes (`state_space_divergence`) and at which
# rhythms (`power_spectrum_distance`). Both stand beside their floor, the value that true data
# score against other true data of the same length.

# %%
reference = ps.data.synthetic.lorenz63(3 * FREE, DT, seed=9)[0]  # long enough to have a floor
reference = (reference - center) / spread
reference = reference + NOISE * np.random.default_rng(2).normal(size=reference.shape)
free = fit.simulate(FREE, seed=1).values("x")[0]

print("D_stsp", ps.metrics.state_space_divergence(truth=reference, pred=free))
print("D_H   ", ps.metrics.power_spectrum_distance(truth=reference, pred=free))

# %%
ps.plot.free_run(truth=reference[:2000], pred=free[:2000], names=["x", "y", "z"])

# %% [markdown]
# The map itself can be analysed. Lyapunov exponents do not depend on the coordinates: the
# largest one of the Lorenz system is 0.906 per unit of time, positive because it is chaotic.

# %%
exponents = ps.analysis.lyapunov_spectrum(
    fit.model.dynamics, steps=FREE, dt=DT, transient=FREE // 10
)
print("largest exponents", np.round(exponents[:3], 2))

# %% [markdown]
# ## Save, and load again
#
# Numbers as safetensors, the rest as JSON: nothing that runs code when it is opened.

# %%
folder = fit.save(Path(tempfile.mkdtemp()) / "lorenz_fit")
again = ps.Fit.load(folder)
print(sorted(file.name for file in folder.iterdir()))
print(float(again.posterior(test).log_evidence.sum()) == float(posterior.log_evidence.sum()))

# %% [markdown]
# ## What to trust, and what not
#
# **Trust** forecasts on held-out data that beat persistence and the autoregression, and bands
# whose coverage on held-out data is what they claim.
#
# **Trust with care** the evidence. Its kind is printed with it: for a PLRNN it is a Laplace
# approximation. Compare evidence of one kind on the same data only.
#
# **Do not trust** a good forecast as a proof of the right dynamics. Look at the free run, the
# two distances beside their floors, and the exponents. A fitted map need not even stay bounded,
# and noise-free and noisy free runs may differ.
#
# **Do not trust** one start. EM finds local optima; look at several restarts, and at other
# latent sizes, on validation data.
#
# **Do not interpret** single latent units. Interpret what a change of coordinates leaves alone:
# forecasts, exponents, the attractor in the space of the observations.
