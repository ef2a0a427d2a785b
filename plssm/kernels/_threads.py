"""Shares the work of a kernel between threads that stay: to start one takes long, too."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

__all__ = ["even_ranges", "over_trials", "side_by_side"]

_ENOUGH = 3e6  # multiplications below which a second thread does not pay
_Result = TypeVar("_Result")


class _Inside(threading.local):
    """Whether a thread is one of the helpers at work."""

    busy = False


_inside = _Inside()


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="plssm")


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_helpers.cache_clear)


def side_by_side(
    run: Callable[[int, int], _Result], ranges: Sequence[tuple[int, int]]
) -> list[_Result]:
    """Calls run(first, last) for all ranges at the same time.

    Numba's own threads would be a second pool beside torch's, which gets in its way. Inside of
    another call, one range comes after the other.

    Args:
        run: Something that spends its time without the interpreter lock.
        ranges: One for each thread.

    Returns:
        The results, in order.
    """
    if _inside.busy:
        return [run(*pair) for pair in ranges]

    def help_out(first: int, last: int) -> _Result:
        _inside.busy = True
        try:
            return run(first, last)
        finally:
            _inside.busy = False

    jobs: list[Future] = []
    try:
        jobs += (_helpers().submit(help_out, *pair) for pair in ranges[1:])
        own = run(*ranges[0])
    finally:
        _wait(jobs)
    return [own, *(job.result() for job in jobs)]


def _wait(jobs: list[Future]) -> None:
    """Waits until all jobs have ended, interrupted or not: they write into the caller's arrays."""
    interrupted = None
    for job in jobs:
        while not job.done():
            try:
                job.exception()
            except KeyboardInterrupt as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted


def even_ranges(
    count: int, work: float, *, threads: int | None = None, enough: float = _ENOUGH
) -> list[tuple[int, int]]:
    """Ranges of equal length, one for each thread that pays.

    Args:
        count: How many things there are.
        work: Multiplications, all together, or another measure.
        threads: Largest number of threads; torch's (`torch.set_num_threads`) when None.
        enough: Multiplications, or whatever work is counted in, below which a thread does not pay.

    Returns:
        Their first and last indices, the last excluded.
    """
    threads = torch.get_num_threads() if threads is None else threads
    parts = max(1, min(threads, count, int(work / enough) + 1))
    edges = [count * k // parts for k in range(parts + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def over_trials(kernel: Callable, arguments: tuple, *, length: np.ndarray, m: int) -> None:
    """Calls kernel(*arguments, first, last, size) on ranges of trials of about equal work.

    The number of threads is torch's (`torch.set_num_threads`).

    Args:
        kernel: A compiled kernel that runs without the interpreter lock.
        arguments: Its leading arguments.
        length: [B], steps of each trial.
        m: Size of a block.
    """
    size = (0,) * m
    if len(length) == 1:
        kernel(*arguments, 0, 1, size)
        return
    work = np.cumsum(length)
    threads = min(torch.get_num_threads(), len(length), int(work[-1] * m**3 / _ENOUGH) + 1)
    cuts = np.searchsorted(work, work[-1] * np.arange(1, threads) / threads)
    bounds = [0, *(int(c) + 1 for c in cuts), len(length)]
    ranges = [(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if a < b]
    side_by_side(lambda first, last: kernel(*arguments, first, last, size), ranges)
