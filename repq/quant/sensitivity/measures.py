"""How far a quantized tensor lies from its float original: MSE, SNR and cosine similarity, from three running sums.

With the original ``y`` and the error ``e = y_q - y``, the sums ``S = y·y``, ``N = e·e`` and ``X = y·e`` give

    MSE = N / n        SNR = 10 log10(S / N) dB        cosine = (1 + X/S) / sqrt(1 + 2 X/S + N/S)

(YOLOv6 report, section 2.5.2, ranks layers by these.) Written with the error, the cosine stays exact where it is close
to 1; the plain form ``y·y_q / (|y| |y_q|)`` loses all digits there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repq.results import Similarity


@dataclass
class Moments:
    """Running sums over batches: elements ``n``, ``S``, ``N`` and ``X`` of the module's docstring."""

    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    cross: float = 0.0

    def add(self, original: Tensor, quantized: Tensor) -> None:
        """Take in one batch: two tensors of the same shape."""
        y = original.detach().flatten()
        error = quantized.detach().flatten() - y
        self.elements += y.numel()
        signal, noise, cross = torch.stack((torch.dot(y, y), torch.dot(error, error), torch.dot(y, error))).tolist()
        self.signal += signal
        self.noise += noise
        self.cross += cross

    @property
    def finite(self) -> bool:
        """Whether no value was NaN or infinite."""
        return math.isfinite(self.signal) and math.isfinite(self.noise)


def similarity(tensors: Sequence[Moments]) -> Similarity:
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


def _ratio(m: Moments) -> float:
    if m.noise == 0:
        return 0.0
    return m.noise / m.signal if m.signal > 0 else math.inf


def _cosine(m: Moments) -> float:
    if m.noise == 0:
        return 1.0
    if m.signal == 0:
        return 0.0
    along, power = m.cross / m.signal, m.noise / m.signal
    length = 1 + 2 * along + power
    return min(1.0, (1 + along) / math.sqrt(length)) if length > 0 else 0.0
