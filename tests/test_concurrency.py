"""Work in several threads comes in order, and what it raises arrives."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from repq.concurrency import Behind, concurrently, prefetch


def test_prefetch_keeps_the_order_and_its_distance() -> None:
    started, lock = [], threading.Lock()

    def work(item: int) -> int:
        with lock:
            started.append(item)
        time.sleep(0.002 if item % 3 else 0.01)
        return item * item

    taken = []
    for value in prefetch(work, range(40), workers=4, ahead=6):
        taken.append(value)
        assert len(started) <= len(taken) + 6
    assert taken == [item * item for item in range(40)]


def test_prefetch_stops_when_nobody_listens() -> None:
    started = []
    values = prefetch(started.append, range(1000), workers=2, ahead=4)
    next(values)
    values.close()  # type: ignore[attr-defined]
    assert len(started) <= 6


def test_values_come_in_order_however_many_threads() -> None:
    def late(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item

    assert all(list(concurrently(late, range(20), at_once)) == list(range(20)) for at_once in (1, 2, 5))


def test_jobs_behind_are_done_in_order_in_one_other_thread_and_by_the_end() -> None:
    done: list[int] = []
    threads: set[int] = set()

    def job(number: int) -> None:
        time.sleep(0.001 * (number % 3))
        threads.add(threading.get_ident())
        done.append(number)

    with Behind(3, lambda: threads.add(threading.get_ident())) as behind:
        for number in range(20):
            behind.do(partial(job, number))
            assert number - len(done) <= 3
    assert done == list(range(20))
    assert len(threads) == 1 and threading.get_ident() not in threads


@pytest.mark.parametrize("jobs", [1, 3, 30])
def test_the_first_error_of_a_job_arrives(jobs: int) -> None:
    def job(number: int) -> None:
        if number in (0, 2):
            raise ValueError(str(number))

    def give() -> None:
        with Behind(4) as behind:
            for number in range(jobs):
                behind.do(partial(job, number))

    with pytest.raises(ValueError, match="0"):
        give()


def test_an_error_of_the_block_is_not_hidden_by_one_of_a_job() -> None:
    def job() -> None:
        raise ValueError("of the job")

    def give() -> None:
        with Behind(4) as behind:
            behind.do(job)
            raise KeyError("of the block")

    with pytest.raises(KeyError):
        give()
