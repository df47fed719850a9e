"""Whether engines compute what the reference computes: SNR per output, and AP, over the same images in one pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from repq.data import DetectionDataset, batches, demand_objects
from repq.errors import RepqError, ToleranceError
from repq.evaluate import Detections, Predict, boxes_in_images, resampled_accuracy
from repq.layout import OutputLayout
from repq.preprocessing import Preprocessing
from repq.progress import Progress, silent
from repq.recipe import CheckConfig, EvalConfig, ap_drop
from repq.results import Agreement, CheckReport, ModelInfo


@dataclass
class _Difference:
    """Sums over images of one output's squared reference and squared difference, in float64."""

    signal: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0

    def add(self, expected: NDArray[np.floating], actual: NDArray[np.floating]) -> None:
        difference = actual.astype(np.float64) - expected
        self.signal += float(np.square(expected, dtype=np.float64).sum())
        self.noise += float(np.square(difference).sum())
        self.max_abs = float(np.maximum(self.max_abs, np.abs(difference).max(initial=0.0)))  # NaN stays NaN

    @property
    def snr_db(self) -> float:
        """``10 log10(sum reference^2 / sum difference^2)``; infinite where they are equal."""
        if self.noise == 0:
            return float("inf")
        ratio = self.signal / self.noise
        return 10 * float(np.log10(ratio)) if ratio else float("-inf")


@dataclass
class _Tally:
    boxes: list[NDArray[np.float32]] = field(default_factory=list)
    differences: dict[str, _Difference] = field(default_factory=lambda: defaultdict(_Difference))


def check_agreement(
    reference: Predict,
    candidates: Sequence[tuple[ModelInfo, Predict]],
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: CheckConfig,
    eval_config: EvalConfig,
    progress: Progress = silent,
    layout: OutputLayout = OutputLayout(),
    preprocessing: Preprocessing = Preprocessing(),
) -> CheckReport:
    """Run the reference and every candidate on each batch and compare outputs and AP, of one pass each.

    Args:
        reference: network input (B, 3, H, W) to detections.
        candidates: what each model is, and how to run it, as the reference.
        layout: of the detections of all; boxes and scores are compared.
        preprocessing: of all.
        config: the bounds; ``max_drop`` bounds ``|AP - AP of the reference|``, ``min_snr_db`` the SNR of each output.

    Raises:
        DataError: an output does not fit the data set, no image has a labelled object, or an image can no longer be
            read.
        RepqError: a candidate gives more or fewer boxes than the reference.
        ToleranceError: an SNR is asked for, and an output of the reference is zero in all images.
    """
    demand_objects(dataset)
    own = _Tally()
    tallies = [_Tally() for _ in candidates]
    loaded = batches(dataset, imgsz, eval_config.batch, eval_config.letterbox, preprocessing)
    for batch in progress(loaded, total=-(-len(dataset) // eval_config.batch), label="comparing"):
        expected = np.asarray(reference(batch.images))
        own.boxes.extend(boxes_in_images(expected, batch, dataset.names, eval_config, layout))
        for (model, predict), tally in zip(candidates, tallies, strict=True):
            actual = np.asarray(predict(batch.images))
            if actual.shape != expected.shape:
                raise RepqError(f"{model.model} gives another number of boxes than the reference",
                                found=f"shape {actual.shape} and {expected.shape}",
                                fix="compare exports of one detector; `repq eval` gives the AP of each")  # fmt: skip
            tally.boxes.extend(boxes_in_images(actual, batch, dataset.names, eval_config, layout))
            parts = layout.parts(actual)
            for name, wanted in layout.parts(expected).items():
                tally.differences[name].add(wanted, parts[name])
    if config.min_snr_db is not None:
        _demand_signal(tallies)
    images = tuple(record.name for record in dataset.records)
    reference_accuracy = resampled_accuracy(Detections(images, tuple(own.boxes)), dataset)
    rows = []
    for (model, _), tally in zip(candidates, tallies, strict=True):
        accuracy = resampled_accuracy(Detections(images, tuple(tally.boxes)), dataset)
        drop = ap_drop(reference_accuracy.ap, accuracy.ap)
        rows.append(
            Agreement(
                **dict(model),
                snr_db={name: difference.snr_db for name, difference in tally.differences.items()},
                max_abs_error={name: difference.max_abs for name, difference in tally.differences.items()},
                accuracy=accuracy,
                ap_gap=None if drop is None else -drop,
            )
        )
    report = CheckReport(
        reference=reference_accuracy,
        engines=tuple(rows),
        images=len(dataset),
        max_drop=config.max_drop,
        min_snr_db=config.min_snr_db,
        passed=False,
    )
    return report.model_copy(update={"passed": not report.failing()})


def _demand_signal(tallies: Sequence[_Tally]) -> None:
    silent_ones = {name for tally in tallies for name, found in tally.differences.items() if not found.signal}
    if silent_ones:
        raise ToleranceError(
            "an SNR tells nothing of an output that is always zero",
            found=f"zero in all images, in the reference: {', '.join(sorted(silent_ones))}",
            fix="look at what it finds (repq predict), its preset, layout and image size",
        )
