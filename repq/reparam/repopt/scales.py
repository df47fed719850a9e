"""The product of hyper-search: the scale of every branch of every block, as values and as a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError, safe_open
from torch import Tensor

from repq.errors import CheckpointError
from repq.layers import LayerId
from repq.model import BranchScales, Detector, Plain, Searched, family_named
from repq.model.tensorfile import write_tensors

FORMAT = "repq-branch-scales-1"
_ENTRIES = {"scale_conv": "conv", "scale_1x1": "point", "scale_identity": "identity"}


@dataclass(frozen=True, eq=False)
class RepScales:
    """The scales of a whole model, for the plain model of the same layout that RepOptimizer trains.

    Attributes:
        model: name of the hyper-search model they come from.
        blocks: the convolution of the plain model that a block turns into (``backbone.stem.conv``) to its scales, in
            any order.
    """

    model: str
    blocks: Mapping[LayerId, BranchScales]


def has_scales(model: Detector) -> bool:
    """Whether a model is one of a hyper-search, from before fusing."""
    return not model.deploy and any(isinstance(module, Searched) for module in model.modules())


def takes_scales(model: Detector) -> bool:
    """Whether a model is one that RepOptimizer trains, from before fusing."""
    return not model.deploy and any(isinstance(module, Plain) for module in model.modules())


def search_and_target(model: Detector) -> tuple[str, str]:
    """Names of the hyper-search model and of the plain model of a model's layout, or words for them."""
    names = family_named(model.spec.family).rep_optimizer_names(model.spec.name)
    return names or ("a hyper-search model", "a model of plain blocks")


def extract_scales(model: Detector) -> RepScales:
    """Copy the scales out of a trained hyper-search model.

    Raises:
        CheckpointError: the model has no blocks with scales, is fused, or holds scales that are not finite.
    """
    if not has_scales(model):
        raise CheckpointError(
            "there are no branch scales in this model",
            found=_form(model),
            fix=f"give the checkpoint of a hyper-search ({search_and_target(model)[0]}) from before fusing",
        )
    blocks = {
        LayerId(f"{path}.conv"): BranchScales(
            *(value.detach().cpu().clone() for value in block.branch_scales().named().values())
        )
        for path, block in model.named_modules()
        if isinstance(block, Searched)
    }
    for layer, scales in blocks.items():
        if scales.problem:
            raise CheckpointError(
                "the branch scales of this model cannot be used",
                found=f"{layer}: {scales.problem}",
                fix="take an earlier checkpoint of the hyper-search",
            )
    return RepScales(model.spec.name, blocks)


def _form(model: Detector) -> str:
    return model.spec.name + (", fused" if model.deploy else "")


def matched(model: Detector, scales: RepScales) -> Iterator[tuple[LayerId, Plain, BranchScales]]:
    """The plain blocks of a model, each with its scales, in module order. Checks all before it gives the first.

    Raises:
        CheckpointError: the scales do not fit the model; the message names the first block that differs.
    """
    if not takes_scales(model):
        raise CheckpointError(
            "branch scales cannot guide the training of this model",
            found=_form(model),
            fix=f"train {search_and_target(model)[1]}",
        )
    targets = {LayerId(f"{path}.conv"): block for path, block in model.named_modules() if isinstance(block, Plain)}
    for layer, block in targets.items():
        found = _misfit(block, scales.blocks.get(layer))
        if found:
            _refuse(model, scales, layer, found)
    for layer in scales.blocks:
        if layer not in targets:
            _refuse(model, scales, layer, "the model has no such block")
    return ((layer, block, scales.blocks[layer]) for layer, block in targets.items())


def _misfit(block: Plain, scales: BranchScales | None) -> str | None:
    """How the scales differ from what a plain block needs, if they do."""
    if scales is None:
        return "no scales for this block"
    conv = block.conv
    if scales.channels != conv.out_channels:
        return f"scales of {scales.channels} channels for a block of {conv.out_channels}"
    bypass = conv.in_channels == conv.out_channels and conv.stride == (1, 1)
    if bypass != (scales.identity is not None):
        return "scales without a bypass for a block with one" if bypass else "a bypass scale for a block without one"
    return scales.problem


def _refuse(model: Detector, scales: RepScales, layer: LayerId, found: str) -> NoReturn:
    fix = f"take the scales of a hyper-search of {search_and_target(model)[0]}"
    what = f"the scales of {scales.model} do not fit {model.spec.name}"
    raise CheckpointError(what, found=f"{layer}: {found}", fix=fix)


def save_scales(path: Path, scales: RepScales) -> None:
    """Write scales as safetensors, atomically; ``load_scales`` reads them back bit for bit.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {
        f"{layer}.{entry}": value.contiguous()
        for layer, block in scales.blocks.items()
        for entry, value in block.named().items()
    }
    try:
        write_tensors(path, tensors, {"format": FORMAT, "model": scales.model})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}", found=str(error), fix="check the folder and its space") from None


def load_scales(path: Path) -> RepScales:
    """Read what ``save_scales`` wrote.

    Raises:
        CheckpointError: the file is absent, damaged, or no file of scales.
    """
    entries: dict[LayerId, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"the format {header.get('format')!r}, not {FORMAT!r}")
            for key in file.keys():  # noqa: SIM118 (no mapping)
                layer, _, entry = key.rpartition(".")
                entries.setdefault(LayerId(layer), {})[entry] = file.get_tensor(key)
        blocks = {layer: _block(layer, found) for layer, found in entries.items()}
        broken = [f"{layer}: {block.problem}" for layer, block in blocks.items() if block.problem]
        if broken or not blocks:
            raise ValueError(broken[0] if broken else "no block at all")
        return RepScales(header.get("model", "an unnamed model"), blocks)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"cannot read branch scales from {path}",
            found=str(error),
            fix="give the scales file that a hyper-search training wrote",
        ) from None


def _block(layer: str, entries: Mapping[str, Tensor]) -> BranchScales:
    """The scales of one block from its entries in a file."""
    if not {"scale_conv", "scale_1x1"} <= entries.keys() <= _ENTRIES.keys():
        raise ValueError(f"{layer} has the entries {', '.join(sorted(entries))}; known are {', '.join(_ENTRIES)}")
    return BranchScales(**{_ENTRIES[entry]: value for entry, value in entries.items()})
