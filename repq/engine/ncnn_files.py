"""NCNN's files: ``.param``, a text with one layer a line, and ``.bin``, their weights one after another.

Source: ncnn, "param and model file structure" and the ``load_model`` of each layer in ``src/layer``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repq.errors import EngineError

CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
_MAGIC = "7767517"
_TAGS: dict[np.dtype[Any], int] = {
    np.dtype(np.float32): 0,
    np.dtype(np.float16): 0x01306B47,
    np.dtype(np.int8): 0x000D4B38,
}
_TYPES = {tag: kind for kind, tag in _TAGS.items()}
_OUTPUTS, _BIAS, _WEIGHTS, _GROUPS, _INT8 = 0, 5, 6, 7, 8
_REQUANTIZED = 100
Parameters = Mapping[int, str]


@dataclass(frozen=True, eq=False)
class Layer:
    """A line of ``.param`` with its arrays of ``.bin``.

    Attributes:
        parameters: as written, by number.
        weights: in the order of the file, each flat; the first of a layer in ``CONVOLUTIONS`` is its kernel, in FP32,
            FP16 or INT8 (which the file says), all others are FP32.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Parameters = field(default_factory=dict)
    weights: tuple[NDArray[np.generic], ...] = ()

    def number(self, key: int, default: int = 0) -> int:
        return int(self.parameters.get(key, default))

    @property
    def channels(self) -> int:
        """Output channels of a convolution."""
        return self.number(_OUTPUTS)

    @property
    def one_to_one(self) -> bool:
        """Whether each output channel comes from one input channel of its own."""
        outputs, area = self.channels, self.number(1) * self.number(11, self.number(1))
        return self.number(_GROUPS, 1) == outputs and self.number(_WEIGHTS) == outputs * area

    @property
    def input_scale(self) -> float:
        """Of an INT8 layer."""
        return 1 / float(self.weights[-2 if self.requantized else -1][0])

    @property
    def int8(self) -> bool:
        return self.kind in CONVOLUTIONS and self.number(_INT8) != 0

    @property
    def requantized(self) -> bool:
        """Whether its result is INT8 too."""
        return self.int8 and self.number(_INT8) > _REQUANTIZED

    def quantized(self, integers: NDArray[np.int8], scales: NDArray[np.float32], scale: float) -> Layer:
        """The same convolution in INT8.

        Args:
            integers: the weight, in the order of the file.
            scales: of the weight, one per output channel or group.
            scale: of the input.
        """
        term = "2" if self.kind == "Convolution" else "1"
        parts = (integers.ravel(), *self.weights[1:], np.float32(1) / scales, _one(scale))
        return replace(self, parameters={**self.parameters, _INT8: term}, weights=parts)

    def requantizing(self, scale: float) -> Layer:
        """The same INT8 convolution with an INT8 result of this scale."""
        parameters = {**self.parameters, _INT8: str(self.number(_INT8) + _REQUANTIZED)}
        return replace(self, parameters=parameters, weights=(*self.weights, _one(scale)))


def _one(scale: float) -> NDArray[np.float32]:
    """A scale as the multiplier that NCNN wants."""
    return np.array([1 / scale], np.float32)


def _convolution(p: Parameters) -> list[int]:
    outputs, term = int(p[_OUTPUTS]), int(p.get(_INT8, 0))
    channels = int(p.get(_GROUPS, 1)) if term % _REQUANTIZED == 1 else outputs
    scales = [channels, 1] if term else []
    return [outputs] * int(p.get(_BIAS, 0)) + scales + [1] * (term > _REQUANTIZED)


def _memory(p: Parameters) -> list[int]:
    return [int(np.prod([max(int(p.get(key, 0)), 1) for key in (0, 1, 11, 2)]))]


_ARRAYS: dict[str, Callable[[Parameters], list[int]]] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    "InnerProduct": lambda p: [int(p[0])] * int(p.get(1, 0)),
    "MemoryData": _memory,
    "PReLU": lambda p: [int(p[0])],
    "BatchNorm": lambda p: [int(p[0])] * 4,
    "Scale": lambda p: [int(p[0])] * (1 + int(p.get(1, 0))),
}
"""Lengths of the FP32 arrays by the kind of a layer; a kind that is not here has none."""

_KERNELS = {**dict.fromkeys(CONVOLUTIONS, _WEIGHTS), "InnerProduct": 2}
"""The parameter that counts the elements of a kernel, which comes first and says its type."""


def read(param: str, data: bytes) -> tuple[Layer, ...]:
    """Read a network.

    Raises:
        EngineError: the text is no ``.param``, or the weights do not fit it.
    """
    try:
        magic, _, *lines = param.splitlines()
        if magic.strip() != _MAGIC:
            raise ValueError(f"it starts with {magic!r}")
        reader = _Reader(data)
        layers = tuple(_read_layer(line.split(), reader) for line in lines if line.strip())
        if reader.place != len(data):
            raise ValueError(f"{len(data) - reader.place} bytes of weights belong to no layer")
    except (ValueError, LookupError) as error:
        raise EngineError("this is no NCNN model that repq can read", found=f"{error}", fix="build it again") from None
    return layers


def _read_layer(words: Sequence[str], reader: _Reader) -> Layer:
    kind, name, ends = words[0], words[1], 4 + int(words[2])
    outputs = ends + int(words[3])
    parameters = {int(key): value for key, _, value in (word.partition("=") for word in words[outputs:])}
    weights = [reader.tagged(int(parameters[_KERNELS[kind]]))] if kind in _KERNELS else []
    weights += [reader.plain(np.dtype(np.float32), count) for count in _ARRAYS.get(kind, lambda _: [])(parameters)]
    return Layer(kind, name, tuple(words[4:ends]), tuple(words[ends:outputs]), parameters, tuple(weights))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def plain(self, kind: np.dtype[Any], count: int) -> NDArray[np.generic]:
        if count < 0 or self.place + count * kind.itemsize > len(self._data):
            raise ValueError(f"{len(self._data)} bytes of weights are too few")
        values = np.frombuffer(self._data, kind, count, self.place)
        self.place += -(-count * kind.itemsize // 4) * 4
        return values

    def tagged(self, count: int) -> NDArray[np.generic]:
        tag = int(self.plain(np.dtype(np.uint32), 1)[0])
        if tag not in _TYPES:
            raise ValueError(f"weights of the unknown type {tag:#x}")
        return self.plain(_TYPES[tag], count)


def write(layers: Sequence[Layer]) -> tuple[str, bytes]:
    """The texts of ``.param`` and the bytes of ``.bin``."""
    lines = [_MAGIC, f"{len(layers)} {sum(len(layer.outputs) for layer in layers)}"]
    data = bytearray()
    for layer in layers:
        values = (f"{key}={value}" for key, value in layer.parameters.items())
        ends = (f"{len(layer.inputs)} {len(layer.outputs)}", *layer.inputs, *layer.outputs, *values)
        lines.append(f"{layer.kind:<24} {layer.name:<24} {' '.join(ends)}")
        for index, array in enumerate(layer.weights):
            if index == 0 and layer.kind in _KERNELS:
                data += np.uint32(_TAGS[array.dtype]).tobytes()
            data += array.tobytes() + bytes(-array.nbytes % 4)
    return "\n".join(lines) + "\n", bytes(data)


def has_float16(layers: Sequence[Layer]) -> bool:
    """Whether any kernel is stored in FP16."""
    return any(layer.kind in _KERNELS and layer.weights[0].dtype == np.float16 for layer in layers)


def in_float16(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The same network with float kernels as FP16.

    Raises:
        EngineError: a weight is too large for it.
    """
    return tuple(_in_float16(layer) if layer.kind in _KERNELS else layer for layer in layers)


def _in_float16(layer: Layer) -> Layer:
    kernel, *others = layer.weights
    if kernel.dtype != np.float32:
        return layer
    if np.abs(kernel).max(initial=0) > np.finfo(np.float16).max:
        raise EngineError(f"a weight of {layer.name} is too large for FP16", fix="build from the float32 graph")
    return replace(layer, weights=(kernel.astype(np.float16), *others))
