"""The stages as they touch the disk: files in, files out, a typed result back. The work is done by the packages."""

from repq.stages.accuracy import accuracy_of, check_models, demand_agreement, evaluate_model
from repq.stages.data import draw_calibration_set, read_data
from repq.stages.diagnosing import diagnose_checkpoint
from repq.stages.drawing import draw_detections
from repq.stages.engines import build_engine, describe_model
from repq.stages.estimating import estimate_graph
from repq.stages.exporting import export_checkpoint, lint_graph
from repq.stages.fusing import fuse_checkpoint
from repq.stages.qat import QatSource, qat_checkpoint
from repq.stages.quantizing import ptq_checkpoint
from repq.stages.reporting import report_benches
from repq.stages.sensitivity import measure_sensitivity
from repq.stages.serving import bench_service
from repq.stages.timing import bench_models, diagnose_machine, write_bench
from repq.stages.training import train_detector

__all__ = [
    "QatSource",
    "accuracy_of",
    "bench_models",
    "bench_service",
    "build_engine",
    "check_models",
    "demand_agreement",
    "describe_model",
    "diagnose_checkpoint",
    "diagnose_machine",
    "draw_calibration_set",
    "draw_detections",
    "estimate_graph",
    "evaluate_model",
    "export_checkpoint",
    "fuse_checkpoint",
    "lint_graph",
    "measure_sensitivity",
    "ptq_checkpoint",
    "qat_checkpoint",
    "read_data",
    "report_benches",
    "train_detector",
    "write_bench",
]
