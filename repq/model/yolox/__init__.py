"""The YOLOX family: nano to x, and the one on Darknet53."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from repq.model.family import Family, Recovery, Shapes
from repq.model.yolox.specs import YoloxSpec, find_spec, model_names, split_options, training_settings

if TYPE_CHECKING:
    from repq.model.detector import Detector
    from repq.recipe import TrainConfig


class Yolox(Family):
    name = "yolox"
    spec_type = YoloxSpec
    packages = ("yolox",)

    def model_names(self) -> tuple[str, ...]:
        return model_names()

    def spec(self, name: str, num_classes: int) -> YoloxSpec | None:
        return find_spec(name, num_classes)

    def build(self, spec: YoloxSpec, *, deploy: bool) -> Detector:
        from repq.model.yolox.detector import YoloxDetector

        return YoloxDetector(spec, deploy=deploy)

    def recover(self, shapes: Shapes, name: str | None, modules: Mapping[str, str]) -> Recovery | None:
        from repq.model.yolox.recover import recover

        return recover(shapes, name)

    def training(self, name: str) -> dict[str, Any]:
        return training_settings(name)

    def objective(self, model: Detector, config: TrainConfig) -> Any:
        from repq.model.yolox.training import YoloxObjective

        return YoloxObjective(model, config)

    def architecture(self, name: str) -> str:
        return split_options(name)[0]
