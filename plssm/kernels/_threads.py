"""Shares the trials of a batch between threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch

__all__ = ["over_trials"]

_ENOUGH = 3e6  # multiplications below which starting a thread does not pay


def over_trials(kernel: Callable, arguments: tuple, *, length: np.ndarray, m: int) -> None:
    """Calls kernel(*arguments, first, last, size) on ranges of trials of about equal work.

    The number of threads is torch's (`torch.set_num_threads`); numba's own would start a second
    pool of threads, which gets in the way of torch's.

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
    if len(ranges) < 2:
        kernel(*arguments, 0, len(length), size)
        return
    failures: list[BaseException] = []

    def run(first: int, last: int) -> None:
        try:
            kernel(*arguments, first, last, size)
        except BaseException as error:  # handed on to the caller below
            failures.append(error)

    helpers = [threading.Thread(target=run, args=pair) for pair in ranges[1:]]
    for helper in helpers:
        helper.start()
    run(*ranges[0])
    for helper in helpers:
        helper.join()
    if failures:
        raise failures[0]
