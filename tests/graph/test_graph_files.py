from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from small_graphs import two_convs

from repq.errors import GraphError
from repq.graph import GraphMetadata, load_onnx, read_metadata, save_onnx, write_metadata
from repq.graph.surgeon import export_graph, import_graph
from repq.layers import LayerId


def test_round_trip_leaves_one_file(tmp_path: Path) -> None:
    model, _ = two_convs()
    path = tmp_path / "new" / "model.onnx"
    save_onnx(path, model)
    assert load_onnx(path) == model
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = two_convs()
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(GraphError, match="No space left"):
        save_onnx(path, model)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"", "no valid ONNX model"), (b"PK\x03\x04 something else", "no valid ONNX model")],
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GraphError, match=message):
        load_onnx(path)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    model, _ = two_convs()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString()[:-40])
    with pytest.raises(GraphError, match="no valid ONNX model"):
        load_onnx(path)


def test_invalid_graphs_are_refused(tmp_path: Path) -> None:
    model, _ = two_convs()
    model.graph.node[1].op_type = "NoSuchOperator"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="no valid ONNX model"):
        load_onnx(path)


@pytest.mark.parametrize("text", [b"repq.key", b"its value"])
def test_metadata_that_is_no_text_is_refused(tmp_path: Path, text: bytes) -> None:
    model, _ = two_convs()
    entry = model.metadata_props.add()
    entry.key, entry.value = "repq.key", "its value"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(text, text[:-1] + b"\xff"))
    with pytest.raises(GraphError, match="no text in UTF-8"):
        load_onnx(path)


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    model, _ = two_convs()
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path), save_as_external_data=True, size_threshold=0, location="weights.bin")
    with pytest.raises(GraphError, match="keeps weights in other files"):
        load_onnx(path)


def test_metadata_round_trip() -> None:
    model, _ = two_convs()
    assert read_metadata(model) is None
    entry = model.metadata_props.add()
    entry.key, entry.value = "author", "somebody"
    metadata = GraphMetadata("0.1.0", "{}", 2, ("Hund", "Кот"), (320, 640), "int8", (LayerId("first"),))
    write_metadata(model, metadata)
    write_metadata(model, metadata)
    assert read_metadata(model) == metadata
    assert [entry.value for entry in model.metadata_props if entry.key == "author"] == ["somebody"]


@pytest.mark.parametrize(("key", "value"), [("imgsz", "[320]"), ("names", "{"), ("precision", "int4"), ("spec", None)])
def test_damaged_metadata_is_refused(key: str, value: str | None) -> None:
    model, _ = two_convs()
    write_metadata(model, GraphMetadata("0.1.0", "{}", 2, None, (320, 640)))
    entry = next(entry for entry in model.metadata_props if entry.key == f"repq.{key}")
    if value is None:
        model.metadata_props.remove(entry)
    else:
        entry.value = value
    with pytest.raises(GraphError, match="metadata of the ONNX model is damaged"):
        read_metadata(model)


def test_sorting_is_stable_and_finds_cycles() -> None:
    model, _ = two_convs()
    names = [node.name for node in model.graph.node]
    model = export_graph(import_graph(model))
    assert [node.name for node in model.graph.node] == names
    model.graph.node.insert(0, model.graph.node.pop())
    model = export_graph(import_graph(model))
    assert [node.name for node in model.graph.node] == names
    model.graph.node[0].input[0] = "y"
    with pytest.raises(GraphError, match="cycle"):
        export_graph(import_graph(model))


def test_editing_keeps_what_stands_around_the_graph() -> None:
    model, _ = two_convs()
    write_metadata(model, GraphMetadata("0.1.0", "{}", 2, None, (320, 640)))
    model.metadata_props.add(key="other", value="tool")
    model.opset_import.add(domain="com.microsoft", version=1)
    model.producer_name, model.producer_version, model.model_version = "a", "b", 7
    model.domain, model.doc_string, model.ir_version = "c", "d", 10
    again = export_graph(import_graph(model))
    for message in (model, again):
        message.ClearField("graph")
    assert sorted(map(str, again.metadata_props)) == sorted(map(str, model.metadata_props))
    for message in (model, again):
        message.ClearField("metadata_props")
    assert again == model
