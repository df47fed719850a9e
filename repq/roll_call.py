"""Which of several processes still answers, by what each leaves in the store that torch keeps for all of them.

A process leaves the name of its host when it joins, and a word when it no longer waits for the others or fails by
itself. Whoever has left none a moment after that is the one that the others waited for. Nothing is sent in between.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import PrefixStore, Store

MOMENT, TICK = 3.0, 0.1  # seconds: until everyone who waited has left a word; between two looks
LINGER = 1.0  # seconds that the first process stays for others to look
STORE_PATIENCE = 5.0  # seconds that the store may take to answer; its host may be what hangs
NAMED = 5


class RollCall:
    """What this process knows of the others, and tells them.

    Args:
        store: the same for all processes, and no other roll call's; it may be hosted by one of them.
        patience: how long processes wait for one another.
    """

    def __init__(self, store: Store, rank: int, count: int, patience: timedelta) -> None:
        self._store = PrefixStore("roll", store)
        self._rank, self._moment = rank, min(MOMENT, patience.total_seconds() / 2)
        self._hosts: list[str | None] = [None] * count
        self._told = False
        self._store.set(f"host/{rank}", socket.gethostname())

    def learn_hosts(self) -> None:
        """Read where the others run, as soon as all have joined: later the store may be what does not answer.

        Raises:
            RuntimeError: not all have.
        """
        names = self._store.multi_get([f"host/{rank}" for rank in range(len(self._hosts))])
        self._hosts = [name.decode(errors="replace") for name in names]

    def tell(self, text: str) -> None:
        """Leave the word that this process ends, and why, unless it has left one."""
        if not self._told:
            self._told = True
            self._in_time(lambda: self._store.set(self._word(self._rank), text), STORE_PATIENCE)

    def linger(self) -> None:
        """Let the others read what was told: the store may end with the first process."""
        if self._rank == 0:
            time.sleep(min(LINGER, self._moment))

    def who_is_missing(self) -> str:
        """Leave a word, wait a moment for those of the others, and say which ranks have left none, or why they ended.

        Meanwhile SIGTERM, which ``torchrun`` sends to all once one has ended, does not end the process.
        """
        looks: list[dict[int, str | None]] = []
        with _deaf_to_sigterm():
            self.tell("")
            answered = self._in_time(lambda: self._look(looks), self._moment + STORE_PATIENCE)
            self.linger()
        words = looks[-1] if looks else {}
        ended = [f"{self._name(rank)} ended: {text}" for rank, text in words.items() if text]
        silent = [rank for rank, text in words.items() if text is None]
        if answered is None:  # silent are those that would have had more time, too
            return "; ".join(ended[:NAMED]) or f"{self._keeper()}, which keeps the store of all, has ended"
        if not looks or not answered:
            return f"no word from {self._keeper()}, which keeps the store of all"
        if not ended and not silent:
            return "all processes are there and wait no longer: one came late, or the network between two failed"
        return "; ".join([*([f"no word from {self._names(silent)}"] if silent else []), *ended[:NAMED]])

    def _look(self, looks: list[dict[int, str | None]]) -> None:
        """Append what the others have said so far, again and again; None: nothing."""
        end = time.monotonic() + self._moment
        while True:
            words = dict(looks[-1]) if looks else dict[int, str | None].fromkeys(self._others())
            for rank in [rank for rank, text in words.items() if text is None]:
                words[rank] = self._read(self._word(rank))
                if words[rank] is None and self._hosts[rank] is None:
                    self._hosts[rank] = self._read(f"host/{rank}")
            looks.append(words)
            if None not in words.values() or time.monotonic() > end:
                return
            time.sleep(TICK)

    def _read(self, key: str) -> str | None:
        return self._store.get(key).decode(errors="replace") if self._store.check([key]) else None

    @staticmethod
    def _in_time(do: Callable[[], object], seconds: float) -> bool | None:
        """Whether ``do`` ended within so many seconds; None: the store is gone. If its host hangs, it never answers."""
        ends: list[bool | None] = []

        def run() -> None:
            try:
                do()
                ends.append(True)
            except RuntimeError:
                ends.append(None)

        asking = threading.Thread(target=run, daemon=True)
        asking.start()
        asking.join(seconds)
        return ends[0] if ends else False

    def _others(self) -> list[int]:
        return [rank for rank in range(len(self._hosts)) if rank != self._rank]

    def _name(self, rank: int) -> str:
        host = self._hosts[rank]
        return f"rank {rank}, which never joined" if host is None else f"rank {rank} on {host}"

    def _names(self, ranks: Sequence[int]) -> str:
        more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
        return ", ".join(map(self._name, ranks[:NAMED])) + more

    def _keeper(self) -> str:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return f"torchrun on {os.environ.get('MASTER_ADDR')}"
        return self._name(0)

    @staticmethod
    def _word(rank: int) -> str:
        return f"word/{rank}"


@contextmanager
def _deaf_to_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
