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
# # Variational inference, Pyro, multimodal teacher forcing
#
# [04_multimodal](04_multimodal.ipynb) fits by expectation maximisation (`LaplaceEM`). The same
# model can be given to other engines. `VariationalInference` raises a bound on the evidence by
# gradients, with an encoder that infers new trials without new training; `to_pyro` hands the
# model to Pyro, where parameters get posteriors, too; `TeacherForcing` trains the map to run by
# itself.
#
# Everything here is simulated, so that we can look at the truth. Each number stands beside what
# it has to be compared with.

# %%
import copy
import os
import time

import numpy as np
import pandas as pd
import pyro
import torch
from IPython.display import display
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import Normal

import plssm as ps
from plssm.inference import LaplaceEM, TeacherForcing, VariationalInference
from plssm.plot.canvas import INK, MODEL, OTHER, Picture, band, panels, shared_labels, tidy

SMOKE = os.environ.get("PLSSM_SMOKE") == "1"  # a small size that only shows that everything runs
STEPS, TRIALS, HELD = (40, 8, 8) if SMOKE else (100, 16, 40)
ITERATIONS, UPDATES, GUIDE_UPDATES = (2, 4, 4) if SMOKE else (30, 600, 400)
WARMUP, DRAWS, STOCHASTIC = (3, 5, 10) if SMOKE else (150, 250, 3000)
ORBIT, FORCED = (1500, 4) if SMOKE else (10_000, 3000)
torch.set_num_threads(1)  # the arrays are small, threads would only wait for each other

# %% [markdown]
# ## Spikes and choices with holes
#
# Two latent units turn around each other, differently where one is negative. 15 neurons are
# counted in bins of 0.1 s; a choice among three is seen in about half of the bins. In each trial
# the amplifier is off for 1.5 s, a quarter of the trials has no choices at all, an eighth no
# spikes.

# %%
DT, NEURONS, OFF = 0.1, 15, 15
rng = np.random.default_rng(0)
dynamics = ps.dynamics.PLRNN.from_parameters(
    A=[0.95, 0.95],
    W=[[0.0, -0.28], [0.24, 0.0]],
    h=[0.06, -0.03],
    process_noise=[0.02, 0.02],
    initial_noise=[0.3, 0.3],
)
preferred = rng.uniform(0, 2 * np.pi, NEURONS)  # direction in the latent plane
tuning = 0.8 * np.column_stack([np.cos(preferred), np.sin(preferred)])
known = {
    "spikes": ps.observations.Poisson.from_parameters(tuning, bias=rng.uniform(-1, 0.3, NEURONS)),
    "choice": ps.observations.Categorical.from_parameters([[3.0, 0.0], [-1.5, 2.6]], bias=[0, 0]),
}
truth = ps.StateSpaceModel(dynamics, known)


def with_holes(trials, seed):
    """Simulated trials with missing data, and their true latent paths."""
    rng = np.random.default_rng(seed)
    whole = truth.simulate(STEPS, trials=trials, dt=DT, seed=seed)
    arrays = {name: list(whole.values(name).copy()) for name in whole.names}
    for b in range(trials):
        begin = rng.integers(5, STEPS - OFF)
        arrays["spikes"][b][begin : begin + OFF] = np.nan
        arrays["choice"][b][rng.random(STEPS) < 0.5] = np.nan
    for b in range(trials // 4):
        arrays["choice"][b] = None
    for b in range(trials // 4, trials // 4 + trials // 8):
        arrays["spikes"][b] = None
    kinds = {"spikes": "count", "choice": "label"}
    return ps.Dataset.from_arrays(arrays, DT, kinds=kinds), whole.latent


train, train_path = with_holes(TRIALS, seed=1)
test, path = with_holes(HELD, seed=2)
print(train)

# %% [markdown]
# ## Three fits
#
# EM first, as in the other notebooks. Then variational inference by itself (a fresh PLRNN starts
# from some EM iterations inside, because regressions get a map going faster than gradients do),
# and variational inference that goes on from the EM fit: any fitted model is a start.


# %%
def fresh():
    return ps.StateSpaceModel(
        ps.dynamics.PLRNN(dim=2),
        {"spikes": ps.observations.Poisson(NEURONS), "choice": ps.observations.Categorical(3)},
    )


engine = VariationalInference(seed=0, steps=UPDATES)  # steps are updates; the default is 3000
em = LaplaceEM(seed=0, iterations=ITERATIONS).fit(fresh(), train)
fits = {
    "EM": em,
    "variational": engine.fit(fresh(), train),
    "variational, from EM": engine.fit(em.model, train),
}
fits["variational"].plot_convergence()

# %% [markdown]
# The latent plane of a fit may be turned and stretched. `aligned` maps it to the true one by a
# regression of true states on posterior means of the *training* trials, and applies that map to
# means and covariances of trials that were not fitted.


# %%
def plane(posterior, states):
    """Affine map from the latent plane of a fit to the true one."""
    mean = posterior.mean.numpy().reshape(-1, 2)
    columns = np.column_stack([mean, np.ones(len(mean))])
    return np.linalg.lstsq(columns, states.reshape(-1, 2), rcond=None)[0]


def aligned(posterior, to_true=None):
    """Mean and standard deviations in the true plane [B, T, 2]."""
    turn, shift = (np.eye(2), np.zeros(2)) if to_true is None else (to_true[:2], to_true[2])
    covariance = turn.T @ posterior.covariance().numpy() @ turn
    spread = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    return posterior.mean.numpy() @ turn + shift, spread


def quality(mean, spread, states):
    """Coverage of true states by bands, width of the bands, error of the mean."""
    off = np.abs(mean - states) / spread
    edges = {"50 %": 0.674, "90 %": 1.645, "95 %": 1.960}
    row = {f"in {name} band": np.mean(off <= edge) for name, edge in edges.items()}
    return row | {
        "median sd": np.median(spread),
        "rms error": np.sqrt(np.mean((mean - states) ** 2)),
    }


exact = ps.smooth(truth, test)
rows = {"true parameters": quality(*aligned(exact), path)}
rows["true parameters"]["evidence or bound, test"] = float(exact.log_evidence.sum())
views = {}
for name, fit in fits.items():
    posterior = fit.posterior(test)
    views[name] = aligned(posterior, plane(fit.posterior(train), train_path))
    rows[name] = quality(*views[name], path)
    rows[name] |= {
        "evidence or bound, test": float(posterior.log_evidence.sum()),
        "Laplace evidence, test": float(ps.smooth(fit.model, test).log_evidence.sum()),
        "seconds": fit.seconds,
    }
comparison = pd.DataFrame(rows).T
comparison.round(3)

# %%
seconds = np.arange(STEPS) * DT
figure, axes = panels(len(fits), None, title="Unit 1, unseen trial")
for axis, (name, (mean, spread)) in zip(axes, views.items(), strict=True):
    low, high = (mean + side * 1.96 * spread for side in (-1, 1))
    band(axis, seconds, low[-1, :, 0], high[-1, :, 0], label="95 % band")
    axis.plot(seconds, mean[-1, :, 0], color=MODEL, linewidth=1.2, label="posterior mean")
    axis.plot(seconds, path[-1, :, 0], "--", color=INK, linewidth=0.9, label="truth")
    gone = np.isnan(test.values("spikes")[-1]).all(-1)
    axis.axvspan(*seconds[gone][[0, -1]], color="0.92", zorder=0)
    axis.set_ylabel(name, fontsize=9)
shared_labels(axes, "time (s)")
display(figure)

# %% [markdown]
# No winner here, but for time. EM takes seconds and has the best Laplace evidence of the three
# by a hair; the variational fits take ten times as long and more to come to the same paths, with
# bands that are a shade narrower. By itself the engine starts from EM iterations, and the
# picture shows how little 600 updates add. (The bound
# of a variational fit lies below its own evidence, so the column of evidence or bound must not
# be read from row to row; `ps.smooth` gives the Laplace evidence of any fit.) For maps with a
# closed-form M-step this is what to expect. The reasons to pay for variational inference are in
# the last section.
#
# All three fall a little short of 95 %, the true parameters do not: sixteen trials leave
# parameters uncertain, and bands at fixed parameters do not know that.

# %% [markdown]
# ## How far can the guide be trusted?
#
# The guide is the family of posteriors that the encoder can choose from. To see what it does by
# itself, we hold the model at its true parameters (`requires_grad_(False)`) and train only the
# guide: then nothing but the guide stands between bands and truth.
#
# - `"laplace"` (the default) corrects the Laplace approximation along the path;
# - `"chain"` leaves the data to the encoder and couples the steps by one learned linear chain;
# - `"mean-field"` takes the means of the coupled path and lets steps be independent around them.
#
# The bound has a check built in. `bound="importance"` weighs many draws from the guide by how
# much better the model likes them; the more draws, the closer to the evidence it comes, whatever
# the guide. If it is far above the plain bound, or still rises with the draws, the guide is far
# from the posterior.

# %%
held = copy.deepcopy(truth).requires_grad_(False)
guides, shown = {}, {"Laplace": aligned(exact)}
rows = {"Laplace": quality(*shown["Laplace"], path)}
rows["Laplace"]["bound"] = float(exact.log_evidence.mean())  # its own evidence, no bound
for guide in ("laplace", "chain", "mean-field"):
    engine = VariationalInference(
        seed=0, steps=GUIDE_UPDATES, guide=guide, learning_rate=(2e-2, 3e-4)
    )
    guides[guide] = fit = engine.fit(held, train)
    posterior = fit.posterior(test)
    shown[guide] = aligned(posterior)
    rows[guide] = quality(*shown[guide], path)
    rows[guide]["bound"] = float(posterior.log_evidence.mean())
    for draws in (10, 300):
        tight = fit.posterior(test, bound="importance", draws=draws)
        rows[guide][f"{draws} weighted"] = float(tight.log_evidence.mean())
    rows[guide]["seconds"] = fit.seconds
print("bounds in nats a trial; without networks the Laplace evidence")
pd.DataFrame(rows).T.round(3)

# %%
figure, axes = panels(3, None, title="Unit 1, 95 % bands")
for axis, guide in zip(axes, ("laplace", "chain", "mean-field"), strict=True):
    mean, spread = shown[guide]
    low, high = (mean + side * 1.96 * spread for side in (-1, 1))
    band(axis, seconds, low[-1, :, 0], high[-1, :, 0], label="guide")
    mean, spread = shown["Laplace"]
    for side in (-1, 1):
        edge = (mean + side * 1.96 * spread)[-1, :, 0]
        axis.plot(
            seconds, edge, color=OTHER[0], linewidth=0.8, label="Laplace" if side > 0 else None
        )
    axis.plot(seconds, path[-1, :, 0], "--", color=INK, linewidth=0.9, label="truth")
    axis.axvspan(*seconds[gone][[0, -1]], color="0.92", zorder=0)
    axis.set_ylabel(guide, fontsize=9)
shared_labels(axes, "time (s)")
display(figure)

# %% [markdown]
# Laplace is already right here: its bands hold what they promise, and with 300 weighted draws
# the bound of either guide with coupled steps comes within a tenth of a nat of its evidence. So
# the networks of the default guide have nothing to correct, and leave it alone. Its plain bound
# is 1.6 nats a trial lower, because the posterior, which has kinks, is no Gaussian; ten weighted
# draws get most of that back.
#
# The linear chain takes a fraction of the time, errs more, and its bands hold two to three
# points less than they should at every level. Its gap is wider, but weights still close it: a
# usable guide.
#
# Mean field is not: its means are as good as any, because they are those of the coupled path,
# but its 95 % band holds 67 %. Of each step it knows only how well it is determined by its
# neighbours, and these it takes for known; where the amplifier is off that is an illusion. The
# check says so without knowing the truth: with 300 draws its bound has risen by 15 nats a trial
# and is still 33 below the others.

# %% [markdown]
# ## New trials without new training
#
# The encoder has learned to read data, not these data. `fit.posterior(new)` is one pass, and a
# modality that is not there adds nothing, so every subset of modalities can be given. New
# trials, complete; each modality is withheld in turn (`given=`), and predicted. "majority" is
# the accuracy of the most frequent choice of training; bits per spike count from mean rates.

# %%
new = truth.simulate(STEPS, trials=HELD, dt=DT, seed=3)
rows = {}
at_truth = {"true parameters": ps.Fit(truth), "true parameters, chain guide": guides["chain"]}
for name, fit in {**at_truth, **fits}.items():
    began = time.perf_counter()
    posterior = fit.posterior(new)
    row = {"ms a trial": 1e3 * (time.perf_counter() - began) / HELD}
    float(posterior.log_evidence.sum())  # a bound is drawn when it is asked for
    row["with its bound"] = 1e3 * (time.perf_counter() - began) / HELD
    choice = fit.score(new, given=["spikes"]).loc["choice"]
    spikes = fit.score(new, given=["choice"]).loc["spikes"]
    row |= {"choice: accuracy": choice["accuracy"], "majority": choice["majority"]}
    row |= {"choice: Brier": choice["brier"], "spikes: bits": spikes["bits_per_spike"]}
    rows[name] = row | {"in 95 % band": spikes["coverage_95"]}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# A prediction is a distribution. **Choice from spikes** of one new trial; dark is probable, dots
# are the choices made, which were not looked at:

# %%
varied = fits["variational, from EM"]
varied.plot_prediction(new, "choice", given=["spikes"])

# %% [markdown]
# **Spikes from choices**, the neurons with the strongest tuning. Choices say in which sector of
# the plane the state is, not how far out; the band is that of counts.

# %%
strength = varied.model.observations["spikes"].weight.detach().norm(dim=1).numpy()
strong = np.argsort(-strength)[:2].tolist()
varied.plot_prediction(new, "spikes", given=["choice"], channels=strong, unit="spikes")

# %% [markdown]
# In time little is gained here: the default guide searches the path, as the Laplace smoother
# does, before its networks correct it. It takes 2.2 ms a trial and the smoother about 4; the
# chain guide, which is one pass, .6. A bound is a mean over 32 draws, which takes three more; it
# is drawn when somebody asks for `.log_evidence`.
#
# Accuracy, Brier score and bits are those of EM, and within .01 of what the true parameters
# reach. What the majority would score stands beside. 95 % bands of counts hold more, because a
# count cannot be cut in halves.
#
# The second row has the true parameters, too, and decodes choices as well as any, but neurons
# from choices less well than the row above it: here the guide is the loss. An encoder has to be
# good at every subset of modalities that will be given to it, and this one has seen choices
# alone in two of sixteen trials. `drop=` hides modalities in training, for that purpose; the
# default guide, which knows the model, hardly needs it.
#
# ## Posterior of parameters, in Pyro
#
# So far parameters were numbers. `to_pyro(model, priors=...)` makes those that are named random,
# and everything of Pyro works on the result. Here we ask: from four short trials, how well is
# the coupling of the two units known? The observation model is held, and with it the coordinates
# of the latent plane; otherwise posteriors of couplings would have no meaning.
#
# NUTS samples parameters and latent paths together. It is exact in the long run, and for small
# problems. `AutoNormal` is a guide that takes all of them to be independent, trained by
# gradients.

# %%
few = truth.simulate(40, trials=4, dt=DT, seed=5).batch()
bridge = ps.inference.to_pyro(
    truth, {"dynamics.A": Normal(0.5, 0.5), "dynamics.W": Normal(0.0, 0.5)}
)
pyro.set_rng_seed(0)
began = time.perf_counter()
kernel = NUTS(bridge, max_tree_depth=6)
mcmc = MCMC(kernel, num_samples=DRAWS, warmup_steps=WARMUP, disable_progbar=True)
mcmc.run(few)
sampled, diagnostics = mcmc.get_samples(), mcmc.diagnostics()
lasted = {"NUTS": time.perf_counter() - began}

began = time.perf_counter()
pyro.clear_param_store()  # Pyro keeps the parameters of guides by name
guide = AutoNormal(bridge, init_scale=0.05)
rate = {"lr": 0.02, "lrd": 0.02 ** (1 / STOCHASTIC)}  # a fiftieth at the end
svi = SVI(bridge, guide, pyro.optim.ClippedAdam(rate), Trace_ELBO())
losses = [svi.step(few) for _ in range(STOCHASTIC)]
drawn = Predictive(bridge, guide=guide, num_samples=500, return_sites=list(bridge.priors))(few)
lasted["AutoNormal"] = time.perf_counter() - began

# %%
entries = {
    "A$_1$": ("A", 0),
    "A$_2$": ("A", 1),
    "W$_{12}$": ("W", (0, 1)),
    "W$_{21}$": ("W", (1, 0)),
}
figure = Picture(figsize=(9, 2.4), layout="constrained")
rows = {}
for axis, (label, (name, at)) in zip(figure.subplots(1, 4), entries.items(), strict=True):
    true = float(getattr(truth.dynamics, name).detach()[at])
    part = (slice(None), *np.atleast_1d(at))
    guided = drawn[f"dynamics.{name}"].flatten(0, 1)  # Pyro keeps an axis for the plate of trials
    values = {"NUTS": sampled[f"dynamics.{name}"], "AutoNormal": guided}
    for (method, all_draws), color in zip(values.items(), (MODEL, OTHER[0]), strict=True):
        found = all_draws[part].detach().numpy()
        axis.hist(found, bins=25, density=True, color=color, alpha=0.5, label=method)
        rows[f"{label} {method}"] = {"mean": found.mean(), "sd": found.std(), "true": true}
    site = diagnostics[f"dynamics.{name}"]
    rows[f"{label} NUTS"] |= {"draws worth": float(site["n_eff"][at])}
    axis.axvline(true, color=INK, linestyle="--", linewidth=1)
    axis.set_title(label, loc="left", fontsize=11)
    axis.set_yticks([])
    tidy(axis)
figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
display(figure)
print({name: f"{seconds_taken:.0f} s" for name, seconds_taken in lasted.items()})
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# Four trials of four seconds know the sign of both couplings, and their size to about a fifth.
# The true values lie inside the posterior of NUTS, one of the couplings 1.3 standard deviations
# out.
#
# The means of the automatic guide nearly agree. Its standard deviations do not: they are .6 to
# .8 of those of NUTS, because it takes the parameters to be independent of 320 latent states,
# with which they go together. For error bars on parameters use NUTS while the problem is small
# enough, and look at "draws worth": the number of independent draws its chain amounts to. The
# diagonal of W is not part of the model and keeps its prior.
#
# ## A system that runs by itself, from counts and levels
#
# All of the above asks where the latent path was. When the question is the system that made it
# (its attractor, exponents, fixed points), `TeacherForcing` trains the map to run freely. With
# counts and labels no channel says where the states are; `MTF` lets an encoder of all modalities
# be the teacher.
#
# The Lorenz system, seen by 20 neurons (counts) and 8 questions with 7 levels (ordinal), no
# continuous channel. 10,000 bins and 3,000 updates are a small size.

# %%
orbit, other = (ps.data.synthetic.lorenz63(ORBIT, dt=0.05, seed=s)[0] for s in (1, 2))
center, spread = orbit.mean(0), orbit.std(0)
orbit, other = (orbit - center) / spread, (other - center) / spread
rng = np.random.default_rng(0)
rates, scales = rng.standard_normal((20, 3)), rng.standard_normal((8, 3))
rates *= 0.8 / (orbit @ rates.T).std(0)[:, None]
scales *= 3.0 / (orbit @ scales.T).std(0)[:, None]
borders = np.quantile(orbit @ scales.T, np.arange(1, 7) / 7, axis=0)


def seen(states, seed):
    """Counts and levels along an orbit."""
    rng = np.random.default_rng(seed)
    felt = states @ scales.T + rng.logistic(size=(len(states), 8))
    arrays = {
        "count": rng.poisson(np.exp(states @ rates.T + 0.3)),
        "level": (felt[:, :, None] > borders.T).sum(-1),
    }
    return ps.Dataset.from_arrays(arrays, 0.05, kinds={"count": "count", "level": "ordinal"})


data, unseen = seen(orbit, 1), seen(other, 2)
model = ps.StateSpaceModel(
    ps.dynamics.DendriticPLRNN(dim=12, bases=20, clipped=True, mean_centered=True),
    {"count": ps.observations.Poisson(20), "level": ps.observations.Ordinal(8, 7)},
)
forcing = TeacherForcing(
    seed=0,
    scheme=ps.inference.MTF(interval=10),
    steps=FORCED,
    sequence=30 if SMOKE else 120,
    learning_rate=(1e-2, 5e-4),
    checks=2 if SMOKE else 8,
    fit_noise=False,
)
forced = forcing.fit(model, data)
print(f"{forced.seconds:.0f} s")

# %% [markdown]
# The states of the map have coordinates of their own. A regression of the true orbit on what the
# encoder makes of the training data leads from them to the Lorenz system; the same map on unseen
# data is the floor of the comparison: what would come out if the free run were as good as the
# decoding.


# %%
def r2(true, estimate):
    return 1 - ((true - estimate) ** 2).sum() / ((true - true.mean(0)) ** 2).sum()


def in_true_states(states):
    return np.column_stack([states, np.ones(len(states))]) @ to_orbit


with torch.no_grad():  # the encoder stays with the fit
    teacher, new_teacher = (
        forced.recognition(forced.model, x.batch()).mean[0].numpy() for x in (data, unseen)
    )
to_orbit = np.linalg.lstsq(np.column_stack([teacher, np.ones(ORBIT)]), orbit, rcond=None)[0]
free = forced.simulate(ORBIT + 500, noise=False).latent[0, 500:]
run, decoded = in_true_states(free), in_true_states(new_teacher)
print(f"R² of unseen states, decoded: {r2(other, decoded):.3f}")
exponents = ps.analysis.lyapunov_spectrum(
    forced.model.dynamics,
    steps=500 if SMOKE else 10_000,
    dt=0.05,
    start=torch.from_numpy(free[-1]),
)
print(f"largest exponent {exponents[0]:.2f} (true .906)")
runs = {"free run": [run], "decoded data": [decoded], "another true orbit": [orbit]}
print(ps.metrics.reconstruction(truth=other, pred=runs, bins=10))

# %%
ps.plot.free_run(
    truth=other[:4000],
    pred=run[:4000],
    names=["x", "y", "z"],
    title="Lorenz, from counts and levels",
)

# %% [markdown]
# The map has learned an attractor with two wings that is chaotic by itself, with about the right
# exponent, from data without a continuous channel. It is not yet the Lorenz attractor: one wing
# is thin, and D_stsp is 17 times that of the decoded data, which is the floor here. White noise,
# whose states fill the same box, is not much worse by this measure; its spectrum is (D_H). The
# encoder decodes unseen states with R² .985, so what is missing is in the map. One seed, with
# number and rate of the updates from the last of three tries; the figures at full size, over
# seeds, with and without continuous channels, are in
# `benchmarks/results/multimodal_forcing.json`.
#
# ## Which engine when
#
# **`LaplaceEM`** first, for linear maps, PLRNNs and almost-linear RNNs, with any observations:
# seconds instead of minutes, no learning rate, evidence to compare fits by.
#
# **`VariationalInference`** where EM has no closed-form M-step (shallow and dendritic PLRNNs,
# maps of your own), for long recordings in windows, where a bound is wanted that never overrates
# the evidence, or where the Laplace approximation is in doubt: `bound="importance"` then says
# how much. Keep the default guide; look at coverage before you believe another one.
#
# **`to_pyro`** for what engines do not do: posteriors of parameters, priors, your own guides.
# NUTS for small problems; automatic guides are quick, their error bars too short.
#
# **`TeacherForcing`** when the system is the question, not the path: long and not too noisy
# data, a map that should run by itself. `MTF` where no channel says where the states are. Expect
# thousands of updates, and judge by free runs.
