"""The M-step: expected log-likelihoods and how they are raised."""
