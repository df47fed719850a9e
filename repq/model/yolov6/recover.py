"""Finds the YOLOv6 architecture of a state dict from the names and shapes of its entries alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from repq.errors import CheckpointError
from repq.model.detector import Detector, known_outline
from repq.model.family import Recovery, Shapes
from repq.model.yolov6.blocks import BlockKit
from repq.model.yolov6.specs import ModelSpec, Style, find_spec, model_names

Shape = tuple[int, ...]

_TRAINING_ONLY = {
    r"detect\.(cls|reg)_preds_ab\.": "the anchor-aided branches",
    r"detect\.reg_preds_dist\.": "the distribution branch of self-distillation",
}
_CONSTANT = re.compile(r"detect\.proj|detect\.proj_conv\.weight|.*\.num_batches_tracked")
"""Entries that a model has from the start and that a file may leave out."""

_OLDER_NAMES = re.compile(r"\.block(?=\.(conv|bn)\.)|\.(csp)?sppf(?=\.cv\d)")
"""Levels of the module tree that the first releases of YOLOv6 did not have."""

_CHOICES = re.compile(r"torch\.nn\.modules\.(activation\..*|pooling\.AvgPool2d)")
"""Modules without entries of their own that tell apart architectures with equal entries."""


def recover(shapes: Shapes, name: str | None, modules: Mapping[str, str]) -> Recovery | None:
    """See `repq.model.families.recover`; None where nothing of the head of a YOLOv6 model is found."""
    kept, notes = _strip(shapes)
    num_classes = _class_count(kept)
    if num_classes is None:
        return None
    named = find_spec(name, num_classes) if name else None
    candidates = _candidates([named] if named else _distinct_specs(num_classes), kept)
    fitting: list[tuple[tuple[int, bool], Recovery]] = []
    differences = []
    for spec, deploy in candidates:
        model = known_outline(spec, deploy)
        entries = _join(kept, model)
        if problems := _differences(kept, model, entries):
            differences.append((len(problems), spec, deploy, problems))
        else:
            rank = (_mismatches(modules, model), _renamed(entries))
            fitting.append((rank, Recovery(spec, deploy, entries, constants=_constants(model))))
    if not fitting:
        raise _no_fit(differences, bool(name))
    least = min(rank for rank, _ in fitting)
    if least[0]:
        raise CheckpointError(
            f"the entries are those of {fitting[0][1].spec.name}, but the modules in the file compute something else",
            found=f"{least[0]} activations or poolings of another kind than in any known architecture",
            fix="only the published architectures can be imported",
        )
    best, *others = (found for rank, found in fitting if rank == least)
    return replace(best, notes=(*notes, *_choice_notes(best, others)))


# --- preparing the entries -------------------------------------------------------------------------------------------


def _strip(shapes: Shapes) -> tuple[dict[str, tuple[str, Shape]], list[str]]:
    """Entries by their name below a wrapper's prefix, each with its name in the file; without training-only ones."""
    prefix = next((name[: name.index("backbone.")] for name in shapes if "backbone." in name), "")
    if not all(name.startswith(prefix) for name in shapes):
        prefix = ""
    kept = {name.removeprefix(prefix): (name, tuple(shape)) for name, shape in shapes.items()}
    notes = []
    for pattern, meaning in _TRAINING_ONLY.items():
        dropped = [name for name in kept if re.match(pattern, name)]
        for name in dropped:
            del kept[name]
        if dropped:
            notes.append(f"dropped {len(dropped)} entries that only training uses: {meaning}")
    return kept, notes


def _class_count(kept: Mapping[str, tuple[str, Shape]]) -> int | None:
    _, shape = kept.get("detect.cls_preds.0.bias", ("", ()))
    return shape[0] if len(shape) == 1 and 1 <= shape[0] <= 100_000 else None


def _distinct_specs(num_classes: int) -> list[ModelSpec]:
    """Every architecture once, under its first name: published ones come before those with another block style."""
    distinct: dict[ModelSpec, ModelSpec] = {}
    for name in model_names():
        spec = find_spec(name, num_classes)
        assert spec is not None, "the names are those that it takes"
        distinct.setdefault(replace(spec, name=""), spec)
    return list(distinct.values())


def _candidates(specs: list[ModelSpec], kept: Mapping[str, tuple[str, Shape]]) -> list[tuple[ModelSpec, bool]]:
    """The specs, fused or not, that agree best with the file in a few telling entries: at most six."""
    scored, stem = [], _found_stem(kept)
    for spec in specs:
        head = _head_shapes(spec)
        layout = (spec.neck == "bifusion", spec.pooling == "cspsppf", spec.stage == "mbla")
        score = sum(kept.get(name, ("", ()))[1] == shape for name, shape in head.items()) / len(head)
        score += sum(1 for name in kept if name.startswith("detect.cls_preds.")) == 2 * len(spec.strides)
        score += layout == (_any(kept, "Bifusion"), _any(kept, "cspsppf"), _any(kept, ".m.0.0.alpha"))
        for deploy in (False, True):
            scored.append((score + (_stem_shapes(spec.style, deploy, spec.backbone_channels[0]) == stem), spec, deploy))
    best = max(score for score, *_ in scored)
    return [(spec, deploy) for score, spec, deploy in scored if score == best][:6]


def _head_shapes(spec: ModelSpec) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for level, width in enumerate(spec.head_channels):
        shapes[f"detect.cls_preds.{level}.weight"] = (spec.num_classes, width, 1, 1)
        shapes[f"detect.reg_preds.{level}.weight"] = (4 * spec.bins, width, 1, 1)
    return shapes


@functools.cache
def _stem_shapes(style: Style, deploy: bool, channels: int) -> dict[str, Shape]:
    with torch.device("meta"):
        stem = BlockKit(style, deploy).block(3, channels, 2)
    return {_OLDER_NAMES.sub("", "." + name): tuple(value.shape) for name, value in _learned(stem).items()}


def _found_stem(kept: Mapping[str, tuple[str, Shape]]) -> dict[str, Shape]:
    found = {}
    for name, (_, shape) in kept.items():
        match = re.match(r"backbone\.(stem|conv_0)(\..*)", name)
        if match and not _CONSTANT.fullmatch(name):
            found[_OLDER_NAMES.sub("", match[2])] = shape
    return found


def _learned(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict().items() if not _CONSTANT.fullmatch("." + name)}


def _constants(model: Detector) -> dict[str, torch.Tensor]:
    """The bins 0, 1, … of the box distribution."""
    return {
        name: torch.arange(value.numel(), dtype=value.dtype).view(value.shape)
        for name, value in model.state_dict().items()
        if name.startswith("detect.proj")
    }


def _any(names: Mapping[str, object], part: str) -> bool:
    return any(part in name for name in names)


# --- comparing with one architecture ---------------------------------------------------------------------------------


def _join(kept: Mapping[str, tuple[str, Shape]], model: Detector) -> dict[str, str]:
    """The file's name of each entry of the model, by today's name or by the one of the first releases."""
    entries = {}
    for name in model.state_dict():
        for alias in (name, _OLDER_NAMES.sub("", name)):
            if alias in kept:
                entries[name] = kept[alias][0]
                break
    return entries


def _renamed(entries: Mapping[str, str]) -> bool:
    """Whether the file has names of the first releases; an architecture that fits without renaming goes first."""
    return any(not found.endswith(name) for name, found in entries.items())


def _differences(kept: Mapping[str, tuple[str, Shape]], model: Detector, entries: Mapping[str, str]) -> list[str]:
    shapes = dict(kept.values())
    problems = []
    for name, value in model.state_dict().items():
        if name not in entries:
            if not _CONSTANT.fullmatch(name):
                problems.append(f"{name} {tuple(value.shape)} is missing")
        elif shapes[entries[name]] != tuple(value.shape):
            problems.append(f"{name} is {shapes[entries[name]]} instead of {tuple(value.shape)}")
    joined = set(entries.values())
    problems += [f"{name} {shape} is left over" for name, shape in kept.values() if name not in joined]
    return problems


def _mismatches(modules: Mapping[str, str], model: Detector) -> int:
    """Activations and average poolings whose class differs at one path, or averages that only one side has."""
    count = 0
    for path, module in model.named_modules():
        kind = f"{type(module).__module__}.{type(module).__name__}"
        recorded = modules.get(path, "")
        both = _CHOICES.fullmatch(kind) and _CHOICES.fullmatch(recorded)
        averages = "AvgPool2d" in (type(module).__name__, recorded.rpartition(".")[2])
        count += bool(modules) and kind != recorded and bool(both or averages)
    paths = dict(model.named_modules())
    return count + sum(path not in paths for path, kind in modules.items() if kind.endswith(".AvgPool2d"))


def _no_fit(differences: list[tuple[int, ModelSpec, bool, list[str]]], named: bool) -> CheckpointError:
    count, spec, deploy, problems = min(differences, key=lambda difference: difference[0])
    closest = f"{spec.name} with {spec.num_classes} classes{' (fused)' if deploy else ''}"
    return CheckpointError(
        f"the weights are not those of {spec.name}" if named else "the weights fit no known architecture",
        found=f"against {closest}, {count} entries differ: {'; '.join(problems[:4])}{' …' if count > 4 else ''}",
        fix="give unchanged weights of a published YOLOv6 model" + (", or another name" if named else ""),
    )


def _choice_notes(best: Recovery, others: list[Recovery]) -> list[str]:
    notes = []
    if best.deploy:
        notes.append("the weights are fused already")
    if _renamed(best.entries):
        notes.append("the entries have the names of the first releases of YOLOv6 and were renamed")
    names = [found.spec.name for found in others if not (best.deploy and _same_when_fused(found.spec, best.spec))]
    if names:
        notes.append(
            f"taken as {best.spec.name}; the entries of {', '.join(names)} are equal (name it if it is one of them)"
        )
    return notes


def _same_when_fused(one: Any, other: Any) -> bool:
    """Whether two specs with equal fused entries also compute the same: all but the plain convolution styles do."""
    return not (one.style.startswith("conv_") or other.style.startswith("conv_"))
