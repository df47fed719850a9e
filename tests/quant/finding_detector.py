"""A small fused detector that finds boxes; processes that load no other test's files make it as well."""

from __future__ import annotations

from dataclasses import replace

import torch

from repq.model import Detector, build, get_spec


def with_boxes() -> Detector:
    """A YOLOv6-N of one class and few blocks, which finds boxes that differ."""
    torch.manual_seed(0)
    spec = replace(get_spec("yolov6n_v2", 1), backbone_repeats=(1, 1, 1, 1), neck_repeats=(1, 1, 1, 1))
    model = build(spec, deploy=True).eval()
    for name, parameter in model.detect.named_parameters():
        if name.endswith("weight"):  # fresh prediction layers are zero: all boxes would be alike
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif "reg_preds" in name:
            parameter.data += 0.5
    return model
