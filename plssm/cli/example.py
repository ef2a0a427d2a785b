"""The commented configuration that `plssm fit --example-config` prints."""

from __future__ import annotations

__all__ = ["EXAMPLE"]

EXAMPLE = """\
# A run of `plssm fit`. Keys that are left out keep their defaults; unknown keys are refused.

[data]
# file = "recording.npz"            # or as the argument of `plssm fit`
# dt = 0.05                         # seconds per latent step; read from the file where absent
# kinds = { x = "continuous" }      # continuous | count | label | ordinal | bold
# The rest is for CSV files, one row per time step and empty cells for what is missing:
# columns = { x = ["lfp_1", "lfp_2"] }   # columns of each modality; default: all numeric ones as x
# time = "seconds"                  # column of times
# trial = "trial"                   # columns that tell trials, subjects and sessions apart
# subject = "subject"
# session = "session"
# inputs = ["stimulus"]             # columns that drive the dynamics

[dynamics]
class = "PLRNN"                     # PLRNN | LinearDynamics | "your_module:YourClass";
                                    # AlmostLinearRNN with relu_units = 2
dim = 5                             # latent dimensions; the number of inputs comes from the data
noise = "diagonal"                  # diagonal | full | isotropic
# regularizer = { class = "ManifoldAttractor", tau = 10.0 }

[observations.x]                    # one table per modality; channels come from the data
class = "Gaussian"                  # Poisson, NegativeBinomial, ZeroInflatedPoisson, Bernoulli;
                                    # Categorical with classes = 4, Ordinal with levels = 5,
                                    # BOLD with tr_seconds = 2.0
readout = "linear"                  # linear | relu | identity

[engine]
class = "LaplaceEM"
seed = 0
iterations = 50
restarts = 3
# Or, for chaotic systems, these lines in place of the four above, with a ShallowPLRNN of some
# hidden units as dynamics and Gaussian observations (readout identity where they are the states):
# class = "TeacherForcing"
# scheme = { class = "GTF", alpha = 0.3, final_alpha = 0.05 }
#                                   # or { class = "SparseTF", interval = 16 }
# steps = 300_000                   # updates; for small maps and clean data in its place:
#                                   # optimiser = { class = "GaussNewton", updates = 60 }
# sequence = 75                     # steps of a training sequence
# checkpoint = ""                   # keep none; default: one in the folder of the run
# Or, for variational inference with an encoder of all modalities:
# class = "VariationalInference"
# encoder = "conv"                  # conv | gru | mlp | none | free
# guide = "laplace"                 # laplace | model | chain | mean-field
# steps = 3000                      # updates

[split]
by = "time"                         # time | trial | none
fractions = [0.8, 0.2]              # train, test; or train, validation, test
seed = 0
"""
