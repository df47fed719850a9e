"""repq: from a trained, re-parameterized detector to a measured INT8 engine.

`load` opens a model of any kind as a `Model`, whose methods are the steps of the work; `build_model` makes a fresh one,
`train_model` trains one, `run` works through a whole recipe, and `compare`
puts every engine side by side. Nothing heavy loads before one of them is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repq.lazy import lazy_names
from repq.privacy import switch_off_telemetry

if TYPE_CHECKING:
    from repq.api.model import Model as Model
    from repq.api.opening import build_model as build_model
    from repq.api.opening import load as load
    from repq.api.training import train_model as train_model
    from repq.errors import RepqError as RepqError
    from repq.errors import ToleranceError as ToleranceError
    from repq.layers import QuantPlan as QuantPlan
    from repq.pipeline.contest import compare as compare
    from repq.pipeline.whole_run import run as run
    from repq.recipe import BenchConfig as BenchConfig
    from repq.recipe import BuildConfig as BuildConfig
    from repq.recipe import CalibrationConfig as CalibrationConfig
    from repq.recipe import CheckConfig as CheckConfig
    from repq.recipe import CorrectionConfig as CorrectionConfig
    from repq.recipe import EvalConfig as EvalConfig
    from repq.recipe import ExportConfig as ExportConfig
    from repq.recipe import LetterboxConfig as LetterboxConfig
    from repq.recipe import NmsConfig as NmsConfig
    from repq.recipe import PlanConfig as PlanConfig
    from repq.recipe import PreprocessConfig as PreprocessConfig
    from repq.recipe import PruneConfig as PruneConfig
    from repq.recipe import PtqConfig as PtqConfig
    from repq.recipe import QatConfig as QatConfig
    from repq.recipe import SensitivityConfig as SensitivityConfig
    from repq.recipe import TrainConfig as TrainConfig
    from repq.recipe import TtaConfig as TtaConfig
    from repq.results import Accuracy as Accuracy
    from repq.results import BenchReport as BenchReport
    from repq.results import CheckReport as CheckReport
    from repq.results import EngineDescription as EngineDescription
    from repq.results import ExportReport as ExportReport
    from repq.results import FusionReport as FusionReport
    from repq.results import PlanReport as PlanReport
    from repq.results import PruneReport as PruneReport
    from repq.results import Sensitivity as Sensitivity
    from repq.results import TrainReport as TrainReport
    from repq.results import WeightsDescription as WeightsDescription

__version__ = "0.1.0"

switch_off_telemetry()

_CONFIGS = (
    "BenchConfig BuildConfig CalibrationConfig CheckConfig CorrectionConfig EvalConfig ExportConfig LetterboxConfig "
    "NmsConfig PlanConfig PreprocessConfig PruneConfig PtqConfig QatConfig SensitivityConfig "
    "TrainConfig TtaConfig"
)
_RESULTS = (
    "Accuracy BenchReport CheckReport EngineDescription ExportReport FusionReport PlanReport PruneReport Sensitivity "
    "TrainReport WeightsDescription"
)
_HOMES = {
    "Model": "repq.api.model",
    **dict.fromkeys(("build_model", "load"), "repq.api.opening"),
    "train_model": "repq.api.training",
    "compare": "repq.pipeline.contest",
    "run": "repq.pipeline.whole_run",
    **dict.fromkeys(("RepqError", "ToleranceError"), "repq.errors"),
    "QuantPlan": "repq.layers",
    **dict.fromkeys(_CONFIGS.split(), "repq.recipe"),
    **dict.fromkeys(_RESULTS.split(), "repq.results"),
}
__all__ = ["__version__", *_HOMES]
__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*__all__]
