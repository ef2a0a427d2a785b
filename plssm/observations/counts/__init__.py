"""Spikes and other counts."""
