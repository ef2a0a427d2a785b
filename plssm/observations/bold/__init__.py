"""BOLD: the response to the latent path, and what is known about it."""
