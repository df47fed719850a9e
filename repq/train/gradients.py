"""Sums of gradients over processes, which begin while the backward pass still computes other gradients.

Gradients come from the last layers first. Those that come one after another share a bucket, and a bucket whose last
gradient has come is summed while the backward pass goes on (Li et al., "PyTorch Distributed", 2006.15704, section 3.2).
Processes sum the same buckets in the same order, whenever their gradients come: a bucket waits for those before it.
With two processes a sum is the same to the bit, however gradients are put together; with more the order in which
an all-reduce adds their values may change with their places in it.

torch's DistributedDataParallel does this around a module's call. Here it is about parameters alone, so that losses
stay sums, passes may be CUDA graphs, and a teacher's projectors take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from repq.distributed import PendingSum, current_processes, sum_over_processes, told_by_first

BUCKET_BYTES = 4 << 20


def overlaps(device: torch.device) -> bool:
    """Whether sums begin in the backward pass: on GPUs, which have hardware beside their cores to exchange them."""
    return device.type == "cuda"


class GradientSum:
    """Leaves in every parameter the sum of its gradients over all processes.

    The first sum finds out in which order gradients come. Later ones overlap with the backward pass, where gradients
    come from it: a CUDA graph shows none before its end, so those are summed after it.

    The parameters that have a gradient must be the same in all processes. Alone, nothing is done.

    Args:
        overlap: False: sum all gradients after the backward pass, in one operation.
        bucket_bytes: of gradients, after which a bucket is full.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, overlap: bool = True, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self.parameters, self.overlap, self.bucket_bytes = parameters, overlap, bucket_bytes
        self.buckets: list[list[int]] | None = None
        self._arrived: list[int] = []
        self._missing: list[int] = []
        self._pending: list[PendingSum] = []

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Around the last backward pass before `finish`, and around no forward pass.

        Raises:
            TrainingError: another process is gone.
        """
        if not self.overlap or current_processes().count == 1:
            yield
            return
        self._arrived, self._pending = [], []
        self._missing = [len(bucket) for bucket in self.buckets or ()]
        bucket_of = {index: number for number, bucket in enumerate(self.buckets or ()) for index in bucket}
        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._came, index, bucket_of.get(index)))
            for index, parameter in enumerate(self.parameters)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self, others: Sequence[Tensor] = ()) -> list[Tensor]:
        """Sum what has not been summed yet, wait for all, and give the gradients that there are.

        Args:
            others: further tensors to sum up, in place.

        Raises:
            TrainingError: another process is gone.
        """
        found = {index: p.grad for index, p in enumerate(self.parameters) if p.grad is not None}
        gradients = list(found.values())
        if current_processes().count == 1:
            return gradients
        if not self.overlap:
            sum_over_processes([*gradients, *others])
            return gradients
        if self.buckets is None:
            self.buckets = told_by_first(lambda: self._in_buckets(found))
        while len(self._pending) < len(self.buckets):
            self._begin_next()
        apart = {index for bucket in self.buckets for index in bucket}
        self._begin([*(gradient for index, gradient in found.items() if index not in apart), *others])
        for pending in self._pending:
            pending.finish()
        self._pending = []
        return gradients

    def _came(self, index: int, bucket: int | None, _: Tensor) -> None:
        """A gradient is complete."""
        self._arrived.append(index)
        if bucket is not None:
            self._missing[bucket] -= 1
        while len(self._pending) < len(self._missing) and not self._missing[len(self._pending)]:
            self._begin_next()

    def _begin_next(self) -> None:
        """Begin the sum of the next bucket, of those of its gradients that there are."""
        assert self.buckets is not None
        parameters = [self.parameters[index] for index in self.buckets[len(self._pending)]]
        self._begin([parameter.grad for parameter in parameters if parameter.grad is not None])

    def _begin(self, tensors: Sequence[Tensor]) -> None:
        self._pending.append(PendingSum(tensors))

    def _in_buckets(self, gradients: Mapping[int, Tensor]) -> list[list[int]]:
        """The numbers of the parameters that have a gradient, bucket by bucket, in the order in which they came.

        Those that were not seen to come are last, the last layers' first.
        """
        came = [index for index in self._arrived if index in gradients]
        ordered = dict.fromkeys([*came, *sorted(gradients, reverse=True)])
        buckets: list[list[int]] = []
        room = 0
        for index in ordered:
            if room <= 0:
                buckets.append([])
                room = self.bucket_bytes
            buckets[-1].append(index)
            room -= gradients[index].nbytes
        return buckets
