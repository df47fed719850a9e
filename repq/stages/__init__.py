"""The stages of a run, one a file, and the same work for single commands: files in, files out, a typed result back.

A stage is added to a run by its entry in `STAGES`; docs/design.md says how.
"""

from repq.stages import (
    bench,
    build,
    check,
    data,
    evaluate,
    export,
    fuse,
    package,
    prune,
    ptq,
    qat,
    report,
    sensitivity,
    train,
)
from repq.stages.bench import bench_models, diagnose_machine, write_bench
from repq.stages.budget import NOTHING_TO_LOSE, PtqJob, demand_budget, demand_measured, quantize_within
from repq.stages.build import build_engine
from repq.stages.check import check_models, demand_agreement
from repq.stages.context import Context
from repq.stages.data import draw_calibration_set
from repq.stages.diagnose import diagnose_checkpoint
from repq.stages.evaluate import accuracy_of, evaluate_model
from repq.stages.export import export_checkpoint
from repq.stages.fuse import fuse_checkpoint
from repq.stages.inspect import describe_model, estimate_graph, lint_graph
from repq.stages.predict import predict_files
from repq.stages.prune import prune_checkpoint, write_sweep
from repq.stages.ptq import ptq_checkpoint
from repq.stages.qat import QatSource, qat_checkpoint
from repq.stages.report import report_benches
from repq.stages.sensitivity import measure_sensitivity
from repq.stages.serving import bench_service
from repq.stages.stage import Stage
from repq.stages.train import train_detector

STAGES: list[Stage] = [
    data.STAGE,
    train.SEARCH,
    train.STAGE,
    prune.STAGE,
    fuse.STAGE,
    sensitivity.STAGE,
    ptq.STAGE,
    qat.STAGE,
    export.STAGE,
    build.STAGE,
    check.STAGE,
    evaluate.STAGE,
    bench.STAGE,
    package.STAGE,
    report.STAGE,
]
"""In the order of a run; a stage that reads every artifact comes last."""

__all__ = [
    "NOTHING_TO_LOSE",
    "STAGES",
    "Context",
    "PtqJob",
    "QatSource",
    "Stage",
    "accuracy_of",
    "bench_models",
    "bench_service",
    "build_engine",
    "check_models",
    "demand_agreement",
    "demand_budget",
    "demand_measured",
    "describe_model",
    "diagnose_checkpoint",
    "diagnose_machine",
    "draw_calibration_set",
    "estimate_graph",
    "evaluate_model",
    "export_checkpoint",
    "fuse_checkpoint",
    "lint_graph",
    "measure_sensitivity",
    "predict_files",
    "prune_checkpoint",
    "ptq_checkpoint",
    "qat_checkpoint",
    "quantize_within",
    "report_benches",
    "train_detector",
    "write_bench",
    "write_sweep",
]
