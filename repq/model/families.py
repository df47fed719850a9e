"""The families of detectors that repq knows, and how to find the one that a name or a file belongs to.

Importing this module loads no torch.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from repq.errors import CheckpointError, RepqError
from repq.model.family import Family, Recovery, Shapes, Spec
from repq.model.onnx_graph import OnnxGraph
from repq.model.yolov6 import YoloV6
from repq.model.yolox import Yolox

FAMILIES: list[Family] = [YoloV6(), Yolox(), OnnxGraph()]


def family_named(name: str) -> Family:
    """The family of a spec.

    Raises:
        RepqError: there is none of that name.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise RepqError(f"there is no family of detectors named {name!r}", found=known, fix="update repq")


def search_and_target(spec: Spec) -> tuple[str, str]:
    """Names of the hyper-search model and of the plain model of a model's layout, or words for them."""
    names = family_named(spec.family).rep_optimizer_names(spec.name)
    return names or ("a hyper-search model", "a model of plain blocks")


def training_settings(name: Any) -> dict[str, Any]:
    """The settings of training that a named model was published with, where they are not the usual ones."""
    families = (family for family in FAMILIES if isinstance(name, str) and family.spec(name, 1) is not None)
    return next((family.training(name) for family in families), {})


def model_names() -> tuple[str, ...]:
    """Every name that ``get_spec`` takes, family by family."""
    return tuple(name for family in FAMILIES for name in family.model_names())


def get_spec(name: str, num_classes: int = 80) -> Any:
    """The spec of a named model, an object of its family's ``spec_type``.

    Raises:
        RepqError: the name is unknown (the message names the closest ones) or ``num_classes`` is below one.
    """
    if num_classes < 1:
        raise RepqError(f"{name} needs at least one class", found=str(num_classes), fix="give num_classes of 1 or more")
    for family in FAMILIES:
        spec = family.spec(name, num_classes)
        if spec is not None:
            return spec
    close = difflib.get_close_matches(name, model_names(), n=4, cutoff=0.0)
    raise RepqError(
        f"there is no model named {name!r}",
        found=f"the closest names are {', '.join(close)}",
        fix="use one of these names",
    )


def read_spec(text: str) -> Spec:
    """Read what ``Spec.to_json`` wrote. Specs from before families have no name of one: they are of the first.

    Raises:
        RepqError: the text is no model description, or of an unknown family.
    """
    try:
        family = json.loads(text).get("family", FAMILIES[0].name)
    except (ValueError, AttributeError):
        family = FAMILIES[0].name
    return family_named(family).spec_type.from_json(text)


def recover(shapes: Shapes, name: str | None = None, modules: Mapping[str, str] | None = None) -> Recovery:
    """Recognise a state dict; names and shapes must fit one architecture of a family exactly.

    Args:
        shapes: the shape of every entry by name.
        name: the architecture to take, instead of looking for it.
        modules: class names by module path where the file holds them (``{"backbone.stem.block.act":
            "torch.nn.modules.activation.SiLU"}``); they decide between architectures whose entries are equal.

    Raises:
        CheckpointError: nothing fits; the message names the closest architecture and the first differences.
        RepqError: ``name`` is no known architecture.
    """
    families = FAMILIES if name is None else [family_named(get_spec(name, 1).family)]
    for family in families:
        found = family.recover(shapes, name, modules or {})
        if found is not None:
            return found
    known = ", ".join(family.name for family in families)
    examples = ", ".join(list(shapes)[:3]) or "none"
    raise CheckpointError(
        "these are no weights of a known detector",
        found=f"{len(shapes)} tensors that no family ({known}) knows, the first: {examples}",
        fix="give a checkpoint of such a model's training, or its state dict",
    )
