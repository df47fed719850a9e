"""Speeds that others measured, to set one's own beside."""

from __future__ import annotations

from dataclasses import dataclass

from repq.results import Variant


@dataclass(frozen=True)
class PublishedSpeed:
    """Images per second of one model at 640x640; ``table`` is that of the YOLOv6 report."""

    spec: str
    variant: Variant
    batch: int
    images_per_s: int
    table: int
    setting: str


SOURCE = "YOLOv6: A Single-Stage Object Detection Framework for Industrial Applications, arXiv 2209.02976v1"
IMGSZ = (640, 640)

_TABLE_18 = {"yolov6n_v2": (810, 1323), "yolov6s_v2": (362, 522), "yolov6m_v2": (180, 241), "yolov6l_v2": (105, 131)}

PUBLISHED = (
    PublishedSpeed("yolov6s_v2", "fp16", 1, 377, 17, "T4, TensorRT 8"),
    PublishedSpeed("yolov6s_v2", "fp16", 32, 541, 17, "T4, TensorRT 8"),
    PublishedSpeed("yolov6s_v2", "int8", 1, 596, 17, "T4, TensorRT 8, QAT"),
    PublishedSpeed("yolov6s_v2", "int8", 32, 869, 17, "T4, TensorRT 8, QAT"),
    *(
        PublishedSpeed(spec, "fp16", batch, images_per_s, 18, "T4, TensorRT 8.2")
        for spec, pair in _TABLE_18.items()
        for batch, images_per_s in zip((1, 32), pair, strict=True)
    ),
)


def architecture(spec: str | None) -> str | None:
    """The spec without what vanishes when it is deployed: RepOptimizer's ``_opt`` and the like."""
    return None if spec is None else spec.removesuffix("_opt").removesuffix("_hs")
