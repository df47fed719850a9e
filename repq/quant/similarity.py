"""How far a quantized tensor lies from its float original: MSE, SNR and cosine similarity, from three running sums.

With the original ``y`` and the error ``e = y_q - y``, the sums ``S = y·y``, ``N = e·e`` and ``X = y·e`` give

    MSE = N / n        SNR = 10 log10(S / N) dB        cosine = (1 + X/S) / sqrt(1 + 2 X/S + N/S)

(YOLOv6 report, section 2.5.2, ranks layers by these.) Written with the error, the cosine stays exact where it is close
to 1; the plain form ``y·y_q / (|y| |y_q|)`` loses all digits there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from repq.machine.torch_threads import in_passes
from repq.model import Detector
from repq.quant.values import flat
from repq.results import Similarity

Outputs = tuple[Tensor, ...]


@dataclass
class ErrorSums:
    """Running sums over batches: elements ``n``, ``S``, ``N`` and ``X`` of the module's docstring."""

    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    cross: float = 0.0

    def add(self, original: Tensor, quantized: Tensor) -> None:
        """Take in one batch: two tensors of the same shape."""
        y, found = flat(original.detach(), quantized.detach())
        error = found - y
        self.elements += y.numel()
        signal, noise, cross = torch.stack((torch.dot(y, y), torch.dot(error, error), torch.dot(y, error))).tolist()
        self.signal += signal
        self.noise += noise
        self.cross += cross

    @property
    def finite(self) -> bool:
        """Whether no value was NaN or infinite."""
        return math.isfinite(self.signal) and math.isfinite(self.noise)


def similarity(tensors: Sequence[ErrorSums]) -> Similarity:
    """One figure per measure for one or more tensors that count alike, however large their values.

    MSE and cosine are means over the tensors. SNR comes from the mean of the tensors' ratios ``N / S``, so that the
    worst tensor decides. Equal tensors have an SNR of infinity.
    """
    count = len(tensors)
    ratio = sum(_ratio(m) for m in tensors) / count
    return Similarity(
        mse=sum(m.noise / max(m.elements, 1) for m in tensors) / count,
        snr_db=-10 * math.log10(ratio) if ratio > 0 else math.inf,
        cosine=sum(_cosine(m) for m in tensors) / count,
    )


def _ratio(m: ErrorSums) -> float:
    if m.noise == 0:
        return 0.0
    return m.noise / m.signal if m.signal > 0 else math.inf


def _cosine(m: ErrorSums) -> float:
    if m.noise == 0:
        return 1.0
    if m.signal == 0:
        return 0.0
    along, power = m.cross / m.signal, m.noise / m.signal
    length = 1 + 2 * along + power
    return min(1.0, (1 + along) / math.sqrt(length)) if length > 0 else 0.0


@dataclass
class OutputErrors:
    """Sums over the neck's maps, one for each level, and over the head's boxes and class scores."""

    neck: list[ErrorSums] = field(default_factory=list)
    head: tuple[ErrorSums, ErrorSums] = field(default_factory=lambda: (ErrorSums(), ErrorSums()))

    def add(self, original: Outputs, changed: Outputs) -> None:
        """Take in one batch's outputs, as ``changed_outputs`` yields them."""
        self.neck = self.neck or [ErrorSums() for _ in original[:-3]]
        for sums, before, after in zip((*self.neck, *self.head), original[:-1], changed[:-1], strict=True):
            sums.add(before, after)

    @property
    def finite(self) -> bool:
        return all(sums.finite for sums in (*self.neck, *self.head))

    def similarities(self) -> tuple[Similarity, Similarity]:
        """At the neck and at the head; levels count alike, and so do boxes and scores."""
        return similarity(self.neck), similarity(self.head)


@torch.no_grad()
def outputs_of(model: Detector, batches: Iterable[Tensor]) -> list[Outputs]:
    """Boxes and scores of each batch."""
    return list(_each_output(model, batches))


def _each_output(model: Detector, batches: Iterable[Tensor]) -> Iterator[Outputs]:
    def outputs(images: Tensor) -> Outputs:
        return model.complete(model.features(images))[1]

    return in_passes(outputs, batches, str(next(model.parameters()).device))


@torch.no_grad()
def head_snr_db(model: Detector, batches: Sequence[Tensor], reference: Sequence[Outputs]) -> float:
    """SNR in dB of a model's boxes and scores against ``reference``, the float model's on the same batches."""
    sums = (ErrorSums(), ErrorSums())
    for found, wanted in zip(_each_output(model, batches), reference, strict=True):
        for part, before, after in zip(sums, wanted, found, strict=True):
            part.add(before, after)
    return similarity(sums).snr_db
