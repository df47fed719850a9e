"""Convolutions, matrix products, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from repq.model.onnx_graph.operators.table import add, operator
from repq.model.onnx_graph.operators.windows import padded, window_pads

add(torch.matmul, "MatMul")

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@operator("Conv")
def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Sequence[int] = (),
    group: int = 1, kernel_shape: Sequence[int] = (), pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    space = weight.ndim - 2
    strides, dilations = strides or (1,) * space, dilations or (1,) * space
    edges = window_pads(x.shape[2:], weight.shape[2:], strides, dilations, pads, auto_pad)
    return _CONVOLUTIONS[space](padded(x, edges), weight, bias, strides, 0, dilations, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Sequence[int] = (),
    group: int = 1, kernel_shape: Sequence[int] = (), output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (), pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    space = weight.ndim - 2
    strides, dilations = strides or (1,) * space, dilations or (1,) * space
    extra = list(output_padding or (0,) * space)
    begins, ends = transposed_pads(
        x.shape[2:], weight.shape[2:], strides, dilations, pads, extra, output_shape, auto_pad
    )
    y = _TRANSPOSED[space](x, weight, None, strides, 0, 0, group, dilations)
    for axis, (begin, end, grown) in enumerate(zip(begins, ends, extra, strict=True), 2):
        size = y.shape[axis] + grown - begin - end
        missing = begin + size - y.shape[axis]  # rows that no input reaches
        if missing > 0:
            y = functional.pad(y, (0, 0) * (y.ndim - 1 - axis) + (0, missing))
        y = y.narrow(axis, begin, size)
    return y if bias is None else y + bias.view(1, -1, *(1,) * space)


def transposed_pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    pads: Sequence[int], extra: Sequence[int], output_shape: Sequence[int], auto_pad: str,
) -> tuple[list[int], list[int]]:  # fmt: skip
    """What a transposed convolution cuts off at both ends of each axis; `output_padding` is cut off less at the end."""
    space = len(kernel)
    if not output_shape and auto_pad in ("NOTSET", "VALID"):
        pads = pads or (0,) * (2 * space)
        return list(pads[:space]), list(pads[space:])
    begins: list[int] = []
    ends: list[int] = []
    for axis in range(space):
        full = strides[axis] * (sizes[axis] - 1) + (kernel[axis] - 1) * dilations[axis] + 1 + extra[axis]
        wanted = output_shape[axis - space] if output_shape else sizes[axis] * strides[axis]
        total = full - wanted  # below 0: rows are added at the end
        less = max(0, total) // 2
        begins.append(less if auto_pad == "SAME_UPPER" or total < 0 else total - less)
        ends.append(total - begins[-1])
    return begins, ends


@operator("Gemm")
def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
    transB: int = 0,
) -> Tensor:  # fmt: skip
    product = torch.matmul(a.T if transA else a, b.T if transB else b)
    product = product if alpha == 1 else product * alpha
    return product if c is None else product + (c if beta == 1 else c * beta)


@operator("Einsum")
def einsum(*tensors: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *tensors)


@operator("Attention", host=(6,))
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
    past_v: Tensor | None = None, nonpad: Any = None, *, is_causal: int = 0, kv_num_heads: int = 0,
    q_num_heads: int = 0, qk_matmul_output_mode: int = 0, scale: float | None = None, softcap: float = 0.0,
    softmax_precision: int | None = None, outputs: int = 1,
) -> Any:  # fmt: skip
    """Scaled dot-product attention of (B, heads, N, d), or of (B, N, heads d) with the numbers of heads given."""
    flat = q.ndim == 3
    if flat:
        q, k, v = (t.unflatten(-1, (n, -1)).transpose(1, 2)
                   for t, n in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads)))  # fmt: skip
    past: Any = 0 if past_k is None else past_k.shape[2]
    if past_k is not None and past_v is not None:
        k, v = torch.cat((past_k, k), 2), torch.cat((past_v, v), 2)
    present = (k, v)
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = raw = torch.matmul(q * scale**0.5, k.transpose(-1, -2) * scale**0.5)
    columns, hidden = torch.arange(k.shape[2], device=q.device), torch.zeros((), dtype=torch.bool, device=q.device)
    if nonpad is not None:
        known = torch.tensor(nonpad, device=q.device).view(-1, 1, 1, 1)
        past, hidden = known - q.shape[2], columns >= known
    if is_causal:
        hidden = hidden | (columns > torch.arange(q.shape[2], device=q.device)[:, None] + past)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    masked = logits.masked_fill(hidden, -torch.inf)
    if mask is not None:
        missing, unseen = k.shape[2] - mask.shape[-1], 0.0 if mask.dtype == torch.bool else -torch.inf
        mask = functional.pad(mask, (0, missing), value=unseen)
        masked = masked.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else masked + mask
    weights = torch.softmax(masked, -1)
    weights = torch.where(torch.isnan(weights), 0, weights)  # rows in which nothing may be seen
    y = torch.matmul(weights, v)
    shown = (raw, logits, masked, weights)[qk_matmul_output_mode]
    result = (y.transpose(1, 2).flatten(2) if flat else y, *present, shown)
    return result[:outputs] if outputs > 1 else result[0]
