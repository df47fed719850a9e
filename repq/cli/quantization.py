"""Commands that quantize, and that find out what to leave in float."""

from __future__ import annotations

from typing import Annotated, Literal

from repq.cli.generated import Offer
from repq.cli.options import OUT, SQUARE, AnySeed, CheckpointOut, Data, Imgsz, Target, TorchDevice, ValSplit, Weights
from repq.cli.shell import Shell
from repq.recipe import Budget, EvalConfig, PlanConfig, PtqConfig, QatConfig, SensitivityConfig
from repq.recipe.base import AnyPath, Count, setting
from repq.recipe.data import Split

MEASURED = ("sensitivity.json", "plan.yaml", "plan.json", "journal*", "report.*", "*.svg")
TrainSplit = Annotated[Split, setting(flag="--split", help="Split to look at and decide on; never report on it.")]
PlanFile = Annotated[
    AnyPath | None, setting(flag="--plan", help="plan.yaml of `repq sensitivity`: its layers stay in float.")
]
SensitivityOut = Annotated[
    AnyPath, setting(flag="-o --out", writes=MEASURED, help="Folder for the measures, the plan and the report.")
]


def sensitivity_command(
    shell: Shell, weights: Weights, data: Data, out: SensitivityOut, sensitivity: SensitivityConfig,
    plan: PlanConfig,
    ptq: Annotated[
        PtqConfig,
        Offer(
            "scheme", "auto", "keep_float", "calibration.method", "calibration.images", "calibration.seed",
            changes={"calibration.images": {"flag": "--calib-images", "excludes": ()},
                     "auto": {"excludes": "--method"}},
        ),
    ],
    eval: Annotated[EvalConfig, Offer("none")],
    split: TrainSplit = "train", imgsz: Imgsz = SQUARE, target: Target = None, device: TorchDevice = "cpu",
) -> None:  # fmt: skip
    """The folder OUT gets sensitivity.json, report.html and plan.yaml, which a person can edit and `repq ptq --plan`
    reads. The same command goes on where it was stopped. Under torchrun several processes share the work.
    """
    from repq.report.text import sensitivity_table
    from repq.stages import demand_budget, measure_sensitivity

    measured, found = measure_sensitivity(
        weights, out, sensitivity, plan, ptq, data=data, split=split, imgsz=imgsz, eval_config=eval, device=device,
        progress=shell.progress, log=shell.log,
    )  # fmt: skip
    assert found is not None
    values = {**measured.values(), "plan": found.values(), "out": str(out)}
    shell.finish(values, lambda: sensitivity_table(measured, found))
    if found.holds is False and found.drop is not None and found.max_drop is not None:
        train = f"repq qat {weights} --plan {out / 'plan.yaml'} …"
        fix = f"allow more float (--min-int8 {plan.min_int8 / 2:g}), or train: {train}"
        demand_budget(found.drop, found.max_drop, "the best plan that was tried", fix)


def ptq_command(
    shell: Shell, weights: Weights, out: CheckpointOut, data: Data, ptq: PtqConfig,
    eval: Annotated[EvalConfig, Offer("batch")], budget: Annotated[Budget, Offer("max_drop", others=False)],
    split: ValSplit = "val", imgsz: Imgsz = SQUARE, plan: PlanFile = None, target: Target = None,
    device: TorchDevice = "cpu",
) -> None:  # fmt: skip
    """Calibrates on the train split, evaluates before and after on --split. Method and corrections are chosen by the
    images of the last quarter of the calibration set, unless one of them is named. Where that loses more than
    --max-drop, the layers are measured, and those that cost most stay in float (OUT.sensitivity shows which and why).
    """
    from repq.report.text import ptq_table
    from repq.stages import PtqJob, demand_budget, quantize_within

    job = PtqJob(weights, ptq, data, split, imgsz, eval, plan, device, target)
    held = quantize_within(job, out, budget.max_drop, progress=shell.progress, log=shell.log)
    report = held.report
    values = {
        "ap_float": report.accuracy_float.ap,
        "ap_quantized": report.accuracy_quantized.ap,
        "ap_drop": held.drop,
        "measured_in": held.where,
        "layers_int8": [row.layer for row in report.layers if row.precision == "int8"],
        "layers_float": [row.layer for row in report.layers if row.precision == "float"],
        "out": str(out),
        **report.values(),
    }
    shell.finish(values, lambda: ptq_table(report))
    same = f"--data {data} --imgsz {imgsz[0]}x{imgsz[1]}"
    if not ptq.auto and plan is None:
        fix = f"let repq choose the corrections: repq ptq {weights} {same} -o {out} (no --plain, no --method)"
    else:
        fix = f"repq qat {out} {same} --teacher {weights} -o trained.safetensors"
    demand_budget(held.drop, budget.max_drop, held.where, fix)


_FLOAT = {"needs": "WEIGHTS float"}


def qat_command(
    shell: Shell, weights: Weights, out: CheckpointOut, data: Data,
    qat: Annotated[QatConfig, Offer("epochs", "batch", "scales", "task_weight")],
    ptq: Annotated[
        PtqConfig,
        Offer(
            "keep_float", "calibration.method", "calibration.images", "calibration.batch", "calibration.seed",
            changes={"calibration.method": {**_FLOAT, "help": "To calibrate float WEIGHTS with."},
                     "calibration.images": {**_FLOAT, "help": "Calibration images for float WEIGHTS."}},
        ),
    ],
    eval: Annotated[EvalConfig, Offer("batch")], budget: Annotated[Budget, Offer("max_drop", others=False)],
    split: ValSplit = "val", imgsz: Imgsz = SQUARE,
    teacher: Annotated[
        AnyPath | None,
        setting(flag="--teacher", help="Float checkpoint to imitate.  [default: the float weights of WEIGHTS]"),
    ] = None,
    scheme: Annotated[
        Literal["symmetric", "asymmetric"] | None,
        setting(flag="--scheme", help="To calibrate float WEIGHTS with.  [default: symmetric]"),
    ] = None,
    plan: PlanFile = None, device: TorchDevice = "cpu", seed: AnySeed = 0,
) -> None:  # fmt: skip
    """WEIGHTS is what `repq ptq` wrote, or a float checkpoint, which is calibrated first. OUT has the form of what
    `repq ptq` writes. The same command goes on where it was stopped. Under torchrun several processes share the work.
    """
    from repq.report.text import qat_table
    from repq.stages import QatSource, demand_budget, qat_checkpoint

    source = QatSource(weights, teacher, scheme, ptq.keep_float, plan, ptq.calibration)
    report = qat_checkpoint(
        source, out, out.with_name(f"{out.name}.state"), qat, data=data, splits=("train", split), imgsz=imgsz,
        eval_config=eval, device=device, seed=seed, progress=shell.progress, log=shell.log,
    )  # fmt: skip
    values = {
        "ap_float": report.accuracy_float.ap,
        "ap_calibrated": report.accuracy_calibrated.ap,
        "ap_trained": report.accuracy_trained.ap,
        "out": str(out),
        **report.values(),
    }
    shell.finish(values, lambda: qat_table(report))
    drop = report.accuracy_float.ap - report.accuracy_trained.ap
    fix = f"train longer: --epochs {2 * qat.epochs} and another OUT, or learn from the labels too: --task-weight 1"
    demand_budget(drop, budget.max_drop, "the simulation", fix)


def diagnose_command(
    shell: Shell, weights: Weights, data: Data,
    ptq: Annotated[
        PtqConfig,
        Offer(
            "scheme", "calibration.method", "calibration.images", "calibration.batch", "calibration.seed",
            changes={"calibration.images": {"default": 48, "excludes": (), "help": "Two thirds calibrate."}},
        ),
    ],
    eval: Annotated[EvalConfig, Offer("batch")], budget: Annotated[Budget, Offer("max_drop", others=False)],
    split: TrainSplit = "train", imgsz: Imgsz = SQUARE, target: Target = None, device: TorchDevice = "cpu",
) -> None:  # fmt: skip
    """Looks at ranges and errors of every layer, tries what needs no training, and gives the evidence: plain PTQ,
    corrections, some layers in float, retraining with RepOptimizer, or QAT.
    """
    from repq.report.diagnosis import ADVICE, diagnosis_table
    from repq.stages import diagnose_checkpoint

    diagnosis = diagnose_checkpoint(
        weights, ptq, data=data, split=split, imgsz=imgsz, eval_config=eval, max_drop=budget.max_drop, device=device,
        progress=shell.progress, log=shell.log,
    )  # fmt: skip
    values = {**diagnosis.values(), "says": ADVICE[diagnosis.advice]}
    shell.finish(values, lambda: diagnosis_table(diagnosis))


def calib_command(
    shell: Shell, data: Data,
    out: Annotated[AnyPath, setting(flag="-o --out", writes=".txt|.sha256|.manifest|", help=OUT)],
    split: Annotated[Split, setting(flag="--split", help="Split to draw from.")] = "train",
    images: Annotated[Count, setting(flag="--images", help="Calibration images.")] = 128, seed: AnySeed = 0,
) -> None:  # fmt: skip
    """The manifest holds names and hashes, no images."""
    from repq.stages import draw_calibration_set

    count = draw_calibration_set(data, split, images, seed, out, log=shell.log)
    shell.finish({"images": count, "out": str(out)}, f"{out}: {count} images")
