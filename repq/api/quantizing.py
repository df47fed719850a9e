"""Post-training quantization and quantization-aware training of opened weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from repq.api.fitting import fitted
from repq.errors import CheckpointError, RecipeError
from repq.log import Log, quiet
from repq.machine.cpu import cpu_cores
from repq.memory import keep_freed_memory
from repq.preprocessing import Preprocessing
from repq.progress import Progress, silent
from repq.recipe import CorrectionConfig, EvalConfig, GraphConfig, LetterboxConfig, PtqConfig
from repq.torchrun import processes_here

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto
    from torch import nn

    from repq.data import DetectionDataset, ImageRecord, LetterboxedImages
    from repq.layers import LayerId, QuantPlan
    from repq.model import Detector
    from repq.quant import QuantizedModel, Weights

_KEPT_BYTES = 256 * 2**20
"""Of letterboxed calibration images that stay in memory: 128 of 640x640 take 150 MiB. Others are read each time."""


@dataclass(frozen=True, eq=False)
class Quantization:
    """Weights after calibration.

    Attributes:
        weights: quantized.
        outcome: how they came about.
        graph: the float graph in which scales are shared and FP16 may overflow, where either matters.
    """

    weights: Weights
    outcome: QuantizedModel
    graph: ModelProto | None


@dataclass(frozen=True)
class CalibrationImages:
    """Network inputs. Only a batch of them is in memory, and of the images what ``kept`` has room for, as bytes."""

    records: Sequence[ImageRecord]
    imgsz: tuple[int, int]
    batch: int
    letterbox: LetterboxConfig
    preprocessing: Preprocessing
    progress: Progress
    kept: LetterboxedImages | None = None

    def share(self) -> CalibrationImages | None:
        """The batches of this process among those that share their work; None: it has none."""
        from repq.distributed import own_batches

        own = own_batches(self.records, self.batch)
        return replace(self, records=own) if own else None

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        from repq.data import batches

        loaded = batches(self.records, self.imgsz, self.batch, self.letterbox, self.preprocessing, kept=self.kept)
        for batch in self.progress(loaded, total=-(-len(self.records) // self.batch), label="calibrate"):
            yield batch.images


def demand_float(weights: Weights, label: str) -> Weights:
    """Refuse quantized weights where float ones are needed.

    Raises:
        CheckpointError: they are quantized.
    """
    if weights.quantized:
        raise CheckpointError(
            f"{label} is quantized already", fix="start from the float checkpoint that it was made from"
        )
    return weights


def open_float(
    path: Path, log: Log = quiet, imgsz: tuple[int, int] | None = None, graph: GraphConfig = GraphConfig()
) -> Weights:
    """Read a float checkpoint, or a float ONNX file, and log its notes.

    Args:
        imgsz: the size at which it is about to work.
        graph: what the file does not say of itself.

    Raises:
        CheckpointError: the file cannot be read, or is quantized already.
        RepqError: not every level of the network divides the size.
    """
    from repq.quant import load_weights

    weights = load_weights(path, imgsz, graph)
    for note in weights.notes:
        log(f"{path.name}: {note}")
    if imgsz is not None:
        weights.model.spec.check_size(*imgsz)
    return demand_float(weights, str(path))


def fused(weights: Weights, device: str = "cpu") -> Weights:
    """The same float weights in the deployed form, on a device."""
    from repq.machine.torch_device import resolve_device
    from repq.reparam import fuse

    return replace(weights, model=fuse(weights.model).to(resolve_device(device)))


def calibration_images(
    model: Detector, imgsz: tuple[int, int], config: PtqConfig, eval_config: EvalConfig, progress: Progress
) -> Callable[[Sequence[ImageRecord]], CalibrationImages]:
    """Gives the network inputs of records, for a model that goes through them again and again."""
    from repq.data import LetterboxedImages

    if next(model.parameters()).device.type == "cpu":
        keep_freed_memory()
    kept = LetterboxedImages(_KEPT_BYTES)

    def images(records: Sequence[ImageRecord]) -> CalibrationImages:
        return CalibrationImages(
            records, imgsz, config.calibration.batch, eval_config.letterbox, model.spec.preprocessing, progress, kept
        )

    return images


def quantized(
    weights: Weights,
    dataset: DetectionDataset,
    config: PtqConfig,
    *,
    imgsz: tuple[int, int],
    eval_config: EvalConfig,
    with_maxima: bool = True,
    with_trials: bool = True,
    on_all_images: bool = False,
    layers_alone: bool = False,
    progress: Progress = silent,
    log: Log = quiet,
) -> Quantization:
    """Calibrate fused float weights on images of a data set, with what ``config`` asks for beside.

    Args:
        weights: fused; not changed.
        dataset: ``config.calibration`` says which images of it.
        with_maxima: whether the largest magnitude of every tensor is measured, which an export as FP16 needs.
        with_trials: whether it is measured what each correction that ``config`` names adds, and where
            ``config.auto`` chooses, with labels, the AP before and after the corrections.
        on_all_images: whether what ``config.auto`` chooses is calibrated anew on the images that it was chosen on, too.
        layers_alone: leave out corrections that mislead where some layers run in float for a while, whether they are
            named or chosen.

    Raises:
        QuantizationError: there are no images, or an activation is not finite.
        SelectorError: an entry of ``config.keep_float`` matches no layer.
    """
    from repq.quant import on_device_of, quantize, quantize_at_best, quantize_in_steps
    from repq.quant.corrections import by_layer

    model = weights.model
    model.spec.check_size(*imgsz)
    config = config.model_copy(update={"keep_float": kept_float(model, config, log)})
    if layers_alone:
        config = config.model_copy(update={"correct": by_layer(config.correct)})
    images = calibration_images(model, imgsz, config, eval_config, progress)
    records = _calibration_images(dataset, config, log)
    graph = _float_graph(model, imgsz, config, with_maxima)
    groups = _groups(graph, model, config)

    if config.auto and len(records) < 2:
        log("one image is too few to choose settings on: calibrated plainly")
    if config.auto and len(records) >= 2:
        shown = len(records) - max(1, len(records) // 4)
        held_out = tuple(on_device_of(model, images(records[shown:])))
        labelled = dataset.subset(records[shown:])
        measured = with_trials and labelled.objects > 0
        ap_on_train = ap_on(weights, labelled, imgsz, eval_config, progress) if measured else None
        outcome = quantize_at_best(
            model, images(records[:shown]), held_out, config, ap_on_train=ap_on_train,
            layers_alone=layers_alone, progress=progress, groups=groups,
        )  # fmt: skip
        if on_all_images:
            anew = quantize(model, images(records), outcome.config, progress, groups=groups)
            outcome = replace(anew, trials=outcome.trials)
    elif corrected(config) and with_trials:
        outcome = quantize_in_steps(model, images(records), config, progress, groups=groups)
    else:
        outcome = quantize(model, images(records), config, progress, groups=groups)
    for note in outcome.notes:
        log(note)
    maxima = _maxima(graph, images(records)) if graph is not None and with_maxima else {}
    shared = tuple(map(tuple, outcome.groups))
    made = replace(weights, model=outcome.model, config=outcome.config, maxima=maxima, groups=shared)
    return Quantization(made, outcome, graph)


def ap_on(
    weights: Weights, dataset: DetectionDataset, imgsz: tuple[int, int], config: EvalConfig, progress: Progress = silent
) -> Callable[[nn.Module], float]:
    """A function that gives the AP of a form of a model on labelled images, such as of a quantized one.

    Args:
        weights: the model, on its device.

    Raises:
        DataError: the data set has other classes.
    """
    from repq.api.measuring import ap_of
    from repq.api.opening import of_weights
    from repq.api.running import Options

    labelled = fitted(dataset, weights.names, "the model")
    options = Options(device=str(next(weights.model.parameters()).device), concurrent=True)

    def ap(trial: nn.Module) -> float:
        opened = of_weights("trial", replace(weights, model=cast("Detector", trial), names=None), options)
        return ap_of(opened, labelled, imgsz, config, progress)

    return ap


def partly_float(weights: Weights, kept: Sequence[str]) -> Weights:
    """Quantized weights with more layers in float, those that ``kept`` names by id or glob.

    Raises:
        SelectorError: a selector matches no layer.
    """
    from repq.export import float_copy
    from repq.layers import QuantPlan
    from repq.model import layer_ids
    from repq.quant import apply_scales, insert_quantizers, scale_table

    assert weights.config is not None
    if not kept:
        return weights
    plain = float_copy(weights.model)
    wanted = QuantPlan.keeping_float(layer_ids(plain), (*weights.plan.float_, *kept))
    model = insert_quantizers(plain, wanted, weights.config).eval()
    table = scale_table(weights.model)
    apply_scales(model, {layer: table[layer] for layer in wanted.int8})
    config = weights.config.model_copy(update={"keep_float": (*weights.config.keep_float, *kept)})
    return replace(weights, model=model, config=config)


def planned(plan: Path | QuantPlan | object, model: Detector) -> tuple[str, ...]:
    """The float layers of a plan: a file or its path, a ``QuantPlan`` or a ``PlanReport``.

    Raises:
        RecipeError: it is no plan, the file cannot be read, or it is for another model.
        SelectorError: it names a layer that the model does not have.
    """
    from repq.layers import QuantPlan, select
    from repq.model import layer_ids
    from repq.quant.plan_file import PlanFile, read_plan
    from repq.results import PlanReport

    layers = layer_ids(model)
    if isinstance(plan, QuantPlan):
        return select(layers, plan.float_)
    if isinstance(plan, PlanReport):
        return select(layers, plan.float_layers)
    if not isinstance(plan, (str, Path, PlanFile)):
        fix = "give a plan.yaml or what plan() returned; keep_float takes layers"
        raise RecipeError("this is no plan", found=f"a value of type {type(plan).__name__}", fix=fix)
    file = plan if isinstance(plan, PlanFile) else read_plan(Path(plan))
    return file.plan(layers, model.spec.name).float_


def kept_float(model: Detector, config: PtqConfig, log: Log = quiet) -> tuple[str, ...]:
    """Selectors of the layers that stay in float: those of the settings, and means over bins, which are logged."""
    from repq.quant.bin_means import bin_means

    means = [layer for layer in bin_means(model) if layer not in config.keep_float] if config.float_bin_means else []
    if means:
        log(f"in float, since they are means over the bins of a distance: {', '.join(means)}")
    return (*config.keep_float, *means)


def corrected(config: PtqConfig) -> bool:
    """Whether corrections are asked for."""
    return config.correct != CorrectionConfig(images=config.correct.images)


def _calibration_images(dataset: DetectionDataset, config: PtqConfig, log: Log) -> list[ImageRecord]:
    from repq.data import calibration_set

    wanted = config.calibration
    records = calibration_set(dataset, wanted)
    if len(records) < wanted.images and wanted.manifest is None:
        log(f"calibrating on all {len(records)} images of {dataset.split!r}: {wanted.images} were asked for")
    return records


def _float_graph(model: Detector, imgsz: tuple[int, int], config: PtqConfig, with_maxima: bool) -> ModelProto | None:
    """The graph in which scales are shared and FP16 may overflow; both concern TensorRT, which is symmetric."""
    from repq.export import export_float

    wanted = config.share_scales != "none" or (with_maxima and config.scheme == "symmetric")
    return export_float(model, imgsz) if wanted else None


def _groups(graph: ModelProto | None, model: Detector, config: PtqConfig) -> tuple[tuple[LayerId, ...], ...]:
    """The INT8 layers whose inputs must share a scale."""
    from repq.graph import layer_groups
    from repq.layers import QuantPlan
    from repq.model import layer_ids

    if graph is None or config.share_scales == "none":
        return ()
    return layer_groups(graph, QuantPlan.keeping_float(layer_ids(model), config.keep_float).int8)


def _maxima(graph: ModelProto, images: CalibrationImages) -> dict[str, float]:
    """Largest magnitude of each tensor of the float graph on the calibration images, by anchor; one image at a time.

    Processes that share their work run shares of the images; all get what one would.
    """
    from repq.distributed import failing_together, gathered
    from repq.graph import anchor_maxima, tensor_maxima

    with failing_together():
        own = replace(images, batch=1).share()
        found = {} if own is None else tensor_maxima(graph, own, threads=max(1, cpu_cores() // processes_here()))
    parts = [part for part in gathered(found) if part]
    return anchor_maxima(graph, {name: max(part[name] for part in parts) for name in parts[0]})
