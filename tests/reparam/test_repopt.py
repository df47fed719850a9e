"""RepOptimizer: the algebra of the multipliers, the theorem, the official numbers, and files of scales."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from repq.errors import CheckpointError
from repq.layers import LayerId
from repq.model import Detector, build, load_checkpoint
from repq.model.yolov6.blocks import LinearAddBlock, RealVGGBlock
from repq.reparam import fuse
from repq.reparam.repopt import (
    BranchScales,
    RepAdamW,
    RepScales,
    RepSGD,
    branch_factors,
    build_rep_optimizer,
    extract_scales,
    gradient_multiplier,
    load_scales,
    matched,
    merged_kernel,
    reinitialize,
    save_scales,
)
from repq.train.optimizer import parameter_groups
from repq.train.state import optimizer_tensors, restore_optimizer

SEARCH, TARGET = "yolov6n_v2_hs", "yolov6n_v2_opt"
DECAY, MOMENTUM = 2e-3, 0.937


@pytest.fixture(autouse=True)
def _default_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def searched() -> Detector:
    """A hyper-search model with scales away from one, of either sign."""
    model = build(SEARCH, 3)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "scale_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def random_scales(channels: int, *, bypass: bool, seed: int) -> BranchScales:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, channels, generator=generator, dtype=torch.float64)
    return BranchScales(values[0], values[1], values[2] if bypass else None)


# --- multipliers and kernels -----------------------------------------------------------------------------------------


@given(channels=st.integers(1, 6), inputs=st.integers(1, 6), bypass=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_multiplier_equals_the_paper_entry_by_entry(channels: int, inputs: int, bypass: bool, seed: int) -> None:
    inputs = channels if bypass else inputs
    scales = random_scales(channels, bypass=bypass, seed=seed)
    multiplier = gradient_multiplier(torch.zeros(channels, inputs, 3, 3, dtype=torch.float64), scales)
    for o, i, y, x in np.ndindex(*multiplier.shape):
        centre = y == x == 1
        expected = scales.conv[o] ** 2 + centre * scales.point[o] ** 2 + (bypass and centre and o == i)
        assert multiplier[o, i, y, x].item() == pytest.approx(float(expected), rel=1e-15)


def test_multiplier_is_the_change_of_the_merged_kernel_along_its_gradient() -> None:
    # independent of the paper's table: autograd through the branches gives J J^T G, and J J^T is diagonal
    channels = 4
    scales = random_scales(channels, bypass=True, seed=3)
    gradient = torch.randn(channels, channels, 3, 3, dtype=torch.float64)

    def merge(conv: Tensor, point: Tensor, bypass: Tensor) -> Tensor:
        kernel = scales.conv.view(-1, 1, 1, 1) * conv
        kernel = kernel + nn.functional.pad(scales.point.view(-1, 1, 1, 1) * point, (1,) * 4)
        return kernel + nn.functional.pad(torch.diag(bypass)[:, :, None, None], (1,) * 4)

    at = (torch.randn(4, 4, 3, 3).double(), torch.randn(4, 4, 1, 1).double(), torch.randn(4).double())
    _, back = torch.func.vjp(merge, *at)
    _, change = torch.func.jvp(merge, at, back(gradient))
    torch.testing.assert_close(gradient_multiplier(gradient, scales) * gradient, change, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("bypass", [False, True])
def test_multiplier_follows_the_kernel_and_sums_squared_factors(bypass: bool) -> None:
    kernel = torch.zeros(5, 5, 3, 3).to(memory_format=torch.channels_last)
    scales = random_scales(5, bypass=bypass, seed=1)
    multiplier = gradient_multiplier(kernel, scales)
    assert multiplier.dtype == kernel.dtype and multiplier.stride() == kernel.stride()
    factors = [factor.expand_as(kernel) for factor in branch_factors(kernel, scales)]
    assert len(factors) == 2 + bypass
    torch.testing.assert_close(multiplier, torch.stack(factors).square().sum(0), rtol=1e-6, atol=0)


def test_merged_kernels_compute_what_the_branches_compute(searched: Detector) -> None:
    search = copy.deepcopy(searched).double()
    target = twin(search)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    # in training mode every block sees its own batch statistics; float64 leaves only summation order
    for found, expected in zip(target(images).features, search(images).features, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def twin(search: Detector) -> Detector:
    """The plain model that starts where a hyper-search model stands."""
    target = build(TARGET, search.spec.num_classes).to(next(search.parameters()).dtype)
    state = {name: value for name, value in search.state_dict().items() if name in target.state_dict()}
    target.load_state_dict(state, strict=True)
    for layer, block, scales in matched(target, extract_scales(search)):
        branches = search.get_submodule(layer.removesuffix(".conv"))
        block.conv.weight.data = merged_kernel(branches.conv.weight, branches.conv_1x1.weight, scales)
    return target.train()


def test_reinitialization_is_a_merged_start(searched: Detector) -> None:
    scales = extract_scales(searched)
    target = build(TARGET, 3).double()
    fresh = {layer: block.conv.weight.detach().clone() for layer, block, _ in matched(target, scales)}
    reinitialize(target, scales, seed=5)
    again = build(TARGET, 3).double()
    again.load_state_dict({**again.state_dict(), **{f"{layer}.weight": value for layer, value in fresh.items()}})
    reinitialize(again, scales, seed=5)
    for layer, block, own in matched(target, scales):
        kernel, before = block.conv.weight.detach(), fresh[layer]
        assert torch.equal(kernel, again.get_submodule(layer).weight)
        rest = kernel - merged_kernel(before, torch.zeros_like(before[..., :1, :1]), own)
        point = rest[..., 1, 1] / own.point[:, None]  # the drawn 1x1 kernel
        assert torch.count_nonzero(rest) == torch.count_nonzero(rest[..., 1, 1])
        bound = before.shape[1] ** -0.5  # nn.Conv2d draws uniformly within 1 / sqrt(fan in)
        assert point.abs().max() <= bound * (1 + 1e-6)
        assert point.std().item() == pytest.approx(bound / 3**0.5, rel=0.3 if point.numel() < 200 else 0.1)


def test_reinitialization_draws_by_seed(searched: Detector) -> None:
    models = [build(TARGET, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for seed, model in enumerate(models):
        reinitialize(model, extract_scales(searched), seed)
    stems = [model.backbone.stem.conv.weight for model in models]
    assert torch.equal(stems[0][..., 0, 0], stems[1][..., 0, 0])
    assert not torch.equal(stems[0][..., 1, 1], stems[1][..., 1, 1])


# --- the theorem -----------------------------------------------------------------------------------------------------

SHAPES = {
    "plain": [(3, 5, 1)],
    "stride 2": [(3, 5, 2)],
    "equal channels, stride 2": [(4, 4, 2)],
    "bypass": [(4, 4, 1)],
    "network": [(3, 6, 2), (6, 6, 1), (6, 6, 1), (6, 4, 2)],
}


class Pair:
    """A branch network whose scales are constant, and the plain network that starts where it starts; float64."""

    def __init__(self, shapes: list[tuple[int, int, int]], seed: int) -> None:
        torch.manual_seed(seed)
        self.branches = nn.Sequential(*(LinearAddBlock(*shape) for shape in shapes)).double()
        self.plain = nn.Sequential(*(RealVGGBlock(*shape) for shape in shapes)).double()
        self.scales: dict[Tensor, BranchScales] = {}
        for number, (block, target) in enumerate(self.blocks()):
            own = random_scales(block.out_channels, bypass=block.has_identity, seed=100 * seed + number)
            for layer, value in zip(self.scale_layers(block), (own.conv, own.point, own.identity), strict=False):
                layer.weight.data = value.clone()
            target.conv.weight.data = self.merged(block)
            self.scales[target.conv.weight] = own
        self.inputs = torch.randn(50, 4, shapes[0][0], 8, 8, dtype=torch.float64)
        self.goal = torch.randn_like(self.plain(self.inputs[0]).detach())
        self.start = [self.merged(block) for block, _ in self.blocks()]

    def blocks(self) -> Iterator[tuple[LinearAddBlock, RealVGGBlock]]:
        yield from zip(self.branches, self.plain, strict=True)

    @staticmethod
    def scale_layers(block: LinearAddBlock) -> list[nn.Module]:
        return [block.scale_conv, block.scale_1x1, *([block.scale_identity] if block.has_identity else [])]

    @staticmethod
    def merged(block: LinearAddBlock) -> Tensor:
        identity = None if block.scale_identity is None else block.scale_identity.weight
        scales = BranchScales(block.scale_conv.weight, block.scale_1x1.weight, identity)
        return merged_kernel(block.conv.weight, block.conv_1x1.weight, scales)

    def branch_groups(self) -> list[dict[str, Any]]:
        """3x3 and 1x1 kernels and the bypass factor train and decay; the scales of both kernels are constant."""
        decaying = [
            weight
            for block, _ in self.blocks()
            for weight in (block.conv.weight, block.conv_1x1.weight, *(s.weight for s in self.scale_layers(block)[2:]))
        ]
        norms = [parameter for block, _ in self.blocks() for parameter in block.bn.parameters()]
        return [{"params": decaying, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}]

    def plain_groups(self) -> list[dict[str, Any]]:
        norms = [parameter for _, block in self.blocks() for parameter in block.bn.parameters()]
        return [{"params": list(self.scales), "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}]

    def train(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for images in self.inputs:
            optimizer.zero_grad()
            (network(images) - self.goal).square().mean().backward()
            optimizer.step()

    def error(self) -> float:
        """The largest difference of kernels, relative to the largest entry; batch norms must agree as well."""
        errors = []
        for block, target in self.blocks():
            kernel = self.merged(block)
            errors.append(((target.conv.weight - kernel).abs().max() / kernel.abs().max()).item())
            norms = zip(block.bn.parameters(), target.bn.parameters(), strict=True)
            errors += [(ours - theirs).abs().max().item() for ours, theirs in norms]
        return max(errors)

    def way(self) -> float:
        """How far the branches' merged kernels moved, the laziest of them."""
        moved = zip(self.blocks(), self.start, strict=True)
        return min((self.merged(block) - start).abs().max().item() for (block, _), start in moved)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (MOMENTUM, True)])
def test_fifty_steps_of_sgd_equal_the_branch_model(
    shapes: list[tuple[int, int, int]], seed: int, momentum: float, nesterov: bool
) -> None:
    pair = Pair(shapes, seed)
    options = {"lr": 0.01, "momentum": momentum, "nesterov": nesterov}
    pair.train(pair.branches, torch.optim.SGD(pair.branch_groups(), **options))
    pair.train(pair.plain, RepSGD(pair.plain_groups(), pair.scales, **options))
    assert pair.way() > 1e-3
    assert pair.error() < 1e-12  # float64 rounding over 50 steps: 1e-15 in practice


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_fifty_steps_of_adamw_equal_the_branch_model(shapes: list[tuple[int, int, int]], seed: int) -> None:
    pair = Pair(shapes, seed)
    pair.train(pair.branches, torch.optim.AdamW(pair.branch_groups(), lr=1e-3))
    pair.train(pair.plain, RepAdamW(pair.plain_groups(), pair.scales, lr=1e-3))
    assert pair.way() > 1e-3
    assert pair.error() < 1e-12  # with eps in the right place; the same rounding as above


def test_without_multipliers_the_models_part() -> None:
    pair = Pair(SHAPES["network"], 0)
    pair.train(pair.branches, torch.optim.SGD(pair.branch_groups(), lr=0.01))
    pair.train(pair.plain, torch.optim.SGD(pair.plain_groups(), lr=0.01))
    assert pair.error() > 1e-3


def test_adamw_does_not_see_a_multiplied_gradient() -> None:
    # why RepAdamW works on the update: the moments of M G are M m and M^2 v, and M cancels in M m / sqrt(M^2 v)
    kernels = [nn.Parameter(torch.ones(4, 4, 3, 3, dtype=torch.float64)) for _ in range(2)]
    multiplier = gradient_multiplier(kernels[0].detach(), random_scales(4, bypass=True, seed=2))
    optimizers = [torch.optim.AdamW([kernel], eps=1e-30) for kernel in kernels]
    for _ in range(5):
        kernels[0].grad = torch.randn_like(kernels[0])
        kernels[1].grad = kernels[0].grad * multiplier
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(kernels[0], kernels[1], rtol=1e-13, atol=0)


def test_a_whole_detector_follows_its_hyper_search_twin(searched: Detector) -> None:
    search = copy.deepcopy(searched).double().train()
    target, scales = twin(search), extract_scales(search)
    for block in search.modules():
        if isinstance(block, LinearAddBlock):
            block.scale_conv.requires_grad_(False)
            block.scale_1x1.requires_grad_(False)
    start = convolutions(target)
    # a bypass factor is no kernel, so it would not decay: leave decay out
    plain = torch.optim.SGD(parameter_groups(search, 0.0), lr=0.01, momentum=MOMENTUM, nesterov=True)
    groups = parameter_groups(target, 0.0)
    rep = build_rep_optimizer(target, scales, groups, learning_rate=0.01, momentum=MOMENTUM)
    for _ in range(3):
        images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
        for model, optimizer in ((search, plain), (target, rep)):
            optimizer.zero_grad()
            output = model(images)
            (output.scores.square().mean() + output.distances.square().mean()).backward()
            optimizer.step()
    expected, found = convolutions(search), convolutions(target)
    assert expected.keys() == found.keys()
    for layer, kernel in expected.items():
        size = kernel.abs().max().item()
        assert (found[layer] - start[layer]).abs().max() > 1e-7 * size, f"{layer} did not move"
        torch.testing.assert_close(
            found[layer], kernel, rtol=0, atol=1e-10 * size, msg=lambda m, at=layer: f"{at}: {m}"
        )


def convolutions(model: Detector) -> dict[str, Tensor]:
    """The kernels of the fused model, by path; a block's kernel by the path of the block."""
    return {
        name.removesuffix(".rbr_reparam").removesuffix(".conv"): module.weight.detach()
        for name, module in fuse(model).named_modules()
        if isinstance(module, nn.Conv2d)
    }


# --- the official numbers --------------------------------------------------------------------------------------------


def golden_fill(model: Detector) -> None:
    """Fill every entry from its own name (the rule of the reference material)."""
    for name, value in model.state_dict().items():
        leaf, shape = name.rpartition(".")[2], tuple(value.shape)
        if name.endswith(("num_batches_tracked", "proj", "proj_conv.weight")):
            continue
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if leaf == "running_var":
            filled = rng.uniform(0.5, 1.5, shape)
        elif leaf in ("running_mean", "bias"):
            filled = rng.normal(0, 0.1, shape)
        elif len(shape) == 1:
            filled = rng.uniform(0.3, 0.9, shape)
        else:
            filled = rng.normal(0, np.sqrt(1 / np.prod(shape[1:])), shape)
        value.copy_(torch.from_numpy(filled))


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden/repopt_steps_yolov6n.json").read_text())


@pytest.fixture(scope="module")
def golden_models() -> tuple[Detector, Detector]:
    models = build(SEARCH, 3), build(TARGET, 3)
    for model in models:
        golden_fill(model)
    return models


def test_multipliers_equal_the_official_ones(golden: dict[str, Any], golden_models: tuple[Detector, Detector]) -> None:
    search, target = golden_models
    found = [
        gradient_multiplier(block.conv.weight.detach().double(), scales).sum().item()
        for _, block, scales in matched(target, extract_scales(search))
    ]
    np.testing.assert_allclose(found, golden["gradient_mask_sums"], rtol=1e-7)  # theirs were summed in float32


def test_three_steps_equal_the_official_ones(golden: dict[str, Any], golden_models: tuple[Detector, Detector]) -> None:
    search, target = golden_models
    assert golden["nesterov"]
    optimizer = build_rep_optimizer(
        target,
        extract_scales(search),
        parameter_groups(target, golden["weight_decay"]),
        learning_rate=golden["lr"],
        momentum=golden["momentum"],
    )
    for step in range(3):
        for name, parameter in target.named_parameters():
            if parameter.requires_grad:
                rng = np.random.default_rng(zlib.crc32(f"{name}:{step}".encode()))
                parameter.grad = torch.from_numpy(rng.normal(0, 0.01, tuple(parameter.shape))).float()
        optimizer.step()
    state = target.state_dict()
    for name, expected in golden["after_3_steps"].items():
        value = state[name].double()
        found = [value.sum(), value.abs().sum(), value.flatten()[0], value.flatten()[-1]]
        # a sum may cancel, and an entry may be near zero: each is measured against the size of its terms
        sizes = np.array(
            [expected[1], expected[1], *[max(abs(entry), value.abs().mean().item()) for entry in expected[2:]]]
        )
        error = np.abs(np.array([float(entry) for entry in found]) - expected) / np.maximum(sizes, 1e-12)
        assert error.max() < 1e-5, f"{name}: {error}"


# --- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_resumes_to_the_same_bits(kind: Any, tmp_path: Path) -> None:
    scales = random_scales(4, bypass=True, seed=4)
    gradients = torch.randn(8, 4, 4, 3, 3)

    def start() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        kernel = nn.Parameter(torch.linspace(-1, 1, 144).view(4, 4, 3, 3))
        groups = [{"name": "kernels", "params": [kernel], "weight_decay": DECAY}]
        if kind == "adamw":
            return kernel, RepAdamW(groups, {kernel: scales}, lr=0.01)
        return kernel, RepSGD(groups, {kernel: scales}, lr=0.01, momentum=MOMENTUM, nesterov=True)

    def run(kernel: nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            kernel.grad = gradients[step].clone()
            optimizer.step()

    unbroken, optimizer = start()
    run(unbroken, optimizer, range(8))
    broken, optimizer = start()
    run(broken, optimizer, range(4))
    save_file({name: value.contiguous() for name, value in optimizer_tensors(optimizer).items()}, tmp_path / "state")
    resumed, optimizer = start()
    resumed.data = broken.data.clone()
    restore_optimizer(optimizer, load_file(tmp_path / "state"))
    run(resumed, optimizer, range(4, 8))
    assert not torch.equal(broken, unbroken)
    assert torch.equal(resumed, unbroken)


@pytest.mark.parametrize("kind", [RepSGD, RepAdamW])
def test_steps_with_a_closure_and_without_a_gradient(kind: Any) -> None:
    idle = nn.Parameter(torch.ones(2, 2, 3, 3))
    kernels = [nn.Parameter(torch.ones(2, 2, 3, 3)) for _ in range(2)]
    scales = random_scales(2, bypass=True, seed=1)
    with_closure, without = (kind([{"params": [k, idle]}], {k: scales, idle: scales}, lr=0.1) for k in kernels)

    def closure() -> Tensor:
        loss = kernels[0].square().sum()
        loss.backward()
        return loss

    assert with_closure.step(closure).item() == 36
    kernels[1].square().sum().backward()
    assert without.step() is None
    assert torch.equal(*kernels) and not torch.equal(kernels[0], idle)
    assert torch.equal(idle, torch.ones_like(idle))


def test_chooses_the_optimizer(searched: Detector) -> None:
    target, scales = build(TARGET, 3), extract_scales(searched)

    def groups() -> list[dict[str, Any]]:  # an optimizer fills in the groups that it is given
        return parameter_groups(target, DECAY)

    sgd = build_rep_optimizer(target, scales, groups(), learning_rate=0.01, momentum=MOMENTUM)
    adamw = build_rep_optimizer(target, scales, groups(), kind="adamw", learning_rate=1e-3, momentum=0.9)
    assert isinstance(sgd, RepSGD) and isinstance(adamw, RepAdamW)
    assert [group["weight_decay"] for group in sgd.param_groups] == [DECAY, 0.0, 0.0]
    assert all(group["nesterov"] and group["momentum"] == MOMENTUM for group in sgd.param_groups)
    assert all(group["betas"] == (0.9, 0.999) and group["lr"] == 1e-3 for group in adamw.param_groups)
    assert len(sgd.multipliers) == len(adamw.factors) == len(scales.blocks)


# --- files of scales -------------------------------------------------------------------------------------------------


def equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b is None or (a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b))


def test_scales_round_trip(searched: Detector, tmp_path: Path) -> None:
    scales = extract_scales(searched)
    save_scales(tmp_path / "new" / "scales.safetensors", scales)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scales.safetensors"]
    read = load_scales(tmp_path / "new" / "scales.safetensors")
    assert read.model == SEARCH and read.blocks.keys() == scales.blocks.keys()
    for layer, block in scales.blocks.items():
        other = read.blocks[layer]
        assert equal(block.conv, other.conv) and equal(block.point, other.point)
        assert equal(block.identity, other.identity)


def test_scales_are_a_copy(searched: Detector) -> None:
    model = copy.deepcopy(searched)
    scales = extract_scales(model)
    before = scales.blocks[STEM].conv.clone()
    model.backbone.stem.scale_conv.weight.data.zero_()
    assert torch.equal(scales.blocks[STEM].conv, before)


def test_real_hyper_search_fits_its_target(shared: Path) -> None:
    scales = extract_scales(load_checkpoint(shared / "checkpoints/yolov6n_bccd_hs.pt").model)
    target = load_checkpoint(shared / "checkpoints/yolov6n_bccd_repopt.pt").model
    assert len(list(matched(target, scales))) == 35


STEM, BYPASS = LayerId("backbone.stem.conv"), LayerId("backbone.ERBlock_2.1.conv1.conv")


def changed(scales: RepScales, layer: str, block: BranchScales | None) -> RepScales:
    blocks = {name: own for name, own in scales.blocks.items() if name != layer}
    return RepScales(scales.model, blocks if block is None else {**blocks, LayerId(layer): block})


@pytest.mark.parametrize(
    ("layer", "block", "found"),
    [
        (STEM, None, "no scales for this block"),
        (STEM, BranchScales(torch.ones(8), torch.ones(8)), "scales of 8 channels for a block of 16"),
        (STEM, BranchScales(torch.ones(16), torch.ones(16), torch.ones(16)), "a bypass scale for a block without one"),
        (STEM, BranchScales(torch.ones(16), torch.ones(1)), "scale_1x1 has 1 channels"),
        (STEM, BranchScales(torch.ones(16), torch.full((16,), torch.nan)), "not finite"),
        (BYPASS, BranchScales(torch.ones(32), torch.ones(32)), "scales without a bypass for a block with one"),
        ("backbone.other.conv", BranchScales(torch.ones(8), torch.ones(8)), "the model has no such block"),
    ],
)
def test_scales_of_another_model_are_refused_by_name(
    searched: Detector, layer: str, block: BranchScales | None, found: str
) -> None:
    target, scales = build(TARGET, 3), changed(extract_scales(searched), layer, block)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(CheckpointError) as refused:
        build_rep_optimizer(target, scales, parameter_groups(target, DECAY), learning_rate=0.01, momentum=0.9)
    assert refused.value.found is not None
    assert refused.value.found.startswith(f"{layer}: ") and found in refused.value.found
    with pytest.raises(CheckpointError):
        reinitialize(target, scales, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_the_first_block_that_differs_is_named(searched: Detector) -> None:
    with torch.device("meta"):
        larger = build("yolov6s_v2_opt", 3)
    with pytest.raises(CheckpointError, match=r"backbone\.stem\.conv: scales of 16 channels for a block of 32"):
        matched(larger, extract_scales(searched))


def test_only_plain_models_take_scales_and_only_search_models_have_them(searched: Detector) -> None:
    scales = extract_scales(searched)
    with torch.device("meta"):
        others = [build("yolov6n_v2"), build(SEARCH), build(TARGET, deploy=True)]
        for model in others:
            with pytest.raises(CheckpointError, match="_opt"):
                matched(model, scales)
        for model in (build("yolov6n_v2"), build(TARGET), build(SEARCH, deploy=True)):
            with pytest.raises(CheckpointError, match="_hs"):
                extract_scales(model)


def test_scales_that_are_not_finite_are_not_extracted(searched: Detector) -> None:
    model = copy.deepcopy(searched)
    model.backbone.stem.scale_1x1.weight.data[0] = torch.inf
    with pytest.raises(CheckpointError, match=r"backbone\.stem\.conv: scale_1x1 has values that are not finite"):
        extract_scales(model)


OWN = {"format": "repq-branch-scales-1", "model": SEARCH}


@pytest.mark.parametrize(
    ("tensors", "header", "found"),
    [
        ({"a.scale_conv": torch.ones(2), "a.scale_1x1": torch.ones(2)}, {"format": "other"}, "the format 'other'"),
        ({"a.scale_conv": torch.ones(2), "a.scale_1x1": torch.ones(2)}, None, "the format None"),
        ({"a.scale_conv": torch.ones(2)}, OWN, "a has the entries scale_conv"),
        ({"a.scale_conv": torch.ones(2), "a.scale_1x1": torch.ones(2), "a.bias": torch.ones(2)}, OWN, "bias"),
        ({"a.scale_conv": torch.ones(2), "a.scale_1x1": torch.ones(3)}, OWN, "a: scale_1x1 has 3 channels"),
        ({"a.scale_conv": torch.ones(2, 1), "a.scale_1x1": torch.ones(2)}, OWN, "a: scale_conv is torch.float32 of"),
        ({"a.scale_conv": torch.ones(2).int(), "a.scale_1x1": torch.ones(2)}, OWN, "a: scale_conv is torch.int32"),
        ({}, OWN, "no block"),
    ],
)
def test_other_files_are_refused(tensors: Any, header: dict[str, str] | None, found: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "scales", metadata=header)
    with pytest.raises(CheckpointError, match="cannot read branch scales") as refused:
        load_scales(tmp_path / "scales")
    assert refused.value.found is not None and found in refused.value.found


def test_absent_and_truncated_files_are_refused(searched: Detector, tmp_path: Path) -> None:
    path = tmp_path / "scales"
    with pytest.raises(CheckpointError):
        load_scales(path)
    save_scales(path, extract_scales(searched))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError):
        load_scales(path)


def test_a_failed_save_leaves_nothing(searched: Detector, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "scales").mkdir(parents=True)
    for path in (tmp_path / "file" / "scales", tmp_path / "folder" / "scales"):
        with pytest.raises(CheckpointError, match="cannot write"):
            save_scales(path, extract_scales(searched))
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["scales"]
