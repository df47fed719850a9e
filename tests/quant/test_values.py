"""How a tensor lies in memory changes nothing of what is seen of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from repq.machine.torch_device import network_input
from repq.quant.calibration.histogram import Histogram
from repq.quant.calibration.observation import ChannelRange
from repq.quant.corrections.rounding import sampled_patches
from repq.quant.quantizer import fake_quantize
from repq.quant.similarity import ErrorSums
from repq.quant.values import dot, flat, is_channels_last

shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 7), st.integers(1, 7))


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def turned(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


@given(shapes)
def test_rows_are_of_one_order_and_share_the_memory_of_dense_tensors(shape: tuple[int, ...]) -> None:
    x, y = drawn(shape), drawn(shape, 1)
    pairs = [(x, y), (turned(x), turned(y)), (x, turned(y)), (turned(x), y)]
    wanted = sorted(zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))
    for pair in pairs:
        one, other = flat(*pair)
        assert sorted(zip(one.tolist(), other.tolist(), strict=True)) == wanted
        assert float(dot(*pair)) == pytest.approx(float((x.double() * y.double()).sum()), abs=1e-4)
    for tensor in (x, turned(x)):
        (row,) = flat(tensor)
        assert row.data_ptr() == tensor.data_ptr()


@given(shapes)
def test_ranges_histograms_errors_and_rounding_are_those_of_the_values(shape: tuple[int, ...]) -> None:
    x, y = drawn(shape), drawn(shape, 1)
    ranges, histograms, errors = [ChannelRange() for _ in range(2)], [Histogram("x") for _ in range(2)], []
    for number, layout in enumerate((lambda t: t, turned)):
        ranges[number].add(layout(x))
        ranges[number].add(layout(y))
        histograms[number].add(layout(x))
        sums = ErrorSums()
        sums.add(layout(x), layout(y))
        errors.append((sums.signal, sums.noise, sums.cross))
    assert all(map(np.array_equal, ranges[0].arrays(), ranges[1].arrays()))
    assert histograms[0].same_values(histograms[1])
    assert errors[0] == pytest.approx(errors[1], rel=1e-4, abs=1e-4)
    scale = torch.tensor(0.03)
    assert torch.equal(fake_quantize(turned(x), scale, 3, 0, 255), fake_quantize(x, scale, 3, 0, 255))


def test_patches_are_those_of_the_image() -> None:
    conv, image = nn.Conv2d(5, 5, 3, 2, 1), drawn((1, 5, 11, 9))
    one, other = (sampled_patches(of[0], conv, torch.Generator().manual_seed(0)) for of in (image, turned(image)))
    assert torch.equal(one, other)


@pytest.mark.parametrize("given_as", [np.asarray, torch.as_tensor, lambda x: torch.as_tensor(x).double()])
def test_networks_get_the_same_images_with_their_channels_last(given_as: Callable[[object], object]) -> None:
    images = drawn((2, 3, 8, 6)).numpy()
    found = network_input(given_as(images), "cpu")  # type: ignore[arg-type]
    assert is_channels_last(found) and found.dtype == torch.float32
    assert np.array_equal(found.numpy(), images)
