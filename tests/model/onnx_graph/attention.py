"""A small detector with attention, written in torch and exported by torch."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from detectors import CLASSES, SIZE, cells
from onnx import ModelProto
from torch import Tensor, nn

WIDTH, HEADS = 32, 2


class Attention(nn.Module):
    """Tokens (B, N, C): attention and a perceptron, each added to what it reads, with normalization before."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)  # MatMul
        self.out = nn.Linear(WIDTH, WIDTH)  # MatMul and Add
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)  # Gemm, on rows (B N, C)

    def forward(self, x: Tensor) -> Tensor:
        images, count, _ = x.shape
        qkv = self.qkv(self.norms[0](x)).reshape(images, count, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()
        weights = (q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(images, count, WIDTH))
        rows = self.norms[1](x).reshape(images * count, WIDTH)
        return x + self.narrow(torch.relu(self.wide(rows))).reshape(x.shape)


class Detector(nn.Module):
    """Outputs in the layout ``yolov5``: (B, N, 5 + classes), in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(
                layer
                for into, out in ((3, 8), (8, 16), (16, 16))
                for layer in (nn.Conv2d(into, out, 3, 2, 1), nn.ReLU())
            )
        )
        self.down = nn.Conv2d(16, WIDTH, 3, 2, 1)
        self.attention = Attention()
        self.heads = nn.ModuleList(nn.Conv2d(channels, 5 + CLASSES, 1) for channels in (16, WIDTH))
        centres, strides = cells()
        self.register_buffer("centres", torch.tensor(centres, dtype=torch.float32))
        self.register_buffer("strides", torch.tensor(strides, dtype=torch.float32))
        for layer in (*self.stem, self.down, *self.attention.modules()):  # as drawn by default, tokens hardly differ
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        coarse = self.down(fine)
        tokens = self.attention(coarse.flatten(2).transpose(1, 2))
        coarse = tokens.transpose(1, 2).reshape(coarse.shape)
        rows = torch.cat([head(x).flatten(2) for head, x in zip(self.heads, (fine, coarse), strict=True)], 2).transpose(
            1, 2
        )
        xy, wh = (rows[..., :2] + self.centres) * self.strides, rows[..., 2:4].clamp(max=4).exp() * self.strides
        return torch.cat((xy, wh, rows[..., 4:].sigmoid()), 2)


@cache
def _exported() -> ModelProto:
    torch.manual_seed(0)
    model = Detector().eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (torch.rand(1, 3, SIZE, SIZE),), dynamo=True, opset_version=18, input_names=["images"],
            output_names=["output"], verbose=False,
        )  # fmt: skip
    assert program is not None
    found: ModelProto = program.model_proto
    return found


def exported(opset: int = 18) -> ModelProto:
    """The graph of one image. Its operators mean the same in opset 17 to 23."""
    model = ModelProto()
    model.CopyFrom(_exported())
    model.opset_import[0].version = opset
    return model
