"""Three ways in which a probabilistic model of a chaotic system goes wrong, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from plssm.analysis.lyapunov import kaplan_yorke_dimension, lyapunov_spectrum
from plssm.errors import DataError, ShapeError
from plssm.metrics.alignment import frobenius_alignment, leading_cosine, log_norm, log_trace
from plssm.metrics.arrays import as_floats
from plssm.metrics.predicted_covariances import PredictedCovariances, sandwich
from plssm.metrics.resampling import Resampling
from plssm.metrics.tangents import is_array, tangent_product

__all__ = ["Consistency", "consistency"]

OVERALL = "overall"
COLLAPSE, MASKING, BLIND = "core collapse", "noise masking", "blind uncertainty"


@dataclass(frozen=True)
class Consistency:
    """How a model's uncertainty fits its dynamics, and its dynamics those of the truth.

    The numbers are those of :func:`consistency`.

    Args:
        measures: One row per failure mode, measure and horizon ("overall" where there is none),
            with "value" and the ends "low" and "high" of a bootstrap interval over origins (NaN
            where there is none).
        spectrum: [M] Lyapunov exponents of the model, None where they are not known.
        reference_spectrum: [N] of the reference.
        settings: What the numbers depend on.

    Example:
        >>> growth = np.full((30, 2, 1, 1), 2.0)  # Jacobians of 30 origins, two steps
        >>> report = consistency(growth, covariance=1.0, noise=1.0, horizons=(1, 2))
        >>> report.table().loc[("noise masking", "noise share"), [1, 2]].round(3).tolist()
        [0.2, 0.238]
    """

    measures: pd.DataFrame
    spectrum: np.ndarray | None
    reference_spectrum: np.ndarray | None
    settings: dict

    def value(self, measure: str, horizon: int | str = OVERALL) -> float:
        """Return one number.

        Args:
            measure: Its name, such as "noise share".
            horizon: Steps ahead, where the measure has them.

        Raises:
            DataError: When there is no such measure at this horizon.
        """
        for (_, name, k), value in self.measures["value"].items():
            if name == measure and k == horizon:
                return float(value)
        known = list(dict.fromkeys((name, k) for _, name, k in self.measures.index))
        raise DataError("there is no such measure", got=(measure, horizon), wanted=known)

    def table(self) -> pd.DataFrame:
        """Return the values, one row per measure, one column per horizon and one for none."""
        index = self.measures.index.droplevel("horizon").unique()
        columns = self.measures.index.get_level_values("horizon").unique()
        wide = self.measures["value"].unstack("horizon")
        return wide.reindex(index=index, columns=[*sorted(set(columns) - {OVERALL}), OVERALL])

    def __str__(self) -> str:
        """Return values and intervals as text."""
        return self._cells().to_string()

    def _repr_html_(self) -> str:
        """Return values and intervals for notebooks."""
        return self._cells().to_html()

    def _cells(self) -> pd.DataFrame:
        """Format every number with its interval."""
        cells = self.table().astype(object)
        for (mode, name), row in cells.iterrows():
            for k in cells.columns:
                cells.loc[(mode, name), k] = self._cell((mode, name, k), row[k])
        return cells

    def _cell(self, key: tuple, value: float) -> str:
        if pd.isna(value):
            return "unavailable" if key in self.measures.index else ""
        _, low, high = self.measures.loc[key, ["value", "low", "high"]]
        return f"{value:.3g}" + ("" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]")


def consistency(
    dynamics: Any,
    origins: Any = None,
    *,
    covariance: Any,
    noise: Any = None,
    horizons: Sequence[int] = (1, 2, 5, 10, 20),
    predicted: Any = None,
    inputs: Any = None,
    readout: Any = None,
    reference: Any = None,
    reference_origins: Any = None,
    reference_noise: Any = None,
    spectrum: Any = None,
    reference_spectrum: Any = None,
    dt: float = 1.0,
    steps: int = 10_000,
    resamples: int = 1000,
    block: int = 1,
    level: float = 0.95,
    seed: int = 0,
) -> Consistency:
    r"""Measure core collapse, noise masking and blind uncertainty of a model.

    .. math:: P_k = \Phi_k P_0 \Phi_k^\top + Q_k, \qquad
        \Phi_k = J_{t+k-1} \cdots J_t, \qquad Q_k = J_{t+k-1} Q_{k-1} J_{t+k-1}^\top + Q

    **Core collapse**: the map lost its expansion. Largest exponent, spectrum (root mean squared
    difference of the leading ones that both have), Kaplan-Yorke dimension and sum of positive
    exponents, beside those of the reference; and the "log-volume slope" d/dt of log|P_k| / 2
    over the horizons, which tends to the sum of positive exponents where noise holds the
    shrinking directions up (without noise to the sum of all).

    **Noise masking**: process noise explains what dynamics should. "noise share" is
    tr Q_k / tr P_k of the model's own transported covariance, "process noise ratio" tr Q over
    that of the reference.

    **Blind uncertainty**: covariances do not follow the tangent dynamics. With the model's own
    tangent product and with the reference's: "leading cosine" of the first principal direction
    of P_k with the first left singular vector of Phi_k (random directions score about
    ``settings["chance_cosine"]``); "alignment" <P_k - Q_k, Phi_k P_0 Phi_k'> over the norms (1 by
    construction for transported covariances and their own Phi_k); "correlation" over origins of
    log tr P_k with log ||Phi_k||_F (0 where P_k is the same everywhere, NaN where Phi_k is).

    All of it is about small errors: horizons should end before the error saturates. Directions
    and traces depend on the units of the states. Neighbouring origins on one orbit are not
    independent: set `block` to more than their correlation time.

    Args:
        dynamics: The model, as for :func:`tangent_product`: with step and jacobian that take all
            origins at once, or Jacobians ``[S, K, M, M]``.
        origins: States to start from ``[S, M]``; None with Jacobians.
        covariance: P_0: a number, ``[M]``, ``[M, M]`` or ``[S, M, M]``.
        noise: Q: a number, ``[M]`` or ``[M, M]``; None: that of the dynamics, if they have one,
            else 0.
        horizons: Steps ahead k.
        predicted: Covariances to test in place of the transported ones (of an ensemble, or of a
            head that predicts variances), one for each origin and horizon: ``[S, H, M, M]``,
            with a read-out ``[S, H, N, N]``.
        inputs: ``[K, n]`` or ``[S, K, n]``, of model and reference; row k is the input of the
            step arrived at.
        readout: B ``[N, M]``, from the model's states to the coordinates of the reference, in
            which covariances are compared; None: they are the same.
        reference: The true system, in the forms of `dynamics`; None where it is not known.
        reference_origins: Its states at the origins ``[S, N]``; None: B times `origins`.
        reference_noise: Its process noise: a number, ``[N]`` or ``[N, N]``.
        spectrum: Exponents of the model per unit of `dt`; None: measured along an orbit from
            the first origin, if there are no inputs and the dynamics are no Jacobians.
        reference_spectrum: Exponents of the reference, likewise.
        dt: Duration of one step.
        steps: Steps of the orbits whose exponents are measured.
        resamples: Bootstrap resamples of the origins.
        block: Neighbouring origins that are resampled together.
        level: Probability of the bootstrap intervals.
        seed: Seed of the bootstrap.

    Returns:
        Numbers with intervals; `table()` has one row per measure.

    Raises:
        DataError: When an option is out of range, a covariance is none, or no origin stays
            finite.
        ShapeError: When arrays, or what a map returns, have the wrong shape.
        CapabilityError: When there is no step or no jacobian to call.
        PlssmError: When the orbit whose exponents are measured diverges; pass `spectrum`.

    References:
        Herz, Pals, Durstewitz & Koppe 2026, arXiv:2605.31547 (the failure modes);
        Frederickson et al. 1983, doi:10.1016/0022-0396(83)90011-6.

    Example:
        >>> doubling = (lambda z: z * [2.0, 0.5], lambda z: np.diag([2.0, 0.5]))
        >>> report = consistency(doubling, [[1.0, 0.0]], covariance=1.0, noise=0.0,
        ...                      horizons=(1, 2), spectrum=np.log([2.0, 0.5]))
        >>> report.value("leading cosine, own tangent", 2), report.value("noise share", 2)
        (1.0, 0.0)
    """
    at, z = _horizons(horizons), _batch(origins)
    q = _noise(dynamics) if noise is None else noise
    ahead = PredictedCovariances.of(_system(dynamics), z, at, covariance, q, inputs, readout)
    if predicted is not None:
        ahead = ahead.replaced(predicted)
    z_true = z if readout is None or z is None else z @ ahead.matrix.T
    z_true = z_true if reference_origins is None else _batch(reference_origins)
    tangents = {"own": ahead.tangent}
    if reference is not None:
        tangents["reference"] = _true_tangents(reference, z_true, at, inputs, ahead)
    keep = ahead.finite() & np.logical_and.reduce(
        [np.isfinite(x).all((1, 2, 3)) for x in tangents.values()]
    )
    if not keep.any():
        raise DataError("no origin stays finite", got=f"{len(keep)} origins, {at[-1]} steps",
                        fix="use shorter horizons, or origins on the attractor")  # fmt: skip
    draw = Resampling(int(keep.sum()), draws=resamples, block=block, level=level, seed=seed)
    if inputs is None:
        spectrum = _measured(dynamics, z, dt, steps) if spectrum is None else spectrum
        if reference_spectrum is None and reference is not None:
            reference_spectrum = _measured(reference, z_true, dt, steps)
    own, true = _exponents(spectrum), _exponents(reference_spectrum)
    rows = _Rows(at)
    rows.collapse(own, true)
    rows.overall(COLLAPSE, "log-volume slope", draw.mean(ahead.slopes(at * dt)[keep])[0])
    rows.each(MASKING, "noise share", draw.mean(ahead.share[keep]))
    if reference_noise is not None:
        rows.overall(MASKING, "process noise ratio", ahead.noise_ratio(q, reference_noise))
    for name, tangent in tangents.items():
        rows.blind(name, ahead, tangent, keep, draw)
    settings = {
        "horizons": at.tolist(), "dt": dt, "origins": int(keep.sum()),
        "left_out": int((~keep).sum()), "chance_cosine": 1 / math.sqrt(len(ahead.matrix)),
        "covariances": "transported" if predicted is None else "given",
        "coordinates": "states" if readout is None else "read-out",
        "steps": steps, "resamples": resamples, "block": block, "level": level, "seed": seed,
    }  # fmt: skip
    return Consistency(rows.table(), own, true, settings)


class _Rows:
    """Collects measures in the order of the table."""

    def __init__(self, horizons: np.ndarray) -> None:
        self.horizons = horizons
        self.rows: dict[tuple, np.ndarray] = {}

    def overall(self, mode: str, name: str, value: float | np.ndarray) -> None:
        """Add a number, or a number with its interval."""
        row = np.full(3, math.nan)
        row[: np.size(value)] = value
        self.rows[mode, name, OVERALL] = row

    def each(self, mode: str, name: str, values: np.ndarray) -> None:
        """Add a number with its interval for every horizon, [H, 3]."""
        for k, row in zip(self.horizons, values, strict=True):
            self.rows[mode, name, int(k)] = row

    def collapse(self, own: np.ndarray | None, true: np.ndarray | None) -> None:
        """Add what the exponents say."""
        for suffix, x in (("", own), (", reference", true)):
            if x is not None:
                self.overall(COLLAPSE, "largest exponent" + suffix, x[0])
        if own is not None and true is not None:
            n = min(len(own), len(true))
            rmse = np.sqrt(((own[:n] - true[:n]) ** 2).mean())
            self.overall(COLLAPSE, "largest exponent, difference", own[0] - true[0])
            self.overall(COLLAPSE, "spectrum RMSE", rmse)
        for suffix, x in (("", own), (", reference", true)):
            if x is not None:
                dimension = kaplan_yorke_dimension(x)
                self.overall(COLLAPSE, "Kaplan-Yorke dimension" + suffix, dimension)
        for suffix, x in (("", own), (", reference", true)):
            if x is not None:
                self.overall(COLLAPSE, "sum of positive exponents" + suffix, x[x > 0].sum())

    def blind(
        self,
        whose: str,
        ahead: PredictedCovariances,
        tangent: np.ndarray,
        keep: np.ndarray,
        draw: Resampling,
    ) -> None:
        """Add what covariances have to do with tangent products, the model's or the truth's."""
        tested, excess, tangent = ahead.tested[keep], ahead.excess[keep], tangent[keep]
        carried = ahead.carried[keep]
        if whose != "own":
            start = np.broadcast_to(ahead.start, (len(keep), *ahead.start.shape[-2:]))
            carried = sandwich(tangent, start[keep])
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = leading_cosine(tested, tangent)
            alignment = frobenius_alignment(excess, carried)
            sizes = log_trace(tested), log_norm(tangent)
        self.each(BLIND, f"leading cosine, {whose} tangent", draw.mean(cosine))
        self.each(BLIND, f"alignment, {whose} tangent", draw.mean(alignment))
        self.each(BLIND, f"correlation, {whose} tangent", draw.correlation(*sizes))

    def table(self) -> pd.DataFrame:
        """Return all rows."""
        index = pd.MultiIndex.from_tuples(self.rows, names=["failure", "measure", "horizon"])
        return pd.DataFrame(
            np.array(list(self.rows.values())), index=index, columns=["value", "low", "high"]
        )


def _true_tangents(
    reference: Any, z: np.ndarray | None, at: np.ndarray, inputs: Any, ahead: PredictedCovariances
) -> np.ndarray:
    """Tangent products of the reference at the horizons, [S, H, N, N]."""
    product = tangent_product(_system(reference), z, steps=int(at[-1]), inputs=inputs)
    size, n = len(ahead.tested), len(ahead.matrix)
    if len(product) != size or product.shape[-1] != n:
        raise ShapeError(
            f"reference: got {len(product)} origins and {product.shape[-1]} states, "
            f"wanted {size} and {n}; pass readout=[N, M] where model and reference differ"
        )
    return product[:, at - 1]


def _measured(dynamics: Any, z: np.ndarray | None, dt: float, steps: int) -> np.ndarray | None:
    """Exponents along an orbit from the first origin; None for Jacobians."""
    if z is None or is_array(dynamics):
        return None
    return lyapunov_spectrum(dynamics, steps=steps, dt=dt, start=z[0])


def _exponents(x: Any) -> np.ndarray | None:
    """Exponents in descending order."""
    if x is None:
        return None
    array = as_floats(x, "spectrum")
    if array.ndim != 1 or not array.size or not (array < np.inf).all():
        raise ShapeError(f"spectrum: got {array.tolist()}, wanted a vector of exponents")
    return np.sort(array)[::-1].copy()


def _horizons(horizons: Sequence[int]) -> np.ndarray:
    """Horizons in ascending order."""
    x = np.unique(as_floats(horizons, "horizons"))
    if x.ndim != 1 or not x.size or x[0] < 1 or (x != np.floor(x)).any():
        raise DataError("horizons are out of range", got=list(np.ravel(horizons)),
                        wanted="whole numbers >= 1")  # fmt: skip
    return x.astype(np.int64)


def _batch(origins: Any) -> np.ndarray | None:
    """Origins [S, M]."""
    if origins is None:
        return None
    z = as_floats(origins, "origins")
    return z[None] if z.ndim == 1 else z


def _system(dynamics: Any) -> Any:
    """Dynamics as they are; Jacobians with an axis of origins."""
    if not is_array(dynamics):
        return dynamics
    jacobians = as_floats(dynamics, "jacobians")
    return jacobians[None] if jacobians.ndim == 3 else jacobians


def _noise(dynamics: Any) -> Any:
    """Process noise of the dynamics, 0 where they have none."""
    noise = getattr(dynamics, "noise", None)
    return 0.0 if noise is None else getattr(noise, "covariance", noise)
