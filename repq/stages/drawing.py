"""Pictures for the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repq.api.opening import load
from repq.recipe import (
    EvalConfig,
    ReportConfig,
)
from repq.stages.data import read_data

if TYPE_CHECKING:
    from repq.report import DrawnImage


def draw_detections(
    float_engine: Path,
    quantized_engine: Path,
    data: Path,
    split: str,
    imgsz: tuple[int, int],
    config: ReportConfig,
    eval_config: EvalConfig,
) -> tuple[DrawnImage, ...]:
    """Run both engines on the images of a split with most objects, up to ``config.images``, and draw what they find."""
    from repq.data import read_image
    from repq.evaluate import detect_all
    from repq.report import draw_pair

    dataset = read_data(data, split)
    busiest = sorted(dataset.records, key=lambda record: -len(record.labels))[: config.images]
    dataset = dataset.subset(busiest)
    if not busiest:
        return ()
    single = eval_config.model_copy(update={"multi_label": False})
    float_found, quantized_found = (
        detect_all(load(engine).infer, dataset, imgsz, single).boxes for engine in (float_engine, quantized_engine)
    )
    return tuple(
        draw_pair(record.name, read_image(record.path)[..., ::-1], before, after, dataset.names,
                  confidence=config.confidence)
        for record, before, after in zip(busiest, float_found, quantized_found, strict=True)
    )  # fmt: skip
