"""Where stages say what the user should know beside the result, and where libraries say what he should not."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Log = Callable[[str], None]


def quiet(line: str) -> None:
    """Say nothing."""


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep from the user what libraries log and warn of, such as optional packages and their own deprecations."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
