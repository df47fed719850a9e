"""What the stages measure, as plain typed values: the payload of artifacts, of ``--json`` and of the report.

Every model is frozen, forbids unknown keys and reads back from its own JSON.
"""

from repq.results.ablation import AblationReport, Spread, TrialFigures
from repq.results.accuracy import (
    Accuracies,
    Accuracy,
    ClassAccuracy,
    Curves,
    DrawnImage,
    Panel,
    Pictures,
    TtaCost,
    metric_of,
)
from repq.results.base import Range, Result
from repq.results.engines import (
    Agreement,
    Availability,
    BuiltEngines,
    CheckReport,
    EngineDescription,
    Expectation,
    LayerPrecision,
    ModelInfo,
    Variant,
)
from repq.results.estimate import Estimate, KernelEstimate
from repq.results.graphs import (
    ExportedGraphs,
    ExportReport,
    GraphFinding,
    LintedLayer,
    LintReport,
    PassReport,
    QdqCount,
)
from repq.results.prediction import Comparison, PredictReport
from repq.results.quantization import (
    AppliedCorrection,
    Diagnosis,
    LayerDiagnosis,
    LayerQuantization,
    PresetTrial,
    PtqReport,
    PtqTrial,
    Way,
    WayName,
)
from repq.results.sensitivity import (
    FrontPoint,
    LatencyFront,
    LayerSensitivity,
    PlanReport,
    PlanTrial,
    Sensitivity,
    Similarity,
)
from repq.results.timing import BenchReport, BenchRow, Environment, GpuReadings, ServiceRow
from repq.results.training import BlockFusion, EpochRow, FusionReport, QatReport, ScaleChange, TrainReport
from repq.results.verdict import EngineVerdict, Verdict
from repq.results.weights import LayerDescription, WeightsDescription

__all__ = [
    "AblationReport",
    "Accuracies",
    "Accuracy",
    "Agreement",
    "AppliedCorrection",
    "Availability",
    "BenchReport",
    "BenchRow",
    "BlockFusion",
    "BuiltEngines",
    "CheckReport",
    "ClassAccuracy",
    "Comparison",
    "Curves",
    "Diagnosis",
    "DrawnImage",
    "EngineDescription",
    "EngineVerdict",
    "Environment",
    "EpochRow",
    "Estimate",
    "Expectation",
    "ExportReport",
    "ExportedGraphs",
    "FrontPoint",
    "FusionReport",
    "GpuReadings",
    "GraphFinding",
    "KernelEstimate",
    "LatencyFront",
    "LayerDescription",
    "LayerDiagnosis",
    "LayerPrecision",
    "LayerQuantization",
    "LayerSensitivity",
    "LintReport",
    "LintedLayer",
    "ModelInfo",
    "Panel",
    "PassReport",
    "Pictures",
    "PlanReport",
    "PlanTrial",
    "PredictReport",
    "PresetTrial",
    "PtqReport",
    "PtqTrial",
    "QatReport",
    "QdqCount",
    "Range",
    "Result",
    "ScaleChange",
    "Sensitivity",
    "ServiceRow",
    "Similarity",
    "Spread",
    "TrainReport",
    "TrialFigures",
    "TtaCost",
    "Variant",
    "Verdict",
    "Way",
    "WayName",
    "WeightsDescription",
    "metric_of",
]
