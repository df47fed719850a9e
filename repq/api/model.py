"""One handle for a model of any kind: a checkpoint, an ONNX file or a built engine."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from repq.api.arguments import Size, arguments, several
from repq.api.images import Image, Images, as_dataset, listed_images, open_data, read_rgb
from repq.api.running import HERE, Options, Running
from repq.errors import CheckpointError, EngineError, RecipeError, RepqError
from repq.files import replacing, scratch_folder
from repq.layers import LayerId, select
from repq.layout import OutputLayout
from repq.machine.cpu import cpu_cores
from repq.machine.torch_settings import usual_torch
from repq.preprocessing import Preprocessing
from repq.recipe import (
    BenchConfig,
    BuildConfig,
    CalibrationConfig,
    CheckConfig,
    Config,
    DeployConfig,
    EngineName,
    EvalConfig,
    ExportConfig,
    GraphConfig,
    NmsConfig,
    PlanConfig,
    PredictConfig,
    PreprocessConfig,
    PruneConfig,
    PtqConfig,
    QatConfig,
    SensitivityConfig,
    default_engines,
    parse_settings,
)
from repq.results import (
    Accuracy,
    BenchReport,
    CheckReport,
    EngineDescription,
    LayerDescription,
    ModelInfo,
    PlanReport,
    Sensitivity,
    WeightsDescription,
)
from repq.thresholds import Thresholds

if TYPE_CHECKING:
    from repq.api.detected import Detected
    from repq.data import DetectionDataset
    from repq.engine import Engine
    from repq.layers import QuantPlan
    from repq.quant import Weights

C = TypeVar("C", bound=Config)
Kind = Literal["checkpoint", "onnx", "engine"]
Boxes = NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A detector, whatever its form. `repq.load` opens one; every step gives a new handle and changes none.

    **Image size.** Methods that run or export a network take ``imgsz``, a number or (height, width) in pixels. An ONNX
    file or engine of a fixed size has its own, which may be left out; another one is an error. The handle that a step
    with an ``imgsz`` returns goes on with that size. Else it is 640.

    **Errors.** Everything that a user can put right is a `repq.RepqError`: a step that the kind of model does not have,
    a size that its levels do not divide, a data set of other classes, a file that cannot be read or written.

    Attributes:
        kind: ``checkpoint``, ``onnx`` or ``engine``.
        label: what tables call it.
        names: class names, where they are known.
        num_classes: None for an ONNX file that does not tell.
        imgsz: height and width in pixels, where the file fixes them.
        layers: ids of all layers of the deployed network, in its own order.
        quantized: whether layers of it quantize.
        spec: the architecture, such as ``yolov6s_v2``, where it is known.
        batch: the batch size, where the file fixes it.
        layout: what the columns of the detections mean.
        preprocessing: how images become its input.
        thresholds: what `detect` and `predict` count as found, if nothing else is asked for.
        preprocess: what the graph does of that itself.
        nms: the suppression inside the graph, which then gives boxes (B, K, 6); None: it gives detections.
        options: where it runs, and where its steps show how far they are.
        notes: what was dropped, chosen or converted on the way in.
        weights: of a checkpoint: the torch model (``weights.model``) and what belongs to it.
        engine: of an engine: what runs it.
        path: the file or folder, where there is one; absolute.
        sha256: of the content of an ONNX file when it was opened.
        start: starts it; see ``running``.
        graph: what was said of an ONNX file, or of an engine's, that it does not say itself.
        unclear: why nobody knows what the outputs mean.
        usual: the size that steps work at if no other is given.
        report: what the step that made the handle says of itself; None for an opened file.
    """

    kind: Kind
    label: str
    names: tuple[str, ...] | None
    num_classes: int | None
    imgsz: tuple[int, int] | None
    layers: tuple[LayerId, ...]
    quantized: bool
    spec: str | None
    start: Callable[[Options], Running]
    options: Options = HERE
    batch: int | None = None
    layout: OutputLayout = OutputLayout()
    preprocessing: Preprocessing = Preprocessing()
    thresholds: Thresholds = Thresholds()
    preprocess: PreprocessConfig = PreprocessConfig()
    nms: NmsConfig | None = None
    notes: tuple[str, ...] = ()
    weights: Weights | None = None
    engine: Engine | None = None
    path: Path | None = None
    sha256: str = ""
    graph: GraphConfig = GraphConfig()
    unclear: RepqError | None = None
    usual: tuple[int, int] = (640, 640)
    report: Any = None

    def __post_init__(self) -> None:
        found = f"a model of the kind {self.kind!r}"
        if self.options.engine is not None and self.kind != "onnx":
            raise EngineError(f"{self.label} runs in no other engine", found=found,
                              fix="an ONNX file does; build(ENGINE) makes an engine")  # fmt: skip
        if self.options.half and self.kind != "checkpoint":
            raise EngineError(f"{self.label} has its own precision: half has no effect", found=found,
                              fix="export in FP16 (float16=True), or leave half out")  # fmt: skip

    def __repr__(self) -> str:
        what = [self.kind, *([self.spec] if self.spec else []), "quantized" if self.quantized else "float"]
        return f"<repq.Model {self.label}: {', '.join(what)}>"

    # --- running -----------------------------------------------------------------------------------------------------

    @cached_property
    def running(self) -> Running:
        """The model in its runtime, started when it is first needed.

        Raises:
            EngineError: the runtime is not installed or cannot run the model, or torch cannot use the device.
        """
        with usual_torch():
            return self.start(self.options)

    @property
    def infer(self) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """Network input (B, 3, H, W), float32 as ``preprocessing`` says, to detections in columns as ``layout`` says.

        Those of YOLOv6 are (B, N, 5 + classes): centre x, y, width and height in pixels of the input, the constant 1,
        class scores. Graphs that do more take and give what ``preprocess`` and ``nms`` say. What gets another input
        raises a `RepqError`.
        """
        return self.running.infer

    @property
    def precision(self) -> str:
        """What its layers really run in: ``float32``, ``int8 in 83 of 154 layers`` …; starts the runtime."""
        return self.running.precision

    @property
    def info(self) -> ModelInfo:
        """What rows of measurements say of it; starts the runtime."""
        running = self.running
        layers = running.description.layers if running.description is not None else ()
        int8 = sum(layer.precision == "int8" for layer in layers)
        return ModelInfo(
            model=self.label,
            engine=running.engine,
            variant=running.variant,
            precision=running.precision,
            size_bytes=running.size_bytes or None,
            spec=self.spec,
            int8_layers=int8 if layers else None,
            float_layers=len(layers) - int8 if layers else None,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; their numbers where no names are known."""
        return self.names or tuple(map(str, range(self.num_classes or 0)))

    @property
    def plain(self) -> bool:
        """Whether pre- and postprocessing are left to the caller, as for a checkpoint."""
        return self.preprocess == PreprocessConfig() and self.nms is None

    def on(self, **options: Any) -> Model:
        """The same model with other options, such as ``device="cuda"``, ``threads=4`` or ``log=print``.

        See `repq.load` for ``engine`` (of an ONNX file), ``device``, ``threads``, ``half`` (of a checkpoint),
        ``progress`` and ``log``.

        Raises:
            EngineError: an option would have no effect on a model of this kind.
        """
        return replace(self, options=replace(self.options, **options))

    def with_thresholds(
        self, *, confidence: float | None = None, iou: float | None = None, max_detections: int | None = None
    ) -> Model:
        """The same model, of which other boxes count; what is saved, exported or built of a checkpoint says so.

        Args:
            confidence, iou, max_detections: see `repq.thresholds.Thresholds`; None leaves what it is.

        Raises:
            RepqError: a value outside its limits.
        """
        asked = settings_of(
            DeployConfig, None, {"confidence": confidence, "iou": iou, "max_detections": max_detections}, "deploy"
        )
        weights = None if self.weights is None else self.weights.with_thresholds(asked, self.label)
        return replace(self, weights=weights, thresholds=self.thresholds.changed(asked.model_dump(), self.label))

    @overload
    def detect(  # type: ignore[overload-overlap]
        self, images: Image, *, imgsz: Size | None = ..., conf: float | None = ..., iou: float | None = ...,
        max_detections: int | None = ..., batch: int = ...,
    ) -> Boxes: ...  # fmt: skip
    @overload
    def detect(
        self, images: Sequence[Image], *, imgsz: Size | None = ..., conf: float | None = ..., iou: float | None = ...,
        max_detections: int | None = ..., batch: int = ...,
    ) -> list[Boxes]: ...  # fmt: skip
    @usual_torch()
    def detect(
        self, images: Image | Sequence[Image], *, imgsz: Size | None = None, conf: float | None = None,
        iou: float | None = None, max_detections: int | None = None, batch: int = 1,
    ) -> Boxes | list[Boxes]:  # fmt: skip
        """Find objects.

        Args:
            images: a file, or an RGB array (h, w, 3) uint8, or a list of these, of any sizes.
            conf: scores are above it, 0..1. Default, as of the next two: ``thresholds``, or those of the suppression
                inside the graph, which cannot be others.
            iou: a box falls if it overlaps a better one of its class by more.
            max_detections: boxes per image at most.
            batch: images of one forward pass. More are faster on a GPU; the last digits may then differ.

        Returns:
            float32 (k, 6) for one image: x1, y1, x2, y2 in pixels of the image and inside it, score, class; best
            first; k may be 0. A list of these for a list.

        Raises:
            DataError: an image cannot be read, or an array is no RGB image.
            RepqError: another size, or other settings, than the graph has inside.
        """
        from repq.api.service import finder_of, thresholds_of

        alone = isinstance(images, (str, Path, np.ndarray)) or not isinstance(images, Iterable)
        listed = listed_images(images)
        asked = {"confidence": conf, "iou": iou, "max_detections": max_detections}
        finder = finder_of(self, self.size(imgsz), thresholds_of(self, asked))
        step = arguments("detection", batch=batch).batch
        found: list[Boxes] = []
        for begin in range(0, len(listed), step):
            found += finder.detect([read_rgb(image) for image in listed[begin : begin + step]])
        return found[0] if alone else found

    def predict(
        self, source: Image | Sequence[Image], *, imgsz: Size | None = None, config: PredictConfig | None = None,
        **settings: Any,
    ) -> Iterator[Detected]:  # fmt: skip
        """Find objects in images, folders, patterns, lists of images (.txt), videos, cameras (``"0"``) and streams.

        Images are read while the model runs, and none is kept: a video of any length can be gone through. What cannot
        be read is logged and left out.

        Args:
            source: one such place, an RGB array (h, w, 3) uint8, or a list of these.
            config, settings: a `repq.recipe.PredictConfig`, or its fields: ``confidence``, ``iou``, ``max_detections``,
                ``batch``, ``frames``, ``workers``.

        Returns:
            One `repq.api.detected.Detected` an image: ``name``, ``image``, ``boxes``, ``names``, and ``drawn()``.

        Raises:
            DataError: nothing is there, an array is no RGB image, or a video, camera or stream cannot be opened.
            RepqError: another size, or other settings, than the graph has inside.
        """
        from repq.recipe.base import resolve

        detected, open_images = resolve("repq.predict:detected"), resolve("repq.predict:open_images")  # they use this
        chosen = settings_of(PredictConfig, config, settings, "predict")
        found: Iterator[Detected] = detected(
            self, open_images(listed_images(source), self.options.log), chosen, imgsz, self.options.log
        )
        return found

    # --- measuring ---------------------------------------------------------------------------------------------------

    @usual_torch()
    def evaluate(
        self, data: str | Path | DetectionDataset, *, split: str = "val", imgsz: Size | None = None,
        config: EvalConfig | None = None, **settings: Any,
    ) -> Accuracy:  # fmt: skip
        """COCO AP on a labelled split.

        Args:
            data: a data.yaml (YOLO) or a COCO .json.
            config, settings: an `repq.EvalConfig`, or its fields. Default: the official settings, or those inside the
                graph.

        Raises:
            RepqError: the data cannot be used, or model and data disagree on the classes or the size.
        """
        from repq.api.measuring import accuracy_of
        from repq.api.service import as_exported

        size, chosen = self.size(imgsz), settings_of(EvalConfig, config or as_exported(self), settings, "evaluation")
        options = self.options
        return accuracy_of(
            self, open_data(data, split, options.log, options.progress), size, chosen, options.progress, options.log
        )

    @usual_torch()
    def check(
        self, data: str | Path | DetectionDataset, *others: Model,
        engines: Sequence[EngineName] | None = None, split: str = "val", imgsz: Size | None = None,
        eval_config: EvalConfig | None = None, **settings: Any,
    ) -> CheckReport:  # fmt: skip
        """Compare the detections and the AP of other models with this one's; ``passed`` says whether they agree.

        Args:
            others: what is compared. Default: a checkpoint, built for each of ``engines`` (default: those on the CPU),
                which have no use beside others.
            settings: fields of `repq.CheckConfig`: ``images``, ``max_drop``, ``min_snr_db``.

        Raises:
            RepqError: there is nothing to compare with, or models and data do not fit each other.
        """
        from repq.api.measuring import agreement

        demand_models(others)
        if others and engines is not None:
            raise RepqError("engines have no effect beside other models", fix="give the models, or the engines")
        if not others and self.weights is None:
            raise RepqError(
                f"{self.label} has nothing to be compared with",
                fix="check the checkpoint that it was exported from, or name other models",
            )
        size, config = self.size(imgsz), settings_of(CheckConfig, None, settings, "check")
        measured = demand_kind(EvalConfig, eval_config or EvalConfig())
        wanted = default_engines() if engines is None else several(engines)
        if not others and not wanted:
            raise RepqError("there is nothing to compare with", found="no engine", fix="name one, or leave engines out")
        candidates = others or tuple(self.build(engine, imgsz=size, batch=None) for engine in wanted)
        dataset = open_data(data, split, self.options.log, self.options.progress)
        return agreement(
            self, candidates, dataset, size, config, measured, self.options.progress, self.options.log,
        )  # fmt: skip

    @usual_torch()
    def bench(
        self, *others: Model, engines: Sequence[EngineName] = (), imgsz: Size | None = None,
        config: BenchConfig | None = None, images: Image | Sequence[Image] = (), seed: int = 0, **settings: Any,
    ) -> BenchReport:  # fmt: skip
        """Time this model, itself built for each of ``engines``, and ``others``, side by side in one run.

        Args:
            config, settings: a `repq.BenchConfig`, or its fields: ``batches``, ``threads`` (default: all CPUs),
                ``warmup``, ``rounds``, ``runs_per_round``, ``end_to_end``.
            images: a file or RGB array, or a list of these, for the times with pre- and post-processing; without any
                there are none.

        Raises:
            RepqError: a model does not take this size or batch, or two have one label.
        """
        from repq.api.measuring import timed

        demand_models(others)
        size = self.size(imgsz)
        built = [
            (f"{self.label} ({engine})", self.build(engine, imgsz=size, batch=None)) for engine in several(engines)
        ]
        rows = [(self.label, self), *built, *((model.label, model) for model in others)]
        chosen = settings_of(BenchConfig, config or BenchConfig(threads=(cpu_cores(),)), settings, "bench")
        decoded = list(map(read_rgb, listed_images(images)))
        return timed(rows, size, chosen, images=decoded, seed=seed, progress=self.options.progress)

    @usual_torch()
    def describe(self, *, imgsz: Size | None = None) -> WeightsDescription | EngineDescription:
        """Layers, their sizes and the precision that they run in; of an ONNX file or engine what the runtime tells.

        Args:
            imgsz: of a checkpoint, for its multiply-adds.
        """
        if self.weights is None:
            assert self.running.description is not None
            return self.running.description
        from repq.api.quantizing import fused
        from repq.model import count_macs
        from repq.quant import quantized_layers

        model = self.weights.model if self.quantized else fused(self.weights).model
        macs, int8 = count_macs(model, self.size(imgsz)), quantized_layers(model)
        return WeightsDescription(
            model=model.spec.name,
            classes=model.spec.num_classes,
            names=self.names,
            notes=self.notes,
            layers=tuple(
                LayerDescription(
                    layer=layer,
                    precision="int8" if layer in int8 else "float32",
                    macs=macs[layer],
                    weight_shape=tuple(model.get_submodule(layer).weight.shape),  # type: ignore[arg-type]
                )
                for layer in self.layers
            ),
        )

    @usual_torch()
    def sensitivity(
        self, images: Images, *, imgsz: Size | None = None, ptq: PtqConfig | None = None, split: str = "train",
        journal: str | Path | None = None, count: int | None = None, config: SensitivityConfig | None = None,
        **settings: Any,
    ) -> Sensitivity:  # fmt: skip
        """Measure what quantizing each layer costs, on images to decide on (never those that AP is reported on).

        Args:
            images: see `quantize`; ``ap`` needs labels.
            ptq: how layers are quantized for it. Default: as `quantize` does.
            journal: folder of what was measured; a stopped measurement goes on from it.
            count: images that tensors are compared on, 16 if nothing says how many.
            config, settings: a `repq.SensitivityConfig`, or its fields: ``ap``, ``ap_images`` …

        Raises:
            RepqError: it is no float checkpoint, or there are no images.
        """
        settings |= _without_none({"images": count})
        chosen = settings_of(SensitivityConfig, config, settings, "sensitivity")
        return self._measured(images, imgsz, ptq or PtqConfig(), chosen, None, journal, split)[0]

    @usual_torch()
    def plan(
        self, images: Images, *, top: int | None = None, max_drop: float | None = None,
        keep_float: Sequence[str] = (), imgsz: Size | None = None, ptq: PtqConfig | None = None, split: str = "train",
        journal: str | Path | None = None, config: SensitivityConfig | None = None, **settings: Any,
    ) -> PlanReport:  # fmt: skip
        """Choose layers to stay in float, for ``quantize(…, plan=…)``.

        Args:
            images, imgsz, ptq, journal, config: see `sensitivity`.
            top: so many layers, the most sensitive ones.
            max_drop: the fewest that keep the loss of AP within this fraction, 0.005 without ``top``; needs labels.
            keep_float: ids or globs that stay in float in any case.
            settings: further fields of `repq.PlanConfig`: ``max_float`` in place of ``max_drop``, without labels;
                ``measure``, ``min_int8``, ``latency`` …

        Raises:
            RepqError: as `sensitivity`; or several of ``top``, ``max_drop`` and ``max_float`` are given.
        """
        aim = _without_none({"top": top, "max_drop": max_drop})
        wanted = settings_of(PlanConfig, None, {**aim, **settings}, "planning")
        given = demand_kind(PtqConfig, ptq or PtqConfig())
        given = given.model_copy(update={"keep_float": (*given.keep_float, *several(keep_float))})
        _, report = self._measured(images, imgsz, given, config or SensitivityConfig(), wanted, journal, split)
        assert report is not None
        return report

    def _measured(
        self, images: Images, imgsz: Size | None, ptq: PtqConfig, config: SensitivityConfig,
        plan: PlanConfig | None, journal: str | Path | None, split: str,
    ) -> tuple[Sensitivity, PlanReport | None]:  # fmt: skip
        from repq.api.fitting import fitted
        from repq.api.planning import gathered, measurement, plan_for
        from repq.api.quantizing import kept_float
        from repq.quant.sensitivity import Journal, measure_layers

        ptq, config = demand_kind(PtqConfig, ptq), demand_kind(SensitivityConfig, config)
        weights, size = self.floats("be measured", imgsz), self.size(imgsz)
        options, drawn = self.options, ptq.calibration
        with as_dataset(images, split, drawing=drawn, log=options.log) as dataset:
            ptq = _on_whole_list(ptq, images, dataset)
            if dataset.objects:
                dataset = fitted(dataset, self.names, self.label, options.log)
            job, notes = measurement(
                weights, dataset, config, ptq, size, EvalConfig(), plan=plan, device=options.device,
                progress=options.progress, log=options.log,
            )  # fmt: skip
            known = Journal(None if journal is None else Path(journal), job.key)
            measure_layers(job, known, progress=options.progress)
            found = gathered(job, known, notes)
            if plan is None:
                return found, None
            kept = select(job.layers, kept_float(weights.model, ptq))
            return found, plan_for(job, found, plan, kept, dataset, known, options.progress)

    # --- making ------------------------------------------------------------------------------------------------------

    @usual_torch()
    def fuse(
        self, images: Images | None = None, *, imgsz: Size | None = None, tolerance: float | None = None,
        count: int | None = None,
    ) -> Model:  # fmt: skip
        """Fold the branches of every block into one convolution.

        Args:
            images: proves it on at most ``count`` of them, 8 if nothing is said; ``report`` is then a
                `repq.FusionReport`.
            tolerance: bound of the relative error of every block and of the whole model in that proof, 0.001 if
                nothing is said.

        Raises:
            RepqError: it is no float checkpoint, or there is no proof for ``tolerance`` and ``count``.
            ToleranceError: the proof failed.
        """
        from repq.api.quantizing import fused

        weights, device = self.floats("be fused", imgsz), self.options.device
        asked = _without_none({"tolerance": tolerance, "images": count})
        if images is None:
            if asked:
                raise RepqError("tolerance and count have no effect without images", fix="give images to prove it on")
            return self._with(fused(weights, device), None if imgsz is None else self.size(imgsz))
        import torch

        from repq.data import batches
        from repq.machine.torch_device import resolve_device
        from repq.recipe import FuseConfig
        from repq.reparam import fuse_with_proof

        config, size = settings_of(FuseConfig, None, asked, "fusion"), self.size(imgsz)
        with as_dataset(images, drawing=CalibrationConfig(images=config.images)) as dataset:
            form, records = weights.model.spec.preprocessing, dataset.records[: config.images]
            shown = next(iter(batches(records, size, config.images, preprocessing=form))).images
        trained = copy.deepcopy(weights.model).to(resolve_device(device))
        model, report = fuse_with_proof(trained, torch.from_numpy(shown).to(device), config.tolerance)
        return self._with(replace(weights, model=model), size, report)

    @usual_torch()
    def quantize(
        self, images: Images, *, imgsz: Size | None = None, scheme: Literal["symmetric", "asymmetric"] | None = None,
        method: str | None = None, keep_float: Sequence[str] = (), auto: bool | None = None,
        plan: str | Path | QuantPlan | PlanReport | None = None,
        share_scales: Literal["none", "largest", "joint"] | None = None,
        weight_granularity: Literal["channel", "tensor"] | None = None, reduce_range: bool | None = None,
        correct: Any = None, limit: int | None = None, batch: int | None = None, seed: int | None = None,
        percentile: float | None = None, split: str = "train", config: PtqConfig | None = None,
    ) -> Model:  # fmt: skip
        """Quantize after training, to INT8. A checkpoint that is not fused is fused on the way.

        What is not given is as ``config`` says, else the first that is named here.

        Args:
            images: what activation ranges are measured on: a folder, a list file (.txt), a list of paths or of RGB
                arrays (h, w, 3) uint8, or a data set (data.yaml, COCO .json). Labels are not needed.
            scheme: ``symmetric``: INT8 for TensorRT; ``asymmetric``: UINT8 activations for CPU engines.
            method: how ranges are chosen: ``max``, ``percentile`` (with ``percentile``), ``mse`` (the default without
                ``auto``), ``entropy``.
            keep_float: ids or globs of ``layers`` that stay in float.
            plan: of `plan`, or a plan.yaml: its float layers stay in float too.
            auto: choose the method and all corrections by what they gain on ``images``; slower. By default it does
                so unless ``method``, ``percentile`` or ``correct`` is given.
            share_scales: ``none``, or one scale for tensors that meet in a Concat or an addition: ``largest`` or
                ``joint``.
            weight_granularity: scales of a weight: one per output ``channel``, or one for the ``tensor``.
            reduce_range: keep OpenVINO's sums from saturating on x86 CPUs without INT8 dot products.
            correct: corrections, as a mapping or `repq.CorrectionConfig`: ``{"outputs": "mean"}``.
            limit, seed: how many images of a folder or data set are drawn (128), and the draw (0); a list is taken
                whole.
            batch: images in memory at once (16).
            split: of a data set.
            config: a `repq.PtqConfig`; what is given beside it goes before it, and ``keep_float`` adds to it.

        Returns:
            A handle that simulates INT8 in torch; ``report`` says what was seen and chosen, layer by layer.

        Raises:
            RepqError: it is no float checkpoint; there are no images; a layer or setting does not exist; an activation
                is not finite.
        """
        from repq.api.quantizing import fused, planned, quantized

        options, size = self.options, self.size(imgsz)
        weights = fused(self.floats("be quantized", imgsz), options.device)
        drawing = {"method": method, "percentile": percentile, "images": limit, "batch": batch, "seed": seed}
        named = {"scheme": scheme, "share_scales": share_scales, "weight_granularity": weight_granularity,
                 "reduce_range": reduce_range, "auto": auto, "correct": correct}  # fmt: skip
        start = demand_kind(PtqConfig, config or PtqConfig())
        own = {} if config is None else _given(config)
        if not (method is percentile is correct is None):
            if auto:
                raise RepqError("auto chooses the method and the corrections itself",
                                fix="leave auto out, or method, percentile and correct")  # fmt: skip
            own.pop("auto", None)
        values = {
            **own, **_without_none(named), "keep_float": (*start.keep_float, *several(keep_float)),
            "calibration": {**_given(start.calibration), **_without_none(drawing)},
        }  # fmt: skip
        config = settings_of(PtqConfig, None, values, "quantization")
        if plan is not None:
            kept = (*config.keep_float, *planned(plan, weights.model))
            config = config.model_copy(update={"keep_float": kept})
        drawn = config.calibration
        with as_dataset(images, split, drawing=drawn, log=options.log) as dataset:
            made = quantized(
                weights, dataset, _on_whole_list(config, images, dataset), imgsz=size,
                eval_config=EvalConfig(batch=drawn.batch), progress=options.progress, log=options.log,
            )  # fmt: skip
        return self._with(made.weights, size, made.outcome)

    @usual_torch()
    def qat(
        self, data: Images, *, imgsz: Size | None = None, epochs: int | None = None,
        teacher: Model | str | Path | None = None, keep_float: Sequence[str] = (), split: str = "train",
        val_split: str = "val", state: str | Path | None = None,
        seed: int = 0, config: QatConfig | None = None, **settings: Any,
    ) -> Model:  # fmt: skip
        """Train a quantized checkpoint to answer in INT8 as its teacher does in float.

        No labels are needed, unless ``task_weight`` is above 0. A float checkpoint is quantized first, as `quantize`
        does by default.

        Args:
            data: as ``images`` of `quantize`; all images are trained on.
            epochs: 30 if nothing says how many.
            teacher: a float checkpoint or ONNX file of any detector. Default: the float weights of this one.
            keep_float: further layers that stay in float.
            val_split: of a data set, where ``eval_interval`` asks for AP on the way.
            state: file that lets a stopped training go on.
            config, settings: a `repq.QatConfig`, or its fields: ``batch``, ``learning_rate`` …

        Returns:
            A handle of the trained weights; ``report`` has the losses of each epoch.

        Raises:
            RepqError: it is no checkpoint, the teacher does not fit, or there are no images.
            TrainingError: the loss is not finite.
        """
        from repq.api.fitting import fitted
        from repq.api.opening import load
        from repq.api.quantizing import fused, partly_float
        from repq.data import class_places, warn_of_overlap
        from repq.export import float_copy
        from repq.machine.torch_device import resolve_device
        from repq.quant.qat import demand_labels, train_quantized
        from repq.train import short_training

        weights, size, options = self.checkpoint("be trained", imgsz), self.size(imgsz), self.options
        chosen = settings_of(QatConfig, config, {**settings, **_without_none({"epochs": epochs})}, "QAT")
        seed, device = arguments("QAT", seed=seed).seed, resolve_device(options.device)
        with as_dataset(data, split, drawing=every_image(seed), names=self.class_names, log=options.log) as train_set:
            demand_labels(weights.model, train_set, chosen)
            val_set = (
                train_set if chosen.eval_interval is None else open_data(data, val_split, options.log, options.progress)
            )
            if train_set.objects:
                train_set, val_set = (
                    fitted(part, self.names, self.label, options.log) for part in (train_set, val_set)
                )
            if chosen.eval_interval is not None:
                warn_of_overlap(train_set.records, val_set.records, options.log, "are trained on")
            for note in short_training(chosen, len(train_set)):
                options.log(note)
            quantized = self if weights.quantized else self.quantize(train_set, imgsz=size)
            start = partly_float(quantized.checkpoint("be trained"), several(keep_float))
            classes = None
            if (named := teacher or chosen.teacher) is not None:
                other = named if isinstance(named, Model) else load(named, engine="torch", imgsz=size)
                imitated = fused(other.floats("be a teacher")).model
                classes = class_places(self.names or train_set.names, other.names, "the teacher")
            else:
                imitated = float_copy(start.model) if weights.quantized else fused(weights).model
            outcome = train_quantized(
                start.model, imitated, train_set, val_set, size, chosen, groups=start.groups, teacher_classes=classes,
                device=device, seed=seed, state_path=None if state is None else Path(state),
                eval_config=EvalConfig(batch=chosen.batch), progress=options.progress,
            )  # fmt: skip
        return self._with(replace(start, model=outcome.model), size, outcome)

    @usual_torch()
    def prune(
        self, data: Images | None = None, *, imgsz: Size | None = None, split: str = "train", seed: int = 0,
        config: PruneConfig | None = None, **settings: Any,
    ) -> Model:  # fmt: skip
        """Remove the channels of a float checkpoint that are worth least; it is fused on the way.

        Args:
            data: as ``images`` of `quantize`; all count in the recovery. Without any, only weights are looked at.
            config, settings: a `repq.PruneConfig`, or its fields: ``target_macs``, ``ratio``, ``latency``,
                ``importance``, ``scope``, ``round``, ``recovery`` …

        Returns:
            A handle of the smaller model; ``report`` is a `repq.PruneReport`.

        Raises:
            RepqError: it is no float checkpoint; the target cannot be reached; or images or labels are missing.
        """
        from repq.api.fitting import fitted
        from repq.api.images import with_sizes
        from repq.api.pruning import pruned

        weights, size, options = self.floats("be pruned", imgsz), self.size(imgsz), self.options
        chosen, seed = settings_of(PruneConfig, config, settings, "pruning"), arguments("pruning", seed=seed).seed
        with ExitStack() as stack:
            train_set = None
            if data is not None:
                opened = as_dataset(data, split, drawing=every_image(seed), names=self.class_names, log=options.log)
                train_set = with_sizes(stack.enter_context(opened))
                if train_set.objects:
                    train_set = fitted(train_set, self.names, self.label, options.log)
            made, report = pruned(
                weights, chosen, train_set=train_set, val_set=None, imgsz=size, device=options.device, seed=seed,
                progress=options.progress, log=options.log,
            )  # fmt: skip
        return self._with(made, size, report)

    @usual_torch()
    def export(
        self, path: str | Path, *, imgsz: Size | None = None, maxima: Model | None = None,
        config: ExportConfig | None = None, **settings: Any,
    ) -> Model:  # fmt: skip
        """Write a checkpoint as ONNX, quantized with Q/DQ nodes, float fused on the way.

        Args:
            path: the file; an existing one is replaced.
            maxima: the quantized checkpoint whose calibration tells where a float one in FP16 overflows.
            config, settings: a `repq.ExportConfig`, or its fields: ``batch`` (None: dynamic), ``opset``,
                ``merge_scales``, ``float16``, ``preprocess``, ``nms`` …

        Returns:
            A handle of the file; ``report`` is a `repq.ExportReport`.

        Raises:
            RepqError: it is no checkpoint, the size does not fit it, or the file cannot be written.
        """
        from repq.api.exporting import write_onnx
        from repq.api.opening import open_onnx

        weights, out, size = self.checkpoint("be exported", imgsz), suffixed(path, ".onnx"), self.size(imgsz)
        chosen = settings_of(ExportConfig, config, settings, "export")
        if self.kind == "onnx" and self.path is not None and out.exists() and out.samefile(self.path):
            raise RepqError(f"{out} is the file that is exported from", fix="write to another place, so that it stays")
        known = None if maxima is None else maxima.checkpoint("give maxima").maxima
        report = write_onnx(weights, out, size, chosen, known)
        return replace(open_onnx(out, replace(self.options, engine=None, half=False)), report=report)

    @usual_torch()
    def build(
        self, engine: EngineName, *, imgsz: Size | None = None, threads: int | None = None,
        out: str | Path | None = None, batch: int | None = 1, config: BuildConfig | None = None, **settings: Any,
    ) -> Model:  # fmt: skip
        """Build an engine from an ONNX file; a checkpoint is exported first.

        Args:
            engine: ``onnxruntime``, ``openvino``, ``tensorrt``, ``ncnn``, or another of `repq.engine.ENGINES`.
            threads: CPU threads; None leaves the choice to the runtime.
            out: folder to save it in; None keeps it in memory.
            batch: of the export of a checkpoint; None for any. One that came from an ONNX file keeps the file's.
            config, settings: a `repq.BuildConfig`, or its fields: ``provider``, ``tensorrt`` …

        Returns:
            A handle of the engine; ``report`` is the `repq.EngineDescription`: what every layer really runs in.

        Raises:
            EngineError: it is an engine already, or the runtime is not installed or cannot build it.
        """
        from repq.api.opening import build_graph, of_engine

        if self.kind == "engine":
            raise EngineError(f"{self.label} is an engine already", fix="build from the ONNX file or the checkpoint")
        if self.kind == "onnx" and self.batch and batch not in (None, 1, self.batch):
            found = f"{self.batch} in the file, {batch} asked for"
            raise EngineError(
                f"{self.label} has its own batch size", found=found, fix="leave batch out, or export again"
            )
        size = self.size(imgsz)
        if self.weights is not None:
            from repq.export import has_own_graph

            with scratch_folder() as folder:
                asked: dict[str, Any] = {} if has_own_graph(self.weights.model) else {"batch": batch}
                onnx = self.export(folder / f"{Path(self.label).stem}.onnx", imgsz=imgsz, **asked)
                return onnx.build(engine, threads=threads, out=out, config=config, **settings)
        chosen = settings_of(BuildConfig, config, {"threads": threads or self.options.threads, **settings}, "building")
        built = build_graph(engine, self.file(), chosen)
        place = None if out is None else Path(out).absolute()
        if place is not None:
            built.save(place)
        options = replace(self.options, engine=None, threads=chosen.threads, half=False)
        made = replace(of_engine(place.name if place else self.label, built, options, self.graph, size), path=place)
        return replace(made, report=made.running.description)

    @usual_torch()
    def save(self, path: str | Path) -> Path:
        """Write the model: a checkpoint as .safetensors, an ONNX file as a copy in one file, an engine as a folder.

        Raises:
            RepqError: the file cannot be written, or has another suffix than its kind.
        """
        if self.weights is not None:
            from repq.api.opening import save_weights

            save_weights(out := suffixed(path, ".safetensors"), self.weights)
        elif self.engine is not None:
            self.engine.save(out := Path(path))
        else:
            from repq.graph import load_onnx, save_onnx
            from repq.onnx_file import companions

            file, out = self.file(), suffixed(path, ".onnx")
            if companions(file):
                save_onnx(out, load_onnx(file, beside=True))
                return out
            try:
                with replacing(out) as beside:
                    shutil.copyfile(file, beside)
            except OSError as error:
                raise RepqError(f"cannot write {out}", found=str(error), fix="check both paths") from None
        return out

    # --- what the steps share ----------------------------------------------------------------------------------------

    def size(self, imgsz: Size | None) -> tuple[int, int]:
        """The size that a step works at; see the class.

        Raises:
            RepqError: it is none, it contradicts the model's own, or the network's levels do not divide it.
        """
        wanted = arguments(self.label, imgsz=imgsz).imgsz
        if self.imgsz is not None and wanted is not None and wanted != self.imgsz:
            raise RepqError(
                f"{self.label} takes images of {self.imgsz[0]}x{self.imgsz[1]}", found=f"imgsz {wanted[0]}x{wanted[1]}",
                fix="leave imgsz out, or export it again for this size",
            )  # fmt: skip
        height, width = self.imgsz or wanted or self.usual
        if self.weights is not None:
            self.weights.model.spec.check_size(height, width)
        return height, width

    def file(self) -> Path:
        """The ONNX file of the handle, which is read anew where it is built, copied or taken apart.

        Raises:
            EngineError: it is gone, or is no longer what it was when it was opened: this would be another model.
        """
        from repq.onnx_file import unchanged

        assert self.path is not None
        return unchanged(self.path, self.sha256)

    @usual_torch()
    def checkpoint(self, step: str, imgsz: Size | None = None) -> Weights:
        """The weights of a checkpoint, or of an ONNX file for images of this size.

        Raises:
            CheckpointError: it is none, and cannot do what ``step`` says.
        """
        if self.weights is None and self.kind == "onnx" and not self.quantized:
            from repq.quant import load_weights

            return load_weights(self.file(), self.size(imgsz), self.graph)
        if self.weights is None:
            raise CheckpointError(
                f"{self.label} cannot {step}", found=f"a model of the kind {self.kind!r}",
                fix="load the checkpoint that it was exported from",
            )  # fmt: skip
        return self.weights

    def floats(self, step: str, imgsz: Size | None = None) -> Weights:
        """The weights of a float checkpoint.

        Raises:
            CheckpointError: as `checkpoint`, or it is quantized.
        """
        from repq.api.quantizing import demand_float

        return demand_float(self.checkpoint(step, imgsz), self.label)

    def _with(self, weights: Weights, size: tuple[int, int] | None = None, report: Any = None) -> Model:
        from repq.api.opening import of_weights
        from repq.api.sizes import as_metadata

        if size is not None:
            weights = replace(weights, metadata={**weights.metadata, **as_metadata(size)})
        return replace(of_weights(self.label, weights, self.options), usual=size or self.usual, report=report)


def every_image(seed: int) -> CalibrationConfig:
    """A draw that keeps all images, in the order of this seed."""
    return CalibrationConfig(images=10_000_000, seed=seed)


def is_list(images: Images) -> bool:
    """Whether all of the images are meant, and none are drawn."""
    from repq.data import DetectionDataset

    return not isinstance(images, (str, Path, DetectionDataset))


def _on_whole_list(config: PtqConfig, images: Images, dataset: DetectionDataset) -> PtqConfig:
    """The settings with as many calibration images as were given in a list."""
    if not is_list(images):
        return config
    drawn = config.calibration.model_copy(update={"images": len(dataset)})
    return config.model_copy(update={"calibration": drawn})


def suffixed(path: str | Path, suffix: str) -> Path:
    """A path to write to, which must have this suffix.

    Raises:
        RepqError: it has another one.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise RepqError(
            f"this is written as {suffix}", found=str(path), fix=f"give it the name {path.stem or 'model'}{suffix}"
        )
    return path


def _given(config: Config) -> dict[str, Any]:
    """The fields that were set."""
    return {name: getattr(config, name) for name in config.model_fields_set}


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def settings_of(kind: type[C], config: C | None, changes: dict[str, Any], what: str) -> C:
    """Settings from an object of them, fields, or both.

    Raises:
        RecipeError: an unknown field (with the closest valid one), an invalid value, or an object of other settings.
    """
    return parse_settings(kind, {**({} if config is None else _given(demand_kind(kind, config))), **changes}, what=what)


def demand_kind(kind: type[C], config: C) -> C:
    """Settings, if they are of this kind.

    Raises:
        RecipeError: they are not: other settings would be taken for these, or nothing of them.
    """
    if isinstance(config, kind):
        return config
    raise RecipeError(
        f"these are no settings of the kind {kind.__name__}", found=f"a value of type {type(config).__name__}",
        fix=f"give repq.recipe.{kind.__name__}(…) with its fields, or these as keywords where the step takes them",
    )  # fmt: skip


def demand_models(others: Iterable[Model]) -> None:
    """Refuse what is no handle.

    Raises:
        RepqError: a path, or a list of handles.
    """
    for other in others:
        if not isinstance(other, Model):
            fix = "open files by repq.load, and give several models one after the other: *models"
            raise RepqError("this is no model", found=f"a value of type {type(other).__name__}", fix=fix)
