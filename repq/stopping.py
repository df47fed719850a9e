"""Ending on a signal: SIGTERM and Ctrl-C unwind the stack, so that nothing half-written stays, and say one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ExtensionFileLoader
from types import FrameType


class Stopped(BaseException):
    """The process is to end. No `Exception`, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        self.number = number


_received: list[int] = []
_MOMENT = 0.02  # seconds


def stopped() -> bool:
    """Whether a signal has come inside `ending_on_signals`: what fails from then on may be its consequence."""
    return bool(_received)


def _loads_extension(frame: FrameType | None) -> bool:
    """Whether a compiled module is being loaded."""
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def _stop(number: int, frame: FrameType | None) -> None:
    if _loads_extension(frame):  # compiled code that calls Python on its way may end the process at an exception
        again = threading.Timer(_MOMENT, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)  # Ctrl-C twice: at once
    _received.append(number)
    raise Stopped(number)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into an exit with 143 and 130 and one line on standard error, from here on.

    A signal that is ignored (a job in the background) stays so, and one inside another such block is left to that one.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _stop:
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _received.clear()
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _stop)
        yield
    except BaseException:
        if not _received:  # whatever arrives here after a signal is its consequence: imports wrap what they meet
            raise
        name = signal.Signals(_received[0]).name
        with suppress(OSError, ValueError):
            print(f"stopped by {name}; the same command starts again, or goes on where it can", file=sys.stderr)
        raise SystemExit(128 + _received[0]) from None
    finally:
        _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
