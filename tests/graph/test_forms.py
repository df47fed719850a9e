"""Files written for a runtime: what that runtime computes of them by itself is what repq's engine computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from family_graphs import SIZE, detector, float_graph, images
from numpy.typing import NDArray
from pydantic import ValidationError
from test_integer_concat import in_openvino, snr_db

import repq
from repq.api.exporting import write_onnx
from repq.engine import build
from repq.errors import EngineError, GraphError
from repq.export import export_quantized
from repq.graph import anchor_maxima, lint, load_onnx, read_metadata, tensor_maxima
from repq.graph.forms import FORMS, form_named, in_form
from repq.graph.integer_concat import signed_concats
from repq.graph.lowering_onnxruntime import saturates_without_dot_products, with_unsigned_weights
from repq.graph.surgeon import import_graph
from repq.layers import CONVOLUTIONS
from repq.machine.cpu import has_dot_products
from repq.quant import Weights, quantize
from repq.recipe import CalibrationConfig, ExportConfig, NmsConfig, PtqConfig

LABEL = "n_v2"
NAMES = [form.name for form in FORMS]
Exported = Callable[..., Path]


@cache
def weights(scheme: str = "symmetric") -> Weights:
    model = detector(LABEL)
    config = PtqConfig(scheme=scheme, calibration=CalibrationConfig(method="max"))
    made = quantize(model, [torch.from_numpy(images())], config)
    graph = float_graph(LABEL)
    maxima = anchor_maxima(graph, tensor_maxima(graph, [images()])) if scheme == "symmetric" else {}
    return Weights(made.model, None, config, maxima=maxima)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("forms")

    @cache
    def write(form: str | None, scheme: str = "symmetric") -> Path:
        path = folder / f"{form}-{scheme}.onnx"
        write_onnx(weights(scheme), path, SIZE, ExportConfig(form=form))
        return path

    return write


@pytest.fixture(scope="module")
def plain(exported: Exported) -> repq.Model:
    """The graph in no runtime's form, opened; it runs in ONNX Runtime."""
    return repq.load(exported(None))


def plainly(path: Path) -> NDArray[np.float32]:
    """In a session of ONNX Runtime as it is by default."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images()})[0]


def simulated(scheme: str = "symmetric") -> NDArray[np.float32]:
    with torch.inference_mode():
        return weights(scheme).model(torch.from_numpy(images())).numpy()


def worst_snr(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Of the boxes and of the scores."""
    return min(snr_db(expected[..., part], found[..., part]) for part in (slice(4), slice(5, None)))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_plain_onnxruntime_computes_what_the_engine_computes(exported: Exported, scheme: str) -> None:
    path = exported("onnxruntime-vnni" if has_dot_products() else "onnxruntime", scheme)
    in_engine = build("onnxruntime", exported(None, scheme)).infer(images())["detections"]
    np.testing.assert_array_equal(plainly(path), in_engine)
    assert worst_snr(simulated(scheme), plainly(path)) > 40
    assert worst_snr(simulated(scheme), plainly(exported("onnxruntime", scheme))) > 40


@pytest.mark.parametrize("reduce_range", [False, True])
def test_the_form_for_any_cpu_names_its_slow_layers(reduce_range: bool) -> None:
    made = quantize(detector(LABEL), [torch.from_numpy(images())], PtqConfig(reduce_range=reduce_range))
    graph, report = in_form(export_quantized(made.model, SIZE), "onnxruntime")
    slow = with_unsigned_weights(graph)
    assert report.reasons and f"slow: {len(slow)};" in report.reasons[0]
    odd = {
        "backbone.stem.rbr_reparam"
    }  # three channels: ONNX Runtime's pairs join a channel with that of another pixel
    assert set(slow) <= odd if reduce_range else len(slow) > 10


def test_the_form_for_any_cpu_says_how_many_layers_stay_in_float() -> None:
    for label in ("n_v2", "s_mbla (SiLU)"):
        made = quantize(detector(label), [torch.from_numpy(images())], PtqConfig())
        graph, report = in_form(export_quantized(made.model, SIZE), "onnxruntime")
        floats = [node.name for node in graph.graph.node if node.op_type in CONVOLUTIONS]
        assert floats and f"layers in float, as before SiLU: {len(floats)};" in report.reasons[-1]


def test_libraries_say_nothing_while_a_form_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_onnx(weights(), tmp_path / "x.onnx", SIZE, ExportConfig(form="qnn"))
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_plain_openvino_computes_what_the_engine_computes(exported: Exported, scheme: str) -> None:
    path = exported("openvino", scheme)
    in_engine = build("openvino", exported(None, scheme)).infer(images())["detections"]
    np.testing.assert_array_equal(in_openvino(load_onnx(path), images()), in_engine)
    assert worst_snr(simulated(scheme), plainly(path)) > 40, "it is the same graph in ONNX Runtime"
    assert not signed_concats(import_graph(load_onnx(path)))


def test_qnn_has_16_bits_and_the_weights_of_the_simulation(exported: Exported) -> None:
    model = load_onnx(exported("qnn"))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {constants[node.input[2]].dtype for node in quantizers} == {np.dtype(np.uint16)}
    written = {node.input[0] for node in quantizers}
    inner = [node for node in model.graph.node if node.op_type in ("Conv", "Concat", "HardSwish")]
    assert all(node.output[0] in written for node in inner if node.output[0] != "detections")
    original = {t.name: onnx.numpy_helper.to_array(t) for t in load_onnx(exported(None)).graph.initializer}
    layers = [name for name in original if name.endswith(".weight")]
    assert layers
    for name in layers:
        np.testing.assert_array_equal(constants[f"{name}_quantized"], original[name])
    assert worst_snr(simulated(), plainly(exported("qnn"))) > 40


@pytest.mark.parametrize("form", NAMES)
def test_a_file_says_what_it_is_for_and_opens_as_a_model(exported: Exported, plain: repq.Model, form: str) -> None:
    path = exported(form)
    metadata = read_metadata(load_onnx(path))
    assert metadata is not None
    assert (metadata.form, metadata.target) == (form, form_named(form).target)
    if saturates_without_dot_products(load_onnx(path)) and not has_dot_products():
        with pytest.raises(EngineError, match="INT8 dot products"):
            repq.load(path).infer(images())
        return
    opened = repq.load(path)
    assert opened.running.engine == form_named(form).runs_in
    assert sorted(opened.layers) == sorted(plain.layers)
    assert worst_snr(plain.infer(images()), opened.infer(images())) > 35
    assert not lint(load_onnx(path)).at_least("error")
    assert len(lint(load_onnx(path)).layers) == len(opened.layers)
    others = [name for name in ("onnxruntime", "openvino", "tensorrt") if name != metadata.target]
    assert all(lint(load_onnx(path), name).findings[0].rule == "other-form" for name in others)


@pytest.mark.parametrize("form", NAMES)
def test_writing_a_form_twice_is_writing_it_once(exported: Exported, form: str) -> None:
    once = load_onnx(exported(form))
    twice, report = in_form(once, form)
    assert not report.changed
    assert twice == once
    other = next(name for name in NAMES if name != form)
    with pytest.raises(GraphError, match=f"form for {form} already"):
        in_form(once, other)


@pytest.mark.parametrize("form", ["openvino", "onnxruntime"])
def test_a_float_graph_stays_as_it_is(form: str) -> None:
    written, report = in_form(float_graph(LABEL), form)
    assert written.graph == float_graph(LABEL).graph
    assert not report.changed


def test_the_form_of_tensorrt_has_the_settings_of_its_target(exported: Exported) -> None:
    metadata = read_metadata(load_onnx(exported("tensorrt")))
    assert metadata is not None and metadata.precision == "int8_float16"
    assert not lint(load_onnx(exported("tensorrt"))).at_least("warning")


def test_what_a_runtime_does_not_take_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "x.onnx"
    for form in ("tensorrt", "qnn"):
        with pytest.raises(GraphError, match="TensorRT" if form == "tensorrt" else "QNN"):
            write_onnx(weights("asymmetric"), out, SIZE, ExportConfig(form=form))
    with pytest.raises(GraphError, match="network alone"):
        write_onnx(weights(), out, SIZE, ExportConfig(form="qnn", nms=NmsConfig()))
    with pytest.raises(GraphError, match="--batch 1"):
        write_onnx(weights(), out, SIZE, ExportConfig(form="qnn", batch=None, opset=21))
    with pytest.raises(GraphError, match="export for the size at which"):  # boxes lie elsewhere in other images
        write_onnx(weights(), out, (64, 64), ExportConfig(form="qnn"))
    with pytest.raises(ValidationError, match="none of onnxruntime"):
        ExportConfig(form="opencv")
    assert not out.exists()


@pytest.mark.parametrize("form", [form.name for form in FORMS if not form.portable])
def test_integer_operators_are_for_onnxruntime_alone(exported: Exported, form: str) -> None:
    path = exported(form)
    with pytest.raises(EngineError, match=f"written --for {form} alone") as refused:
        build("openvino", path)
    named = refused.value.fix.partition("--engine ")[2].partition(",")[0]
    if form == "onnxruntime" or has_dot_products():
        assert build(named, path).describe().precision_counts()["int8"] > 0
