"""The real TensorRT parser and builder accept what the passes write, through the code that a user runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from family_graphs import FAMILY, OTHERS, SIZE, detector, float_graph, images, layers, quantized_graph
from onnx import ModelProto

from repq.engine import build, load
from repq.errors import EngineError
from repq.export import export_float, save_onnx
from repq.graph import insert_qdq, lint, merge_scales, propagate_qdq, quantize_residuals, to_fp16
from repq.layers import QuantPlan
from repq.quant import calibrate, insert_quantizers, scale_table
from repq.recipe import BuildConfig, CalibrationConfig, ExportConfig, PtqConfig, TensorRtConfig

trt: Any = pytest.importorskip("tensorrt", reason="TensorRT's Python API, parser and builder are not installed")

pytestmark = pytest.mark.tensorrt


def merged(label: str, keep_float: tuple[str, ...] = ()) -> ModelProto:
    return merge_scales(quantize_residuals(quantized_graph(label, keep_float=keep_float))[0])[0]


def partial(label: str) -> ModelProto:
    return to_fp16(merged(label, ("backbone.*_3.*", "detect.*_preds.*")))[0]


FORMS: dict[str, Callable[[str], ModelProto]] = {
    "FP32": float_graph,
    "FP16": lambda label: to_fp16(float_graph(label))[0],
    "FP16 in and out": lambda label: to_fp16(float_graph(label), float32_io=False)[0],
    "INT8": merged,
    "INT8+FP16": lambda label: to_fp16(merged(label))[0],
    "partial INT8+FP16": partial,
}
EVERY_FORM = ("n_v2", "n, one class, odd widths", "m (CSP)", "lite_s")
MIXED_FORMS = ("INT8+FP16", "partial INT8+FP16")
CASES = [
    (label, form)
    for label in (*FAMILY, *OTHERS)
    for form in (FORMS if label in EVERY_FORM else MIXED_FORMS)
]  # fmt: skip


def write(model: ModelProto, folder: Path) -> Path:
    save_onnx(folder / "model.onnx", model)
    return folder / "model.onnx"


@pytest.mark.parametrize(("label", "form"), CASES)
def test_it_builds(label: str, form: str, tmp_path: Path) -> None:
    model = FORMS[form](label)
    engine = build("tensorrt", write(model, tmp_path))
    assert engine.describe().size_bytes > 0
    assert set(engine.manifest.int8_layers) == {row.layer for row in lint(model).layers if row.precision == "int8"}


@pytest.mark.parametrize("form", ["FP16", "INT8+FP16"])
def test_it_builds_for_several_batches(form: str, tmp_path: Path) -> None:
    model = dynamic_graph("s_mbla (SiLU)")
    if form == "INT8+FP16":
        model = with_scales(model, "s_mbla (SiLU)")
    path = write(to_fp16(model)[0], tmp_path)
    engine = build("tensorrt", path, BuildConfig(tensorrt=TensorRtConfig(batches=(1, 2, 4))))
    assert engine.batch is None
    engine.save(tmp_path / "engine")
    assert load(tmp_path / "engine").manifest.settings.tensorrt.batches == (1, 2, 4)


@cache
def dynamic_graph(label: str) -> ModelProto:
    return export_float(detector(label), SIZE, ExportConfig(batch=None))


def with_scales(model: ModelProto, label: str) -> ModelProto:
    config = PtqConfig(calibration=CalibrationConfig(method="max"))
    quantized = insert_quantizers(detector(label), QuantPlan(layers(label)), config).eval()
    calibrate(quantized, [images()], config.calibration)
    return merge_scales(quantize_residuals(propagate_qdq(insert_qdq(model, scale_table(quantized))))[0])[0]


def parse(model: ModelProto) -> Any:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR)).parse(model.SerializeToString())
    return network


def test_types_are_those_of_the_graph() -> None:
    network = parse(to_fp16(float_graph("n_v2"), float32_io=False)[0])
    assert network.get_input(0).dtype == network.get_output(0).dtype == trt.float16
    network = parse(to_fp16(merged("n_v2"))[0])
    assert network.get_input(0).dtype == network.get_output(0).dtype == trt.float32
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    types = {layer.get_output(0).dtype for layer in layers if layer.type == trt.LayerType.CONVOLUTION}
    assert types == {trt.float16}


def test_asymmetric_graphs_are_refused_as_lint_says(tmp_path: Path) -> None:
    model = quantized_graph("n, one class, odd widths", "asymmetric")
    assert {"nonzero-zero-point"} <= {finding.rule for finding in lint(model).at_least("error")}
    with pytest.raises(EngineError, match="zero point") as caught:
        build("tensorrt", write(model, tmp_path))
    assert "symmetric" in str(caught.value.fix)
