"""Fusing: algebra against the branches it replaces, whole models, and the proof."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from repq.errors import ToleranceError
from repq.model import (
    Detector,
    build,
    get_spec,
    layer_ids,
    load_checkpoint,
    save_checkpoint,
)
from repq.model.algebra import (
    Affine,
    after_batch_norm,
    average_affine,
    conv_affine,
    identity_affine,
    scaled,
    total,
    widened,
)
from repq.model.yolov6.specs import ModelSpec
from repq.reparam import folded_blocks, fuse, fuse_with_proof

STYLES = ("repvgg", "qarepvgg", "qarepvggv2", "hyper_search", "repopt", "conv_relu", "conv_silu")
NAMES = ("yolov6n", "yolov6n_v2", "yolov6m", "yolov6s_mbla", "yolov6n6")


def randomize(model: nn.Module, seed: int, decades: float = 3.0) -> None:
    """Batch-norm statistics with scales of either sign and variances over some decades, and random factors."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.weight.shape
            like = {"generator": generator, "dtype": module.weight.dtype}
            module.weight.data = torch.randn(shape, **like)
            module.bias.data = torch.randn(shape, **like)
            module.running_mean = torch.randn(shape, **like)
            module.running_var = 10 ** ((torch.rand(shape, **like) - 0.5) * decades)
    for name, parameter in model.named_parameters():
        # the predictors start with zero weights, and factors at one: both would hide errors before them
        if "scale_" in name or name.endswith("alpha") or "_preds." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def small(name: str, style: str) -> ModelSpec:
    """The layout of a published model with few channels and blocks."""
    spec = get_spec(name, 2)
    return replace(
        spec,
        style=style,  # type: ignore[arg-type]
        backbone_channels=tuple(8 * (i + 1) for i in range(len(spec.backbone_channels))),
        backbone_repeats=tuple(min(repeats, 4) for repeats in spec.backbone_repeats),
        top_down_channels=tuple(8 for _ in spec.top_down_channels),
        bottom_up_channels=tuple(16 for _ in spec.bottom_up_channels),
        neck_repeats=tuple(min(repeats, 4) for repeats in spec.neck_repeats),
    )


def trained(spec: ModelSpec | str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Detector:
    """A random model; in FP32 a tame one, whose activations do not grow until rounding decides everything."""
    torch.manual_seed(seed)
    model = build(spec).to(dtype).eval()
    randomize(model, seed, decades=3.0 if dtype == torch.float64 else 0.3)
    return model


def images(size: int = 64, count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(9), dtype=dtype)


def entries_equal(one: Detector, other: Detector) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[entry], second[entry]) for entry in first)


# --- algebra ---------------------------------------------------------------------------------------------------------


def run(affine: Affine, x: Tensor, groups: int, stride: int = 1) -> Tensor:
    return nn.functional.conv2d(x, *affine, stride, affine.weight.shape[-1] // 2, groups=groups)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.sampled_from([1, 3]), st.integers(0, 10**6))
def test_branches_add_up(groups: int, stride: int, size: int, seed: int) -> None:
    """Every branch on its own and all together, for grouped and strided convolutions; exact up to float64 rounding."""
    torch.manual_seed(seed)
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    conv = nn.Conv2d(8, 8, size, stride, size // 2, groups=groups).double()
    norm = nn.BatchNorm2d(8, eps=1e-3).double().eval()
    randomize(norm, seed)
    factor = torch.randn(8, dtype=torch.float64)

    dense = after_batch_norm(conv_affine(conv), norm)
    torch.testing.assert_close(run(dense, x, groups, stride), norm(conv(x)))
    weighted = scaled(conv_affine(conv), factor)
    torch.testing.assert_close(run(weighted, x, groups, stride), conv(x) * factor.view(1, -1, 1, 1))
    torch.testing.assert_close(run(widened(dense, 3), x, groups, stride), norm(conv(x)))
    bypass = identity_affine(8, groups, x.device)
    torch.testing.assert_close(run(bypass, x, groups), x)
    mean = average_affine(8, groups, 3, x.device)
    torch.testing.assert_close(run(mean, x, groups), nn.functional.avg_pool2d(x, 3, 1, 1))
    everything = total(dense, weighted, bypass, mean)
    expected = sum(run(branch, x, groups, stride) for branch in (dense, weighted, bypass, mean))
    torch.testing.assert_close(run(everything, x, groups, stride), expected)


# --- whole models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_fused_equals_unfused(name: str, style: str) -> None:
    model = trained(small(name, style), seed=len(name) + len(style))
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    x = images()
    with torch.no_grad():
        # float64 leaves only rounding: any mistake in the algebra is many orders larger
        torch.testing.assert_close(fused(x), model(x), rtol=1e-8, atol=1e-8)
    assert fused.deploy
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert all(torch.equal(value, before[entry]) for entry, value in model.state_dict().items())


def test_lite_fuses() -> None:
    model = trained("yolov6lite_s")
    with torch.no_grad():
        torch.testing.assert_close(fuse(model)(images()), model(images()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("style", STYLES)
def test_fused_twice_is_fused_once_and_survives_a_file(tmp_path: Path, style: str) -> None:
    fused = fuse(trained(small("yolov6n_v2", style), dtype=torch.float32))
    again = fuse(fused)
    assert entries_equal(again, fused)
    assert again is not fused
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(again.parameters(), fused.parameters(), strict=True))
    save_checkpoint(tmp_path / "fused.safetensors", fused)
    assert entries_equal(load_checkpoint(tmp_path / "fused.safetensors").model, fused)


def test_every_folded_layer_is_a_layer_of_the_fused_model() -> None:
    for name in ("yolov6n_v2_hs", "yolov6n", "yolov6lite_s"):
        model = build(name, 2)
        folded = [block.layer for block in folded_blocks(model)]
        layers = layer_ids(fuse(model))
        assert len(set(folded)) == len(folded)
        assert set(folded) <= set(layers)
        # what is left has no batch norm: predictors, transposed convolutions, squeeze and excitation
        rest = set(layers) - set(folded)
        assert all(any(part in layer for part in ("_preds.", "upsample_transpose", ".se.")) for layer in rest)


def test_training_mode_of_the_input_does_not_matter() -> None:
    model = trained(small("yolov6n_v2", "repvgg"))
    model.train()
    fused, _ = fuse_with_proof(model, images(), 1e-6)
    assert model.training
    assert all(module.training for module in model.modules())
    assert not fused.training
    with torch.no_grad():
        torch.testing.assert_close(fused(images()), model.eval()(images()), rtol=1e-8, atol=1e-8)


# --- proof -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_proof_has_a_small_error_for_every_block(style: str) -> None:
    model = trained(small("yolov6n", style), dtype=torch.float32)
    _, report = fuse_with_proof(model, images(count=5, dtype=torch.float32), 1e-4)
    folded = list(folded_blocks(model))
    assert [row.layer for row in report.blocks] == [block.layer for block in folded]
    assert report.images == 5
    # FP32 rounding is below 1e-6 of the range for one block and for the whole of this network
    assert 0 < report.max_rel_error < 1e-5
    for row, block in zip(report.blocks, folded, strict=True):
        assert 0 <= row.max_rel_error < 1e-5
        assert row.weight_range_before == (
            min(kernel.min().item() for kernel in block.kernels),
            max(kernel.max().item() for kernel in block.kernels),
        )
    assert not any(module._forward_hooks for module in model.modules())


def test_proof_of_a_fused_model_is_empty() -> None:
    fused = fuse(trained(small("yolov6n", "repvgg")))
    again, report = fuse_with_proof(fused, images(), 1e-9)
    assert (report.blocks, report.max_abs_error, report.max_rel_error) == ((), 0.0, 0.0)
    assert entries_equal(again, fused)


def test_proof_names_the_block_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(small("yolov6n", "repvgg"), dtype=torch.float32)
    place = "neck.Rep_p4.conv1"

    def spoiled(source: Detector, blocks: list) -> Detector:  # type: ignore[type-arg]
        fused = assemble(source, blocks)
        fused.get_submodule(f"{place}.rbr_reparam").weight.data *= 1.1
        return fused

    from repq.reparam import proof
    from repq.reparam.fuse import assemble

    monkeypatch.setattr(proof, "assemble", spoiled)
    with pytest.raises(ToleranceError, match=rf"output of {place}\b"):
        fuse_with_proof(model, images(dtype=torch.float32), 1e-4)


def test_proof_does_not_accept_what_is_not_a_number() -> None:
    model = trained(small("yolov6n_v2", "repvgg"), dtype=torch.float32)
    model.backbone.stem.rbr_dense.bn.running_var.fill_(float("nan"))
    with pytest.raises(ToleranceError):
        fuse_with_proof(model, images(dtype=torch.float32), 1e-4)


@pytest.mark.parametrize(
    ("file", "folder", "size", "rows"),
    [
        ("yolov6lite_s_coco", "coco128/images/val2017", 320, 118),
        ("yolov6n_bccd_repvgg", "bccd/images/val", 256, 50),
        ("yolov6n_bccd_hs", "bccd/images/val", 256, 50),
        ("yolov6n_bccd_repopt", "bccd/images/val", 256, 50),
    ],
)
def test_shared_checkpoints_on_real_images(shared: Path, file: str, folder: str, size: int, rows: int) -> None:
    paths = sorted((shared / "data" / folder).glob("*.jpg"))[:2]
    pixels = np.stack([cv2.resize(cv2.imread(str(path)), (size, size))[..., ::-1] for path in paths])
    real = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    _, report = fuse_with_proof(load_checkpoint(shared / "checkpoints" / f"{file}.pt").model, real, 1e-3)
    assert len(report.blocks) == rows
    # FP32 rounding of one block is about 1e-6 of its range; through the whole network it grows tenfold or more
    assert all(row.max_rel_error < 1e-5 for row in report.blocks)
    assert report.max_rel_error < 2e-4
