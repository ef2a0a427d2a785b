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
# # Do dynamics and uncertainty of a fitted model belong together?
#
# A probabilistic model of a chaotic system says two things: where the state goes, and how sure
# that is. Both come from the same map: errors grow along its tangent directions. A training that
# looks at predictions many steps ahead without new data pulls the two apart. Beyond the horizon
# at which errors are as large as the attractor, the likelihood gains nothing from the right map
# any more, and it gains from
#
# - a map that forgets (**core collapse**: the exponents fall),
# - process noise in the place of dynamics (**noise masking**),
# - spreads that do not follow the state (**blind uncertainty**).
#
# The likelihood of one-step innovations, with the state filtered all along (`EKF`), does not have
# this problem (Herz, Pals, Durstewitz and Koppe 2026, arXiv:2605.31547). Here is first a map of
# one variable, where everything can be seen, then a stochastic Lorenz-96 system of ten.

# %%
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import display

import plssm as ps
from plssm.inference import EKF, Innovation, OpenLoop
from plssm.plot.canvas import INK, MODEL, OTHER, Picture, tidy

SMOKE = os.environ.get("PLSSM_SMOKE") == "1"  # a small size that only shows that everything runs
SEEDS, STEPS, UPDATES = (1, 200, 5) if SMOKE else (5, 2000, 1500)
HORIZONS = (20,) if SMOKE else (1, 5, 10, 12, 20, 40)
torch.set_num_threads(1)  # the arrays are small, threads would only wait for each other

# %% [markdown]
# ## A map of one variable
#
# $z_t = 1 - 1.7\,|z_{t-1}| + \mathcal N(0, 10^{-4})$, seen as $x_t = z_t + \mathcal N(0,
# 10^{-3})$. The exponent is $\ln 1.7 = .53$ per step: an error of an observation is as large as
# the attractor after about six steps.

# %%
SLOPE, PROCESS, OBSERVED = 1.7, 1e-4, 1e-3


def series(seed):
    """One recording [T]."""
    rng = np.random.default_rng(seed)
    z, out = 0.3, np.empty(STEPS + 100)
    for t in range(len(out)):
        z = 1 - SLOPE * abs(z) + np.sqrt(PROCESS) * rng.standard_normal()
        out[t] = z
    return out[100:] + np.sqrt(OBSERVED) * rng.standard_normal(STEPS)


def log_density(x, slope, q, horizon, stride=5):
    """Mean log-density of predictions up to a horizon; None: of innovations. For many slopes."""
    total = 0.0
    if horizon is None:
        m, p = np.full_like(slope, x[0]), np.full_like(slope, OBSERVED)
        for y in x[1:]:
            m, p = 1 - slope * np.abs(m), slope**2 * p + q
            s, v = p + OBSERVED, y - m
            total = total - 0.5 * (np.log(2 * np.pi * s) + v**2 / s)
            m, p = m + p / s * v, p * OBSERVED / s
        return total / (len(x) - 1)
    at = np.arange(0, len(x) - horizon, stride)
    m, p = np.broadcast_to(x[at], (*slope.shape, len(at))), np.full(slope.shape, OBSERVED)
    for k in range(1, horizon + 1):
        m, p = 1 - slope[..., None] * np.abs(m), slope**2 * p + q
        s = p + OBSERVED
        total = total - 0.5 * (np.log(2 * np.pi * s) + ((x[at + k] - m) ** 2).mean(-1) / s)
    return total / horizon


x = series(0)
figure = Picture(figsize=(9, 2.2), layout="constrained")
course, pairs = figure.subplots(1, 2, width_ratios=[3, 1])
course.plot(x[:120], color=INK, linewidth=1)
course.set(xlabel="step", ylabel="seen")
pairs.plot(x[:-1], x[1:], ".", color=INK, markersize=1)
pairs.set(xlabel="seen", ylabel="seen next")
for axis in (course, pairs):
    tidy(axis)
display(figure)

# %%
slopes, variances = np.meshgrid(
    np.linspace(0.6, 2.0, 71), np.logspace(-6, -0.5, 23), indexing="ij"
)
figure = Picture(figsize=(9, 2.6), layout="constrained")
axes = figure.subplots(1, 3)
for axis, horizon in zip(axes, (None, 5, 20), strict=True):
    best = log_density(x, slopes, variances, horizon).max(1)
    axis.plot(slopes[:, 0], best, color=MODEL)
    axis.axvline(SLOPE, color=INK, linewidth=0.8, linestyle=":")
    axis.set_title("innovations" if horizon is None else f"open loop, {horizon} steps")
    axis.set_xlabel("slope")
    tidy(axis)
axes[0].set_ylabel("log-density, best process noise")
display(figure)

# %% [markdown]
# Dotted is the truth. Innovations have their maximum there, and so have predictions five steps
# ahead. Twenty steps ahead the true map is a poor explanation: the best one contracts (slope
# below one) and makes up for it with noise.
#
# The same by gradients: `EKF` trains a PLRNN with one hidden unit, whose slopes left and right
# are free, from a wrong start (slope 1.4, process variance .01). The observation noise is known.


# %%
def trained(x, objective, seed):
    """Slopes and process variance after training."""
    dynamics = ps.dynamics.ShallowPLRNN.from_parameters(
        A=[1.4],
        W1=[[-2.8]],
        W2=[[1.0]],
        h1=[1.0],
        clipped=False,
        process_noise=[1e-2],
        initial_mean=[float(x.mean())],
        initial_noise=[float(x.var())],
    )
    for name in ("W2", "h1", "h2"):
        dynamics.get_parameter(name).requires_grad_(False)
    dynamics.initial.requires_grad_(False)
    seen = ps.observations.Gaussian.from_parameters(
        B=[[1.0]], noise=[OBSERVED], readout="identity"
    ).requires_grad_(False)
    engine = EKF(
        objective=objective,
        steps=UPDATES,
        learning_rate=(0.03, 1e-3),
        window=50,
        warmup=1,
        state="data",
        ridge=0.0,
        checks=5,
        start="model",
        seed=seed,
    )
    data = ps.Dataset.from_arrays({"x": x[:, None]})
    fit = engine.fit(ps.StateSpaceModel(dynamics, {"x": seen}), data, progress=False)
    left = float(fit.model.dynamics.A.detach())
    right = left + float((fit.model.dynamics.W1 @ fit.model.dynamics.W2).detach())
    return {
        "left": left,
        "right": right,
        "slope": np.sqrt(abs(left * right)),
        "process variance": float(fit.model.dynamics.noise.variance.detach()),
    }


objectives = {"innovations": Innovation()}
objectives |= {f"open loop, {k} steps": OpenLoop(horizon=k) for k in HORIZONS}
rows = [
    {"objective": name, "seed": seed} | trained(series(seed), objective, seed)
    for seed in range(SEEDS)
    for name, objective in objectives.items()
]
scalar = pd.DataFrame(rows)
if not SMOKE:
    Path("tables").mkdir(exist_ok=True)
    scalar.to_csv("tables/03_scalar_map.csv", index=False, float_format="%.6g")
summary = scalar.groupby("objective", sort=False)[["slope", "process variance"]]
display(summary.agg(["median", "min", "max"]).map("{:.4g}".format))

# %%
figure = Picture(figsize=(5, 3), layout="constrained")
axis = figure.subplots()
z = np.linspace(-1, 1, 201)
axis.plot(z, 1 - SLOPE * np.abs(z), color=INK, label="truth")
for name, color in (("innovations", MODEL), (list(objectives)[-1], OTHER[0])):
    for _, row in scalar[scalar["objective"] == name].iterrows():
        line = 1 + np.where(z < 0, row["left"] * z, row["right"] * z)
        axis.plot(z, line, color=color, linewidth=1, label=name if row["seed"] == 0 else None)
axis.set_xlabel("state")
axis.set_ylabel("next state")
axis.legend(frameon=False)
tidy(axis)
display(figure)

# %% [markdown]
# ## Stochastic Lorenz-96
#
# Ten sites, $dx_i = [(x_{i+1} - x_{i-2}) x_{i-1} - x_i + 8]\,dt + 0.5\,dW_i$, sampled every .05
# time units, observation noise of 5 %, 20,000 samples for training. The same clipped shallow PLRNN
# (100 hidden units, the states are the sites) is trained by teacher forcing (GTF, noise fitted
# afterwards), by predictions 100 steps ahead (errors saturate after about 55), one step ahead, by
# innovations from scratch, and by innovations on from GTF. It takes ten minutes per seed, so the
# tables (the second one is of a ring of twenty) are read from files, which these commands make:
#
# ```
# python -m benchmarks lorenz96_gap --dim 10 --seeds 5 --out benchmarks/results
# python -m benchmarks lorenz96_gap --dim 20 --seeds 5 --out benchmarks/results
# ```

# %%
RESULTS = Path(ps.__file__).parents[1] / "benchmarks" / "results"
chosen = {
    "lyapunov_max": "largest exponent",
    "spectrum_rmse": "RMSE of the spectrum",
    "d_stsp": "D_stsp",
    "d_stsp_floor": "floor",
    "d_h": "D_H",
    "d_h_floor": "floor ",
    "process_noise": "process variance",
    "observation_noise": "observation variance",
    "coverage_95": "95 % band holds",
    "noise share, 10": "noise share, 10 steps",
    "leading cosine, reference tangent, 10": "direction against truth, 10 steps",
    "correlation, reference tangent, 10": "growth against truth, 10 steps",
}


def table(sites):
    """Rows of all seeds and objectives, after showing their medians."""
    rows = pd.read_csv(RESULTS / f"lorenz96_gap_{sites}.csv")
    medians = rows.groupby("objective", sort=False)[list(chosen)].median()
    medians.insert(0, "seeds", rows.groupby("objective").size())
    exponent = rows["reference_1"].median()
    print(f"{sites} sites, largest exponent {exponent:.2f}, observation variance .0025")
    display(medians.rename(columns=chosen).T.round(4))
    return rows


lorenz = table(10)
table(20)

# %%
figure = Picture(figsize=(10, 3), layout="constrained")
spectrum, crps, nll = figure.subplots(1, 3)
place = np.arange(1, 11)
reference = lorenz[[f"reference_{i}" for i in place]].median()
spectrum.plot(place, reference, color=INK, marker="o", label="system")
ahead = [1, 2, 5, 10, 20, 50, 100]
styles = {
    "GTF": {"color": OTHER[3]},
    "open loop, 100 steps": {"color": OTHER[0]},
    "one step": {"color": OTHER[4]},
    "innovations": {"color": MODEL},
    "innovations from GTF": {"color": MODEL, "linestyle": "--"},
}
for name, style in styles.items():
    mine = lorenz[lorenz["objective"] == name]
    spectrum.plot(place, mine[[f"exponent_{i}" for i in place]].median(), **style, label=name)
    crps.plot(ahead, mine[[f"ensemble_crps_{k}" for k in ahead]].median(), **style)
    nll.plot(ahead[:4], mine[[f"nll_{k}" for k in ahead[:4]]].median(), **style)
spectrum.set(xlabel="exponent", ylabel="per unit of time", ylim=(-8, 2.5))
crps.set(xlabel="steps ahead", ylabel="CRPS of ensembles", xscale="log")
nll.set(xlabel="steps ahead", ylabel="negative log-density", xscale="log")
spectrum.legend(frameon=False, fontsize=7)
for axis in (spectrum, crps, nll):
    tidy(axis)
display(figure)

# %% [markdown]
# The share of the predicted variance that is process noise, and what the direction of the largest
# predicted variance has to do with the direction in which errors really grow (tangent dynamics of
# the system; chance is .25):

# %%
figure = Picture(figsize=(9, 3), layout="constrained")
share, cosine, growth = figure.subplots(1, 3)
ahead = [1, 2, 5, 10, 20, 50]
for name, style in styles.items():
    mine = lorenz[lorenz["objective"] == name]
    for axis, measure in (
        (share, "noise share"),
        (cosine, "leading cosine, reference tangent"),
        (growth, "correlation, reference tangent"),
    ):
        middle = mine[[f"{measure}, {k}" for k in ahead]].median()
        axis.plot(ahead, middle, **style, label=name)
share.set(xlabel="steps ahead", ylabel="share of process noise", xscale="log")
cosine.set(xlabel="steps ahead", ylabel="cosine of directions", xscale="log")
growth.set(xlabel="steps ahead", ylabel="correlation of growth", xscale="log")
share.legend(frameon=False, fontsize=7)
for axis in (share, cosine, growth):
    tidy(axis)
display(figure)

# %% [markdown]
# ## What to take from it
#
# - Predictions far beyond the horizon of errors train a map that is not chaotic: its largest
#   exponent is negative, its process and observation noise are five and seven times too large.
#   With two free slopes the scalar map does not collapse below a slope of one as it does with one
#   (the grid above), but almost, and its noise explains what is missing.
# - Innovations keep both: exponents near the system's and the right observation noise, with the
#   same updates from the same start. One-step training comes close to them here, where every
#   state is observed with little noise; its predictions are worse from the second step on.
# - Teacher forcing has the better map for predictions and no idea of the observation noise, which
#   is fitted afterwards; a training by innovations on from it has the best scores of all, but the
#   short one of this table has not brought the observation noise back.
# - All of them have exponents a fifth too large on the ring of ten. On that of twenty (five seeds)
#   teacher forcing and what goes on from it have exponents a tenth too large, innovations from
#   scratch the right one, and open loop collapses as on the small ring. Spreads of ensembles say
#   what is missing better than covariances that are carried linearly, which grow without bounds
#   once errors are as large as the attractor.
