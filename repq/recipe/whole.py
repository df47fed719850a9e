"""The recipe: the settings of all stages in one."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from repq.recipe.base import Config, ImageSize
from repq.recipe.data import DataConfig, EvalConfig
from repq.recipe.deployment import BenchConfig, BuildConfig, CheckConfig, ExportConfig, ReportConfig
from repq.recipe.quantization import FuseConfig, PlanConfig, PtqConfig, QatConfig, SensitivityConfig
from repq.recipe.training import TrainConfig


class Recipe(Config):
    """The whole job. ``weights`` starts from a checkpoint, ``train`` trains first; one of the two is needed.

    With ``search``, a hyper-search model (``…_hs``) is trained before, and its scales steer the RepOptimizer training
    of ``train`` (``…_opt``). With ``qat``, what ``ptq`` made is trained further before it is exported.

    With ``plan``, the layers are measured (``sensitivity``) and ``ptq`` keeps those in float that the plan names,
    beside its own ``keep_float``. ``sensitivity`` alone measures for the report.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    data: DataConfig
    imgsz: ImageSize = (640, 640)
    weights: Path | None = None
    device: str = "cpu"
    seed: int = 0
    search: TrainConfig | None = None
    train: TrainConfig | None = None
    fuse: FuseConfig = FuseConfig()
    sensitivity: SensitivityConfig | None = None
    plan: PlanConfig | None = None
    ptq: PtqConfig = PtqConfig()
    qat: QatConfig | None = None
    export: ExportConfig = ExportConfig()
    build: BuildConfig = BuildConfig()
    check: CheckConfig = CheckConfig()
    eval: EvalConfig = EvalConfig()
    bench: BenchConfig = BenchConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _one_origin(self) -> Recipe:
        if (self.weights is None) == (self.train is None):
            raise ValueError("give either weights (a checkpoint) or train (train.weights fine-tunes), not both")
        if self.search is not None and (self.train is None or self.train.rep_scales is not None):
            raise ValueError("search finds the scales for train: it needs train, without train.rep_scales")
        return self

    @model_validator(mode="after")
    def _plain_graphs(self) -> Recipe:
        if self.export.nms is not None or self.export.preprocess.uint8 or self.export.preprocess.bgr:
            raise ValueError("a run compares plain graphs: export.preprocess and export.nms are for `repq export`")
        return self
