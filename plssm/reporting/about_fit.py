"""What the report says about one fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import tomli_w

from plssm.analysis import fixed_points
from plssm.comparison.free_runs import exponents
from plssm.comparison.measures import reason
from plssm.config.parts import Part
from plssm.data import Dataset
from plssm.fit import Fit
from plssm.reporting.markup import code, listed, note, paragraph, picture, table

__all__ = ["PARTS", "Subject"]

RESTARTS = 2000
MOST_POINTS, MOST_MODALITIES, MOST_EXPONENTS = 12, 8, 12


@dataclass(frozen=True)
class Subject:
    """A fit, and what the report looks at.

    Args:
        fit: The fit.
        data: Held-out trials.
        trial: The trial that is drawn.
        steps: Horizons of the scores.
        level: Probability of the bands.
        seed: Seed of every draw.
    """

    fit: Fit
    data: Dataset
    trial: int
    steps: tuple[int, ...]
    level: float
    seed: int

    @property
    def names(self) -> list[str]:
        """The modalities that are drawn."""
        return list(self.fit.model.observations)[:MOST_MODALITIES]

    def configuration(self) -> str:
        """Model, engine and duration."""
        fit = self.fit
        free = sum(p.numel() for p in fit.model.parameters() if p.requires_grad)
        took = "" if np.isnan(fit.seconds) else f"; fitted in {fit.seconds:.1f} s"
        return paragraph(f"{free} free parameters{took}") + code(settings_text(fit))

    def convergence(self) -> str:
        """The history of the fit."""
        if self.fit.history.empty:
            return note("A known model: nothing was trained.")
        return picture(self.fit.plot_convergence, "How the fit converged")

    def scores(self) -> str:
        """What ``fit.score`` says."""
        scores = self.fit.score(self.data, steps=self.steps, seed=self.seed)
        caption = "Forecasts from filtered starts; errors of numbers are z-scored mean squares"
        return table(scores.T, caption)

    def latents(self) -> str:
        """Latent paths with bands."""
        draw = partial(self.fit.plot_latents, self.data, self.trial, level=self.level)
        return picture(draw, f"Posterior of the latent path with its {self.level:.0%} band")

    def predictive(self) -> str:
        """Each sample beside its prediction from the data before it."""
        options: dict[str, Any] = {"trial": self.trial, "level": self.level, "seed": self.seed}
        return "".join(
            picture(
                partial(self.fit.plot_observed, self.data, name, **options),
                f"{name}, predicted one step ahead from the data before",
            )
            for name in self.names
        )

    def free_run(self) -> str:
        """Simulations beside the data."""
        options: dict[str, Any] = {"trial": self.trial, "seed": self.seed}
        options["noise"] = bool(getattr(self.fit.engine, "fit_noise", True))
        out = []
        for name in self.names:
            channels = self.fit.model.observations[name].channels
            looks: list[dict[str, Any]] = [{"kind": "series", "channels": range(min(channels, 4))}]
            looks = looks if channels == 1 else [{}, *looks]
            for look in looks:
                draw = partial(self.fit.plot_free_run, self.data, name, **options, **look)
                out.append(picture(draw, f"{name}, and a simulation that never sees the data"))
        return "".join(out)

    def dynamics(self) -> str:
        """Lyapunov spectrum and fixed points of the map."""
        parts = []
        for part in (self._exponents, self._fixed_points):
            try:
                parts.append(part())
            except Exception as error:  # an orbit that diverges, a map that is not linear in parts
                parts.append(note(reason(error)))
        return "".join(parts)

    def _exponents(self) -> str:
        posterior = self.fit.posterior(self.data.select(trials=[self.trial]))
        middle = int(posterior.length[0]) // 2
        start = posterior.mean[0, middle]
        found = exponents(self.fit.model, start, self.data)[:MOST_EXPONENTS]
        frame = pd.DataFrame([found], index=["exponent per second"])
        frame.columns = [str(k + 1) for k in range(len(found))]
        driven = ", driven by the inputs of the data" if self.data.n_inputs else ""
        return table(frame, f"Lyapunov spectrum of the noise-free map{driven}")

    def _fixed_points(self) -> str:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = fixed_points(
                self.fit.model.dynamics, restarts=RESTARTS, seed=self.seed, progress=False
            )
        at = " at inputs of zero" if self.data.n_inputs else ""
        how = "all linear regions tried" if found.exhaustive else f"{found.restarts} random starts"
        out = [paragraph(f"Fixed points{at}: {len(found)} ({how}).")]
        if len(found):
            frame = found.table().head(MOST_POINTS).drop(columns="hits")
            frame["first_point"] = [
                ", ".join(f"{x:.3g}" for x in point[:MOST_EXPONENTS])
                for point in frame["first_point"]
            ]
            frame.index = [str(k + 1) for k in range(len(frame))]
            names = {"first_point": "state", "largest_modulus": "largest eigenvalue, modulus",
                     "border_collision": "on a kink"}  # fmt: skip
            out.append(table(frame.rename(columns=names)))
        return "".join([*out, listed(str(w.message) for w in told)])


PARTS: dict[str, Callable[[Subject], str]] = {
    "Configuration": Subject.configuration,
    "Convergence": Subject.convergence,
    "Scores": Subject.scores,
    "Latent paths": Subject.latents,
    "Posterior predictive": Subject.predictive,
    "Free run": Subject.free_run,
    "Dynamics": Subject.dynamics,
}
"""The parts of what is said about a fit, by heading."""


def settings_text(fit: Fit) -> str:
    """Model and engine as the tables of a file for ``plssm fit``.

    Args:
        fit: The fit.
    """
    model = fit.model
    tables: dict[str, Any] = {
        "dynamics": _table("dynamics", model.dynamics, model.dynamics.config()),
        "observations": {
            name: _table("observations", o, o.config()) for name, o in model.observations.items()
        },
    }
    if fit.engine is not None:
        tables["engine"] = _table("engine", fit.engine, fit.engine.settings())
    return tomli_w.dumps(tables)


def _table(section: str, part: Any, config: dict[str, Any]) -> dict[str, Any]:
    kind = type(part)
    ours = kind.__module__.split(".")[0] == "plssm"
    name = kind.__qualname__ if ours else f"{kind.__module__}:{kind.__qualname__}"
    return Part(section, name).spelled_out(config).table()
