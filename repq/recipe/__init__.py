"""Typed, frozen settings: one model per stage, and the recipe that joins them.

A recipe is a short YAML file. Unknown keys fail and name the closest valid one.
"""

from repq.recipe.ablation import Ablation, Effects
from repq.recipe.base import Config, ImageSize
from repq.recipe.budget import NOTHING_TO_LOSE, Budget, ap_drop, for_target, holds
from repq.recipe.data import DataConfig, DemoConfig, EvalConfig, GraphConfig, LetterboxConfig, TtaConfig
from repq.recipe.deployment import (
    BenchConfig,
    BuildConfig,
    CheckConfig,
    EngineName,
    ExportConfig,
    NmsConfig,
    PreprocessConfig,
    Provider,
    ReportConfig,
    TensorRtConfig,
    default_engines,
    engine_title,
)
from repq.recipe.prediction import DeployConfig, PredictConfig
from repq.recipe.quantization import (
    ApSweep,
    CalibrationConfig,
    CorrectionConfig,
    FuseConfig,
    Measure,
    PlanConfig,
    PruneConfig,
    PtqConfig,
    QatConfig,
    RecoveryConfig,
    SensitivityConfig,
)
from repq.recipe.reader import Trial, as_overrides, load_ablation, load_recipe, parse_recipe, parse_settings, set_value
from repq.recipe.training import DistillConfig, ImitationConfig, LoopConfig, TrainConfig
from repq.recipe.whole import Recipe

__all__ = [
    "NOTHING_TO_LOSE",
    "Ablation",
    "ApSweep",
    "BenchConfig",
    "Budget",
    "BuildConfig",
    "CalibrationConfig",
    "CheckConfig",
    "Config",
    "CorrectionConfig",
    "DataConfig",
    "DemoConfig",
    "DeployConfig",
    "DistillConfig",
    "Effects",
    "EngineName",
    "EvalConfig",
    "ExportConfig",
    "FuseConfig",
    "GraphConfig",
    "ImageSize",
    "ImitationConfig",
    "LetterboxConfig",
    "LoopConfig",
    "Measure",
    "NmsConfig",
    "PlanConfig",
    "PredictConfig",
    "PreprocessConfig",
    "Provider",
    "PruneConfig",
    "PtqConfig",
    "QatConfig",
    "Recipe",
    "RecoveryConfig",
    "ReportConfig",
    "SensitivityConfig",
    "TensorRtConfig",
    "TrainConfig",
    "Trial",
    "TtaConfig",
    "ap_drop",
    "as_overrides",
    "default_engines",
    "engine_title",
    "for_target",
    "holds",
    "load_ablation",
    "load_recipe",
    "parse_recipe",
    "parse_settings",
    "set_value",
]
