"""Equal content gives equal bytes, and the library reads back what was written."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from repq.model.tensorfile import read_tensors, write_tensors


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3, dtype=torch.int8)}
    metadata = {f"key{index}": "ä" * index for index in range(20)}
    write_tensors(tmp_path / "one", tensors, metadata)
    write_tensors(tmp_path / "two", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = load_file(tmp_path / "one")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "one", framework="pt") as file:
        assert file.metadata() == metadata


def test_what_is_read_is_what_was_written_and_lies_as_if_made_here(tmp_path: Path) -> None:
    """In the file, one tensor lies right behind the other."""
    tensors = {"a": torch.tensor([1], dtype=torch.int8), "b": torch.arange(6.0).reshape(2, 3), "c": torch.zeros(0)}
    write_tensors(tmp_path / "file", tensors, {"text": "ä"})
    metadata, found = read_tensors(tmp_path / "file")
    assert metadata == {"text": "ä"} and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())
    assert all(value.data_ptr() % 16 == 0 for value in found.values())
