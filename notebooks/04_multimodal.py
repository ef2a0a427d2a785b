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
# # Spikes, choices and BOLD in one model
#
# Several kinds of data see the same dynamics: spike counts, a choice now and then, BOLD that
# lags by seconds. One PLRNN with one observation model per modality takes them all, each at its
# own rate, with gaps. Then every modality can be predicted from the others, with bands.
#
# First with simulated data, where we can look at the truth; at the end with a recording of
# motor cortex, where velocity and target of reaches are decoded from spikes alone.

# %%
import copy
import os

import numpy as np
import pandas as pd
import torch
from IPython.display import display

import plssm as ps
from plssm.inference.modality_weights import temper
from plssm.plot.canvas import INK, MODEL, Picture, band, panels, shared_labels, tidy

SMOKE = os.environ.get("PLSSM_SMOKE") == "1"  # a small size that only shows that everything runs
STEPS, TRIALS, HELD, MANY = (80, 3, 2, 2) if SMOKE else (250, 16, 6, 30)
ITERATIONS, MORE, SAMPLES = (2, 1, 50) if SMOKE else (30, 5, 200)

# %% [markdown]
# ## A known system, seen in three ways
#
# A slow spiral of two latent units that turns differently where a unit is negative (that is what
# the kinks of a PLRNN do). It is seen by 30 neurons counted in bins of 0.5 s, by a choice among
# five every second, and by 20 brain regions scanned every 2 s. `BOLD` is a linear read-out of the
# latent path convolved with the haemodynamic response.

# %%
DT, TR, SEED = 0.5, 2.0, 3
rng = np.random.default_rng(0)
dynamics = ps.dynamics.PLRNN.from_parameters(
    A=[0.988, 0.985],
    W=[[0.0, -0.14], [0.12, 0.0]],
    h=[0.06, -0.03],
    process_noise=[0.008, 0.008],
    initial_noise=[0.2, 0.2],
)
preferred = rng.uniform(0, 2 * np.pi, 30)  # direction in the latent plane
known = {
    "spikes": ps.observations.Poisson.from_parameters(
        0.7 * np.column_stack([np.cos(preferred), np.sin(preferred)]),
        bias=rng.uniform(0.0, 1.5, 30),  # log of rates in Hz
        bin_seconds=DT,
    ),
    "choice": ps.observations.Categorical.from_parameters(
        [[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]], bias=np.zeros(4)
    ),
    "bold": ps.observations.BOLD.from_parameters(
        B=rng.standard_normal((20, 2)), bias=np.zeros(20), noise=[0.5] * 20, tr_seconds=TR
    ),
}
truth = ps.StateSpaceModel(dynamics, known)
every = {"choice": 2}  # latent steps between choices; BOLD comes at its TR by itself

test = truth.simulate(STEPS, trials=HELD, dt=DT, every=every, seed=2)
complete = truth.simulate(STEPS, trials=TRIALS, dt=DT, every=every, seed=SEED)

# %% [markdown]
# Real recordings have holes. In trial 2 we switch the amplifier off for a while, and trial 3 is
# without BOLD. This is also how data of your own go in: arrays, times of what has its own
# clock, NaN where something is missing (`None` for a whole modality of a trial).

# %%
END = STEPS * DT
arrays = {
    name: [trial.values[name].copy() for trial in complete.trials] for name in complete.names
}
times = {name: [trial.times[name] for trial in complete.trials] for name in ("choice", "bold")}
arrays["spikes"][1][int(0.4 * STEPS) : int(0.6 * STEPS)] = np.nan
arrays["bold"][2] = times["bold"][2] = None

train = ps.Dataset.from_arrays(
    arrays, DT, kinds={"spikes": "count", "choice": "label", "bold": "bold"}, times=times
)
print(train)

# %%
figure = Picture(figsize=(7.5, 3.8), layout="constrained")
axes = figure.subplots(3, 3, sharex=True, sharey="row", height_ratios=[3, 2, 3])
for k, column in enumerate(axes.T):
    one = train[k]
    seconds = {name: one.seconds(name, DT) for name in train.names}
    column[0].pcolormesh(
        seconds["spikes"], np.arange(30), one.values["spikes"].T, cmap="Greys", vmax=6
    )
    column[1].plot(seconds["choice"], one.values["choice"], ".", color=MODEL, markersize=3)
    column[2].plot(seconds["bold"], one.values["bold"][:, :4], ".-", markersize=3, linewidth=0.8)
    column[0].set_title(f"trial {k + 1}", loc="left")
    column[2].set_xlabel("time (s)")
for axis, label in zip(axes[:, 0], ("neuron", "choice", "BOLD, 4 regions"), strict=True):
    axis.set_ylabel(label)
for axis in axes.flat:
    tidy(axis)
axes[1, 0].set_yticks(range(5))
axes[0, 1].annotate("amplifier off", (0.5, 1.02), xycoords="axes fraction", ha="center")
axes[2, 2].annotate("no BOLD", (0.5, 0.5), xycoords="axes fraction", ha="center")
display(figure)

# %% [markdown]
# The clocks of the first ten seconds: each sample belongs to the latent step at its time.

# %%
figure = Picture(figsize=(7.5, 1.7), layout="constrained")
axis = figure.subplots()
for row, name in enumerate(["latent step", *train.names]):
    at = np.arange(STEPS) * DT if row == 0 else train[0].seconds(name, DT)
    axis.plot(
        at[at < 10],
        np.full((at < 10).sum(), -row),
        "|" if row else ".",
        color=INK if row else MODEL,
    )
axis.set_yticks([0, -1, -2, -3], ["latent step", *train.names])
axis.set_xlabel("time (s)")
tidy(axis)
display(figure)

# %% [markdown]
# ## One fit for all
#
# Missing entries and missing modalities just add no information; nothing is filled in, no trial
# is dropped. `bin_seconds` makes rates come out in Hz. Of the default stages of a fit we keep
# two, a linear stand-in and the model itself: lowering the process noise in between helps where a
# system is nearly deterministic, and this one is not.

# %%
model = ps.StateSpaceModel(
    ps.dynamics.PLRNN(dim=2),
    {
        "spikes": ps.observations.Poisson(30, bin_seconds=DT),
        "choice": ps.observations.Categorical(5),
        "bold": ps.observations.BOLD(20, tr_seconds=TR),
    },
)
stages = (
    ps.inference.Stage("linear", 2 if SMOKE else 25, dynamics="linear"),
    ps.inference.Stage("free", ITERATIONS),
)
fit = ps.inference.LaplaceEM(seed=0, stages=stages).fit(model, train)
fit.plot_convergence()

# %% [markdown]
# ### Is it right? Predictors of held-out trials
#
# Latent units may come out rotated, so we compare what does not depend on coordinates: the
# predictors, that is log rates, log odds of the choices and noise-free BOLD. R² is that
# of the estimate against the truth, beside what the true parameters reach from the same data.
# In the picture, BOLD is off in the first seconds: the response then still sees the zeros before
# the trial, and it takes EM many iterations to move the origin of the latent space there.


# %%
def predictors(model, z):
    """Predictors of every modality along latent paths, at every latent step."""
    with torch.no_grad():
        return {n: o.features_along(z, dt=DT).numpy() for n, o in model.observations.items()}


def r2(true, estimate):
    return 1 - ((true - estimate) ** 2).sum() / ((true - true.mean((0, 1))) ** 2).sum()


real = predictors(truth, torch.from_numpy(test.latent))
posterior = fit.posterior(test)
estimates = {
    "fitted": predictors(fit.model, posterior.mean),
    "true parameters": predictors(truth, ps.smooth(truth, test).mean),
}
pd.DataFrame(
    {column: {n: r2(real[n], made[n]) for n in real} for column, made in estimates.items()}
).round(3)

# %%
draws = predictors(fit.model, posterior.sample(SAMPLES, seed=0))
figure, axes = panels(3, None, title="Predictors, one of each modality")
at = np.arange(min(STEPS, 120)) * DT
for name, axis, label in zip(real, axes, ("log rate", "log odds", "BOLD"), strict=True):
    low, high = np.quantile(draws[name][:, 0, : len(at), 0], [0.025, 0.975], axis=0)
    band(axis, at, low, high, label="95% band")
    axis.plot(at, estimates["fitted"][name][0, : len(at), 0], color=MODEL, label="fitted")
    axis.plot(at, real[name][0, : len(at), 0], "--", color=INK, linewidth=0.9, label="truth")
    axis.set_ylabel(label)
shared_labels(axes, "time (s)")
display(figure)

# %% [markdown]
# ### Are the bands honest?
#
# With the true parameters nothing stands between posterior and truth but the Laplace
# approximation: a 90 % band should hold 90 % of the true latent states. A fitted model has
# parameters that are wrong by a little; then the test is the coverage of data that were
# never seen (next section).

# %%
many = truth.simulate(STEPS, trials=MANY, dt=DT, every=every, seed=4)
smoothed = ps.smooth(truth, many)
for level in (0.5, 0.9, 0.95):
    low, high = (edge.numpy() for edge in smoothed.interval(level))
    print(f"{level:4.0%} band holds {np.mean((low <= many.latent) & (many.latent <= high)):.1%}")

# %%
ps.plot.latents(smoothed, dt=DT, truth=many.latent[0], units=[0])

# %% [markdown]
# ### Scores, by modality
#
# Forecasts on held-out trials, from data up to each moment. Each kind of data has its own
# measures; what does not apply is empty. `error_n` (n latent steps ahead) stands beside
# persistence and a linear autoregression (Markov chain for choices), `accuracy` beside
# `majority`, and `bits_per_spike` counts from each neuron's mean rate, which scores 0.

# %%
fit.score(test, steps=(2,) if SMOKE else (2, 10, 40)).round(3).transpose()

# %% [markdown]
# ## One modality from the others
#
# `fit.predict` infers the latent path from what is `given` only, and puts the observation model
# of the wanted modality on it. What comes out is a distribution: classes have probabilities,
# numbers a mean and bands.
#
# **Choice from BOLD.** Dark is probable, dots are the choices made. The choices of this trial
# were not looked at.

# %%
fit.plot_prediction(test, "choice", given=["bold"])

# %% [markdown]
# **Spikes from BOLD and choices**, the neurons with the strongest tuning. The band is that of a
# count: wide, because a Poisson neuron is noisy even when its rate is known.

# %%
tuning = np.linalg.norm(fit.model.observations["spikes"].weight.detach().numpy(), axis=1)
strong = np.argsort(-tuning)[:2].tolist()
minute = test.select(time=(0, 60))
fit.plot_prediction(minute, "spikes", given=["bold", "choice"], channels=strong, unit="spikes")

# %% [markdown]
# **BOLD from spikes.** The latent path is inferred from spikes and sent through the haemodynamic
# response. (It starts from zero at the start of a trial, here in the simulation as well; in
# recordings the first 20 s of a run are less certain than their band.)

# %%
fit.plot_prediction(minute, "bold", given=["spikes"], channels=range(2))

# %% [markdown]
# **What does each modality add?** `fit.score(test, given=...)` scores all that is not given. The
# dashed lines in the picture are the floors: mean rates, majority class, training mean.

# %%
wanted = {"spikes": "bits_per_spike", "choice": "accuracy", "bold": "r2"}
sets = [
    ["bold"],
    ["choice"],
    ["spikes"],
    ["spikes", "bold"],
    ["choice", "bold"],
    ["spikes", "choice"],
]
sets = sets[:2] if SMOKE else sets
rows, majority = {}, np.nan
for given in sets:
    table = fit.score(test, given=given, samples=SAMPLES)
    name = " + ".join(given)
    rows[name] = {f"{m}: {s}": table.loc[m, s] for m, s in wanted.items() if m in table.index}
    rows[name] |= {
        f"{m}: coverage_95": table.loc[m, "coverage_95"]
        for m in ("spikes", "bold")
        if m in table.index
    }
    majority = table["majority"].dropna().iloc[0] if "choice" in table.index else majority
gains = pd.DataFrame(rows).T
print(f"accuracy of the majority class {majority:.3f}")
gains.round(3)

# %%
figure = Picture(figsize=(9, 2.6), layout="constrained")
axes = figure.subplots(1, 3)
floors = {"spikes": 0.0, "choice": majority, "bold": 0.0}
titles = ("spikes, bits per spike", "choice, accuracy", "BOLD, R²")
for (name, score), axis, title in zip(wanted.items(), axes, titles, strict=True):
    bars = gains[f"{name}: {score}"].dropna()
    axis.barh(list(bars.index), bars.to_numpy(), color=MODEL)
    axis.axvline(floors[name], color=INK, linestyle="--", linewidth=0.9)
    axis.set_title(title, loc="left", fontsize=11)
    tidy(axis)
    axis.invert_yaxis()
display(figure)

# %% [markdown]
# BOLD and spikes tell the choice about equally well, and both together hardly better: they have
# said the same. BOLD is known better from spikes than from choices, to which spikes leave nothing
# to add. The coverage columns of the table are those of 95 % bands; for counts they lie above,
# because a count cannot be cut in halves.
#
# ### Holes
#
# `hold_out` hides entries and remembers them; `fit.score` then scores exactly these. Here a
# third of each scan series, and, in another copy, eight neurons (co-smoothing: their rates
# come from the other neurons, the choices and BOLD).

# %%
hole = test.hold_out("bold", times=(0.4 * END, 0.7 * END))
silent = test.hold_out("spikes", channels=range(8))
pd.concat([fit.score(hole), fit.score(silent)]).round(3).transpose()

# %%
fit.plot_prediction(
    hole,
    "bold",
    given=["spikes", "choice", "bold"],
    channels=[0],
    title="BOLD, hole included",
)

# %% [markdown]
# ### The future of each modality
#
# The first part of a trial is given, all modalities of it; the fan is the forecast, the line
# what came.

# %%
cut = 0.7 * END
before, after = test.select(time=(0, cut)), test.select(time=(cut, END))
ahead = int(0.2 * STEPS)
fit.plot_forecast(before, ahead, "bold", truth=after, channels=range(2))

# %%
fit.plot_forecast(
    before, ahead, "spikes", truth=after, channels=strong[:1], unit="spikes", past=ahead
)

# %%
fit.plot_forecast(before, ahead, "choice", truth=after)

# %% [markdown]
# ## Modality weights
#
# By default every modality counts as its likelihood says. That is the proper posterior, and the
# only one whose bands mean what they say. Thirty neurons then outvote one choice, as they should:
# they know more.
#
# Weights change this: each likelihood enters the posterior of the latent path with an exponent,
#
# $$q(Z) \propto p(Z) \prod_m p(y^{(m)} \mid Z)^{w_m}.$$
#
# `modality_weights={"choice": 5.0}` treats each choice as five. `"null-fisher"` computes weights
# from the data, so that each predictor of each modality pulls about equally. Both make a
# *tempered* posterior. Use them to steer a fit towards a modality that matters to you, or to damp
# one whose model is too sure of itself (next section), and check on held-out data whether that
# helps. They are off unless asked for. Here the model is right and weights can only do harm.
# The share of latent states inside the 95 % band is that with the true parameters; the scores
# are those of the fit above after a few more iterations with these weights.

# %%
weighted = {"none (default)": None, "choice 5": {"choice": 5.0}, "null-fisher": "null-fisher"}
some, rows = many.select(trials=slice(0, 2 if SMOKE else 10)), {}
for name, weights in list(weighted.items())[2 if SMOKE else 0 :]:
    tempered = copy.deepcopy(truth)
    used = temper(tempered, train, weights)
    found = ps.smooth(tempered, some)
    low, high = (edge.numpy() for edge in found.interval(0.95))
    engine = ps.inference.LaplaceEM(iterations=MORE, modality_weights=weights)
    again = engine.fit(fit.model, train)
    scores = again.score(test, given=["bold"], samples=SAMPLES)
    rows[name] = {f"weight of {n}": round(w, 3) for n, w in used.items()}
    rows[name] |= {
        "inside 95 % band": round(np.mean((low <= some.latent) & (some.latent <= high)), 3),
        "choice from BOLD, accuracy": round(scores.loc["choice", "accuracy"], 3),
        "choice from BOLD, Brier": round(scores.loc["choice", "brier"], 3),
        "bits per spike from BOLD": round(scores.loc["spikes", "bits_per_spike"], 3),
        "kind of evidence": found.evidence_kind,
    }
pd.DataFrame(rows)

# %% [markdown]
# With weights the kind of the evidence is `tempered`: it cannot be compared with that of other
# weights.
#
# ## A recording: reaches decoded from motor cortex
#
# 71 units of primary motor cortex, hand velocity and one of four targets, in every bin
# (Dyer et al. 2017, doi:10.1101/080861). One model of all three is trained on one session. On
# the other session it sees the counts only. The data are not part of the package: set
# `PLSSM_DATA` to the folder that has them (`datasets/m1_reaching.md`), otherwise the rest is
# skipped.
#
# The units share noise that independent Poisson counts do not have: together they claim too much.
# Their weight, 0.1, was chosen for 8 latent units by cross-validation within the training session
# (`benchmarks/m1_reaching.py`, which has the careful comparison).

# %%
M1 = "PLSSM_DATA" in os.environ
if M1:
    reaching = ps.data.load_recording("m1_reaching")
    parts = {
        n: [np.array(t.values[n], dtype=float) for t in reaching.trials] for n in reaching.names
    }
    parts = {n: [x[:150] for x in v] if SMOKE else v for n, v in parts.items()}
    center, spread = parts["velocity"][0].mean(0), parts["velocity"][0].std()
    parts["velocity"] = [(v - center) / spread for v in parts["velocity"]]
    reaching = ps.Dataset.from_arrays(parts, dt=1.0, kinds=reaching.kinds)
    session, unseen = reaching.select(trials=[0]), reaching.select(trials=[1])
    print(reaching)
else:
    print("skipped: PLSSM_DATA is not set, so there is no m1_reaching to load")

# %%
if M1:
    cortex = ps.StateSpaceModel(
        ps.dynamics.PLRNN(2 if SMOKE else 8),
        {
            "spikes": ps.observations.Poisson(71),
            "velocity": ps.observations.Gaussian(2),
            "target": ps.observations.Categorical(4),
        },
    )
    engine = ps.inference.LaplaceEM(
        seed=0, iterations=2 if SMOKE else 15, modality_weights={"spikes": 0.1}
    )
    reach = engine.fit(cortex, session)
    velocity = reach.predict(unseen, "velocity", given=["spikes"])
    target = reach.predict(unseen, "target", given=["spikes"])

# %% [markdown]
# Beside it: ridge regression of velocity, and of indicators of the targets, on square-root counts
# of the same bin, or of six bins on either side as well (smoothing, too, looks at both sides), and
# the most frequent target.
# The penalty is the one that predicts the last quarter of the training session best.


# %%
def ridge(x, y, new, penalty):
    """Ridge regression on standardised columns."""
    mean, sd = x.mean(0), x.std(0) + 1e-9
    a = (x - mean) / sd
    w = np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ (y - y.mean(0)))
    return (new - mean) / sd @ w + y.mean(0)


def around(counts, lags):
    """Square roots of counts of several bins side by side."""
    rows = np.arange(len(counts))[:, None] + np.array(lags)
    return np.sqrt(counts)[np.clip(rows, 0, len(counts) - 1)].reshape(len(counts), -1)


def regression(y, lags):
    """Ridge regression from the training session to the unseen one."""
    x, new = (around(counts, lags) for counts in parts["spikes"])
    n = 3 * len(x) // 4
    penalties = 10.0 ** np.arange(0, 5, 0.5)
    best = max(penalties, key=lambda p: r2(y[None, n:], ridge(x[:n], y[:n], x[n:], p)))
    return ridge(x, y, new, best)


if M1:
    moved, aimed = unseen.values("velocity")[0], unseen.values("target")[0, :, 0]
    low, high = (edge[0].numpy() for edge in velocity.interval(0.95))
    trained, wide = parts["target"][0][:, 0].astype(int), range(-6, 7)
    indicators, common = np.eye(4)[trained], np.bincount(trained).argmax()
    near, far = (regression(indicators, lags).argmax(1) for lags in ([0], wide))
    found = {
        "velocity R², model": r2(moved[None], velocity.mean[0].numpy()),
        "velocity R², ridge, same bin": r2(moved[None], regression(parts["velocity"][0], [0])),
        "velocity R², ridge, 6 bins either side": r2(
            moved[None], regression(parts["velocity"][0], wide)
        ),
        "velocity inside the 95 % band": np.mean((low <= moved) & (moved <= high)),
        "target accuracy, model": np.mean(target.labels[0].numpy().ravel() == aimed),
        "target accuracy, ridge, same bin": np.mean(near == aimed),
        "target accuracy, ridge, 6 bins either side": np.mean(far == aimed),
        "target accuracy, majority": np.mean(aimed == common),
    }
    print(pd.Series(found).round(3).to_string())

# %%
stretch = slice(0, 130)
figure = None
if M1:
    figure = ps.plot.observed_vs_predicted(
        velocity.times[0, stretch],
        moved[stretch],
        velocity.mean[0, stretch],
        low[stretch],
        high[stretch],
        names=["velocity x", "velocity y"],
        title="Velocity from counts alone, unseen session",
        xlabel="bin",
    )
display(figure)

# %%
if M1:
    figure = ps.plot.class_probabilities(
        target.times[0, stretch],
        target.probabilities[0, stretch],
        aimed[stretch],
        title="Target from counts alone, unseen session",
        xlabel="bin",
    )
display(figure)

# %% [markdown]
# ## What to trust, and what not
#
# **Trust** a cross-modal prediction that beats its floor on trials that were not fitted: the
# majority class, mean rates, the training mean. Print the floor beside the score, always.
#
# **Trust with care** bands. They are right when the model is (first part). In a recording look at
# their coverage on held-out data (above it falls a little short), and at what is given: a band
# from one modality is the wider one.
#
# **Do not read** weights as importance. They temper, and the bands are then no longer calibrated
# by themselves.
#
# **Do not conclude** from a missing gain that a modality carries nothing: it may carry what the
# others have said already. Compare sets with and without it, as above.
