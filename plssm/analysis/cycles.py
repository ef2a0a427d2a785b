"""Fixed points and cycles of piecewise-linear maps, solved region by region."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from plssm.analysis.cycle import Cycle, Cycles
from plssm.analysis.cycle_search import CycleStore, rows_at_once, search_all, search_from
from plssm.analysis.map_form import map_form, to_array
from plssm.analysis.region_cells import enumerate_cells, live_gates
from plssm.analysis.region_starts import default_points, sequence_starts, state_starts
from plssm.analysis.work_bar import WorkBar
from plssm.dynamics.relu_form import ReluForm
from plssm.errors import CapabilityError, PlssmError, ShapeError

__all__ = ["cycles", "fixed_points"]

_CELLS = 1 << 20  # patterns around vertices that are made to find all regions
_METHODS = ("auto", "exhaustive", "restarts")


def fixed_points(dynamics: Any, **options: Any) -> Cycles:
    r"""Finds the fixed points of a piecewise-linear map: its cycles of order 1.

    .. math:: z^* = (I - J_r)^{-1} b_r, \qquad z^* \in r

    All regions that exist are tried where there are not too many; see `cycles`.

    Args:
        dynamics: Piecewise-linear dynamics, or a ReluForm.
        **options: Those of `cycles`, without `order`.

    Returns:
        The fixed points, as cycles with one point.

    Example:
        >>> from plssm.dynamics import PLRNN
        >>> fixed_points(PLRNN.from_parameters(A=[0.5], W=[[0.0]], h=[1.0]))[0]
        Cycle(order=1, stable, first point [2.])
    """
    return cycles(dynamics, order=1, **options)


def cycles(
    dynamics: Any,
    *,
    order: int,
    inputs: Any = None,
    method: str = "auto",
    limit: int = 1 << 18,
    restarts: int | None = None,
    region_points: Any = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Cycles:
    r"""Finds the cycles of a given order of a piecewise-linear map.

    .. math:: z_1 = (I - J_k \cdots J_1)^{-1} \sum_{j=1}^{k} J_k \cdots J_{j+1} b_j,
        \qquad z_j \in r_j

    Each sequence of regions allows one cycle, which is real if its points lie in these regions.
    With few regions all sequences are tried (`exhaustive` on the result): no isolated cycle is
    missing. Otherwise random sequences are replaced by the regions in which the points of their
    virtual cycle lie, until these agree (half of the starts go only a random part of the way);
    then hits and `missed_share` tell how well the search
    has covered what there is. Cycles of a shorter period are left out.

    Args:
        dynamics: Piecewise-linear dynamics, or a ReluForm.
        order: Number of points k.
        inputs: Constant inputs [K]; None: no input.
        method: "exhaustive", "restarts", or "auto": exhaustive up to `limit`.
        limit: Largest number of sequences that "auto" tries one by one.
        restarts: Number of random starts; default between 4000 and 40,000, until every cycle
            was hit five times.
        region_points: States [n, M] (data, a path) whose regions the random sequences are made
            of; default free runs and a box around them.
        seed: Seed of the random starts.
        progress: True or False; None shows a bar on a terminal if the search takes long.

    Returns:
        The cycles, a list with what is known about the search.

    Raises:
        CapabilityError: The map is not piecewise linear, or has too many regions to try all.
        ShapeError: `inputs` or `region_points` have the wrong shape.
        PlssmError: An option is out of range.

    References:
        Eisenmann et al. 2023, Bifurcations and loss jumps in RNN training, arXiv:2310.17561.
    """
    _check_options(order, method, limit, restarts)
    whole = _driven(map_form(dynamics, who="cycles"), inputs)
    form, _ = live_gates(whole)
    points = _points(region_points, len(form.bias))
    cells = enumerate_cells(form, _CELLS)
    store = CycleStore(form, order, seed)
    few = cells is not None and len(cells) ** order <= limit
    if method == "exhaustive" and cells is None:
        raise CapabilityError(
            "cycles: there are too many linear regions to try them all; use method='restarts'"
        )
    with WorkBar("cycles", show=progress) as bar:
        if cells is not None and (method == "exhaustive" or (method == "auto" and few)):
            search_all(store, cells, bar.report)
            hits, starts = [1] * len(store.points), 0
        else:
            hits, starts = _restart(store, points, cells, bar, restarts, seed)
    return _result(store, whole, hits, starts)


def _restart(
    store: CycleStore,
    points: np.ndarray | None,
    cells: np.ndarray | None,
    bar: WorkBar,
    restarts: int | None,
    seed: int,
) -> tuple[list[int], int]:
    """Searches from random starts; returns hits and the number of starts."""
    form, order = store.form, store.order
    random = np.random.default_rng(seed)
    if points is None:
        points = default_points(form, random)
    batch = min(256, rows_at_once(form, order))
    words = sequence_starts(form, order, batch, random, points=points, cells=cells)
    states = state_starts(form, order, batch, random, points=points)
    least, most = (4000, 40_000) if restarts is None else (restarts, restarts)
    return search_from(store, words, states, bar.report, random=random, least=least, most=most)


def _result(store: CycleStore, form: ReluForm, hits: list[int], restarts: int) -> Cycles:
    """The list of cycles of a store."""
    points, numbers = store.ordered()
    if store.degenerate:
        warnings.warn(
            f"cycles: {store.degenerate} sequences of regions hold a continuous family of cycles "
            f"of order {store.order}; families are not in the list",
            stacklevel=3,
        )
    found = [Cycle(p, store.eigenvalues(p), form.region(p), store.on_kink(p)) for p in points]
    return Cycles(
        found, order=store.order, hits=[hits[i] for i in numbers], restarts=restarts,
        exhaustive=restarts == 0, degenerate=store.degenerate,
    )  # fmt: skip


def _driven(form: ReluForm, inputs: Any) -> ReluForm:
    """The map with constant inputs in its bias."""
    if inputs is None:
        return form
    drive, wanted = to_array(inputs), form.inputs.shape[1]
    if drive.shape != (wanted,):
        raise ShapeError(f"cycles: inputs: got shape {drive.shape}, wanted ({wanted},), constant")
    if not np.isfinite(drive).all():
        raise PlssmError("cycles: inputs must be finite")
    return replace(form, bias=form.bias + form.inputs @ drive)


def _points(region_points: Any, dim: int) -> np.ndarray | None:
    """The states whose regions are used [n, M]."""
    if region_points is None:
        return None
    points = to_array(region_points)
    if points.ndim < 2 or points.shape[-1] != dim or points.size == 0:
        raise ShapeError(f"cycles: region_points: got shape {points.shape}, wanted [n, {dim}]")
    if not np.isfinite(points).all():
        raise PlssmError("cycles: region_points must be finite")
    return points.reshape(-1, dim)


def _check_options(order: int, method: str, limit: int, restarts: int | None) -> None:
    """Refuses options out of range."""
    least = 1 if restarts is None else restarts
    for name, value in (("order", order), ("limit", limit), ("restarts", least)):
        if int(value) != value or value < 1:
            raise PlssmError(f"cycles: {name}: got {value}, wanted a whole number of at least 1")
    if method not in _METHODS:
        raise PlssmError(f"cycles: method: got {method!r}, wanted one of {', '.join(_METHODS)}")
