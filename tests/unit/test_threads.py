"""Work that is shared between threads."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from plssm.kernels._scratch import _LARGEST, scratch
from plssm.kernels._threads import even_ranges, side_by_side


@pytest.mark.parametrize(("count", "parts"), [(10, 3), (2, 5), (1, 1), (0, 2)])
def test_ranges_cover_everything_once(count, parts):
    ranges = even_ranges(count, 1e9, threads=parts, enough=1.0)
    assert [i for first, last in ranges for i in range(first, last)] == list(range(count))
    assert len(ranges) == max(1, min(count, parts))
    sizes = [last - first for first, last in ranges]
    assert max(sizes) - min(sizes) <= 1


def test_little_work_stays_on_one_thread():
    assert even_ranges(10, 0.5, threads=4, enough=1.0) == [(0, 10)]
    assert len(even_ranges(10, 2.5, threads=4, enough=1.0)) == 3


def test_results_come_in_order_and_from_several_threads():
    names = set()

    def run(first, last):
        names.add(threading.current_thread().name)
        time.sleep(0.01 * (3 - first))
        return first, last

    ranges = [(0, 1), (1, 2), (2, 3)]
    assert side_by_side(run, ranges) == ranges
    assert threading.current_thread().name in names
    assert len(names) > 1


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_is_handed_on_when_all_have_ended(bad):
    ended = []

    def run(first, last):
        if first == bad:
            raise ArithmeticError(f"part {first}")
        time.sleep(0.05)
        ended.append(first)

    with pytest.raises(ArithmeticError, match=f"part {bad}"):
        side_by_side(run, [(0, 1), (1, 2)])
    assert ended == [1 - bad]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    assert side_by_side(lambda a, b: a + b, [(0, 1), (1, 2)]) == [1, 3]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(side_by_side(lambda a, b: a + b, [(0, 1), (1, 2)]) != [1, 3])
        finally:
            os._exit(code)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done == child
    assert status == 0


def test_scratch_memory_belongs_to_the_thread():
    mine, other = scratch(1000), []
    mine[:] = 1.0
    worker = threading.Thread(target=lambda: other.append(scratch(1000)))
    worker.start()
    worker.join()
    other[0][:] = 2.0
    assert (mine == 1.0).all()
    assert np.shares_memory(mine, scratch(500))
    assert len(scratch(500)) == 500


def test_nested_calls_do_not_wait_for_each_other():
    pair = [(0, 1), (1, 2)]
    many = [(i, i + 1) for i in range(2 * os.cpu_count() + 1)]
    got = side_by_side(lambda i, _: side_by_side(lambda j, _: (i, j), pair), many)
    assert got == [[(i, 0), (i, 1)] for i, _ in many]


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt; a process in the background may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_what_is_still_at_work():
    """The part of another thread may write into arrays of the caller."""
    ended = []

    def run(first, last):
        if first == 0:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)
        ended.append(first)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(run, [(0, 1), (1, 2)])
    assert ended == [1]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_waiting_waits_on():
    ended = []

    def run(first, last):
        if first == 0:
            return
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)  # the main thread is waiting now
        time.sleep(0.3)
        ended.append(first)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(run, [(0, 1), (1, 2)])
    assert ended == [1]


def test_large_scratch_memory_is_not_kept():
    small = scratch(1000)
    large = scratch(_LARGEST + 1)
    assert len(large) == _LARGEST + 1
    assert not np.shares_memory(large, scratch(1000))
    assert np.shares_memory(small, scratch(1000))
