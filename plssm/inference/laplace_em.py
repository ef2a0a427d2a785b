"""Expectation maximisation with a global Laplace approximation of the latent path."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from plssm.data import Dataset
from plssm.dynamics.base import PiecewiseLinear
from plssm.errors import CapabilityError, PlssmError
from plssm.inference.base import Engine, Run, working_copy
from plssm.inference.em_run import EMRun
from plssm.inference.free_selection import SELECT, FreeSelection
from plssm.inference.laplace import laplace_posterior
from plssm.inference.modality_weights import temper
from plssm.inference.progress import EMProgress
from plssm.inference.smoothers import smooth
from plssm.inference.stages import Stage, annealed_stages, plain_stages, searched_stages
from plssm.inference.starts import state_dim
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior

__all__ = ["LaplaceEM"]


@dataclass
class LaplaceEM(Engine):
    r"""EM whose E-step is the global Laplace approximation of the whole latent path.

    .. math:: \theta \leftarrow \arg\max_\theta\; E_{q(Z)} [\log p_\theta(Y, Z)], \qquad
              q(Z) = \mathcal N(Z^*, U(Z^*)^{-1})

    Exact EM for a linear-Gaussian model. For piecewise-linear dynamics the moments of the hinges
    under q are exact, the M-step is closed-form, and the evidence is the Laplace evidence.

    Args:
        seed: Seed of the restarts.
        modality_weights: See :class:`Engine`.
        iterations: EM iterations in total.
        restarts: Number of starts; the best evidence (on the validation data where given) wins, or
            the best free runs (see `select`).
        start: ``"auto"`` starts parameters that were set (``from_parameters``, a Fit) where they
            are and fresh ones from the data; ``"data"`` and ``"model"`` force one of the two.
        candidates: Random coordinates of the state that the start of a fresh piecewise-linear map
            refines where it has no more units than the larger of 3 and the number of channels; the
            best ones compete by their evidence after a few iterations (stage "search" of the
            history, the winner's). Where all observations are Gaussian (BOLD too, but no ReLU
            read-outs) and longer than 5000 steps, a part is searched, which the history leaves
            out; others of that length start plainly, as do shorter ones where the first starts
            promise nothing. With 1 there is no search.
        stages: The stages of the fit; None chooses them (annealed process noise for a fresh
            piecewise-linear map with more units than state dimensions to see, plain EM otherwise).
            Of more than 20,000 steps of such data the annealed stages see a part of 5000 first,
            which the history leaves out, and the last of them then all data.
        tolerance: A stage ends after three iterations that each gained less than this many
            nats per observed value.
        floor: Smallest process and initial-state variance.
        max_solves: Linear solves of one mode search at most.
        ridge: Precision of a zero-mean Gaussian prior on the weights of the hinges, for latents of
            about unit variance. It is weak beside the data, and keeps the weights of hinges finite
            that the data hardly ever open.
        moments: Moments of the hinges in the M-step. ``"regional"`` uses the linearisation that
            defines the Laplace covariance: the Laplace evidence then rises steadily. ``"exact"``
            uses the exact moments under the Gaussian (bivariate normal cdf, the published form),
            which overrates the process noise where the posterior spans several regions.
        select: ``"evidence"`` keeps the best evidence of the last stage. ``"free_runs"`` keeps the
            state whose noise-free runs are closest to the smoothed path of the training data:
            every stage that learns the map is checked 25 to 50 times (columns ``free_score`` and
            ``kept`` of the history), and a later stage is preferred to one before unless all its
            runs come to rest or leave. Evidence says little about what a map does beside the data,
            so that this is for maps that are to be run freely, most of all with held process noise
            (:func:`held_stages`), and not for systems that only noise keeps moving. What is kept
            has the process noise of its stage, so that forecasts are too narrow where that was
            held small; a last ``Stage(learn=("process_noise", "observations"))`` fits it to the
            map that was kept. Restarts are compared by the same score, of validation data where
            given.

    References:
        Durstewitz (2017), PLoS Comput Biol 13:e1005542, doi:10.1371/journal.pcbi.1005542.
        Koppe et al. (2019), PLoS Comput Biol 15:e1007263, doi:10.1371/journal.pcbi.1007263.
    """

    iterations: int = 50
    restarts: int = 1
    start: str = "auto"
    candidates: int = 30
    stages: tuple[Stage, ...] | None = None
    tolerance: float = 1e-6
    floor: float = 1e-5
    max_solves: int = 60
    ridge: float = 1.0
    moments: str = "regional"
    select: str = "evidence"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in ("auto", "data", "model"):
            raise PlssmError(f"LaplaceEM: start is {self.start!r}, wanted auto, data or model.")
        if self.moments not in ("regional", "exact"):
            raise PlssmError(f"LaplaceEM: moments is {self.moments!r}, wanted regional or exact.")
        if self.select not in SELECT:
            raise PlssmError(f"LaplaceEM: select is {self.select!r}, wanted one of {SELECT}.")
        for name in ("iterations", "restarts", "candidates"):
            if getattr(self, name) < 1:
                raise PlssmError(f"LaplaceEM: {name} is {getattr(self, name)}, wanted >= 1.")
        if self.stages is not None:
            self.stages = tuple(s if isinstance(s, Stage) else Stage(**s) for s in self.stages)
            if any(s.dynamics == "linear" for s in self.stages[1:]):
                raise PlssmError("LaplaceEM: only the first stage may be linear.")

    def check(self, model: StateSpaceModel, data: Dataset) -> None:
        """Refuse data that do not match and dynamics without a ReLU form."""
        super().check(model, data)
        if not isinstance(model.dynamics, PiecewiseLinear):
            raise CapabilityError(
                f"LaplaceEM needs piecewise-linear dynamics, got {type(model.dynamics).__name__}; "
                "derive from PiecewiseLinear or use an engine that differentiates the map."
            )
        model.dynamics.relu_form()
        learned = any("dynamics" in s.learn for s in self.stages_for(model))
        if learned and model.dynamics.coefficients() is None:
            raise CapabilityError(
                f"{type(model.dynamics).__name__} has no closed-form M-step (coefficients() is "
                "None), which LaplaceEM needs to fit it; smooth(method='laplace') works."
            )

    def check_training(self, model: StateSpaceModel, data: Dataset) -> None:
        """Refuse to choose linear maps by free runs, which only come to rest."""
        super().check_training(model, data)
        if self.select == "free_runs" and not model.dynamics.relu_form().outer.shape[1]:
            raise CapabilityError(
                f"LaplaceEM: free runs of {type(model.dynamics).__name__} come to rest or leave, "
                'which says nothing about it; use select="evidence".'
            )

    def infer(self, model: StateSpaceModel, data: Dataset, *, causal: bool = False) -> Posterior:
        """Posterior of the latent paths: Laplace smoothing, or causal filtering."""
        return smooth(model, data, method="laplace", causal=causal)

    def trainings(
        self,
        model: StateSpaceModel,
        data: Dataset,
        validation: Dataset | None,
        progress: bool | None,
    ) -> list[Run]:
        """All restarts; they are compared by the evidence, or by their free runs."""
        batch, start = data.batch(), working_copy(model)
        temper(start, data, self.modality_weights)
        runs, ended = [], []
        with EMProgress(self.stages_for(model), self.restarts, show=progress) as bar:
            for restart in range(self.restarts):
                run = EMRun(self, working_copy(start), batch, restart, bar)
                try:
                    run.go()
                except KeyboardInterrupt:
                    recovered = run.recover()
                    if not (recovered or runs):
                        raise
                    warnings.warn(
                        "LaplaceEM was interrupted; the best parameters so far are kept.",
                        RuntimeWarning,
                        stacklevel=3,
                    )
                    if recovered:
                        runs.append(self._finished(run, validation, interrupted=True))
                        ended.append(run)
                    break
                runs.append(self._finished(run, validation))
                ended.append(run)
        return self._ranked(runs, ended)

    def _finished(
        self, run: EMRun, validation: Dataset | None, *, interrupted: bool = False
    ) -> Run:
        for part in (run.model.dynamics, *run.model.observations.values()):
            part.initialised = True
        score = self._score(run, validation)
        return Run(run.restart, score, run.model, run.table(), interrupted=interrupted)

    def _score(self, run: EMRun, validation: Dataset | None) -> float:
        """What restarts are compared by; lower is better."""
        if not np.isfinite(run.evidence):
            return np.inf
        if validation is None:
            return -run.evidence if run.selection is None else run.selection.score
        batch = validation.batch()
        result = laplace_posterior(run.model, batch)
        if result.failed:
            return np.inf
        if run.selection is None:
            return -result.evidence
        other = FreeSelection(batch, driven=run.selection.driven)
        return other.compare(run.model.dynamics, result.posterior.mean)[0]

    def _ranked(self, runs: list[Run], ended: list[EMRun]) -> list[Run]:
        """The same runs; compared by their evidence where no run can be compared freely."""
        if self.select == "evidence" or any(np.isfinite(run.score) for run in runs):
            return runs
        warnings.warn(
            "LaplaceEM: no free run stays finite, or there is nothing to compare them with; the "
            "best evidence is kept.",
            RuntimeWarning,
            stacklevel=4,
        )
        evidence = [run.evidence if np.isfinite(run.evidence) else -np.inf for run in ended]
        return [run._replace(score=-e) for run, e in zip(runs, evidence, strict=True)]

    def stages_for(self, model: StateSpaceModel) -> tuple[Stage, ...]:
        """The stages a fit of this model goes through."""
        if self.stages is not None:
            return self.stages
        if self.searches(model):
            return searched_stages(self.iterations)
        fresh = self.starts_fresh(model.dynamics)
        hinged = model.dynamics.relu_form().outer.shape[1] > 0
        return (annealed_stages if fresh and hinged else plain_stages)(self.iterations)

    def searches(self, model: StateSpaceModel) -> bool:
        """Whether a fit starts with a search for the coordinates of the state."""
        parts = [model.dynamics, *model.observations.values()]
        hinged = model.dynamics.relu_form().outer.shape[1] > 0
        small = state_dim(model) == model.dim
        return small and hinged and self.candidates > 1 and all(map(self.starts_fresh, parts))

    def begins_on_part(self, model: StateSpaceModel) -> bool:
        """Whether the stages are run on a part of long data first, and the last one on all.

        A part of counts or labels can lack what tells some channel's weights, so that only what
        is quadratic in the state is cut.
        """
        hinged = model.dynamics.relu_form().outer.shape[1] > 0
        default = self.stages is None and not self.searches(model)
        told = all(o.quadratic for o in model.observations.values())
        return default and hinged and told and self.starts_fresh(model.dynamics)

    def starts_fresh(self, part: torch.nn.Module) -> bool:
        """Whether a part of the model gets a data-driven start."""
        return {"data": True, "model": False}.get(self.start, not part.initialised)
