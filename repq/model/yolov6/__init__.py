"""The YOLOv6 family: N to L of all releases, P6, MBLA, the base models and YOLOv6Lite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from repq.model.family import Family, PublishedSpeed, Recovery, Shapes
from repq.model.yolov6.specs import ARCHITECTURES, ModelSpec, find_spec, model_names, split_style

if TYPE_CHECKING:
    from repq.model.detector import Detector
    from repq.recipe import TrainConfig

_REPORT = "YOLOv6: A Single-Stage Object Detection Framework for Industrial Applications, arXiv 2209.02976v1"
_TABLE_18 = {"yolov6n_v2": (810, 1323), "yolov6s_v2": (362, 522), "yolov6m_v2": (180, 241), "yolov6l_v2": (105, 131)}


class YoloV6(Family):
    name = "yolov6"
    spec_type = ModelSpec
    packages = ("yolov6",)
    published = (
        PublishedSpeed("yolov6s_v2", "float16", 1, 377, 17, "T4, TensorRT 8", _REPORT),
        PublishedSpeed("yolov6s_v2", "float16", 32, 541, 17, "T4, TensorRT 8", _REPORT),
        PublishedSpeed("yolov6s_v2", "int8", 1, 596, 17, "T4, TensorRT 8, QAT", _REPORT),
        PublishedSpeed("yolov6s_v2", "int8", 32, 869, 17, "T4, TensorRT 8, QAT", _REPORT),
        *(
            PublishedSpeed(spec, "float16", batch, images_per_s, 18, "T4, TensorRT 8.2", _REPORT)
            for spec, pair in _TABLE_18.items()
            for batch, images_per_s in zip((1, 32), pair, strict=True)
        ),
    )

    def model_names(self) -> tuple[str, ...]:
        return model_names()

    def spec(self, name: str, num_classes: int) -> ModelSpec | None:
        return find_spec(name, num_classes)

    def build(self, spec: ModelSpec, *, deploy: bool) -> Detector:
        from repq.model.yolov6.detector import YoloV6Detector

        return YoloV6Detector(spec, deploy=deploy)

    def recover(self, shapes: Shapes, name: str | None, modules: Mapping[str, str]) -> Recovery | None:
        from repq.model.yolov6.recover import recover

        return recover(shapes, name, modules)

    def objective(self, model: Detector, config: TrainConfig) -> Any:
        from repq.model.yolov6.training import DistanceObjective

        return DistanceObjective(model, config)

    def architecture(self, name: str) -> str:
        return name.removesuffix("_opt").removesuffix("_hs")

    def rep_optimizer_names(self, name: str) -> tuple[str, str] | None:
        stem, _ = split_style(name)
        return (f"{stem}_hs", f"{stem}_opt") if stem in ARCHITECTURES else None
