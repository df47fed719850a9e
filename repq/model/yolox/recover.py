"""Finds the YOLOX architecture of a state dict from the names and shapes of its entries alone."""

from __future__ import annotations

from repq.errors import CheckpointError
from repq.model.detector import known_outline
from repq.model.family import Recovery, Shapes
from repq.model.yolox.specs import ACTIVATIONS, YoloxSpec, find_spec, model_names, split_options

_TELLING = "head.cls_preds.0.bias"
_BACKBONE = "backbone.backbone.stem."
_COUNTER = "num_batches_tracked"


def recover(shapes: Shapes, name: str | None) -> Recovery | None:
    """See `repq.model.families.recover`; None where nothing of a YOLOX model is found.

    Raises:
        CheckpointError: it is one, but its entries fit none exactly; the message names the closest.
    """
    prefix = next((entry[: entry.index(_TELLING)] for entry in shapes if entry.endswith(_TELLING)), None)
    if prefix is None:
        _demand_head(shapes)
        return None
    kept = {entry.removeprefix(prefix): tuple(shape) for entry, shape in shapes.items() if entry.startswith(prefix)}
    of_classes = kept[_TELLING]
    if "head.obj_preds.0.bias" not in kept or len(of_classes) != 1 or not 1 <= of_classes[0] <= 100_000:
        return None
    differences: list[tuple[int, YoloxSpec, list[str]]] = []
    for spec in _candidates(name, of_classes[0], kept):
        for deploy in (False, True):
            model = {entry: tuple(value.shape) for entry, value in known_outline(spec, deploy).state_dict().items()}
            problems = _differences(kept, model)
            if not problems:
                entries = {entry: prefix + entry for entry in model if entry in kept}
                return Recovery(spec, deploy, entries, _notes(spec, name, deploy))
            differences.append((len(problems), spec, problems))
    count, spec, problems = min(differences, key=lambda difference: difference[0])
    raise CheckpointError(
        f"the weights are not those of {spec.name}" if name else "the weights fit no known architecture",
        found=f"against {spec.name} with {spec.num_classes} classes, {count} entries differ: "
        f"{'; '.join(problems[:4])}{' …' if count > 4 else ''}",
        fix="give unchanged weights of a YOLOX model" + (", or another name" if name else ""),
    )


def _demand_head(shapes: Shapes) -> None:
    """Refuse a backbone alone: it looks like a whole file to whoever saved it."""
    if any(_BACKBONE in entry for entry in shapes) and not any(".cls_preds." in entry for entry in shapes):
        raise CheckpointError(
            "these are the weights of a backbone without a head",
            found=f"{len(shapes)} entries, none of head.cls_preds",
            fix="give the checkpoint of the whole detector",
        )


def _candidates(name: str | None, num_classes: int, kept: Shapes) -> list[YoloxSpec]:
    """The named spec, or those whose stem has the file's channels; of equal entries the published activation's."""
    names = [name] if name else [each for each in model_names() if split_options(each)[1] <= {"coupled", "nmsfree"}]
    specs = [spec for each in names if (spec := find_spec(each, num_classes)) is not None]
    width = kept.get("head.stems.0.conv.weight", (0,))[0]
    return [spec for spec in specs if spec.head_channels == width] or specs


def _differences(kept: Shapes, model: Shapes) -> list[str]:
    problems = [
        f"{entry} {shape} is missing" if entry not in kept else f"{entry} is {kept[entry]} instead of {shape}"
        for entry, shape in model.items()
        if kept.get(entry) != shape and not (entry not in kept and entry.endswith(_COUNTER))
    ]
    return problems + [f"{entry} {shape} is left over" for entry, shape in kept.items() if entry not in model]


def _notes(spec: YoloxSpec, name: str | None, deploy: bool) -> tuple[str, ...]:
    notes = ["the weights are fused already"] if deploy else []
    if name is None:
        alike = " and ".join(f"{spec.name}_{activation}" for activation in ACTIVATIONS)
        notes.append(f"taken for {spec.name} with {spec.activation}, as published; those of {alike} look the same")
    return (*notes, "taken for BGR in 0..255; weights from before release 0.1.1rc0 need the preset yolox-legacy")
