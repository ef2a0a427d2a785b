"""Variational inference with a multimodal encoder: the evidence lower bound, by gradients."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from plssm.data import Batch, Dataset
from plssm.errors import PlssmError
from plssm.inference.base import Engine, Run, all_restarts, working_copy
from plssm.inference.checkpoint import identity
from plssm.inference.encoder_networks import NETWORKS
from plssm.inference.encoders import Encoder
from plssm.inference.free_evidence import FreeEvidence
from plssm.inference.mixture_posterior import mixture_posterior
from plssm.inference.modality_weights import temper
from plssm.inference.path_bound import BOUNDS
from plssm.inference.recognition import EXPERTS, Recognition
from plssm.inference.recognition_start import start_recognition
from plssm.inference.smoothers import smooth
from plssm.inference.trainer import Trainer, Training
from plssm.inference.training_progress import TrainingProgress
from plssm.inference.variational_posterior import variational_posterior
from plssm.inference.variational_start import rough_path, started_model
from plssm.inference.variational_training import PathTraining
from plssm.model import StateSpaceModel
from plssm.posterior import Posterior

__all__ = ["VariationalInference"]

CHAIN_OF = {"laplace": "laplace", "model": "model", "chain": "learned", "mean-field": "none"}


@dataclass
class VariationalInference(Engine):
    r"""Stochastic gradients of the evidence lower bound, with an amortised Gaussian posterior.

    .. math:: \max_{\theta, \phi}\; E_{q_\phi(Z | Y)} [\log p_\theta(Y, Z)] + H[q_\phi]

    The whole latent path is one site, a Gaussian with block-tridiagonal precision: networks give
    evidence about single states for every modality, whose precisions add (a product of experts;
    a missing modality adds nothing), and a chain couples them. The entropy is exact; so is the
    whole bound of a linear-Gaussian model.

    Args:
        seed: Seed of start values, windows and draws.
        modality_weights: See :class:`Engine`.
        steps: Number of updates.
        encoder: Networks of the modalities: "conv" (temporal convolutions), "gru", "mlp" (every
            step by itself), "none" (linear in the data), or "free": no network but free numbers
            for every step of every trial, for small data (whole trials; new trials are fitted).
        guide: "laplace": the model's map and observation models, expanded along the path; the
            networks correct the Laplace approximation. The others leave the data to the encoder:
            "model" has the model's map linearised along the path, "chain" one learned linear
            chain (as published), "mean-field" the paths of "model" with independent steps (its
            bands are too narrow).
        experts: How modalities come together: "product" adds their evidence, so that one path
            has all of it; "mixture" has a path for every modality by itself, with equal weights
            (Shi et al. 2019), each with its own evidence only. Then trials are never cut.
        hidden: Width of the networks.
        bound: "elbo" or "importance" (importance-weighted by ``samples`` draws).
        samples: Draws of each path.
        window: Latent steps of a training window; trials up to 1.5 times as long are whole.
        batch_size: Windows of an update; None takes as many as have about 1000 steps.
        learning_rate: At the start and at the end (exponential decay, RAdam).
        warmup: Share of the updates in which only the recognition model learns.
        anneal: Share of the updates in which the weight of prior and entropy rises to one.
        process_noise: Variance that the process noise is held at, at the start and at the end
            (it falls exponentially): a path that has to follow the map teaches it to run freely,
            for latents of unit variance. None learns it.
        ridge: Precision of a zero-mean Gaussian prior on the weights of the hinges, as of
            :class:`LaplaceEM`, of maps that are regressions.
        drop: Chance that a modality is hidden in a training window, from encoder and likelihood,
            which makes predictions from some modalities better.
        clip: Largest norm of a gradient.
        checks: How many times the bound is measured.
        patience: Checks without improvement after which training ends; 0 never ends early.
        restarts: Number of trainings from different start values; the best bound wins.
        start: ``"auto"`` starts fresh parts from the data and keeps known ones; ``"data"`` and
            ``"model"`` force one of the two.
        start_iterations: EM iterations that a fresh map with a closed-form M-step starts from; of
            more than 20,000 steps of Gaussian data on a stretch of 5000, followed by two on all.
        draws: Draws from which the bound of a posterior is estimated.
        dtype: Precision of training, "float32" or "float64" (for process-noise variances that are
            less than 1e-4 of those of the states).
        checkpoint: File an interrupted training goes on from (one restart only).
        checkpoint_seconds: Seconds between two writes of it, at least; they come with checks.

    References:
        Kramer et al. (2022), Reconstructing nonlinear dynamical systems from multi-modal time
        series, ICML, arXiv:2111.02922; Archer et al. (2015), Black box variational inference for
        state space models, arXiv:1511.07367; Shi et al. (2019), Variational mixture-of-experts
        autoencoders for multi-modal deep generative models, NeurIPS, arXiv:1911.03393.
    """

    steps: int = 3000
    encoder: str = "conv"
    guide: str = "laplace"
    experts: str = "product"
    hidden: int = 32
    bound: str = "elbo"
    samples: int = 1
    window: int = 200
    batch_size: int | None = None
    learning_rate: tuple[float, float] = (3e-3, 1e-4)
    warmup: float = 0.1
    anneal: float = 0.0
    process_noise: tuple[float, float] | None = None
    ridge: float = 1.0
    drop: float = 0.0
    clip: float = 10.0
    checks: int = 25
    patience: int = 0
    restarts: int = 1
    start: str = "auto"
    start_iterations: int = 50
    draws: int = 32
    dtype: str = "float32"
    checkpoint: str | None = None
    checkpoint_seconds: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.learning_rate = tuple(self.learning_rate)
        self.training()
        if self.process_noise is not None:
            self.process_noise = tuple(self.process_noise)
            if len(self.process_noise) != 2 or not min(self.process_noise) > 0:
                raise PlssmError(
                    f"VariationalInference: process_noise is {self.process_noise}, wanted None or "
                    "two variances > 0."
                )
        choices = {
            "encoder": (*NETWORKS, "free"), "guide": tuple(CHAIN_OF), "bound": BOUNDS,
            "start": ("auto", "data", "model"), "dtype": ("float32", "float64"),
            "experts": EXPERTS,
        }  # fmt: skip
        for name, wanted in choices.items():
            if getattr(self, name) not in wanted:
                raise PlssmError(
                    f"VariationalInference: {name} is {getattr(self, name)!r}, wanted one of "
                    f"{wanted}."
                )
        for name in ("hidden", "samples", "window", "restarts", "draws"):
            if getattr(self, name) < 1:
                raise PlssmError(
                    f"VariationalInference: {name} is {getattr(self, name)}, wanted >= 1."
                )
        if not self.ridge >= 0:
            raise PlssmError(f"VariationalInference: ridge is {self.ridge}, wanted >= 0.")
        for name in ("warmup", "anneal", "drop"):
            if not 0 <= getattr(self, name) < 1:
                raise PlssmError(
                    f"VariationalInference: {name} is {getattr(self, name)}, wanted 0 <= it < 1."
                )
        if self.experts == "mixture" and self.encoder == "free":
            raise PlssmError(
                "VariationalInference: free evidence belongs to no modality, so there is nothing "
                "to mix; choose another encoder, or experts='product'."
            )
        if self.drop and self.encoder == "free":
            raise PlssmError(
                "VariationalInference: drop hides data from an encoder; free evidence has none: "
                "set drop=0."
            )
        if self.checkpoint and self.restarts > 1:
            raise PlssmError("VariationalInference: a checkpoint serves one restart.")

    def training(self) -> Training:
        """Length and speed of the training."""
        return Training(
            self.steps, self.learning_rate, self.clip, self.checks, self.patience,
            self.checkpoint, self.checkpoint_seconds,
        )  # fmt: skip

    @property
    def noise_falls(self) -> bool:
        """Whether the process noise is held at values that change, so that bounds do, too."""
        return self.process_noise is not None and self.process_noise[0] != self.process_noise[1]

    # ---- inference ----------------------------------------------------------------------------
    def infer(
        self,
        model: StateSpaceModel,
        data: Dataset,
        *,
        causal: bool = False,
        recognition: Recognition | None = None,
        bound: str | None = None,
        draws: int | None = None,
    ) -> Posterior:
        """Posterior of the latent paths by the recognition model.

        Without one (a model that this engine has not fitted), and with free evidence, the guide is
        fitted to these data first, with the model as it is. Causal posteriors come from the
        extended Kalman filter of the model: an encoder looks ahead.

        Args:
            model: The model.
            data: The trials.
            causal: Use only data up to each step.
            recognition: The recognition model of a fit.
            bound: "elbo" or "importance", where ``log_evidence`` is to be another bound than the
                one of training; the path is the same.
            draws: Draws from which it is estimated; None takes those of the engine.
        """
        if causal and (bound or draws):
            raise PlssmError(
                "VariationalInference: a filter has no bound; leave out bound= and draws=, or "
                "causal=True."
            )
        bound, draws = bound or self.bound, self.draws if draws is None else draws
        dataclasses.replace(self, bound=bound, draws=draws)  # refuses what there is not
        self.check(model, data)
        if causal:
            return smooth(model, data, causal=True)
        work = working_copy(model)
        if recognition is None or isinstance(recognition.encoder, FreeEvidence):
            recognition = self._fitted_guide(work, data, recognition)
        recognition = recognition.to(torch.float64)
        mixed = recognition.experts == "mixture"
        posterior = mixture_posterior if mixed else variational_posterior
        return posterior(work, data.batch(), recognition, draws=draws, seed=self.seed, bound=bound)

    def _fitted_guide(
        self, model: StateSpaceModel, data: Dataset, known: Recognition | None
    ) -> Recognition:
        """A guide for these data, with the model held."""
        model.requires_grad_(False)
        recognition = self._new_recognition(model, data, rough_path(model, data))
        if known is not None:
            for name, value in known.named_parameters():
                if not name.startswith("encoder"):
                    recognition.get_parameter(name).data.copy_(value)
        return self._trained(model, recognition, data.batch(), None, learn_model=False)[0]

    def _new_recognition(self, model: StateSpaceModel, data: Dataset, path: Tensor) -> Recognition:
        batch = data.batch()
        if self.encoder == "free":
            encoder = FreeEvidence(len(batch), batch.steps, model.dim)
            encoder.start(model, batch, path)
        else:
            options = {"network": self.encoder, "hidden": self.hidden, "seed": self.seed}
            encoder = Encoder.for_model(model, batch, **options)
        chain = CHAIN_OF[self.guide]
        recognition = Recognition(
            encoder, model.dim, inputs=data.n_inputs, chain=chain, experts=self.experts
        )
        start_recognition(recognition, model, batch, path)
        return recognition

    # ---- fitting ------------------------------------------------------------------------------
    def trainings(
        self,
        model: StateSpaceModel,
        data: Dataset,
        validation: Dataset | None,
        progress: bool | None,
    ) -> list[Run]:
        """All restarts; they are compared by the bound."""
        whole = working_copy(model)
        temper(whole, data, self.modality_weights)
        check = None if validation is None else validation.batch()
        told = identity(self, model, data.batch())
        with TrainingProgress(self.steps, self.restarts, show=progress) as bar:
            runs = all_restarts(
                "VariationalInference", self.restarts,
                lambda restart: self._run(whole, data, check, restart, told, bar),
            )  # fmt: skip
        if self.checkpoint and not runs[-1].interrupted:
            Path(self.checkpoint).unlink(missing_ok=True)
        return runs

    def _run(
        self, whole: StateSpaceModel, data: Dataset, check: Batch | None, restart: int, told: str,
        bar: TrainingProgress,
    ) -> Run:  # fmt: skip
        """One restart."""
        seed = self.seed * 1000 + restart
        begun = started_model(
            whole, data, start=self.start, seed=seed, iterations=self.start_iterations
        )
        path = rough_path(begun, data)
        guide, trainer, rows = self._trained(
            begun, self._new_recognition(begun, data, path), data.batch(), check, path=path,
            seed=seed, report=partial(bar.advance, restart), told=told,
        )  # fmt: skip
        rows.insert(0, "restart", restart)
        score = trainer.best_score
        if self.noise_falls:  # bounds compare where the noise is the last
            ended = trainer.step == self.steps
            score = -float(rows["elbo"].iloc[-1]) if ended else math.inf
        return Run(restart, score, begun, rows, guide, trainer.interrupted)

    def _trained(
        self,
        model: StateSpaceModel,
        recognition: Recognition,
        batch: Batch,
        check: Batch | None,
        *,
        learn_model: bool = True,
        path: Tensor | None = None,
        seed: int | None = None,
        report: Callable | None = None,
        told: str = "",
    ) -> tuple[Recognition, Trainer, pd.DataFrame]:
        """Trains copies; writes what the model has learned into it, returns the recognition."""
        dtype = getattr(torch, self.dtype)
        small, guide = working_copy(model, dtype), copy.deepcopy(recognition).to(dtype)
        train = batch.to(dtype=dtype)
        problem = PathTraining(
            self, small, guide, train, train if check is None else check.to(dtype=dtype),
            learn_model=learn_model, path=path,
        )  # fmt: skip
        training = self.training()
        if not learn_model:
            training = dataclasses.replace(training, checkpoint=None)
        trainer = Trainer(
            problem, training, seed=self.seed if seed is None else seed, identity=told
        )
        rows = trainer.run(report)
        if learn_model:
            with torch.no_grad():
                for mine, theirs in zip(model.parameters(), small.parameters(), strict=True):
                    if mine.requires_grad:
                        mine.copy_(theirs)
        return guide.to(torch.float64), trainer, rows
