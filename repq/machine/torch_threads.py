"""How torch's threads are divided on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from repq.concurrency import concurrently

Item = TypeVar("Item")
Value = TypeVar("Value")

AT_ONCE = 2
"""Passes of a model that go on at once on a CPU. Threads that share one pass wait for each other after every operation;
more passes would hold the activations of more batches."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """As many threads inside the block. What else the process computes keeps its own: sums depend on the number."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def passes_at_once(device: str) -> int:
    """How many passes of a model are worth going on at once on a device, which divide its threads."""
    return 1 if device.startswith("cuda") else min(AT_ONCE, torch.get_num_threads())


def in_passes(run: Callable[[Item], Value], batches: Iterable[Item], device: str) -> Iterator[Value]:
    """Yield ``run(batch)`` in the order of the batches, of which some go on at once.

    The result does not hang on how many: ``run`` must not change what another run reads.
    """
    at_once = passes_at_once(device)
    if at_once == 1:
        yield from map(run, batches)
        return
    each, gradients = torch.get_num_threads() // at_once, torch.is_grad_enabled()

    def one(batch: Item) -> Value:
        with torch_threads(each), torch.set_grad_enabled(gradients):  # both are a thread's own
            return run(batch)

    yield from concurrently(one, batches, at_once)
