"""A streaming histogram of one tensor's values, in memory that does not grow with the number of images."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repq.errors import QuantizationError
from repq.quant.values import flat

CHUNK = 1 << 18
"""Values that are binned at a time: bounds the scratch memory, which then fits a core's cache."""

SUBDIVISIONS = 4
"""Points that stand for one bin, spread evenly over it, where an error is summed over the histogram."""


class Histogram:
    """Counts of values in ``bins`` bins of equal width on each side of zero, and of exact zeros.

    The width is ``w = 2^e / bins`` for the smallest integer ``e`` with ``max |x| <= 2^e``. A value belongs to the bin
    ``i = sign(x) * ceil(|x| / w)``: bin ``i`` holds ``((i - 1) w, i w]`` and bin 0 holds exact zeros only (half of what
    ReLU puts out), which are free of quantization error.

    When a batch exceeds ``2^e``, neighbouring bins are merged in pairs, which doubles the width. Because
    ``ceil(ceil(x) / 2) = ceil(x / 2)`` and scaling by a power of two is exact, this gives the very counts that the
    wider bins would have given from the start. The histogram is therefore a function of the values alone: neither their
    order nor the way they are split into batches changes it.

    Args:
        name: the tensor, for messages.
        bins: per side; rounded up to an even number.
    """

    def __init__(self, name: str, bins: int = 2048) -> None:
        self.name = name
        self.bins = bins + bins % 2
        self.counts = torch.zeros(2 * self.bins + 1, dtype=torch.int64)
        self.exponent: int | None = None
        self.minimum = math.inf
        self.maximum = -math.inf

    def add(self, values: Tensor) -> None:
        """Count the values of a tensor of any shape.

        Raises:
            QuantizationError: a value is NaN or infinite.
        """
        (row,) = flat(values.detach().float())
        if not row.numel():
            return
        low, high = (float(edge) for edge in torch.aminmax(row))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int(row.numel() - torch.isfinite(row).sum())
            raise QuantizationError(
                f"{self.name} is not finite",
                found=f"{bad} of {row.numel()} values are NaN or infinite (NaN: {int(row.isnan().sum())})",
                fix="check the weights before this layer and the calibration images, or start from another checkpoint",
            )
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.counts = self.counts.to(row.device)
        self._widen(max(-low, high))
        if self.exponent is None:
            self.counts[self.bins] += row.numel()
            return
        for chunk in row.split(CHUNK):
            self.counts += self._count(chunk, self.bins * 2.0**-self.exponent, signed=low < 0)

    @property
    def bin_width(self) -> float:
        """``2^e / bins``; 0 while only zeros were seen."""
        return 0.0 if self.exponent is None else 2.0**self.exponent / self.bins

    @property
    def total(self) -> int:
        """Number of values seen."""
        return int(self.counts.sum())

    @property
    def zeros(self) -> int:
        """Number of exact zeros."""
        return int(self.counts[self.bins])

    @property
    def largest_magnitude(self) -> float:
        return max(-self.minimum, self.maximum, 0.0)

    @property
    def nbytes(self) -> int:
        """Bytes held by the counts."""
        return self.counts.numel() * self.counts.element_size()

    @classmethod
    def joint(cls, histograms: Sequence[Histogram]) -> Histogram:
        """The histogram of the values of several tensors together: what adding all of them to one would have given.

        Histograms that are equal to the last count are of layers that read one tensor, which counts once.
        """
        distinct: list[Histogram] = []
        for histogram in histograms:
            if not any(histogram.same_values(other) for other in distinct):
                distinct.append(histogram)
        return cls.merged(distinct, " and ".join(histogram.name for histogram in distinct))

    @classmethod
    def merged(cls, parts: Sequence[Histogram], name: str) -> Histogram:
        """The histogram of all values of the parts, count for count, such as of shares of the images."""
        result = cls(name, parts[0].bins)
        result.minimum = min(histogram.minimum for histogram in parts)
        result.maximum = max(histogram.maximum for histogram in parts)
        result._widen(result.largest_magnitude)
        for histogram in parts:
            part = copy.copy(histogram)  # widening gives it new counts and leaves the histogram its own
            part._widen(result.largest_magnitude)
            result.counts = result.counts + part.counts.cpu()
        return result

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which may not have the device."""
        return {**self.__dict__, "counts": self.counts.cpu()}

    def same_values(self, other: Histogram) -> bool:
        """Whether both saw the same values, as far as a histogram can tell."""
        edges = (self.exponent, self.minimum, self.maximum) == (other.exponent, other.minimum, other.maximum)
        return edges and torch.equal(self.counts, other.counts)

    def above(self) -> NDArray[np.int64]:
        """Counts of positive values, bin by bin away from zero; shape (bins,)."""
        counts: NDArray[np.int64] = self.counts[self.bins + 1 :].cpu().numpy()
        return counts

    def below(self) -> NDArray[np.int64]:
        """Counts of negative values, bin by bin away from zero; shape (bins,)."""
        counts: NDArray[np.int64] = self.counts[: self.bins].flip(0).cpu().numpy()
        return counts

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values that stand for the non-zero part of the histogram, and how often each occurs.

        Every bin that is not empty is spread over a few evenly spaced points, so that an error that varies within a bin
        is averaged. None lies outside of what was seen.
        """
        counts = self.counts.cpu().numpy()
        index = np.arange(-self.bins, self.bins + 1)
        used = (counts > 0) & (index != 0)
        inside = (np.arange(SUBDIVISIONS) + 0.5) / SUBDIVISIONS
        magnitude = (np.abs(index[used])[:, None] - 1 + inside) * self.bin_width
        values = np.clip(magnitude * np.sign(index[used])[:, None], self.minimum, self.maximum)
        return values.ravel(), np.repeat(counts[used] / SUBDIVISIONS, SUBDIVISIONS)

    def _widen(self, magnitude: float) -> None:
        if magnitude == 0:
            return
        mantissa, exponent = math.frexp(magnitude)
        needed = max(exponent - 1 if mantissa == 0.5 else exponent, -100)
        if self.exponent is None:
            self.exponent = needed
        while self.exponent < needed:
            self.exponent += 1
            self.counts = self._merged()

    def _merged(self) -> Tensor:
        middle, half = self.bins, self.bins // 2
        merged = torch.zeros_like(self.counts)
        merged[middle] = self.counts[middle]
        merged[middle + 1 : middle + 1 + half] = self.counts[middle + 1 :].view(-1, 2).sum(1)
        merged[middle - half : middle] = self.counts[:middle].view(-1, 2).sum(1)
        return merged

    def _count(self, values: Tensor, bins_per_unit: float, signed: bool) -> Tensor:
        scaled = values * bins_per_unit
        index = (scaled.abs().ceil_().copysign_(scaled) if signed else scaled.ceil_()).add_(self.bins)
        # The smallest integer type that holds the index: bincount is bound by memory.
        kind = torch.int16 if self.counts.numel() <= 2**15 else torch.int32
        return torch.bincount(index.to(kind), minlength=self.counts.numel())
