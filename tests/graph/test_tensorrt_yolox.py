"""The real TensorRT parser and builder take YOLOX of every kind, with the work of a service inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from few_blocks import few_blocks
from graph_views import for_serving
from test_tensorrt_serving import parse

from repq.export import export_float, export_quantized
from repq.graph import merge_scales, quantize_residuals, to_fp16
from repq.model import build
from repq.quant import quantize
from repq.recipe import LetterboxConfig, NmsConfig, PreprocessConfig, PtqConfig
from repq.reparam import fuse

trt: Any = pytest.importorskip("tensorrt", reason="TensorRT's Python API, parser and builder are not installed")

pytestmark = pytest.mark.tensorrt
SIZE = (64, 64)


@pytest.mark.parametrize(
    "name", ["yolox_nano", "yolox_tiny", "yolox_s", "yolox_darknet53", "yolox_nano_nmsfree", "yolox_nano_relu"]
)
def test_every_form_builds(name: str) -> None:
    torch.manual_seed(0)
    model = fuse(build(few_blocks(name, 3)).eval())
    images = torch.rand(2, 3, *SIZE) * 255
    plain = export_float(model, SIZE)
    int8 = export_quantized(quantize(model, [images], PtqConfig()).model, SIZE)
    merged = merge_scales(quantize_residuals(int8)[0])[0]
    inside = PreprocessConfig(uint8=True, letterbox=LetterboxConfig(), source=(100, 80))
    free = name.endswith("nmsfree")  # the builder at hand has no kernel for suppression
    served = for_serving(merged, inside, NmsConfig() if free else None)
    for graph in (plain, to_fp16(plain)[0], merged, to_fp16(merged)[0], served):
        builder, network, errors = parse(graph)
        assert errors == []
        plan = builder.build_serialized_network(network, builder.create_builder_config())
        assert plan is not None and plan.nbytes > 0
