"""What the stages measure, as plain typed values: the payload of artifacts, of ``--json`` and of the report.

Every model is frozen, forbids unknown keys and reads back from its own JSON.
"""

from repq.results.ablation import AblationReport, Spread, TrialFigures
from repq.results.accuracy import Accuracies, Accuracy, ClassAccuracy
from repq.results.base import Range, Result
from repq.results.diagnosis import Diagnosis, LayerDiagnosis, Way, WayName
from repq.results.engines import (
    Agreement,
    Availability,
    BuiltEngines,
    CheckReport,
    EngineDescription,
    Expectation,
    LayerPrecision,
)
from repq.results.estimate import Estimate, KernelEstimate
from repq.results.fusion import BlockFusion, FusionReport
from repq.results.graphs import ExportedGraphs, ExportReport, GraphFinding, QdqCount
from repq.results.quantization import (
    FrontPoint,
    LatencyFront,
    LayerQuantization,
    LayerSensitivity,
    PlanReport,
    PlanTrial,
    PtqReport,
    PtqTrial,
    QatReport,
    ScaleChange,
    Sensitivity,
    Similarity,
)
from repq.results.timing import BenchReport, BenchRow, Environment, GpuReadings, ServiceRow, Variant
from repq.results.training import EpochRow, TrainReport

__all__ = [
    "AblationReport",
    "Accuracies",
    "Accuracy",
    "Agreement",
    "Availability",
    "BenchReport",
    "BenchRow",
    "BlockFusion",
    "BuiltEngines",
    "CheckReport",
    "ClassAccuracy",
    "Diagnosis",
    "EngineDescription",
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
    "LayerDiagnosis",
    "LayerPrecision",
    "LayerQuantization",
    "LayerSensitivity",
    "PlanReport",
    "PlanTrial",
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
    "Variant",
    "Way",
    "WayName",
]
