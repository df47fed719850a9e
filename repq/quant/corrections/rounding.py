"""Adaptive rounding: each weight up or down, whichever gives the layer the smaller error on real inputs.

Rounding each weight to the nearest integer minimizes its own error, not that of the layer's output, in which errors of
weights with correlated inputs add up or cancel. To second order the output's error is (AdaRound, Nagel et al., "Up or
down? Adaptive rounding for post-training quantization", 2020, section 3.2)

    E |(W_q - W) x|^2 = sum over rows of e H e^T,        H = E[x x^T]

with ``x`` the patches that the quantized model feeds to the layer. Each weight has two choices, its floor and its
ceiling, which makes it a binary quadratic problem. The paper relaxes it and runs gradient descent on every layer; here
it is solved by coordinate descent from the nearest rounding: one weight of all rows at a time, changed in the rows
where that lowers the error,

    change of the error for e_j -> e_j + d:   2 d (e H)_j + d^2 H_jj

This costs about as much as a few gradient steps, has no settings to tune, and never ends above nearest rounding. A
small multiple of the mean of H's diagonal is added to the diagonal, so that directions which the images did not show
keep the nearest rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repq.layers import LayerId
from repq.model.weighted import Matrix, output_axis
from repq.progress import Progress, silent
from repq.quant.convolution import QuantConv2d, QuantMatrix
from repq.quant.state import quantized_layers

Rounded = QuantConv2d | QuantMatrix
Values = NDArray[np.float32]

POSITIONS = 256
"""Output positions of an image that a layer is fitted on, drawn at random."""

DAMPING = 0.01
SWEEPS = 3
GRAM_BYTES = 512 * 2**20
"""Memory for the matrices H: layers are done in groups that fit, with one pass over the images for each group."""


@torch.no_grad()
def adapt_rounding(model: nn.Module, batches: Sequence[Tensor], *, seed: int = 0, progress: Progress = silent) -> None:
    """Round the weights of all quantized layers anew, in place: weights become multiples of their scales.

    Transposed convolutions and split weights are left as they are.

    Args:
        model: calibrated.
        batches: network inputs (B, 3, H, W).
    """
    layers = {
        name: layer
        for name, layer in quantized_layers(model).items()
        if isinstance(layer, Rounded) and layer.fine_quantizer is None
    }
    groups = list(_groups(layers))
    work = progress(groups, total=len(groups), label="adaptive rounding")
    for names in work:
        grams = input_grams(model, {name: layers[name] for name in names}, batches, seed)
        for name in names:
            layer = layers[name]
            assert layer.weight_quantizer.scale is not None, "a calibrated model"
            axis = output_axis(layer)
            rounded = best_rounding(layer.weight.movedim(axis, 0), layer.weight_quantizer.scale, grams.pop(name))
            layer.weight.data = rounded.movedim(0, axis).contiguous()


def input_grams(
    model: nn.Module, layers: dict[LayerId, Rounded], batches: Sequence[Tensor], seed: int
) -> dict[LayerId, Tensor]:
    """``H = sum x x^T`` over sampled patches of each layer's quantized input; (groups, D, D), D weights per row."""
    grams: dict[LayerId, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_pre_hook(_adder(name, grams, generator)))
        for images in batches:
            model(images)
    return grams


def best_rounding(weight: Tensor, scale: Tensor, gram: Tensor) -> Tensor:
    """Multiples of ``scale`` next to ``weight`` that minimize the layer's error.

    Args:
        weight: (C_out, C_in / groups, k, k), or (C_out, C_in).
        scale: (C_out,), or one for all.
        gram: (groups, D, D), D = C_in / groups * k * k, or C_in.
    """
    rows = weight.detach().reshape(len(gram), -1, gram.shape[-1])  # (groups, rows, D)
    steps = scale.expand(len(weight)).view(len(gram), -1, 1)
    exact = rows / steps
    nearest = exact.round().clamp(-128, 127)
    other = (nearest + (exact - nearest).sign()).clamp(-128, 127)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    damped = gram + torch.diag_embed((DAMPING * diagonal.mean(1, keepdim=True)).expand_as(diagonal))
    damped_diagonal = damped.diagonal(dim1=1, dim2=2)
    slope, moves = (nearest * steps - rows) @ damped, (other - nearest) * steps
    flipped = _descend(*(part.cpu().numpy() for part in (slope, moves, damped, damped_diagonal)))
    current = torch.where(torch.from_numpy(flipped).to(weight.device), other, nearest)
    return (current * steps).reshape(weight.shape)


def _descend(slope: Values, moves: Values, gram: Values, diagonal: Values) -> NDArray[np.bool_]:
    """Coordinate descent; which weights end at their other choice, (groups, rows, D).

    In NumPy, wherever the model is: each step is a few operations on some dozen rows.

    Args:
        slope: half the gradient of the error, (groups, rows, D); written to.
        moves: from each weight's present choice to the other one, (groups, rows, D).
        gram, diagonal: of the damped matrix, (groups, D, D) and (groups, D).
    """
    moves = np.ascontiguousarray(np.moveaxis(moves, -1, 0))
    flipped = np.zeros(moves.shape, np.bool_)
    for _ in range(SWEEPS):
        changed = False
        for j, (move, at_other) in enumerate(zip(moves, flipped, strict=True)):
            better = np.nonzero(move * (2 * slope[..., j] + move * diagonal[:, None, j]) < 0)
            if not len(better[0]):
                continue
            changed = True
            slope[better] += move[better][:, None] * gram[better[0], j]
            move[better], at_other[better] = -move[better], ~at_other[better]
        if not changed:
            break
    return np.moveaxis(flipped, 0, -1)


def _groups(layers: dict[LayerId, Rounded]) -> Iterator[list[LayerId]]:
    group: list[LayerId] = []
    used = 0
    for name, layer in layers.items():
        groups = 1 if isinstance(layer, Matrix) else layer.groups
        size = 4 * groups * (layer.weight.numel() // layer.out_channels) ** 2
        if group and used + size > GRAM_BYTES:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


def _adder(name: LayerId, grams: dict[LayerId, Tensor], generator: torch.Generator) -> Any:
    def hook(module: Rounded, inputs: tuple[Tensor, ...]) -> None:
        patches = _patches(module, inputs[0], generator)
        x = module.input_quantizer(patches.flatten(1)[None, :, None])  # channels where a scale for each is looked for
        x = x.reshape(1 if isinstance(module, Matrix) else module.groups, -1, patches.shape[-1])
        if name in grams:
            grams[name].baddbmm_(x, x.transpose(1, 2))
        else:
            grams[name] = x @ x.transpose(1, 2)

    return hook


def _patches(layer: Rounded, x: Tensor, generator: torch.Generator) -> Tensor:
    """What a layer multiplies with its weight, at positions drawn for each image: (C, kernel places, positions)."""
    if isinstance(layer, Matrix):
        images = x if x.ndim > 2 else x[None]
        return torch.cat([sampled_rows(image, generator) for image in images]).t()[:, None]
    return torch.stack([sampled_patches(image, layer, generator) for image in x], dim=2).flatten(2)


def sampled_patches(image: Tensor, conv: nn.Conv2d, generator: torch.Generator) -> Tensor:
    """What a convolution sees of one image at output positions drawn at random, with zeros around it.

    Only those patches are gathered: a matrix of all of them is several times as large as the image.

    Args:
        image: (C, H, W).

    Returns:
        (C, kernel height * width, positions), at most ``POSITIONS`` of them.
    """
    assert not isinstance(conv.padding, str), "a fused model"
    (down, across), (high, wide), (step_y, step_x) = conv.padding, conv.kernel_size, conv.dilation
    channels, height, width = image.shape
    rows = 1 + (height + 2 * down - step_y * (high - 1) - 1) // conv.stride[0]
    columns = 1 + (width + 2 * across - step_x * (wide - 1) - 1) // conv.stride[1]
    chosen = torch.randperm(rows * columns, generator=generator)[:POSITIONS].numpy()
    row, column = chosen // columns * conv.stride[0] - down, chosen % columns * conv.stride[1] - across
    y = np.repeat(np.arange(high) * step_y, wide)[:, None] + row
    x = np.tile(np.arange(wide) * step_x, high)[:, None] + column
    places = torch.from_numpy(y.clip(0, height - 1) * width + x.clip(0, width - 1)).to(image.device)
    pixels = image.permute(1, 2, 0).reshape(-1, channels)  # lie as they are with the channels last
    found = pixels.index_select(0, places.flatten()).t().reshape(channels, *places.shape)
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    return found.masked_fill_(torch.from_numpy(outside).to(image.device), 0) if outside.any() else found


def sampled_rows(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rows (positions, C) of a tensor (…, C) drawn at random, at most ``POSITIONS`` of them."""
    rows = x.reshape(-1, x.shape[-1])
    return rows[torch.randperm(len(rows), generator=generator)[:POSITIONS].to(x.device)]
