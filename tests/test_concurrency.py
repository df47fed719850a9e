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


@pytest.mark.parametrize("owners", [1, 2, 7, 40])
def test_jobs_behind_are_done_in_the_order_of_each_owner_and_by_the_end(owners: int) -> None:
    done: dict[int, list[int]] = {owner: [] for owner in range(owners)}
    busy: set[int] = set()
    threads: set[int] = set()

    def job(owner: int, number: int) -> None:
        assert owner not in busy, "one job of an owner at a time"
        busy.add(owner)
        time.sleep(0.001 * (number % 3))
        threads.add(threading.get_ident())
        done[owner].append(number)
        busy.remove(owner)

    with Behind(3, lambda: threads.add(threading.get_ident())) as behind:
        for number in range(40):
            owner = number % owners
            behind.do(partial(job, owner, number), done[owner])
            assert number - sum(map(len, done.values())) <= 3
    assert all(done[owner] == list(range(owner, 40, owners)) for owner in done)
    threads.discard(threading.get_ident())  # who gives the jobs does some
    assert len(threads) == 1


@pytest.mark.parametrize("jobs", [1, 3, 30])
def test_the_first_error_of_a_job_arrives(jobs: int) -> None:
    def job(number: int) -> None:
        if number in (0, 2):
            raise ValueError(str(number))

    def give() -> None:
        with Behind(4) as behind:
            for number in range(jobs):
                behind.do(partial(job, number), owner=number)

    with pytest.raises(ValueError, match="0"):
        give()


def test_an_error_of_the_block_is_not_hidden_by_one_of_a_job() -> None:
    def job() -> None:
        raise ValueError("of the job")

    def give() -> None:
        with Behind(4) as behind:
            behind.do(job, owner=job)
            raise KeyError("of the block")

    with pytest.raises(KeyError):
        give()
