"""What the stages measure, as plain typed values: the payload of artifacts, of ``--json`` and of the report.

Every model is frozen, forbids unknown keys and reads back from its own JSON.
"""

from repq.results.ablation import AblationReport, Spread, TrialFigures
from repq.results.accuracy import Accuracy, ClassAccuracy
from repq.results.base import Range, Result
from repq.results.diagnosis import Diagnosis, LayerDiagnosis, Way, WayName
from repq.results.engines import (
    Agreement,
    Availability,
    CheckReport,
    EngineDescription,
    Expectation,
    LayerPrecision,
)
from repq.results.estimate import Estimate, KernelEstimate
from repq.results.fusion import BlockFusion, FusionReport
from repq.results.graphs import ExportReport, GraphFinding, LintedLayer, LintReport, PassReport, QdqCount
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
    "Accuracy",
    "Agreement",
    "Availability",
    "BenchReport",
    "BenchRow",
    "BlockFusion",
    "CheckReport",
    "ClassAccuracy",
    "Diagnosis",
    "EngineDescription",
    "Environment",
    "EpochRow",
    "Estimate",
    "Expectation",
    "ExportReport",
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
    "LintReport",
    "LintedLayer",
    "PassReport",
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
