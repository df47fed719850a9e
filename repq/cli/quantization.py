"""Commands that quantize, and that find out what to leave in float."""

from __future__ import annotations

from typing import Annotated, Literal

from repq.cli.generated import Offer
from repq.cli.options import (
    OUT,
    AnyData,
    AnySeed,
    CheckpointOut,
    Data,
    Evaluated,
    OwnSize,
    Target,
    TorchDevice,
    ValSplit,
    Weights,
)
from repq.cli.shell import Shell
from repq.printable import command_line
from repq.recipe import (
    Budget,
    DeployConfig,
    EvalConfig,
    GraphConfig,
    PlanConfig,
    PtqConfig,
    QatConfig,
    SensitivityConfig,
    ap_drop,
    default_engines,
)
from repq.recipe.base import AnyPath, Count, setting
from repq.recipe.data import Split
from repq.results import metric_of

MEASURED = ("sensitivity.json", "plan.yaml", "plan.json", "journal*", "report.*", "*.svg")
TrainSplit = Annotated[Split, setting(flag="--split", help="Split to look at and decide on; never report on it.")]
PlanFile = Annotated[
    AnyPath | None, setting(flag="--plan", help="plan.yaml of `repq sensitivity`: its layers stay in float.")
]
EvaluatedBudget = Annotated[Budget, Offer("max_drop", others=False, changes={"max_drop": {"excludes": "--no-eval"}})]
SensitivityOut = Annotated[
    AnyPath, setting(flag="-o --out", writes=MEASURED, help="Folder for the measures, the plan and the report.")
]


def sensitivity_command(
    shell: Shell, weights: Weights, data: Data, out: SensitivityOut, sensitivity: SensitivityConfig,
    plan: PlanConfig,
    ptq: Annotated[
        PtqConfig,
        Offer(
            "scheme", "weight_granularity", "reduce_range", "auto", "keep_float", "calibration.method",
            "calibration.images", "calibration.seed",
            changes={"calibration.images": {"flag": "--calib-images", "excludes": ()},
                     "auto": {"excludes": "--method"}},
        ),
    ],
    eval: Annotated[EvalConfig, Offer("none")], graph: GraphConfig,
    split: TrainSplit = "train", imgsz: OwnSize = None, target: Target = None, device: TorchDevice = "cpu",
) -> None:  # fmt: skip
    """The folder OUT gets sensitivity.json, report.html and plan.yaml, which a person can edit and `repq ptq --plan`
    reads. The same command goes on where it was stopped. Under torchrun several processes share the work.
    """
    from repq.report.text import sensitivity_table
    from repq.stages import demand_budget, measure_sensitivity
    from repq.stages.sensitivity import with_plan

    context = shell.context(weights, imgsz, data, eval, train_split=split, graph=graph, device=device)
    measured, found = measure_sensitivity(weights, out, sensitivity, plan, ptq, context)
    assert found is not None
    values = {**measured.values(), "plan": found.values(), "out": str(out)}
    then = "" if found.holds is False else with_plan(weights, out, data, context.imgsz, ptq)
    shell.finish(values, lambda: sensitivity_table(measured, found), next=then)
    if found.holds is False and found.drop is not None and found.max_drop is not None:
        train = command_line("repq", "qat", weights, "--plan", out / "plan.yaml") + " …"
        fix = f"allow more float (--min-int8 {plan.min_int8 / 2:g}), or train: {train}"
        demand_budget(found.drop, found.max_drop, "the best plan that was tried", fix)


def ptq_command(
    shell: Shell, weights: Weights, out: CheckpointOut, data: AnyData, ptq: PtqConfig,
    eval: Annotated[EvalConfig, Offer("batch")], budget: EvaluatedBudget,
    graph: GraphConfig, deploy: DeployConfig, split: ValSplit = "val", imgsz: OwnSize = None, plan: PlanFile = None,
    target: Target = None, device: TorchDevice = "cpu", evaluate: Evaluated = True,
) -> None:  # fmt: skip
    """Calibrates on the train split, evaluates before and after on --split. Method and corrections are chosen by the
    images of the last quarter of the calibration set, unless one of them is named. Where that loses more than
    --max-drop in the target (without one: in the CPU engine that loses most), the layers are measured, and those that
    the head gains most from stay in float, of 2, 5 or 10 % of the multiply-adds (OUT.sensitivity shows which and why).
    Under torchrun several processes share the work.
    """
    from repq.report.text import ptq_table
    from repq.stages import PtqJob, demand_budget, demand_measured, quantize_within

    context = shell.context(weights, imgsz, data, eval, val_split=split, graph=graph, device=device)
    held = quantize_within(PtqJob(weights, ptq, context, plan, target, evaluate, deploy), out, budget.max_drop)
    report = held.report
    values = {
        "ap_float": metric_of(report.accuracy_float),
        "ap_quantized": metric_of(report.accuracy_quantized),
        "ap_drop": held.drop,
        "measured_in": held.where,
        "layers_int8": [row.layer for row in report.layers if row.precision == "int8"],
        "layers_float": [row.layer for row in report.layers if row.precision == "float"],
        "out": str(out),
        **report.values(),
    }
    graph_out, size = out.suffix == ".onnx", ("--imgsz", f"{context.imgsz[0]}x{context.imgsz[1]}")
    to_target = () if target is None else ("--target", target)
    same = ("--data", data, *size)
    if not ptq.auto and plan is None:
        again = command_line("repq", "ptq", weights, *same, *ptq.integer_options, *to_target, "-o", out)
        fix = f"let repq choose the corrections: {again} (no --plain, no --method)"
    else:
        start = (weights, *same) if graph_out else (out, *same, "--teacher", weights)
        fix = command_line("repq", "qat", *start, "-o", f"trained{out.suffix}")
    if graph_out:
        engine = target or default_engines()[0]
        then = command_line("repq", "build", out, "--engine", engine, "-o", out.with_suffix(".engine"))
    else:
        then = command_line("repq", "export", out, *size, *to_target, "-o", out.with_suffix(".onnx"))
    then = then if held.within(budget.max_drop) and held.measurable else ""
    shell.finish(values, lambda: ptq_table(report, held.in_engine), next=then)
    demand_measured(budget, metric_of(report.accuracy_float))
    demand_budget(held.drop, budget.max_drop, held.where, fix)


_FLOAT = {"needs": "WEIGHTS float"}


def qat_command(
    shell: Shell, weights: Weights, out: CheckpointOut, data: AnyData,
    qat: Annotated[QatConfig, Offer("teacher", "epochs", "batch", "scales", "task_weight", "keep_zeros")],
    ptq: Annotated[
        PtqConfig,
        Offer(
            "weight_granularity", "reduce_range", "keep_float", "calibration.method", "calibration.images",
            "calibration.batch", "calibration.seed",
            changes={"weight_granularity": _FLOAT, "reduce_range": _FLOAT,
                     "calibration.method": {**_FLOAT, "help": "To calibrate float WEIGHTS with."},
                     "calibration.images": {**_FLOAT, "help": "Calibration images for float WEIGHTS."}},
        ),
    ],
    eval: Annotated[EvalConfig, Offer("batch")], budget: EvaluatedBudget,
    graph: GraphConfig, split: ValSplit = "val", imgsz: OwnSize = None,
    scheme: Annotated[
        Literal["symmetric", "asymmetric"] | None,
        setting(flag="--scheme", help="To calibrate float WEIGHTS with.  [default: symmetric]"),
    ] = None,
    plan: PlanFile = None, device: TorchDevice = "cpu", seed: AnySeed = 0, evaluate: Evaluated = True,
) -> None:  # fmt: skip
    """WEIGHTS is what `repq ptq` wrote, or a float checkpoint, which is calibrated first. OUT has the form of what
    `repq ptq` writes. The same command goes on where it was stopped. Under torchrun several processes share the work.
    """
    from repq.report.text import qat_table
    from repq.stages import NOTHING_TO_LOSE, QatSource, demand_budget, demand_measured, qat_checkpoint

    context = shell.context(weights, imgsz, data, eval, val_split=split, graph=graph, device=device, seed=seed)
    source = QatSource(weights, ptq, scheme, plan)
    report = qat_checkpoint(source, out, out.with_name(f"{out.name}.state"), qat, context, evaluate=evaluate)
    values = {
        "ap_float": metric_of(report.accuracy_float),
        "ap_calibrated": metric_of(report.accuracy_calibrated),
        "ap_trained": metric_of(report.accuracy_trained),
        "out": str(out),
        **report.values(),
    }
    shell.finish(values, lambda: qat_table(report))
    before, after = metric_of(report.accuracy_float), metric_of(report.accuracy)
    drop = None if before is None or after is None else ap_drop(before, after)
    if before is not None and drop is None:
        shell.log(NOTHING_TO_LOSE)
    demand_measured(budget, before)
    fix = f"train longer: --epochs {2 * qat.epochs} and another OUT, or learn from the labels too: --task-weight 1"
    demand_budget(drop, budget.max_drop, "the simulation", fix)


def diagnose_command(
    shell: Shell, weights: Weights, data: Data,
    ptq: Annotated[
        PtqConfig,
        Offer(
            "scheme", "weight_granularity", "reduce_range", "calibration.method", "calibration.images",
            "calibration.batch", "calibration.seed",
            changes={"calibration.images": {"default": 48, "excludes": (), "help": "Two thirds calibrate."}},
        ),
    ],
    eval: Annotated[EvalConfig, Offer("batch")], budget: Annotated[Budget, Offer("max_drop", others=False)],
    graph: GraphConfig, split: TrainSplit = "train", imgsz: OwnSize = None, target: Target = None,
    device: TorchDevice = "cpu",
) -> None:  # fmt: skip
    """Looks at ranges and errors of every layer, tries what needs no training, and gives the evidence: plain PTQ,
    corrections, some layers in float, retraining with RepOptimizer, or QAT.
    """
    from repq.report.sections.quantization import ADVICE
    from repq.report.text import diagnosis_table
    from repq.stages import diagnose_checkpoint

    context = shell.context(weights, imgsz, data, eval, train_split=split, graph=graph, device=device)
    diagnosis = diagnose_checkpoint(weights, ptq, context, max_drop=budget.max_drop)
    values = {**diagnosis.values(), "says": ADVICE[diagnosis.advice]}
    shell.finish(values, lambda: diagnosis_table(diagnosis))


def calib_command(
    shell: Shell, data: AnyData,
    out: Annotated[AnyPath, setting(flag="-o --out", writes=".txt|.sha256|.manifest|", help=OUT)],
    split: Annotated[Split, setting(flag="--split", help="Split to draw from.")] = "train",
    images: Annotated[Count, setting(flag="--images", help="Calibration images.")] = 128, seed: AnySeed = 0,
) -> None:  # fmt: skip
    """The manifest holds names and hashes, no images."""
    from repq.stages import draw_calibration_set

    count = draw_calibration_set(data, split, images, seed, out, log=shell.log)
    shell.finish({"images": count, "out": str(out)}, f"{out}: {count} images")
