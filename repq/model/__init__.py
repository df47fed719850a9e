"""Detectors of any family: specs as data, the networks built from them, and their checkpoints. Names load on use."""

from typing import TYPE_CHECKING

from repq.lazy import lazy_names

if TYPE_CHECKING:
    from repq.model.algebra import Affine, BranchScales, Fold, Foldable, Plain, Searched, conv_and_norm
    from repq.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from repq.model.detector import Detector, TrainOutput, build, count_macs, counting_macs, layer_ids, outline
    from repq.model.families import FAMILIES, family_named, get_spec, model_names, read_spec, recover, search_and_target
    from repq.model.family import Family, Recovery, Spec
    from repq.model.onnx_graph.opening import load_graph

_HOMES = {
    "algebra": ("Affine", "BranchScales", "Fold", "Foldable", "Plain", "Searched", "conv_and_norm"),
    "checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
    "detector": ("Detector", "TrainOutput", "build", "count_macs", "counting_macs", "layer_ids", "outline"),
    "families": ("FAMILIES", "family_named", "get_spec", "model_names", "read_spec", "recover", "search_and_target"),
    "onnx_graph.opening": ("load_graph",),
    "family": ("Family", "Recovery", "Spec"),
}

__all__ = [
    "FAMILIES",
    "Affine",
    "BranchScales",
    "Checkpoint",
    "Detector",
    "Family",
    "Fold",
    "Foldable",
    "Plain",
    "Recovery",
    "Searched",
    "Spec",
    "TrainOutput",
    "build",
    "conv_and_norm",
    "count_macs",
    "counting_macs",
    "family_named",
    "get_spec",
    "layer_ids",
    "load_checkpoint",
    "load_graph",
    "model_names",
    "outline",
    "read_spec",
    "recover",
    "save_checkpoint",
    "search_and_target",
]

__getattr__ = lazy_names(__name__, {name: f"repq.model.{home}" for home, names in _HOMES.items() for name in names})
