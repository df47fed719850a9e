"""One number for how well a quantized model does: the SNR of what its head puts out, against the float model.

It needs no labels, and it is the measure that the sensitivity of layers is ranked by (``head.snr``): boxes and class
scores count alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from repq.model import Detector
from repq.quant.sensitivity.end_to_end import OutputMoments
from repq.quant.sensitivity.measures import similarity


@torch.no_grad()
def outputs_of(model: Detector, batches: Iterable[Tensor]) -> list[Tensor]:
    """Detections of each batch."""
    return [model(images) for images in batches]


@torch.no_grad()
def head_snr_db(model: Detector, batches: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """SNR in dB of a model's detections against ``reference``, the float model's on the same batches."""
    moments = OutputMoments(model.spec.layout)
    for images, wanted in zip(batches, reference, strict=True):
        moments.add((wanted,), (model(images),))
    return similarity(moments.head).snr_db
