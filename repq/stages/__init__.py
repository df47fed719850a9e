"""The stages as they touch the disk: files in, files out, a typed result back. The work is done by the packages."""

from repq.stages.accuracy import accuracy_of, check_models, demand_agreement, evaluate_model
from repq.stages.data import draw_calibration_set, read_data
from repq.stages.drawing import draw_detections
from repq.stages.engines import build_engine, describe_model, export_checkpoint, lint_graph
from repq.stages.fusing import fuse_checkpoint
from repq.stages.quantizing import ptq_checkpoint
from repq.stages.sensitivity import measure_sensitivity
from repq.stages.timing import bench_models, diagnose_machine, write_bench
from repq.stages.training import train_detector

__all__ = [
    "accuracy_of",
    "bench_models",
    "build_engine",
    "check_models",
    "demand_agreement",
    "describe_model",
    "diagnose_machine",
    "draw_calibration_set",
    "draw_detections",
    "evaluate_model",
    "export_checkpoint",
    "fuse_checkpoint",
    "lint_graph",
    "measure_sensitivity",
    "ptq_checkpoint",
    "read_data",
    "train_detector",
    "write_bench",
]
