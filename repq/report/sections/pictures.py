"""The same images with the boxes of both models."""

from __future__ import annotations

import base64

from repq.report.blocks import Block, Picture, PicturePair, Section
from repq.report.comparison import engine_title
from repq.report.summary import DrawnImage, ReportSummary


def pictures_section(summary: ReportSummary) -> Section | None:
    """FP32 on the left, INT8 on the right."""
    if not summary.drawn:
        return None
    parts = []
    if summary.drawn_engine:
        parts.append(f"boxes of {engine_title(summary.drawn_engine)}")
    if summary.drawn_confidence is not None:
        parts.append(f"score at least {summary.drawn_confidence:.2f}")
    blocks: list[Block] = [_pair(image) for image in summary.drawn]
    return Section("pictures", "Boxes of both models", blocks, _sentence(parts), short="Boxes")


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _pair(image: DrawnImage) -> PicturePair:
    both = f"; {image.matched} found by both" if image.matched is not None else ""
    return PicturePair(
        f"{image.name}{both}",
        Picture(f"FP32: {_boxes(image.float_boxes)}", base64.b64encode(image.float_jpeg).decode()),
        Picture(f"INT8: {_boxes(image.quantized_boxes)}", base64.b64encode(image.quantized_jpeg).decode()),
    )


def _boxes(number: int) -> str:
    return "1 box" if number == 1 else f"{number} boxes"
