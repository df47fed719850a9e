"""What a program must know to run a model, as JSON and as a C++ header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from repq.api.model import Model
from repq.recipe import LetterboxConfig

FORMAT = 2
DECODE = "decode.onnx"


def contract(
    model: Model, onnx: Model, letterbox: LetterboxConfig, engine: Mapping[str, str] | None, *, decode: bool = False
) -> dict[str, Any]:
    """Describe a plain model, from pixels to boxes; `repq/deploy/samples/detect.py` acts by it.

    ``output`` describes what ``decode``, a graph of its own, makes of the model's outputs, or the output itself.

    Args:
        model: that is shipped.
        onnx: the graph that it was built from.
        engine: its runtime, version and file below the folder; None: the ONNX file alone is shipped.
        decode: there is a graph that makes detections of its outputs.
    """
    assert onnx.imgsz is not None
    form, layout = model.preprocessing, model.layout.decoded if decode else model.layout
    height, width = onnx.imgsz
    return {
        "kind": "repq deployment",
        "format": FORMAT,
        "architecture": model.spec,
        "precision": "int8" if model.quantized else "float32",
        "engine": engine,
        "onnx": "model.onnx",
        "input": {
            "batch": model.batch, "height": height, "width": width, "dtype": "float32",
            "order": "batch, channel, row, column", "colours": form.colours,
            "formula": "(pixel / divisor - mean) / std", "divisor": form.divisor, "mean": form.mean, "std": form.std,
        },
        "letterbox": {
            **letterbox.model_dump(), "placement": form.placement, "stretch": form.stretch, "resize": form.resize,
            "pad": form.pad,
        },
        "decode": DECODE if decode else None,
        "output": {"boxes_are_in": "pixels of the input", **asdict(layout)},
        "classes": model.class_names,
        "thresholds": asdict(model.thresholds),
    }  # fmt: skip


def header(values: Mapping[str, Any]) -> str:
    """The same for C++, as constants."""
    given, box, out, limits = (values[key] for key in ("input", "letterbox", "output", "thresholds"))
    engine = values["engine"] or {}
    file = engine["file"] if engine.get("runtime") == "openvino" else values["onnx"]
    constants = {
        "const char* const MODEL": _text(file),
        "const char* const DECODE": _text(values["decode"] or ""),
        "constexpr int HEIGHT": given["height"],
        "constexpr int WIDTH": given["width"],
        "constexpr bool BGR": given["colours"] == "bgr",
        "constexpr float DIVISOR": given["divisor"],
        "constexpr float MEAN[3]": given["mean"],
        "constexpr float STD[3]": given["std"],
        "constexpr int BORDER": box["border"],
        "constexpr int INNER_SIZE": box["inner_size"] or 0,
        "constexpr bool UPSCALE": box["upscale"],
        "constexpr bool CENTRED": box["placement"] == "centre",
        "constexpr bool STRETCH": box["stretch"],
        "constexpr bool AREA": box["resize"] == "area",
        "constexpr float PAD": float(box["pad"]),
        "constexpr bool CORNERS": out["box_form"] == "corners",
        "constexpr int BOXES": out["boxes"],
        "constexpr int OBJECTNESS": -1 if out["objectness"] is None else out["objectness"],
        "constexpr int SCORES": out["scores"],
        "constexpr bool COLUMNS_FIRST": out["columns_first"],
        "constexpr float CONFIDENCE": float(limits["confidence"]),
        "constexpr float IOU": 1.0 if out["one_per_object"] else float(limits["iou"]),
        "constexpr int MAX_DETECTIONS": limits["max_detections"],
    }
    lines = [f"{name} = {_literal(value)};" for name, value in constants.items()]
    names = ", ".join(map(_text, values["classes"]))
    lines.append(f"const char* const CLASSES[] = {{{names}}};")
    lines.append(f"constexpr int CLASS_COUNT = {len(values['classes'])};")
    return "\n".join(["// What model.json says, for detect.cpp.", "#pragma once", "namespace model {", *lines, "}", ""])


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "{" + ", ".join(map(_literal, value)) + "}"
    return f"{value!r}f" if isinstance(value, float) else str(value)


def _text(value: str) -> str:
    """A string literal: bytes that are no plain letters as octal escapes, which end after three digits."""
    safe = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}" for byte in value.encode()
    )
    return f'"{safe}"'
