"""A model and settings so small that tests can train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from repq.data import DetectionDataset, batches
from repq.evaluate import Predict
from repq.model import Detector, Spec, build, get_spec
from repq.recipe import TrainConfig
from repq.train import TrainOutcome

SIZE = (64, 64)
QUICK = TrainConfig(
    epochs=4, batch=4, warmup_steps=3, eval_interval=2, workers=0, ema_ramp_steps=5, ema_decay=0.9, precision="float32"
)


def tiny_model(seed: int = 0, name: str = "yolov6n_v2", classes: int = 2, **changes: object) -> Detector:
    spec = replace(
        get_spec(name, classes),
        backbone_channels=(8, 16, 16, 24, 32),
        backbone_repeats=(1, 1, 1, 1),
        top_down_channels=(16, 16),
        bottom_up_channels=(16, 16),
        neck_repeats=(1, 1, 1, 1),
        **changes,  # type: ignore[arg-type]
    )
    torch.manual_seed(seed)
    return build(spec)


def answering_model(classes: int, size: int, spec: str | Spec = "yolov6n_v2") -> Detector:
    """YOLOv6-N that learned nothing, in eval mode, with settled statistics; it finds boxes in any image."""
    torch.manual_seed(0)
    detector = build(spec, classes)
    for name, module in detector.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # take the statistics of the next batch
        elif "_preds" in name and isinstance(module, nn.Conv2d):  # they start at zero
            nn.init.normal_(module.weight, 0, 0.6 if "cls" in name else 0.02)
            assert module.bias is not None
            nn.init.constant_(module.bias, -2.0 if "cls" in name else 1.0)
    with torch.no_grad():
        detector.train()(torch.rand(8, 3, size, size))
    return detector.eval()


def settled(model: Detector) -> Detector:
    """Batch norms with fixed statistics, the head still in training form: images do not influence each other."""
    model.eval().detect.training = True
    with torch.no_grad():  # fresh last layers are zero, and pass no gradients on
        for parameter in model.detect.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def noisy_oracle(dataset: DetectionDataset) -> Predict:
    """A detector that knows the images, but not quite where their objects are."""
    rng, known = np.random.default_rng(0), {}
    for record, batch in zip(dataset.records, batches(dataset, SIZE, 1, workers=0), strict=True):
        rows = np.zeros((20, 5 + dataset.num_classes), np.float32)
        for row, (class_id, *box) in zip(rows, record.labels, strict=False):
            row[:4] = np.array(box) * SIZE[0] * rng.uniform(0.9, 1.1, 4)
            row[4], row[5 + int(class_id)] = 1, rng.uniform(0.2, 1)
        known[batch.images.tobytes()] = rows
    return lambda images: np.stack([known[image.tobytes()] for image in images])


def same_weights(first: TrainOutcome, second: TrainOutcome) -> bool:
    values = second.model.state_dict()
    return all(torch.equal(value, values[name]) for name, value in first.model.state_dict().items())


def interrupted_after(steps: int):
    """A progress that presses Ctrl-C after a number of training steps."""
    seen = 0

    def progress(items: Iterable, /, *, total: int | None = None, label: str = "") -> Iterator:
        nonlocal seen
        for item in items:
            if seen == steps:
                raise KeyboardInterrupt
            seen += 1
            yield item

    return progress
