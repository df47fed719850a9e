"""Work that goes on in several threads, and comes in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def prefetch(
    function: Callable[[Item], Value], items: Iterable[Item], *, workers: int = 2, ahead: int = 16
) -> Generator[Value]:
    """Yield ``function(item)`` in the order of ``items``, computed by threads at most ``ahead`` items in advance."""
    if workers < 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Value]] = deque()
    source = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="repq-load") as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in islice(source, max(ahead, workers)))
            while waiting:
                value = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(source, 1))
                yield value
        finally:
            # When the consumer stops early, what has not begun is not worth doing.
            for future in waiting:
                future.cancel()


def concurrently(function: Callable[[Item], Value], items: Iterable[Item], at_once: int) -> Generator[Value]:
    """Yield ``function(item)`` in the order of ``items``, computed by so many threads; by the caller's own for one."""
    return prefetch(function, items, workers=at_once if at_once > 1 else 0, ahead=2 * at_once)


class Behind:
    """A thread that does one job after the other while whoever gives them goes on with something else.

    Jobs of one owner are done in order, one at a time. As a context manager it ends when all jobs are done. The first
    error of a job is raised by a later call, or at the end; jobs that wait behind it may be done before.

    Args:
        most: jobs that may wait, so that what they hold is bounded; one more is done by whoever gives it.
        start: what the thread does first.
    """

    def __init__(self, most: int, start: Callable[[], None] = lambda: None) -> None:
        self._most = most
        self._waiting: deque[tuple[object, Future[None]]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="repq-behind", initializer=start)

    def do(self, job: Callable[[], None], owner: object) -> None:
        """Take a job in, or do it if too many wait.

        Raises:
            Exception: what an earlier job raised, or this one.
        """
        self._settle(lambda: self._waiting[0][1].done())
        if len(self._waiting) < self._most:
            self._waiting.append((owner, self._pool.submit(job)))
            return
        self._settle(lambda: any(owner is other for other, _ in self._waiting))
        try:
            job()
        except Exception:
            self._settle(lambda: True)  # what an earlier one raised comes first
            raise

    def _settle(self, more: Callable[[], bool]) -> None:
        """Wait for one job after the other as long as it says so."""
        while self._waiting and more():
            self._waiting.popleft()[1].result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._settle(lambda: error is None)
        finally:
            self._pool.shutdown(cancel_futures=True)
