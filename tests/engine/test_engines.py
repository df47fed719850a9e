"""The engines on the CPU: what they compute, what they say of themselves, how they are saved and what they refuse."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from sample_graphs import LAYERS, calibrated_scales, detector

from repq.engine import build, load
from repq.engine.availability import installed, saturation_note
from repq.engine.base import Engine
from repq.engine.openvino import conversions, node_times
from repq.errors import EngineError
from repq.graph import to_fp16
from repq.graph.lowering_onnxruntime import lower
from repq.identity import hash_file
from repq.machine import cpu
from repq.machine.cpu import has_dot_products, is_x86
from repq.recipe import BuildConfig

NCNN = pytest.param(
    "ncnn", marks=pytest.mark.skipif(not (installed("ncnn") and installed("pnnx")), reason="needs ncnn and pnnx")
)
ENGINES = ("onnxruntime", "openvino", NCNN)
FLOAT_ENGINES = (*ENGINES, "opencv")
ONE_THREAD = BuildConfig(threads=1)
IMAGES = np.random.default_rng(0).uniform(0, 1, (1, 3, 32, 32)).astype(np.float32)
ORT_FLOAT = {"head.pred"}  # it is read in float


def reference(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """The graph as it is written, node by node, without any fusion."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["detections"], {"images": images})[0]


def quantized(layers: tuple[str, ...] = LAYERS, *, asymmetric: bool = False, batch: int | None = 1) -> onnx.ModelProto:
    scales = calibrated_scales(detector(), IMAGES, asymmetric=asymmetric)
    return detector(layers, asymmetric=asymmetric, scales=scales, batch=batch)


def snr_db(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10((wanted**2).sum() / max(((wanted - found) ** 2).sum(), 1e-30)))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An engine of a graph, built once for all tests that only run it, save it or ask it."""
    folder = tmp_path_factory.mktemp("graphs")

    @cache
    def of(name: str, graph: bytes, config: BuildConfig) -> Engine:
        path = folder / f"{sha256(graph).hexdigest()}.onnx"
        path.write_bytes(graph)
        return build(name, path, config)

    return lambda name, model, config=ONE_THREAD: of(name, model.SerializeToString(deterministic=True), config)


@pytest.fixture
def onnx_file(tmp_path):
    def write(model: onnx.ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.mark.parametrize("name", FLOAT_ENGINES)
def test_float_graph_is_float_everywhere_and_exact(name, built):
    model = detector()
    engine = built(name, model)
    description = engine.describe()
    assert [row.layer for row in description.layers] == list(LAYERS)
    assert description.precision_counts() == {"float32": len(LAYERS)}
    # float32 sums in another order
    np.testing.assert_allclose(engine.infer(IMAGES)["detections"], reference(model, IMAGES), atol=1e-5)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_openvino_runs_every_quantized_layer_in_int8_and_computes_the_qdq_graph(asymmetric, built):
    model = quantized(asymmetric=asymmetric)
    engine = built("openvino", model)
    assert engine.describe().precision_counts() == {"int8": len(LAYERS)}
    # Integer sums are exact, so only values on the very edge of a step could differ: here none does.
    assert snr_db(reference(model, IMAGES), engine.infer(IMAGES)["detections"]) > 100


@pytest.mark.parametrize("asymmetric", [False, True])
def test_onnxruntime_runs_what_it_can_in_int8_and_says_so(asymmetric, built):
    model = quantized(asymmetric=asymmetric)
    engine = built("onnxruntime", model)
    in_float = () if has_dot_products() else ORT_FLOAT
    wanted = {layer: "float32" if layer in in_float else "int8" for layer in LAYERS}
    assert {row.layer: row.precision for row in engine.describe().layers} == wanted
    # The bias is an integer here, so a few values per thousand land one step off; INT8 itself is at about 35 dB.
    assert snr_db(reference(model, IMAGES), engine.infer(IMAGES)["detections"]) > 40


@pytest.mark.parametrize("name", ENGINES)
def test_partly_quantized_graph_is_mixed(name, built):
    model = quantized(("stem.conv", "body.0.conv"))
    engine = built(name, model)
    found = {row.layer: row.precision for row in engine.describe().layers}
    assert found["stem.conv"] == "int8"
    assert {found[layer] for layer in LAYERS[2:]} == {"float32"}
    assert snr_db(reference(model, IMAGES), engine.infer(IMAGES)["detections"]) > 50


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_alone_computes_the_qdq_graph(layer, name, built):
    if (name, layer) == ("ncnn", "neck.up"):
        pytest.skip("NCNN has no INT8 kernel for ConvTranspose")
    model = quantized((layer,))
    engine, draws = built(name, model), np.random.default_rng(3).uniform(0, 1, (3, *IMAGES.shape))
    # floats before the layer round otherwise, so on few images a value on the very edge of a step lands one step off
    best = max(
        snr_db(reference(model, images), engine.infer(images)["detections"]) for images in draws.astype(np.float32)
    )
    assert best > 90


@pytest.mark.parametrize("name", ENGINES)
def test_conversions_are_counted(name, built):
    counts = built(name, quantized()).describe().extra_nodes
    assert counts["quantize"] >= 1
    for batch in (1, None):  # a free batch leaves nodes that compute shapes in integers
        counts = built(name, detector(batch=batch)).describe().extra_nodes
        assert not {"quantize", "dequantize"} & set(counts)


@pytest.mark.parametrize("node", ["u8 i32", "i32 u8", "i8 u8", "boolean u8", "f32 f32", "f32 i32"])
def test_openvino_quantizes_and_dequantizes_floats_alone(node):
    before, after = node.split()
    rows = [{"layerType": "Reorder", "runtimePrecision": before, "outputPrecisions": after}]
    assert conversions(rows) == {"reorder": 1}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", FLOAT_ENGINES)
def test_layers_may_be_named_like_what_a_runtime_adds_to_a_name(name, named, tmp_path):
    layers = ["conv", "conv/1", "conv/2", "conv/1/2", "b_nchwc", "fused c", "fused conv", "d,e", "x/WithoutBiases", "x"]
    nodes, weights, tensor = [], [], "images"
    for place, layer in enumerate(layers):
        draw = np.random.default_rng(place).normal(0, 0.1, (32, 32 if place else 3, 3, 3))
        weights.append(numpy_helper.from_array(draw.astype(np.float32), f"{layer}.weight" if named else f"w{place}"))
        nodes += [
            helper.make_node("Conv", [tensor, weights[-1].name], [f"sum{place}"], name=layer, pads=[1] * 4),
            helper.make_node("Relu", [f"sum{place}"], [f"relu{place}"], name=f"relu_{place}"),
        ]
        tensor = f"relu{place}"
    ends = ([helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, (1, channels, 16, 16))]
            for end, channels in (("images", 3), (tensor, 32)))  # fmt: skip
    graph = helper.make_graph(nodes, "named", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    engine = build(name, tmp_path / "a.onnx", BuildConfig(threads=1))
    described = engine.describe().layers
    assert [(row.layer, row.precision) for row in described] == [(layer, "float32") for layer in layers]
    assert not any(row.kernel.endswith(("x2", "x3")) for row in described)
    if name in ("onnxruntime", "openvino"):
        images = np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)
        assert set(engine.layer_times(images, 1)) == set(layers)


@pytest.mark.parametrize("name", ENGINES)
def test_layers_come_from_weights_not_from_node_names(name, built):
    model = quantized()
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    assert {row.layer for row in built(name, model).describe().layers} == set(LAYERS)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("batch", [1, 3])
def test_dynamic_batch_takes_any_size(name, batch, built):
    model = quantized(batch=None)
    engine = built(name, model)
    assert engine.batch is None
    images = np.random.default_rng(batch).uniform(0, 1, (batch, 3, 32, 32)).astype(np.float32)
    found = engine.infer(images)["detections"]
    assert found.shape == (batch, 256, 8)
    assert snr_db(reference(model, images), found) > 40


@pytest.mark.parametrize("name", FLOAT_ENGINES)
def test_results_survive_the_next_run(name, built):
    engine = built(name, detector())
    first = engine.infer(IMAGES)["detections"]
    kept = first.copy()
    engine.infer(1 - IMAGES)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", FLOAT_ENGINES)
@pytest.mark.parametrize("graph", [detector, quantized])
def test_runs_that_go_on_at_once_give_what_one_gives(name, graph, built):
    if name == "opencv" and graph is quantized:
        pytest.skip("OpenCV runs float graphs")
    engine = built(name, graph())
    many = engine.concurrent()
    assert (engine.runs_at_once, many.describe()) == (1, engine.describe())
    inputs = [np.random.default_rng(seed).uniform(0, 1, IMAGES.shape).astype(np.float32) for seed in range(32)]
    with ThreadPoolExecutor(many.runs_at_once) as pool:
        found = [outputs["detections"] for outputs in pool.map(many.infer, inputs)]
    for images, output in zip(inputs, found, strict=True):
        np.testing.assert_array_equal(output, engine.infer(images)["detections"])


FIRST_RUNS = """
import sys, threading
from pathlib import Path
import numpy as np
from repq.engine import load

engine = load(Path(sys.argv[1])).concurrent()
images, start = np.zeros((1, 3, 32, 32), np.float32), threading.Barrier(2)


def look():
    start.wait()
    engine.infer(images)


sys.setswitchinterval(1e-6)  # threads take turns as often as they can
threads = [threading.Thread(target=look) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("name", FLOAT_ENGINES)
def test_the_first_runs_of_a_process_may_go_on_at_once(name, built, tmp_path):
    """In new processes: what waits for itself does so in two of three of them."""
    built(name, detector()).save(tmp_path / "engine")
    command = [sys.executable, "-c", FIRST_RUNS, str(tmp_path / "engine")]
    for _ in range(3):
        subprocess.run(command, check=True, timeout=120)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_openvino_divides_the_cores_among_runs(onnx_file, tmp_path):
    engine = build("openvino", onnx_file(quantized()))
    engine.save(tmp_path / "engine")
    assert 1 < load(tmp_path / "engine").concurrent().runs_at_once <= 8
    assert load(tmp_path / "engine", threads=1).concurrent().runs_at_once == 1


@pytest.mark.parametrize("name", FLOAT_ENGINES)
@pytest.mark.parametrize(
    ("images", "text"),
    [
        (np.zeros((2, 3, 32, 32), np.float32), "batches of 1"),
        (np.zeros((1, 3, 64, 32), np.float32), "shape"),
        (np.zeros((3, 32, 32), np.float32), "shape"),
        (np.zeros((1, 3, 32, 32), np.uint8), "float32"),
    ],
)
def test_wrong_images_are_refused(name, images, text, built):
    engine = built(name, detector())
    with pytest.raises(EngineError, match=text):
        engine.infer(images)


@pytest.mark.parametrize("name", ENGINES)
def test_saved_engine_computes_and_describes_the_same(name, built, tmp_path):
    engine = built(name, quantized())
    folder = tmp_path / "engine"
    engine.save(folder)
    again = load(folder)
    np.testing.assert_array_equal(again.infer(IMAGES)["detections"], engine.infer(IMAGES)["detections"])
    assert again.describe() == engine.describe()
    assert again.manifest == engine.manifest
    assert again.manifest.metadata == {"names": '["a", "b", "c"]'}
    assert again.manifest.int8_layers == LAYERS
    assert load(folder, threads=2).manifest.threads == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("order", ["first to last", "last to first"])
def test_signals_arrive_after_engines_of_openvino_ended(order, onnx_file):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from repq.engine import build\n"
        "from repq.recipe import BuildConfig\n"
        "engines = [build('openvino', Path(sys.argv[1]), BuildConfig(threads=n)) for n in (1, 2, 1)]\n"
        "for engine in engines: engine.describe()\n"  # it is compiled
        "while engines:\n"
        "    engines.pop(0 if sys.argv[2] == 'first to last' else -1)\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('arrived', flush=True))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    words = [sys.executable, "-c", code, str(onnx_file(detector())), order]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "arrived\n"), done.stderr


def test_openvino_keeps_float_weights_at_full_width(built, tmp_path):
    engine = built("openvino", detector())
    engine.save(tmp_path / "engine")
    np.testing.assert_array_equal(
        load(tmp_path / "engine").infer(IMAGES)["detections"], engine.infer(IMAGES)["detections"]
    )
    weights = sum(np.prod(t.dims) * 4 for t in detector().graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert engine.describe().size_bytes > weights


def test_saving_replaces_an_engine_but_nothing_else(built, tmp_path):
    engine = built("onnxruntime", detector())
    folder = tmp_path / "engine"
    engine.save(folder)
    built("openvino", detector()).save(folder)
    assert load(folder).name == "openvino"
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"x")
    with pytest.raises(EngineError, match="cannot save"):
        engine.save(other)
    assert [path.name for path in other.iterdir()] == ["cat.jpg"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    onnx.save(detector(), folder / "model.onnx")
    build("onnxruntime", folder / "model.onnx").save(folder / "engine")
    return folder / "engine"


def _edit(folder: Path, change) -> None:
    values = json.loads((folder / "engine.json").read_text())
    change(values)
    (folder / "engine.json").write_text(json.dumps(values))


def _put(folder: Path, change) -> None:
    """Change the payload, and its hash with it."""
    path = folder / "model.onnx"
    path.write_bytes(change(path.read_bytes()))
    _edit(folder, lambda values: values["payload_sha256"].update({path.name: hash_file(path)}))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: shutil.rmtree(f), "there is no engine"),
        (lambda f: (f / "engine.json").unlink(), "is no engine"),
        (lambda f: (f / "engine.json").write_text("{"), "damaged"),
        (lambda f: (f / "engine.json").write_text("[1]"), "damaged"),
        (lambda f: _edit(f, lambda v: v["manifest"].pop("input")), "damaged"),
        (lambda f: _edit(f, lambda v: v["manifest"].update(engine="abacus")), "abacus"),
        (lambda f: _edit(f, lambda v: v["payload_sha256"].update({"../model.onnx": "0"})), "not whole"),
        (lambda f: (f / "model.onnx").unlink(), "not whole"),
        (lambda f: (f / "model.onnx").write_bytes(b"other"), "changed"),
        (lambda f: _put(f, lambda data: data[: len(data) // 2]), "model.onnx"),
        (lambda f: _put(f, lambda data: b"other"), "model.onnx"),
        (lambda f: _put(f, lambda data: b""), "cannot run"),
    ],
)
def test_damaged_engine_is_refused(damage, text, saved, tmp_path):
    folder = tmp_path / "engine"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(EngineError, match=text):
        load(folder)


def test_missing_or_broken_onnx_is_refused(tmp_path):
    with pytest.raises(EngineError, match="cannot read"):
        build("openvino", tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a protobuf at all")
    with pytest.raises(EngineError, match="no valid ONNX"):
        build("onnxruntime", tmp_path / "bad.onnx")


def test_operators_that_openvino_does_not_have_are_named(tmp_path):
    model = detector()
    model.opset_import.append(onnx.helper.make_opsetid("of.others", 1))
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "Odd", "of.others"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(EngineError, match=r"of\.others\.Odd"):
        build("openvino", tmp_path / "odd.onnx")


def test_missing_runtime_says_how_to_get_it(monkeypatch, onnx_file):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(EngineError, match=r"pip install 'repq\[openvino\]'"):
        build("openvino", onnx_file(detector()))


def test_unknown_engine_is_refused(onnx_file):
    with pytest.raises(EngineError, match="unknown engine"):
        build("abacus", onnx_file(detector()))


@pytest.mark.parametrize("name", ENGINES)
def test_an_fp16_graph_takes_and_gives_float32(name, built):
    half, _ = to_fp16(detector(), float32_io=False)
    engine = built(name, half)
    assert engine.manifest.input.dtype == "float16"
    found = engine.infer(IMAGES)["detections"]
    assert found.dtype == np.float32
    assert snr_db(reference(detector(), IMAGES), found) > 40


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("layers", [(), LAYERS[:2]])
def test_layers_of_an_fp16_graph_are_in_the_type_that_the_cpu_multiplies(name, layers, built):
    half, _ = to_fp16(quantized(layers) if layers else detector())
    found = {row.layer: row.precision for row in built(name, half).describe().layers}
    float_ = {precision for layer, precision in found.items() if layer not in layers}
    assert float_ == {"float16" if name == "ncnn" and "arm_fp16" in cpu.cpu_features() else "float32"}
    # of Q/DQ with FP16 scales ONNX Runtime makes no integer layers
    in_int8 = {"float32" if name == "onnxruntime" else "int8"} if layers else set()
    assert {found[layer] for layer in layers} == in_int8


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of this process's memory")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "opencv"])  # NCNN takes one image at a time
def test_memory_that_does_not_suffice_for_a_batch_is_an_error(name, onnx_file):
    code = (
        "import resource, sys; from pathlib import Path; import numpy as np; from repq.engine import build\n"
        "from repq.errors import EngineError; from repq.recipe import BuildConfig\n"
        "engine = build(sys.argv[1], Path(sys.argv[2]), BuildConfig(threads=1))\n"
        "images = np.zeros((65536, 3, 32, 32), np.float32); engine.infer(images[:1])\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "limit = pages * resource.getpagesize() + (16 << 20); resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try: engine.infer(images)\n"
        "except EngineError as error: print(f'{error.what} | {error.fix}')\n"
    )
    command = [sys.executable, "-c", code, name, str(onnx_file(detector(batch=None)))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert f"cannot be run in {name} on 65536 images" in ran.stdout and "--batch 1" in ran.stdout, ran.stderr


@pytest.mark.parametrize("name", ENGINES)
def test_a_profile_has_every_layer_in_the_precision_that_runs(name, built):
    engine = built(name, quantized(asymmetric=name != "ncnn"))
    rows = engine.profile(IMAGES, 3)
    running = {row.layer: row.precision for row in engine.describe().layers if row.precision != "unknown"}
    found = {}
    for row in rows:
        if row.layer is not None and row.precision:
            found.setdefault(row.layer, set()).add(row.precision)
    assert set(found) >= set(running)
    assert all(running[layer] in precisions for layer, precisions in found.items() if layer in running)
    times = engine.layer_times(IMAGES, 3)
    assert set(times) == {row.layer for row in rows} - {None} and all(ms >= 0 for ms in times.values())


@pytest.mark.parametrize("runs", [1, 2, 7])
@pytest.mark.parametrize("slow", [0, 900])
def test_openvinos_first_run_is_not_in_its_times(runs, slow):
    def counted(microseconds: float) -> dict[str, str]:
        keys = dict.fromkeys(("originalLayersNames", "layerType", "runtimePrecision"), "a")
        return {**keys, "execTimeMcs": str(int(microseconds))}

    mean = (300 + slow + runs * 300) / (runs + 1)  # as OpenVINO counts: over all runs, in whole microseconds
    (node,) = node_times([counted(mean)], [counted(300 + slow)], runs, ())
    assert node.ms == pytest.approx(0.300, abs=1e-3 * (runs + 1) / runs)


def test_conversions_in_a_profile_belong_to_the_layer_that_reads_them(built):
    def rows(model):
        engine = built("onnxruntime", model)
        found = {(row.kind, row.layer) for row in engine.profile(IMAGES, 2)}
        assert not {row for row in found if row[0] == "DequantizeLinear" and row[1] is None}
        return found

    assert ("QuantizeLinear", "stem.conv") in rows(quantized(asymmetric=True))
    sums = lower(quantized(("body.0.conv",)), integer_sums=None)
    assert {("QuantizeLinear", "body.0.conv"), ("DequantizeLinear", "body.0.conv")} <= rows(sums)


def test_dynamic_int8_is_near_float_and_says_what_it_is(built, tmp_path):
    engine = built("onnxruntime", detector(), BuildConfig(threads=1, dynamic=True))
    description = engine.describe()
    float_ = {row.layer for row in description.layers if row.precision != "int8"}
    assert float_ == {"neck.up"}  # quantize_dynamic leaves transposed convolutions as they are
    assert "slow" in description.note
    found = engine.infer(IMAGES)["detections"]
    assert 20 < snr_db(reference(detector(), IMAGES), found) < 60
    engine.save(tmp_path / "engine")
    np.testing.assert_array_equal(load(tmp_path / "engine").infer(IMAGES)["detections"], found)


def test_dynamic_int8_refuses_a_graph_that_has_scales(onnx_file):
    with pytest.raises(EngineError, match="has scales already"):
        build("onnxruntime", onnx_file(quantized()), BuildConfig(dynamic=True))


@pytest.mark.parametrize(
    ("machine", "features", "told"),
    [("x86_64", {"avx2"}, True), ("x86_64", {"avx2", "avx_vnni"}, False), ("aarch64", set(), False)],
)
def test_saturation_is_told_where_it_happens(
    machine: str, features: set[str], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("repq.machine.cpu.cpu_features", lambda: features)
    assert (saturation_note() is not None) == told


def test_an_engine_of_signed_sums_is_refused_where_they_saturate(onnx_file, tmp_path, monkeypatch):
    if not (is_x86() and has_dot_products()):
        pytest.skip("needs an x86 CPU with INT8 dot products")
    sums = lower(quantized(("body.0.conv",)), integer_sums=None, signed_sums=True)
    build("onnxruntime", onnx_file(sums)).save(tmp_path / "engine")
    monkeypatch.setattr(cpu, "cpu_features", lambda: ("avx2",))
    with pytest.raises(EngineError, match="INT8 dot products"):
        load(tmp_path / "engine")
    build("onnxruntime", onnx_file(quantized(("body.0.conv",))))
