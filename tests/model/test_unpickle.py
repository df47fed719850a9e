"""The reader of pickled checkpoints: it runs nothing, believes no size, and reads what torch wrote."""

from __future__ import annotations

import contextlib
import copyreg
import io
import os
import pickle
import random
import time
from pathlib import Path

import hostile_files as hostile
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repq.errors import CheckpointError
from repq.model import load_checkpoint
from repq.model.pickled import Name, Node, RefusedError, Storage, StoredTensor
from repq.model.torchfile import open_torch_file
from repq.model.unpickle import read_stream

RUNNING = list(hostile.running(Path("marker")))


@pytest.fixture
def extension() -> object:
    copyreg.add_extension("os", "system", 0xF0)
    yield
    copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("case", RUNNING)
def test_refuses_what_would_run(tmp_path: Path, case: str, container: str) -> None:
    marker = tmp_path / "marker"
    graph = hostile.stream(hostile.running(marker)[case])
    write = hostile.zip_checkpoint if container == "zip" else hostile.legacy_checkpoint
    path = write(tmp_path / "weights.pt", graph)
    with pytest.raises(CheckpointError, match="nothing in it was run") as caught:
        load_checkpoint(path)
    assert not marker.exists()
    assert caught.value.found
    assert caught.value.fix


def test_the_files_are_really_dangerous(tmp_path: Path) -> None:
    # otherwise the test above would prove nothing
    marker = tmp_path / "marker"
    for case in ("call of os.system", "call of open", "call of eval", "state that is a call"):
        body = hostile.running(marker)[case].replace(b"yolov6.models.yolo\nModel", b"types\nSimpleNamespace")
        with contextlib.suppress(Exception):
            pickle.loads(hostile.stream(body))
        assert marker.exists(), case
        marker.unlink()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_names_what_it_refused(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    graph = pickle.dumps({"model": hostile.Touch(marker)}, protocol)
    path = hostile.zip_checkpoint(tmp_path / "weights.pt", graph)
    with pytest.raises(CheckpointError, match=rf"{os.system.__module__}\.system"):
        load_checkpoint(path)
    assert not marker.exists()


def test_plain_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(hostile.Touch(tmp_path / "marker")))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("case", hostile.exhausting())
def test_refuses_what_would_exhaust(tmp_path: Path, case: str) -> None:
    graph = hostile.stream(hostile.exhausting()[case])
    path = hostile.zip_checkpoint(tmp_path / "weights.pt", graph, {"0": bytes(16)})
    start = time.process_time()
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert time.process_time() - start < 10


def test_refuses_compressed_archives(tmp_path: Path) -> None:
    graph = hostile.stream(hostile.mapping(a=hostile.text("x" * 10_000_000)))
    path = hostile.zip_checkpoint(tmp_path / "weights.pt", graph, compress=True)
    with pytest.raises(CheckpointError, match="compressed"):
        load_checkpoint(path)


def test_storage_of_another_length_is_refused(tmp_path: Path) -> None:
    body = hostile.mapping(a=hostile.tensor(hostile.storage(), 0, hostile.numbers(4), hostile.numbers(1)))
    path = hostile.zip_checkpoint(tmp_path / "weights.pt", hostile.stream(body), {"0": bytes(12)})
    with pytest.raises(CheckpointError, match="12 bytes where 16"), open_torch_file(path) as opened:
        opened.tensor(opened.root["a"])


def content() -> dict[str, object]:
    base = torch.arange(24, dtype=torch.float32)
    return {
        "plain": base.view(2, 3, 4),
        "view": base.view(4, 6).t()[1:3],
        "half": torch.randn(3, generator=torch.Generator().manual_seed(0)).half(),
        "brain": torch.ones(2).bfloat16(),
        "scalar": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_every_kind_of_tensor(tmp_path: Path, zipped: bool) -> None:
    expected = content()
    torch.save(expected, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
    with open_torch_file(tmp_path / "t.pt") as opened:
        assert opened.root.keys() == expected.keys()
        for key, value in expected.items():
            assert isinstance(value, torch.Tensor)
            found = opened.tensor(opened.root[key])
            assert found.dtype == value.dtype
            assert torch.equal(found, value.detach())


def test_reads_plain_values() -> None:
    value = {
        "numbers": [1, -(2**70), 2.5, True, None],
        "names": ("a", "ä", b"bytes"),
        "members": {1, 2},
        "frozen": frozenset({"x"}),
        ("a", 1): {"nested": [[]]},
        "numpy": np.float64(0.25),
        "integer": np.int32(-3),
    }
    for protocol in range(2, 6):
        assert read_stream(pickle.dumps(value, protocol)) == value


def test_modules_become_inert_nodes() -> None:
    node = read_stream(pickle.dumps(torch.nn.ReLU(inplace=True)))
    assert isinstance(node, Node)
    assert node.kind == Name("torch.nn.modules.activation", "ReLU")
    assert node.state["inplace"] is True


def test_tensor_inside_its_storage_is_taken() -> None:
    body = hostile.tensor(hostile.storage(numel=6), 1, hostile.numbers(2, 2), hostile.numbers(3, 1))
    assert read_stream(hostile.stream(body)) == StoredTensor(Storage("0", torch.float32, 6), 1, (2, 2), (3, 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=3), st.integers(0, 8), st.data())
def test_bounds_are_those_of_torch(size: list[int], offset: int, data: st.DataObject) -> None:
    """Whatever is accepted lies inside the storage, as torch's own check says."""
    stride = data.draw(st.lists(st.integers(0, 6), min_size=len(size), max_size=len(size)))
    body = hostile.tensor(hostile.storage(numel=12), offset, hostile.numbers(*size), hostile.numbers(*stride))
    try:
        stored = read_stream(hostile.stream(body))
    except RefusedError:
        return
    torch.arange(12.0).as_strided(stored.size, stored.stride, stored.offset)


def test_truncated_and_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content(), buffer)
    whole = buffer.getvalue()
    path = tmp_path / "t.pt"
    generator = random.Random(0)
    for length in sorted(generator.sample(range(len(whole)), 60)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 4, 30])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):  # at the least: these tensors are no detector
            load_checkpoint(path)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_random_streams_raise_nothing_else(body: bytes) -> None:
    with contextlib.suppress(RefusedError):
        read_stream(b"\x80\x02" + body + b".")


@pytest.mark.parametrize(
    ("head", "meaning"),
    [
        (b"", "empty"),
        (b"<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git-lfs"),
        (b"abc", "abc"),
    ],
)
def test_says_what_else_a_file_is(tmp_path: Path, head: bytes, meaning: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(head)
    with pytest.raises(CheckpointError, match=meaning):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_checkpoint(tmp_path / "absent.pt")
