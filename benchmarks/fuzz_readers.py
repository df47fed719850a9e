"""Give every reader damaged files for a while: none may crash, hang or end in anything but a message.

Each target reads a good file first. Hypothesis then damages its bytes, or its values where it has a structure (YAML,
JSON, protobuf). The readers run in a child process, so that a crash of native code is seen and its file is kept.
A file that takes more than five seconds of CPU time counts as a hang.

    python benchmarks/fuzz_readers.py [--minutes 30] [--only label,onnx] [--out results.json]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repq.artifact import Contents, RunFolder, read_artifact
from repq.cli.frame import explained
from repq.data import load_dataset, make_demo_set, read_image, read_manifest, write_manifest
from repq.data.coco import read_annotations, read_coco
from repq.data.data_yaml import read_source
from repq.data.yolo import read_labels
from repq.engine import build as build_engine
from repq.engine import read_engine
from repq.engine.source import read_source as read_onnx
from repq.errors import RepqError
from repq.graph import lint, load_onnx, parse_metadata
from repq.identity import Identity
from repq.model import build, load_graph, save_checkpoint
from repq.output_layouts import Outputs, class_names, form_of
from repq.quant import load_weights
from repq.quant.plan_file import read_plan
from repq.reading import read_json
from repq.recipe import DemoConfig, GraphConfig
from repq.recipe.reader import load_ablation, load_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "model" / "onnx_graph"))
from detectors import DETECTORS

SLOW = 5.0  # seconds of CPU time
MOST = 300  # seconds on a busy machine
ROUND = 200

# --- damage ----------------------------------------------------------------------------------------------------------

TOKENS = [
    b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b"  ", b"-", b"- ", b": ", b"[", b"]", b"{", b"}", b'"',
    b"'", b",", b"&a ", b"*a", b"<<: *a", b"!!int ", b"!!python/name:os.abort", b"|", b">", b"#", b"nan", b"inf",
    b"1e999", b"-1", b"9" * 400, b"0x", b"null", b"true", b"~", b"\\ud800", b"\xe2\x80\xae", b"\x1b[2J", b"..",
    b"/dev/zero", b"~x/", b"[" * 200, b"{" * 200, b"\x80\x02", b"(", b"R", b"i", b"c", b"q\0",
    b"X\xff\xff\xff\x7f", b"\x85", b"PK\x03\x04",
]  # fmt: skip
ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 2**31, 2**63, 10**40, 0.5, -1e308, float("nan"), float("inf"), "", "no", "1", "a\0b",
    "\ud800", "\u202e\x1b[2J", "../..", "/dev/zero", "~nosuchuser", "a" * 5000, [], {}, [[]], [None], {"": None},
    [1, "a", {}],
]  # fmt: skip


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with up to six places cut, overwritten, repeated or filled with a token."""
    for _ in range(draw(st.integers(1, 6))):
        at, length = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 1, 1, 2, 4, 8, 64]))
        what = draw(st.integers(0, 4))
        if what == 0:
            new = b""
        elif what == 1:
            new = draw(st.binary(min_size=1, max_size=8))
        elif what == 2:
            new = draw(st.sampled_from(TOKENS))
        elif what == 3:
            start = draw(st.integers(0, len(content)))
            new = content[start : start + draw(st.sampled_from([4, 64, 1024]))]
        else:
            length, new = len(content), b""
        content = content[:at] + new + content[at + length :]
    return content


@st.composite
def damaged_values(draw: st.DrawFn, tree: Any) -> Any:
    """A tree of lists and mappings with up to four places replaced, removed, repeated or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 4))):
        node = tree
        while isinstance(node, (list, dict)) and node:
            key = draw(st.sampled_from(list(range(len(node))) if isinstance(node, list) else list(node)))
            if isinstance(node[key], (list, dict)) and node[key] and draw(st.integers(0, 3)):
                node = node[key]
                continue
            what = draw(st.integers(0, 5))
            if what == 0:
                del node[key]
            elif what == 1 and isinstance(node, list):
                node.append(copy.deepcopy(node[key]))
            elif what == 1:
                node[draw(st.sampled_from(["", "no_such", "\x1b", "1"]))] = node.pop(key)
            else:
                node[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            break
    return tree


@st.composite
def damaged_message(draw: st.DrawFn, good: Message) -> bytes:
    """A protobuf message with up to four fields cleared, repeated or set to something else."""
    message = type(good)()
    message.CopyFrom(good)
    for _ in range(draw(st.integers(1, 4))):
        node, fields = message, message.ListFields()
        while fields:
            field, value = draw(st.sampled_from(fields))
            is_list = not isinstance(value, (Message, str, bytes, int, float))
            if field.message_type is not None and draw(st.integers(0, 5)):
                node = value[draw(st.integers(0, len(value) - 1))] if is_list else value
                fields = node.ListFields()
                continue
            _damage_field(draw, node, field, value, is_list)
            break
    return message.SerializeToString()


def _damage_field(draw: st.DrawFn, node: Any, field: Any, value: Any, is_list: bool) -> None:
    what = draw(st.integers(0, 4))
    if field.message_type is not None:
        if is_list and what > 1:
            value.add().CopyFrom(value[draw(st.integers(0, len(value) - 1))])
        elif is_list:
            del value[draw(st.integers(0, len(value) - 1))]
        else:
            node.ClearField(field.name)
        return
    if what == 0:
        node.ClearField(field.name)
        return
    kinds = {field.CPPTYPE_STRING: ["", "x", "a\0b", "com.x"], field.CPPTYPE_FLOAT: [0.0, -1.0, float("nan"), 1e38]}
    odd = kinds.get(field.cpp_type, [0, 1, -1, 2, 3, 7, 10, 100, 2**31 - 1])
    if field.type == field.TYPE_BYTES:
        raw = bytes(value[0] if is_list else value)
        odd = [b"", raw[:-1], raw[: len(raw) // 2], raw + b"\0", b"\xff" * len(raw)]
    new = draw(st.sampled_from(odd))
    try:
        if is_list and what == 1:
            value.append(new)
        elif is_list:
            value[draw(st.integers(0, len(value) - 1))] = new
        else:
            setattr(node, field.name, new)
    except ValueError:  # no value of this enum or of this width
        node.ClearField(field.name)


# --- targets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        suffix: of its files.
        damaged: makes contents of such files.
        read: reads one; whatever it raises but `RepqError` is counted.
        good: contents that must be read without an error.
    """

    suffix: str
    damaged: st.SearchStrategy[bytes]
    read: Callable[[Path], object]
    good: tuple[bytes, ...]


def targets(folder: Path) -> dict[str, Target]:
    """Every reader with good files, made in ``folder``."""
    data = make_demo_set(folder / "set", DemoConfig(train_images=2, val_images=2, size=64, classes=3))
    dataset = load_dataset(data, "val")
    onnx_model, weights = small_graph(), folder / "w.safetensors"
    model = build("yolov6lite_s", 3, deploy=True).eval()
    save_checkpoint(weights, model, names=("a", "b", "c"))
    (folder / "m.onnx").write_bytes(onnx_model.SerializeToString())
    build_engine("onnxruntime", folder / "m.onnx").save(folder / "engine")
    write_manifest(folder / "manifest.txt", dataset.records, dataset)

    def fill(payload: Path, _: Path) -> None:
        (payload / "a.txt").write_text("a")

    artifact = RunFolder(folder / "run").make(Identity("ptq", {"a": 1}), fill, contents=Contents()).folder
    image = dataset.records[0].path.read_bytes()
    labels = b"0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.1 0.3 0.4\n2 0.5 0.5 0.1 0.1\n"
    yaml_of = {
        "data": {"path": str(data.parent), "train": "images/train", "val": ["images/val"], "nc": 3,
                 "names": ["a", "b", "c"], "kpt_shape": [17, 3], "test_annotations": "a.json", "test": "images"},
        "recipe": {"name": "x", "data": {"path": str(data)}, "weights": str(weights), "imgsz": 64, "seed": 1,
                   "ptq": {"scheme": "symmetric", "calibration": {"method": "mse", "images": 8}},
                   "qat": {"epochs": 1, "batch": 4}, "build": {"engines": ["onnxruntime"]}},
        "ablation": {"name": "x", "base": {"data": {"path": str(data)}, "weights": str(weights)}, "seeds": [0, 1],
                     "variants": {"a": {"ptq": {"scheme": "symmetric"}}, "b": {"imgsz": [64, 96]}}},
        "plan": {"model": "yolov6lite_s", "float": ["stem.conv", "body.*"]},
    }  # fmt: skip
    json_of = {
        "coco": {"images": [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 64} for n in range(3)],
                 "categories": [{"id": 1, "name": "a"}, {"id": "2", "name": "b"}],
                 "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12,
                                  "iscrowd": 0, "segmentation": [[1, 2, 3, 4, 5, 6]]} for n in range(3)]},
        "engine": json.loads((folder / "engine" / "engine.json").read_text()),
        "artifact": json.loads((artifact / "manifest.json").read_text()),
    }  # fmt: skip

    def beside(place: Path, name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
        """Read a folder in which one file is the damaged one."""

        def run(path: Path) -> object:
            shutil.copyfile(path, place / name)
            return read(place)

        return run

    def coco(path: Path) -> None:
        found = read_coco(path)
        for entries in found.annotations.values():
            read_annotations(entries, found.classes, 64, 64)

    def whole_onnx(path: Path) -> None:
        parse_metadata(read_onnx(path).metadata)
        lint(load_onnx(path))

    outputs = [
        {"detections": [1, 80, 8]}, {"detections": [1, 7, 80]}, {"detections": [1, 20, 6]},
        {"boxes": [1, 80, 4], "scores": [1, 80, 3]}, {"logits": [1, 3, 9], "boxes": [1, 9, 4]},
        {"map": [1, 8, 8, 8]}, {"fine": [1, 3, 8, 8, 8], "coarse": [1, 3, 4, 4, 8]}, {"rows": [80, 7]},
        {"count": [1, 1], "boxes": [1, 20, 4], "scores": [1, 20], "labels": [1, 20]},
    ]  # fmt: skip
    form = {"metadata": {"names": "{0: 'a', 1: 'b', 2: 'c'}", "task": "detect", "author": "Ultralytics",
                         "repq.layout": "{}", "repq.num_classes": "3", "repq.preprocessing": "{}"},
            "config": {"layout": None, "preset": None, "classes": None, "anchors": None}, "value": 0.5,
            "outputs": outputs}  # fmt: skip

    def layout(path: Path) -> None:
        """What graphs give and say of themselves, from a JSON file."""
        tree = read_json(path)
        try:
            metadata = {str(key): str(value) for key, value in dict(tree["metadata"]).items()}
            config = GraphConfig.model_validate(tree["config"])
            arrays = [{k: np.full(shape, tree["value"], np.float32) for k, shape in dict(one).items()
                       if np.prod(shape) < 1e6} for one in tree["outputs"]]  # fmt: skip
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError):
            raise RepqError("no outputs") from None
        names, refused = class_names(metadata), []
        for one in arrays:
            for said in (metadata, {}):
                try:
                    form_of(Outputs(one, (64, 64), None if names is None else len(names)), said, config)
                except RepqError as error:
                    refused.append(error)
        if len(refused) == 2 * len(arrays):
            raise refused[0] if refused else RepqError("no outputs")

    readers: dict[str, tuple[str, Callable[[Path], object], Any]] = {
        "data": (".yaml", lambda path: read_source(path, "val"), yaml_of["data"]),
        "recipe": (".yaml", load_recipe, yaml_of["recipe"]),
        "ablation": (".yaml", load_ablation, yaml_of["ablation"]),
        "plan": (".yaml", read_plan, yaml_of["plan"]),
        "coco": (".json", coco, json_of["coco"]),
        "output layout": (".json", layout, form),
        "engine": (".json", beside(folder / "engine", "engine.json", read_engine), json_of["engine"]),
        "artifact": (".json", beside(artifact, "manifest.json", read_artifact), json_of["artifact"]),
    }
    written = {
        ".yaml": lambda tree: yaml.dump(tree).encode("utf-8", "replace"),
        ".json": lambda t: json.dumps(t).encode(),
    }
    found = {}
    for name, (suffix, read, tree) in readers.items():
        write = written[suffix]
        good = write(tree)
        found[name] = Target(suffix, st.one_of(damaged_bytes(good), damaged_values(tree).map(write)), read, (good,))
    plain, legacy = folder / "plain.pt", folder / "legacy.pt"
    torch.save({"model": model.state_dict()}, plain)
    torch.save({"model": model.state_dict()}, legacy, _use_new_zipfile_serialization=False)
    checkpoints = {".safetensors": weights.read_bytes(), ".pt": plain.read_bytes(), "legacy.pt": legacy.read_bytes()}
    for suffix, content in checkpoints.items():
        heads = damaged_bytes(content[:4096]).map(lambda head, content=content: head + content[4096:])
        tails = damaged_bytes(content[-8192:]).map(lambda tail, content=content: content[:-8192] + tail)
        found[f"checkpoint {suffix}"] = Target(suffix, st.one_of(heads, tails), load_weights, (content,))
    graph = onnx_model.SerializeToString()
    detectors = {name: make() for name, make in DETECTORS.items() if name in ("yolov5", "yolov8", "end2end", "detr")}
    damaged_detector = st.one_of(map(damaged_message, detectors.values()))
    good_detectors = tuple(made.SerializeToString() for made in detectors.values())
    damaged_graph = st.one_of(damaged_message(onnx_model), damaged_bytes(graph))
    return found | {
        "label": Target(".txt", damaged_bytes(labels), lambda path: read_labels(path, 3, 64, 64), (labels,)),
        "manifest": Target(".txt", damaged_bytes((folder / "manifest.txt").read_bytes()), read_manifest,
                           ((folder / "manifest.txt").read_bytes(),)),
        "image": Target(".jpg", damaged_bytes(image), read_image, (image,)),
        "onnx": Target(".onnx", damaged_graph, whole_onnx, (graph,)),
        "onnx as model": Target(".onnx", damaged_detector, lambda path: load_graph(path, (64, 64)), good_detectors),
        "onnx to engine": Target(".onnx", damaged_graph, lambda path: build_engine("onnxruntime", path), (graph,)),
    }  # fmt: skip


def small_graph() -> onnx.ModelProto:
    """Two convolutions, one of them quantized, with constants in each form that a file can have."""
    rng = np.random.default_rng(0)
    constants = {
        "a.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "b.weight": rng.integers(-9, 9, (4, 4, 1, 1)).astype(np.int8),
        "b.scale": np.full(4, 0.1, np.float32), "b.zero": np.zeros(4, np.int8),
        "x.scale": np.float32(0.1), "x.zero": np.int8(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["images", "a.weight"], ["y"], "a", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("QuantizeLinear", ["y", "x.scale", "x.zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "x.scale", "x.zero"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["b.weight", "b.scale", "b.zero"], ["w"], "w", axis=0),
        helper.make_node("Conv", ["d", "w"], ["z"], "b"),
        helper.make_node("Concat", ["z", "y"], ["detections"], "c", axis=1),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    tensors[2] = helper.make_tensor("b.scale", TensorProto.FLOAT, (4,), [0.1] * 4)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])
    result = helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["n", 8, 8, 8])
    graph = helper.make_graph(nodes, "g", [images], [result], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    entries = {"version": "1", "spec": "{}", "num_classes": "3", "names": '["a", "b", "c"]', "imgsz": "[8, 8]",
               "precision": "int8", "int8_layers": '["b"]', "layout": "{}", "maxima": '{"y": 1.0}'}  # fmt: skip
    helper.set_model_props(model, {f"repq.{key}": value for key, value in entries.items()})
    return model


# --- the run ---------------------------------------------------------------------------------------------------------


def run_round(target: Target, number: int, path: Path, kept: Path) -> dict[str, Any]:
    """Read ``ROUND`` damaged files, the last of which lies at ``path``; what failed goes to ``kept``."""
    counts: Counter[str] = Counter()
    failures: dict[str, str] = {}

    def check(content: bytes) -> None:
        path.write_bytes(content)
        signal.alarm(MOST)  # ends a process that hangs in native code
        started = time.process_time()
        try:
            target.read(path)
            counts["read"] += 1
            return
        except RepqError as error:
            str(error).encode()
            counts["refused"] += 1
            return
        except Exception as error:
            counts["other errors" if explained(error) else "tracebacks"] += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__} at {place.filename}:{place.lineno}: {str(error)[:200]}"
        finally:
            if time.process_time() - started > SLOW:
                counts["hangs"] += 1
                shutil.copyfile(path, kept / f"hang-{path.name}")
        key = text.partition(": ")[0]
        if key not in failures:
            failures[key] = text
            shutil.copyfile(path, kept / f"{abs(hash(key)):x}-{path.name}")

    bounds = settings(
        max_examples=ROUND,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    seed(number)(bounds(given(target.damaged)(check)))()
    return {"counts": counts, "failures": failures}


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a forked process returns; how it ended if it returned nothing."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            json.dump(work(), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    if text:
        found: dict[str, Any] = json.loads(text)
        return found
    return {"counts": {"crashes": 1}, "failures": {f"ended with {os.waitstatus_to_exitcode(status)}": "see the file"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--only", default="", help="targets, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp(prefix="repq-fuzz-"))
    os.environ["REPQ_CACHE"] = str(scratch / "cache")
    kept = scratch / "kept"
    kept.mkdir()
    chosen = targets(scratch)
    chosen = {name: chosen[name] for name in options.only.split(",")} if options.only else chosen
    for name, target in chosen.items():
        for content in target.good:
            path = scratch / f"good{target.suffix}"
            path.write_bytes(content)
            target.read(path)
        print(f"{name}: the good file is read", flush=True)
    totals: dict[str, Counter[str]] = {name: Counter() for name in chosen}
    failures: dict[str, dict[str, str]] = {name: {} for name in chosen}
    spent: Counter[str] = Counter()
    started, number = time.monotonic(), options.seed
    while time.monotonic() - started < 60 * options.minutes:
        number += 1
        name = min(chosen, key=lambda one: spent[one])  # each gets the same time
        target, begun = chosen[name], time.monotonic()
        path = scratch / f"{name.replace(' ', '-').replace('.', '')}{target.suffix}"
        found = in_child(lambda target=target, number=number, path=path: run_round(target, number, path, kept))
        if "crashes" in found["counts"]:
            shutil.copyfile(path, kept / f"crash-{number}-{path.name}")
        spent[name] += time.monotonic() - begun
        totals[name].update(found["counts"])
        for key, text in found["failures"].items():
            if key not in failures[name]:
                failures[name][key] = text
                print(f"{name}: {text}", flush=True)
    values = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": options.minutes,
        "seed": options.seed,
        "files": sum(sum(counts.values()) for counts in totals.values()),
        "targets": {name: dict(counts) for name, counts in totals.items()},
        "failures": {name: list(found.values()) for name, found in failures.items() if found},
    }
    print(json.dumps(values, indent=1))
    if options.out:
        options.out.write_text(json.dumps(values, indent=1) + "\n")
    shutil.rmtree(scratch) if not any(failures.values()) else print(f"files that failed: {kept}")
    sys.exit(1 if any(failures.values()) else 0)


if __name__ == "__main__":
    main()
