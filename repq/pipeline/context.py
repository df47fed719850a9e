"""What a stage is, and what it may read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repq.artifact import Artifact
from repq.log import Log
from repq.progress import Progress
from repq.recipe import EngineName, Recipe

Settings = Mapping[str, Any]
VARIANTS = ("float32", "float16", "int8")
"""What engines are built as; FP16 is for TensorRT, from a recipe that exports it."""


@dataclass(frozen=True)
class Context:
    """What a stage may read: the recipe and the artifacts of the stages that it needs."""

    recipe: Recipe
    artifacts: Mapping[str, Artifact]
    progress: Progress
    log: Log

    @property
    def data(self) -> Path:
        """The data.yaml: the recipe's own, or that of the drawn set."""
        if self.recipe.data.path is not None:
            return self.recipe.data.path
        return self.artifacts["data"] / "demo/data.yaml"

    @property
    def weights(self) -> Path:
        """The checkpoint that the run starts from: brought, or trained here."""
        if self.recipe.weights is not None:
            return self.recipe.weights
        return self.artifacts["train"] / "weights.safetensors"

    @property
    def quantized(self) -> Path:
        """The checkpoint that is deployed: as calibrated, or trained after that."""
        return self.artifacts["qat" if "qat" in self.artifacts else "ptq"] / "quantized.safetensors"

    def built(self, variant: str) -> list[Path]:
        """The engine folders of one variant, in the order of the recipe."""
        return [self.artifacts["build"] / f"{engine}-{variant}" for engine in engines_of(self.recipe, variant)]

    def exported(self, engine: EngineName, variant: str) -> Path:
        """The ONNX file that an engine is built from: TensorRT gets the INT8 file whose other layers are FP16."""
        mixed = engine == "tensorrt" and variant == "int8" and self.recipe.export.float16
        return self.artifacts["export"] / f"{'int8_float16' if mixed else variant}.onnx"


def engines_of(recipe: Recipe, variant: str) -> tuple[EngineName, ...]:
    """The engines of the recipe that are built as this variant."""
    if variant == "float16":
        return tuple(engine for engine in recipe.build.engines if engine == "tensorrt" and recipe.export.float16)
    return recipe.build.engines


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
        name: the stage, and its folder.
        needs: stages whose artifacts it reads.
        settings: the part of the recipe that its result depends on.
        run: fills the payload folder (second argument); keeps state to continue from in the third.
        libraries: distributions whose version its result depends on.
        reads_data: whether it reads a data set that the recipe names.
        reads_weights: whether it reads checkpoints or scales that the recipe names.
        wanted: whether a recipe has this stage at all.
    """

    name: str
    needs: tuple[str, ...]
    settings: Callable[[Recipe], Settings]
    run: Callable[[Context, Path, Path], None]
    libraries: tuple[str, ...]
    reads_data: bool = False
    reads_weights: bool = False
    wanted: Callable[[Recipe], bool] = lambda recipe: True
