"""Runs as files: TOML to data, model and engine, and back."""

from __future__ import annotations

from plssm.config.parts import Part
from plssm.config.run import RunConfig
from plssm.config.sections import DataSection, SplitSection
from plssm.config.values import ConfigError

__all__ = ["ConfigError", "DataSection", "Part", "RunConfig", "SplitSection"]
