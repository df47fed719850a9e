"""The stages of a run: what each reads, and which settings it depends on."""

from __future__ import annotations

from typing import Any

from repq.pipeline import steps
from repq.pipeline.context import Settings, Stage
from repq.recipe import Config, Recipe, TrainConfig


def _plain(config: Config, *names: str) -> dict[str, Any]:
    return config.model_dump(mode="json", include=set(names) or None)


def _train_settings(recipe: Recipe, config: TrainConfig | None) -> Settings:
    assert config is not None
    # Where files lie does not matter; their hashes are among the inputs.
    exclude: Any = {**dict.fromkeys({"weights", "rep_scales", *config.SPEED_ALONE}, True), "distill": {"teacher"}}
    return {**_plain(recipe, "imgsz", "eval", "device"), "train": config.model_dump(mode="json", exclude=exclude)}


def _qat_settings(recipe: Recipe) -> Settings:
    assert recipe.qat is not None
    values = recipe.qat.model_dump(mode="json", exclude=set(recipe.qat.SPEED_ALONE))
    return {**_plain(recipe, "imgsz", "eval", "device"), "qat": values}


def _report_settings(recipe: Recipe) -> Settings:
    return _plain(recipe, "name", "imgsz", "report", "eval")


TABLE = (
    Stage(
        "data", (), lambda recipe: _plain(recipe, "data"), steps.draw_data, ("numpy", "opencv-python-headless"),
        wanted=lambda recipe: recipe.data.demo is not None,
    ),
    Stage(
        "search", ("data",), lambda recipe: _train_settings(recipe, recipe.search), steps.search,
        ("torch", "numpy", "opencv-python-headless"), reads_data=True, reads_weights=True,
        wanted=lambda recipe: recipe.search is not None,
    ),
    Stage(
        "train", ("data", "search"), lambda recipe: _train_settings(recipe, recipe.train), steps.train,
        ("torch", "numpy", "opencv-python-headless"),
        reads_data=True, reads_weights=True, wanted=lambda recipe: recipe.train is not None,
    ),
    Stage(
        "fuse", ("data", "train"), lambda recipe: _plain(recipe, "imgsz", "fuse", "device"), steps.fuse,
        ("torch",), reads_data=True, reads_weights=True,
    ),
    Stage(
        "sensitivity", ("data", "fuse"),
        lambda recipe: _plain(recipe, "imgsz", "sensitivity", "plan", "ptq", "eval", "device"), steps.sensitivity,
        ("torch", "opencv-python-headless", "pycocotools", "openvino"), reads_data=True,
        wanted=lambda recipe: recipe.sensitivity is not None or recipe.plan is not None,
    ),
    Stage(
        "ptq", ("data", "fuse", "sensitivity"), lambda recipe: _plain(recipe, "imgsz", "ptq", "eval", "device"),
        steps.ptq, ("torch", "opencv-python-headless", "pycocotools"), reads_data=True,
    ),
    Stage(
        "qat", ("data", "fuse", "ptq"), _qat_settings, steps.qat,
        ("torch", "numpy", "opencv-python-headless", "pycocotools"), reads_data=True,
        wanted=lambda recipe: recipe.qat is not None,
    ),
    Stage(
        "export", ("fuse", "ptq", "qat"), lambda recipe: _plain(recipe, "imgsz", "export"), steps.export,
        ("torch", "onnx", "onnxscript"),
    ),
    Stage(
        "build", ("export",), lambda recipe: _plain(recipe, "build"), steps.build,
        ("onnxruntime", "openvino", "tensorrt"),
    ),
    Stage(
        "check", ("data", "ptq", "qat", "build"), lambda recipe: _plain(recipe, "imgsz", "check", "eval"),
        steps.check, ("torch", "onnxruntime", "openvino", "pycocotools"), reads_data=True,
    ),
    Stage(
        "eval", ("data", "build"), lambda recipe: _plain(recipe, "imgsz", "eval"), steps.evaluate,
        ("onnxruntime", "openvino", "pycocotools"), reads_data=True,
    ),
    Stage(
        "bench", ("build",), lambda recipe: _plain(recipe, "imgsz", "bench"), steps.bench,
        ("onnxruntime", "openvino"),
    ),
    Stage(
        "report",
        ("data", "search", "train", "fuse", "sensitivity", "ptq", "qat", "export", "build", "check", "eval", "bench"),
        _report_settings, steps.report, ("jinja2", "matplotlib"), reads_data=True,
    ),
)  # fmt: skip
