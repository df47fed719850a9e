"""Reads and writes detectors: official checkpoints, plain state dicts, and repq's own safetensors form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from repq.errors import CheckpointError, RepqError, reason
from repq.model.detector import Detector, outline
from repq.model.families import read_spec, recover
from repq.model.family import Recovery
from repq.model.pickled import Node, StoredTensor
from repq.model.tensorfile import read_tensors, write_tensors
from repq.model.torchfile import TorchFile, open_torch_file

FORMAT_VERSION = "1"
_PREFIX = "repq."
_EXTRA = "extra."
_MAX_MODULES, _MAX_PATH = 20_000, 500


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A detector from a file.

    Attributes:
        model: the detector with FP32 weights, in eval mode.
        names: class names, where the file holds them.
        notes: what was dropped, chosen or converted on the way in.
        metadata: further text of a file that repq wrote.
        extra: further tensors of a file that repq wrote.
    """

    model: Detector
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def spec(self) -> Any:
        """The architecture, a `repq.model.Spec` of the model's family."""
        return self.model.spec


def load_checkpoint(path: Path | str, name: str | None = None) -> Checkpoint:
    """Read a detector; nothing in the file is run, and the code it was made with is not needed.

    Takes an official checkpoint (pickled modules; the EMA weights where there are any), a state dict that torch saved
    (bare, or under ``model``, ``ema`` or ``state_dict``), and safetensors. Architecture, class count and class names
    are recovered from the file.

    Args:
        path: the file.
        name: the architecture, for weights that several fit; it must fit.

    Raises:
        CheckpointError: the file cannot be read, is truncated, names anything but modules and tensors, or fits no
            known architecture.
        RepqError: ``name`` is unknown.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}", found=reason(error), fix="check the path and its permissions"
        ) from None
    if head[8:] == b"{":
        return _load_safetensors(path, name)
    with open_torch_file(path) as opened:
        return _load_torch(path, opened, name)


def save_checkpoint(
    path: Path | str,
    model: Detector,
    *,
    names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a detector as safetensors; ``load_checkpoint`` reads it back bit for bit.

    The file appears at once and complete, or not at all.

    Args:
        path: the file to write; an existing one is replaced.
        model: any form, trained or fused; its entries are stored in their own type.
        names: class names, one per class.
        metadata: further text to keep.
        extra: further tensors to keep.

    Raises:
        CheckpointError: the file cannot be written, or the number of names is not that of the classes.
    """
    path = Path(path)
    if names is not None and len(names) != model.spec.num_classes:
        raise CheckpointError(
            f"cannot write {path}",
            found=f"{len(names)} class names for {model.spec.num_classes} classes",
            fix="give one name per class",
        )
    tensors = {entry: value.detach().cpu().contiguous() for entry, value in model.state_dict().items()}
    tensors |= {_EXTRA + entry: value.detach().cpu().contiguous() for entry, value in (extra or {}).items()}
    own = {"version": FORMAT_VERSION, "spec": model.spec.to_json(), "deploy": json.dumps(model.deploy)}
    if names is not None:
        own["names"] = json.dumps(list(names))
    header = dict(metadata or {}) | {_PREFIX + key: value for key, value in own.items()}
    try:
        write_tensors(path, tensors, header)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}", found=str(error), fix="check the folder and its space") from None


# --- safetensors -----------------------------------------------------------------------------------------------------


def _load_safetensors(path: Path, name: str | None) -> Checkpoint:
    try:
        header, tensors = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file", found=str(error), fix="copy or write it again"
        ) from None
    own = {key.removeprefix(_PREFIX): text for key, text in header.items() if key.startswith(_PREFIX)}
    metadata = {key: text for key, text in header.items() if not key.startswith(_PREFIX)}
    extra = {entry.removeprefix(_EXTRA): value for entry, value in tensors.items() if entry.startswith(_EXTRA)}
    tensors = {entry: value for entry, value in tensors.items() if not entry.startswith(_EXTRA)}
    if not own:
        recovery = _recover(path, tensors, name)
        return Checkpoint(_assemble(path, recovery, tensors), None, recovery.notes)
    if own.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has a format that this repq does not know",
            found=f"version {own.get('version')!r}, known is {FORMAT_VERSION!r}",
            fix="update repq, or write the file again with this one",
        )
    model = _declared(path, own, tensors)
    if name and model.spec.name != name:
        raise CheckpointError(
            f"{path} is not {name}", found=f"a file of {model.spec.name}", fix="leave the name out: the file has it"
        )
    names = _read_names(json.loads(own["names"]), model.spec.num_classes) if "names" in own else None
    return Checkpoint(_filled(path, model, tensors), names, (), metadata, extra)


def _declared(path: Path, own: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Detector:
    """The model, without numbers, that a file of repq's own declares, checked against its entries."""
    damaged = CheckpointError(
        f"{path} is damaged", found="its entries are not those of the model it declares", fix="write it again"
    )
    try:
        spec, deploy = read_spec(own["spec"]), json.loads(own["deploy"]) is True
        if spec.least_entries > len(tensors):
            raise damaged
        model = outline(spec, deploy)
        expected = {entry: value.shape for entry, value in model.state_dict().items()}
    except (RepqError, KeyError, ValueError, IndexError, RuntimeError, OverflowError):
        raise damaged from None
    if expected != {entry: value.shape for entry, value in tensors.items()}:
        raise damaged
    return model


# --- what torch.save wrote -------------------------------------------------------------------------------------------


def _load_torch(path: Path, opened: TorchFile, name: str | None) -> Checkpoint:
    weights, origin = _find_weights(path, opened.root)
    notes = [] if origin in ("", "model") else [f"took the weights under {origin!r}"]
    if isinstance(weights, Node):
        stored, nodes = _collect(path, weights)
    else:
        stored, nodes = weights, {}
    modules = {place: str(node.kind) for place, node in nodes.items()}
    recovery = _recover(path, stored, name, modules)
    tensors = {entry: opened.tensor(stored[entry]) for entry in recovery.entries.values()}
    root = opened.root if isinstance(opened.root, dict) else {}
    own_names = weights.state.get("names") if isinstance(weights, Node) else None
    names = _read_names(own_names or root.get("names"), recovery.spec.num_classes)
    model = _assemble(path, recovery, tensors)
    notes += _set_constants(model, nodes)
    dtypes = {value.dtype for value in tensors.values() if value.is_floating_point()} - {torch.float32}
    if dtypes:
        notes.append(f"converted {', '.join(sorted(str(dtype)[6:] for dtype in dtypes))} weights to float32")
    return Checkpoint(model, names, (*notes, *recovery.notes))


def _find_weights(path: Path, root: Any) -> tuple[Any, str]:
    """The module or state dict to take, and the key it lies under: EMA weights before the others."""
    found = root if isinstance(root, dict) else {}
    places = [("", root), *((key, found.get(key)) for key in ("ema", "model", "state_dict", "model_state_dict"))]
    for key, place in places:
        value = _unwrapped(place)
        if isinstance(value, Node) or _is_state_dict(value):
            return value, key
    keys = ", ".join(repr(key)[:40] for key in list(found)[:6])
    raise CheckpointError(
        f"{path} holds no weights",
        found=f"a mapping with the keys {keys}" if found else f"a value of type {type(root).__name__}",
        fix="give a checkpoint of a training or torch.save(model.state_dict(), …)",
    )


def _unwrapped(value: Any) -> Any:
    """The module inside a DataParallel wrapper, and any other value as it is."""
    if isinstance(value, Node) and value.kind.name in ("DataParallel", "DistributedDataParallel"):
        return _table(value, "_modules").get("module")
    return value


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and isinstance(item, StoredTensor) for key, item in value.items())
    )


def _collect(path: Path, root: Node) -> tuple[dict[str, StoredTensor], dict[str, Node]]:
    """State-dict entries of a pickled module tree and its modules, by path."""
    entries: dict[str, StoredTensor] = {}
    nodes: dict[str, Node] = {}
    pending: list[tuple[str, Any]] = [("", root)]
    while pending:
        prefix, node = pending.pop()
        # a tree that contains itself has no end, and shared branches can double at every level
        if not isinstance(node, Node) or len(nodes) >= _MAX_MODULES or len(prefix) >= _MAX_PATH:
            raise CheckpointError(
                f"{path} was refused; nothing in it was run",
                found=f"{prefix[:80].rstrip('.') or 'its model'} is no tree of network modules",
                fix="save its weights with torch.save(model.state_dict(), …) and give that file",
            )
        nodes[prefix.rstrip(".")] = node
        passing = _table(node, "_non_persistent_buffers_set", set)
        for key, value in [*_table(node, "_parameters").items(), *_table(node, "_buffers").items()]:
            if isinstance(value, StoredTensor) and key not in passing:
                entries[f"{prefix}{key}"] = value
        children = _table(node, "_modules")
        pending += [(f"{prefix}{key}.", child) for key, child in reversed(children.items()) if child is not None]
    return entries, nodes


def _table(node: Node, attribute: str, kind: type = dict) -> Any:
    value = node.state.get(attribute)
    return value if isinstance(value, kind) else kind()


def _set_constants(model: Detector, nodes: Mapping[str, Node]) -> list[str]:
    """Keep each batch norm's own epsilon: var' = var + (eps - eps') gives the same outputs with the model's eps'."""
    changed = 0
    for place, module in model.named_modules():
        eps = nodes[place].state.get("eps") if place in nodes else None
        if isinstance(module, nn.BatchNorm2d) and isinstance(eps, float) and 0 <= eps < 1 and eps != module.eps:
            assert module.running_var is not None
            module.running_var += eps - module.eps
            changed += 1
    return [f"moved the epsilon of {changed} batch norms into their variances"] if changed else []


# --- shared ----------------------------------------------------------------------------------------------------------


def _recover(
    path: Path, entries: Mapping[str, Any], name: str | None, modules: Mapping[str, str] | None = None
) -> Recovery:
    shapes = {
        entry: value.size if isinstance(value, StoredTensor) else tuple(value.shape) for entry, value in entries.items()
    }
    try:
        return recover(shapes, name, modules)
    except CheckpointError as error:
        raise CheckpointError(f"cannot use {path}: {error.what}", found=error.found, fix=error.fix) from None


def _assemble(path: Path, recovery: Recovery, tensors: Mapping[str, Tensor]) -> Detector:
    model = outline(recovery.spec, recovery.deploy)
    state = {}
    for entry, expected in model.state_dict().items():
        if entry in recovery.entries:
            state[entry] = tensors[recovery.entries[entry]]
        else:  # a constant of the family, or a count of batches
            state[entry] = recovery.constants.get(entry, torch.zeros(expected.shape, dtype=expected.dtype))
    return _filled(path, model, state)


def _filled(path: Path, model: Detector, tensors: Mapping[str, Tensor]) -> Detector:
    """An outline with its numbers, in place; random first weights are never drawn."""
    state = {entry: tensors[entry].to(expected.dtype) for entry, expected in model.state_dict().items()}
    for entry, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(
                f"{path} holds weights that are not finite", found=entry, fix="take an earlier checkpoint"
            )
    model.load_state_dict(state, assign=True)
    return model.eval()


def _read_names(value: Any, num_classes: int) -> tuple[str, ...] | None:
    """Class names from a list or a mapping of index to name; None unless there is one text per class."""
    if isinstance(value, dict):
        value = [value.get(index) for index in range(num_classes)] if len(value) == num_classes else None
    if not isinstance(value, list | tuple) or len(value) != num_classes:
        return None
    return tuple(value) if all(isinstance(item, str) for item in value) else None
