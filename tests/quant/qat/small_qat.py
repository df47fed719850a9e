"""A calibrated model and settings so small that tests can train it."""

from __future__ import annotations

import torch
from small_training import SIZE, tiny_model
from torch import nn

from repq.data import DetectionDataset, ImageCache
from repq.distributed import ALONE
from repq.layers import QuantPlan
from repq.model import Detector, layer_ids
from repq.quant import calibrate, insert_quantizers
from repq.quant.qat import QatUpdater, learn_scales
from repq.recipe import CalibrationConfig, PtqConfig, QatConfig
from repq.reparam import fuse
from repq.train import Processes, Teacher
from repq.train.loader import training_batches

QUICK = QatConfig(epochs=3, batch=4, warmup_steps=2, workers=0, ema_decay=0.9, ema_ramp_steps=5, learning_rate=0.001)


def float_model(seed: int = 0, **changes: object) -> Detector:
    """A fused model whose activations keep their size, and whose answers differ from place to place."""
    model = fuse(tiny_model(seed, **changes).eval())
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layer_ids(model):
            conv = model.get_submodule(layer)
            inputs = conv.weight[0].numel() if isinstance(conv, nn.Conv2d) else conv.in_channels
            conv.weight.normal_(0, (2 / inputs) ** 0.5, generator=rng)
            conv.bias.normal_(0, 0.1, generator=rng)
        for classes, sides in zip(model.detect.cls_preds, model.detect.reg_preds, strict=True):
            classes.bias.fill_(-2)
            sides.weight.mul_(0.3)
            sides.bias.fill_(2)
    return model


def calibrated_model(teacher: Detector, keep: tuple[str, ...] = (), scheme: str = "symmetric") -> Detector:
    config = PtqConfig(scheme=scheme, calibration=CalibrationConfig(method="max"))  # type: ignore[arg-type]
    model = insert_quantizers(teacher, QuantPlan.keeping_float(layer_ids(teacher), keep), config).eval()
    calibrate(model, [images(4)], config.calibration)
    return model


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def training_answer(model: Detector, pixels: torch.Tensor):
    model.detect.training = True
    try:
        return model(pixels)
    finally:
        model.detect.training = False


def gradients_of_first_batch(train_set: DetectionDataset, processes: Processes = ALONE):
    """Images of this process, parts of the loss, and gradients, with only the first layer quantized.

    Its input are pixels, the same whatever batch they are in. Behind it a sum in another order could put a value on
    the other side of an edge, and the gradients would differ by more than roundings.
    """
    teacher = float_model()
    first, *others = layer_ids(teacher)
    student = calibrated_model(teacher, tuple(others)).train()
    with torch.no_grad():
        student.get_submodule(first).weight.mul_(0.9)
    learn_scales(student)
    config = QUICK.model_copy(update={"task_weight": 0.5})
    updater = QatUpdater(student, Teacher(teacher, student, config), config, torch.device("cpu"))
    cache = ImageCache(train_set.records, SIZE, 1 << 24)
    batch = next(training_batches(cache, SIZE, QUICK, seed=0, epoch=0, processes=processes))
    parts = updater.add_gradients([batch])
    return len(batch.images), parts, {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
