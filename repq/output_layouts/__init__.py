"""What an ONNX file of a detector takes and gives: the layouts that there are, and which of them its outputs have.

An output alone often fits several: (1, N, 85) may be decoded boxes or raw ones. What the graph gives for one image
tells them apart: boxes of cells lie near their cells, corners are in order, ranks fall.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

from repq.errors import RepqError
from repq.layout import OutputLayout
from repq.output_layouts import apart, final, raw, rows
from repq.output_layouts.seen import Fit, NamedLayout, Outputs
from repq.preprocessing import Preprocessing, preset
from repq.recipe import GraphConfig

__all__ = ["LAYOUTS", "Form", "NamedLayout", "Outputs", "class_names", "form_of", "recognize"]

LAYOUTS: list[NamedLayout] = [*rows.LAYOUTS, *final.LAYOUTS, *apart.LAYOUTS, *raw.LAYOUTS]
"""All of them. A layout is one entry in the list of the file that it belongs to."""

_PRESET_OF = {
    "exponential": "yolox", "tanh": "fastestdet", "anchors": "ultralytics", "distances": "nanodet",
    "distances-from-centre": "nanodet",
}  # fmt: skip
"""How images become the input of the detectors that code their boxes so."""

_TASKS = {"segment": "segmentation", "classify": "classification", "pose": "poses", "obb": "rotated boxes"}


@dataclass(frozen=True)
class Form:
    """What a graph takes and gives; ``notes`` say what was guessed."""

    layout: OutputLayout
    classes: int
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()


def form_of(outputs: Outputs, metadata: Mapping[str, str], config: GraphConfig = GraphConfig()) -> Form:
    """What a graph takes and gives: by the settings, by what repq wrote into the file, by what it shows.

    Raises:
        RepqError: it is not clear, or the settings do not fit the graph.
    """
    inside = [key for key in ("nms", "preprocess") if f"repq.{key}" in metadata]
    if inside:
        raise RepqError("the graph does the work of a service itself", found=", ".join(inside),
                        fix="start from the graph that was exported without it")  # fmt: skip
    notes: tuple[str, ...] = ()
    if config.layout is None and "repq.layout" in metadata:
        with _undamaged():
            layout, classes = OutputLayout.from_json(metadata["repq.layout"]), int(metadata["repq.num_classes"])
        _demand_same(layout, classes, config)
    else:
        told = outputs.classes is None and config.classes is not None
        outputs = replace(outputs, anchors=config.anchors, classes=_classes(outputs, config),
                          classes_by="--classes" if told else outputs.classes_by)  # fmt: skip
        layout, classes = recognize(outputs, config.layout, metadata.get("task"))
        notes = _doubts(outputs, layout, classes) if config.layout is None else ()
    if config.preset is not None:
        return Form(layout, classes, preset(config.preset), notes)
    if "repq.preprocessing" in metadata:
        with _undamaged():
            return Form(layout, classes, Preprocessing.from_json(metadata["repq.preprocessing"]), notes)
    usual = _PRESET_OF[layout.coding] if layout.grid else "yolov6"
    guessed = "ultralytics" if "ltralytics" in metadata.get("author", "") else usual
    note = f"nothing says how images become its input; taken: --preset {guessed} (`repq diagnose` tries the others)"
    return Form(layout, classes, preset(guessed), (*notes, note))


def _doubts(outputs: Outputs, layout: OutputLayout, classes: int) -> tuple[str, ...]:
    """What was taken of two things that the outputs may mean."""
    alone = outputs.without_images
    shown = next(iter(outputs.arrays.values())) if alone is None else outputs.arrays[alone][None]
    if replace(layout, rows_alone=0) != OutputLayout() or not rows.may_lack_objectness(outputs, shown[0]):
        return ()
    said = f"the fifth column is taken for an objectness, and {classes} classes behind it"
    return (f"{said}; if it is a class: --layout yolov8 (or say --classes)",)


def _classes(outputs: Outputs, config: GraphConfig) -> int | None:
    """How many classes there are, as the file or the settings say.

    Raises:
        RepqError: they say different numbers.
    """
    if None not in (outputs.classes, config.classes) and outputs.classes != config.classes:
        raise RepqError("the number of classes contradicts the file", fix="leave --classes away",
                        found=f"--classes {config.classes}, and {outputs.classes} class names")  # fmt: skip
    return config.classes if outputs.classes is None else outputs.classes


def _demand_same(layout: OutputLayout, classes: int, config: GraphConfig) -> None:
    """What a file says of its outputs is not said again in another way.

    Raises:
        RepqError: it is.
    """
    own = tuple(chain(*layout.anchors)) or None
    for option, said, asked in (("--classes", classes, config.classes), ("graph.anchors", own, config.anchors)):
        if asked not in (None, said):
            raise RepqError(f"{option} contradicts the file", found=f"{asked}; the file says {said or 'none'}",
                            fix=f"leave {option} away, or name the --layout as well")  # fmt: skip


@contextmanager
def _undamaged() -> Iterator[None]:
    try:
        yield
    except (LookupError, ValueError) as error:
        raise RepqError("the metadata of the ONNX model is damaged", found=repr(error),
                        fix="export the model again") from None  # fmt: skip


def class_names(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Class names in a file's metadata: a list, or a mapping of number to name, as JSON or as Python writes it."""
    text = metadata.get("repq.names", metadata.get("names", ""))
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, dict):
            found = [found.get(number, found.get(str(number))) for number in range(len(found))]
        if isinstance(found, (list, tuple)) and found and None not in found:
            return tuple(map(str, found))
    return None


def recognize(outputs: Outputs, name: str | None = None, task: str | None = None) -> Fit:
    """The layout of a graph's outputs and the number of classes.

    Args:
        name: the layout to take; it must fit.
        task: what the file says that it does, such as ``detect``.

    Raises:
        RepqError: none fits, or several do.
    """
    known = ", ".join(entry.name for entry in LAYOUTS)
    if name is not None and name not in {entry.name for entry in LAYOUTS}:
        raise RepqError(f"there is no layout named {name!r}", found=known, fix="use one of these names")
    if outputs.arrays and not all(array.size for array in outputs.arrays.values()):
        raise RepqError("the graph gives an output without values", found=outputs.listed,
                        fix="give a detector; one that suppresses boxes itself, export without that")  # fmt: skip
    if other := _other_task(outputs, task):
        raise RepqError("the graph is no detector", found=f"{other}: {outputs.listed}", fix="give one of boxes")
    outputs = replace(outputs, told=name is not None)
    fits = _fits(outputs, name)
    if len(fits) == 1:
        return next(iter(fits.values()))
    classes = "" if outputs.classes is None else f" and {outputs.classes} {outputs.classes_by}"
    if fits:
        raise RepqError("it is not clear what the graph's outputs mean", found=f"{outputs.listed}{classes}",
                        fix=f"say it: --layout {' or '.join(fits)}")  # fmt: skip
    without = replace(outputs, classes=None)
    if name is None and outputs.classes is not None:
        fits = {layout: fit for layout, fit in _fits(without).items() if layout not in _OF_KNOWN_CLASSES}
        if fits:
            seen = " or ".join(f"{layout} of {count} classes" for layout, (_, count) in fits.items())
            given = outputs.classes_by == "--classes"
            raise RepqError(
                f"{'--classes contradicts' if given else 'the class names in the metadata contradict'} "
                "the graph's outputs",
                found=f"{outputs.listed}, which would be {seen},{classes}",
                fix="leave it away" if given else "mend or remove the entry `names` of the file's metadata",
            )  # fmt: skip
    if name is None and (possible := _fits(replace(outputs, told=True))):
        raise RepqError("the graph's outputs have the shapes of a known detector, but not its values",
                        found=f"{outputs.listed}{classes}; values {outputs.spans}",
                        fix=f"export it with its boxes decoded and its scores as probabilities, or say what it gives: "
                            f"--layout {' or '.join(possible)}")  # fmt: skip
    raise RepqError(
        "the graph's outputs are none of a known detector" if name is None else f"the outputs are not {name}",
        found=f"{outputs.listed}{classes}", fix=_way_out(outputs, known),
    )  # fmt: skip


_LISTED = 7
"""Columns of a list of boxes with an image's number, score and class."""

_OF_KNOWN_CLASSES = {entry.name for entry in final.LAYOUTS}
"""Layouts that do not show how many classes there are."""


def _fits(outputs: Outputs, name: str | None = None) -> dict[str, Fit]:
    """The layouts that fit, by name, or of these that one; an output without an axis of images gets one."""
    alone = outputs.without_images
    given = outputs if alone is None else replace(outputs, arrays={alone: outputs.arrays[alone][None]})
    found = {entry.name: fit for entry in LAYOUTS if name in (None, entry.name) and (fit := entry.fit(given))}
    if alone is None:
        return found
    length = len(outputs.arrays[alone])
    return {key: (replace(layout, rows_alone=length), count) for key, (layout, count) in found.items()}


def _way_out(outputs: Outputs, known: str) -> str:
    shapes = [array.shape for array in outputs.arrays.values()]
    if all(len(shape) > 3 for shape in shapes):
        return "export it with its boxes decoded, or give --layout and --set graph.anchors=[w,h,…] of all levels"
    if all(len(shape) < 3 for shape in shapes):
        return "export it without suppression, or with an axis of images in all outputs"
    return f"known layouts: {known}"


def _other_task(outputs: Outputs, task: str | None) -> str | None:
    arrays = list(outputs.arrays.values())
    if task in _TASKS:
        return f"{_TASKS[task]} (the file's metadata say task {task!r})"
    if not arrays:
        return "no output"
    if not all(array.ndim for array in arrays):
        return "an output of a single number"
    flat = arrays[0].ndim == 2 and outputs.without_images is None and len(arrays[0]) < arrays[0].shape[1] > _LISTED
    if len(arrays) == 1 and (flat or arrays[0].shape[2:] == (1, 1)):
        return "classification"
    if len(arrays) == 1 and (arrays[0].ndim == 4 or arrays[0].shape[0] == 1) and arrays[0].shape[-2:] == outputs.imgsz:
        return "segmentation"
    if any(array.ndim == 4 and array.shape[1] in (1, 32) for array in arrays) and any(a.ndim == 3 for a in arrays):
        return "segmentation"
    return None
