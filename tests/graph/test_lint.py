"""One small graph per rule that must make exactly this rule fire, and real graphs that must pass or fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from family_graphs import float_graph, images, quantized_graph
from onnx import ModelProto
from small_graphs import graph, normal

from repq.graph import RULES, lint, merge_scales, quantize_residuals, to_fp16

W = normal(0, 4, 3, 3, 3)
CONSTANTS = {
    "s": np.float32(0.05),
    "t": np.float32(0.07),
    "minus": np.float32(-0.05),
    "z": np.int8(0),
    "zn": np.int8(3),
    "zu": np.uint8(0),
    "s3": np.full(3, 0.05, np.float32),
    "z3": np.zeros(3, np.int8),
    "w": np.clip(np.rint(W / 0.02), -127, 127).astype(np.int8),
    "v": np.clip(np.rint(normal(1, 4, 4, 1, 1) / 0.02), -127, 127).astype(np.int8),
    "u": np.clip(np.rint(normal(2, 3, 4, 2, 2) / 0.02), -127, 127).astype(np.int8),
    "wf__weight": W,
    "vf__weight": normal(3, 4, 4, 1, 1),
    "ws": np.full(4, 0.02, np.float32),
    "wz": np.zeros(4, np.int8),
    "bias": np.zeros(4, np.int32),
    "bs": np.full(4, 1e-3, np.float32),
    "bz": np.zeros(4, np.int32),
    "h": np.float16(1e-5),
}
START = "wd = DequantizeLinear<axis=0>(w, ws, wz)\n vd = DequantizeLinear<axis=0>(v, ws, wz)\n"
SMALL, LARGE = "float[1,4,6,6] y", "float[1,4,16,16] y"


def pair(tensor: str, result: str, scale: str = "s", zero_point: str = "z", axis: str = "") -> str:
    return (
        f"q_{result} = QuantizeLinear{axis}({tensor}, {scale}, {zero_point})\n"
        f"{result} = DequantizeLinear{axis}(q_{result}, {scale}, {zero_point})\n"
    )


FIRST = START + pair("x", "d") + "c = Conv(d, wd)\n r = Relu(c)\n"
LAST = "y = Conv(e, vd)"
GOOD = FIRST + pair("r", "e") + LAST
BAD = {
    "nonzero-zero-point": (START + pair("x", "d", "s", "zn") + "y = Conv(d, wd)", SMALL),
    "unsigned-integers": (START + pair("x", "d", "s", "zu") + "y = Conv(d, wd)", SMALL),
    "quantized-bias": (
        START + pair("x", "d") + "b = DequantizeLinear<axis=0>(bias, bs, bz)\n y = Conv(d, wd, b)",
        SMALL,
    ),
    "per-channel-activation": (START + pair("x", "d", "s3", "z3", "<axis=1>") + "y = Conv(d, wd)", SMALL),
    "computed-scale": (START + "k = ReduceMax<keepdims=0>(x)\n" + pair("x", "d", "k") + "y = Conv(d, wd)", SMALL),
    "unusable-scale": (START + pair("x", "d", "minus") + "y = Conv(d, wd)", SMALL),
    "integer-operator": ("q = QuantizeLinear(x, s, z)\n n = ConvInteger(q, w)\n y = Cast<to=1>(n)", SMALL),
    "transposed-per-channel": (
        pair("x", "d") + "ud = DequantizeLinear<axis=1>(u, ws, wz)\n y = ConvTranspose<strides=[2,2]>(d, ud)",
        LARGE,
    ),
    "half-quantized": (START + "y = Conv(x, wd)", SMALL),
    "split-activation": (START + pair("x", "d") + "c = Conv(d, wd)\n" + pair("c", "k") + "e = Relu(k)\n"
                         + pair("e", "f") + "y = Conv(f, vd)", SMALL),
    "quantized-output": (START + pair("x", "d") + "c = Conv(d, wd)\n" + pair("c", "k") + "y = Neg(k)", SMALL),
    "unequal-scales": (FIRST + pair("r", "e") + pair("r", "f", "t") + "o = Conv(e, vd)\n p = Conv(f, vd)\n"
                       "y = Mul(o, p)", SMALL),
    "float-residual": (FIRST + pair("r", "e") + "o = Conv(e, vd)\n y = Add(o, r)", SMALL),
    "duplicate-qdq": (FIRST + pair("r", "e") + pair("e", "f") + "y = Conv(f, vd)", SMALL),
    "float-island": (FIRST + "o = Conv(r, vf__weight)\n" + pair("o", "e") + LAST, SMALL),
    "extra-kernel": (GOOD, SMALL),
    "smooth-activation": (START + pair("x", "d") + "c = Conv(d, wd)\n k = Sigmoid(c)\n r = Mul(c, k)\n"
                          + pair("r", "e") + LAST, SMALL),
    "signed-concat": (FIRST + pair("r", "e") + "j = Concat<axis=2>(e, e)\n y = Conv(j, vd)", "float[1,4,12,6] y"),
}  # fmt: skip


def small(body: str, output: str = SMALL, opset: int = 19) -> ModelProto:
    text = f"g (float[1,3,8,8] x) => ({output}) {{\n{body}\n}}"
    names = {name: value for name, value in CONSTANTS.items() if f"{name}," in body or f"{name})" in body}
    return graph(text, **names)


@pytest.mark.parametrize("rule", BAD)
def test_each_rule_fires(rule: str) -> None:
    body, output = BAD[rule]
    assert rule in {finding.rule for finding in lint(small(body, output)).findings}


def test_graphs_of_other_origin_need_no_layer_names() -> None:
    renamed = small("y = Conv(x, wf__weight)")
    renamed.graph.initializer[0].name = renamed.graph.node[0].input[1] = "anything"
    assert [row.layer for row in lint(renamed).layers] == ["Conv_y"]


def test_every_rule_has_a_graph_here_and_a_source() -> None:
    elsewhere = {"fp16-opset", "subnormal-scale", "other-form"}
    assert {rule.id for rule in RULES} == BAD.keys() | elsewhere
    assert all(rule.source and rule.title for rule in RULES)


def test_a_good_graph_passes() -> None:
    report = lint(small(GOOD))
    assert report.at_least("warning") == ()
    assert report.exit_code() == 0
    assert report.exit_code("info") == 1
    assert [row.precision for row in report.layers] == ["int8", "int8"]
    (entrance,) = report.findings
    assert (entrance.where, entrance.extra_kernels, entrance.bytes_moved) == ("x", 1, 3 * 8 * 8 * 5)


def test_fp16_scales_below_the_normal_range_and_before_opset_19() -> None:
    half, _ = to_fp16(small(GOOD))
    assert lint(half).exit_code() == 0
    for tensor in half.graph.initializer:
        if tensor.name == "s":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(1e-5, np.float16), "s"))
    half.opset_import[0].version = 17
    assert {"fp16-opset", "subnormal-scale"} <= {finding.rule for finding in lint(half).findings}


def test_a_float_graph_has_nothing_to_say() -> None:
    report = lint(float_graph("n_v2"))
    assert report.findings == ()
    assert {row.precision for row in report.layers} == {"float32"}
    assert {row.precision for row in lint(to_fp16(float_graph("n_v2"))[0]).layers} == {"float16"}


def test_what_onnxruntime_quantizes_is_flagged_and_ours_passes(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = [{"images": images()}]

        def get_next(self) -> dict | None:
            return self.batches.pop() if self.batches else None

    source, target = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    source.write_bytes(float_graph("n_v2").SerializeToString())
    quantize_static(source, target, Reader(), per_channel=True)
    theirs = lint(onnx.load(target))
    found = {finding.rule for finding in theirs.at_least("warning")}
    assert {"nonzero-zero-point", "quantized-bias", "split-activation", "duplicate-qdq"} <= found
    assert theirs.exit_code("error") == 1
    ours = lint(merge_scales(quantize_residuals(quantized_graph("n_v2"))[0])[0])
    assert ours.exit_code() == 0
    assert ours.counts.extra_kernels == 1 < theirs.counts.extra_kernels
    assert ours.counts.quantize < theirs.counts.quantize


def test_costs_of_unequal_scales_are_those_of_the_estimate() -> None:
    model = quantized_graph("n_v2")
    report = lint(model)
    unequal = [finding for finding in report.findings if finding.rule == "unequal-scales"]
    assert sum(finding.extra_kernels for finding in unequal) == report.counts.avoidable > 0
    assert all(finding.bytes_moved > 0 for finding in unequal)


def test_layers_say_why_they_are_float() -> None:
    rows = {row.layer: row for row in lint(quantized_graph("n_v2", keep_float=("detect.*",))).layers}
    assert rows["backbone.stem.rbr_reparam"].precision == "int8"
    kept = rows["detect.cls_preds.0"]
    assert kept.precision == "float32" and "neither" in kept.reason


def test_every_rule_is_written_down_with_its_source() -> None:
    page = (Path(__file__).parents[2] / "docs/lint.md").read_text(encoding="utf-8")
    for rule in RULES:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{rule.id}` |")]
        assert [cell.strip() for cell in row.split("|")[2:4]] == [rule.severity, rule.title]
    assert len([line for line in page.splitlines() if line.startswith("| `")]) == len(RULES)
