"""Calibration sets: drawn with a seed, or named by a manifest whose hashes are checked."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from small_sets import write_image, write_yolo

from repq.data import DetectionDataset, calibration_set, load_dataset, read_manifest, write_manifest
from repq.errors import DataError
from repq.recipe import CalibrationConfig


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DetectionDataset:
    monkeypatch.setenv("REPQ_CACHE", str(tmp_path / "cache"))
    return load_dataset(write_yolo(tmp_path, {f"i{n:02}": "" for n in range(20)}), "val")


def drawn(dataset: DetectionDataset, images: int, seed: int) -> list[str]:
    return [record.name for record in calibration_set(dataset, CalibrationConfig(images=images, seed=seed))]


def test_a_draw_depends_on_seed_and_names_alone(dataset: DetectionDataset) -> None:
    shuffled = list(dataset.records)
    random.Random(1).shuffle(shuffled)
    assert drawn(dataset, 8, 0) == drawn(dataset.subset(shuffled), 8, 0)
    assert len(set(drawn(dataset, 8, 0))) == 8
    assert len({tuple(drawn(dataset, 8, seed)) for seed in range(5)}) == 5
    assert drawn(dataset, 20, 3)[:8] == drawn(dataset, 8, 3)


def test_a_data_set_that_is_too_small_is_used_whole(dataset: DetectionDataset) -> None:
    assert sorted(drawn(dataset, 500, 0)) == [record.name for record in dataset.records]


def test_a_manifest_brings_back_the_same_images(dataset: DetectionDataset, tmp_path: Path) -> None:
    records = calibration_set(dataset, CalibrationConfig(images=6, seed=4))
    path = tmp_path / "new" / "manifest.txt"
    write_manifest(path, records, dataset)
    assert list(read_manifest(path)) == [record.name for record in records]
    assert calibration_set(dataset, CalibrationConfig(images=2, manifest=path)) == records
    assert list(path.parent.iterdir()) == [path]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", str(path)], cwd=dataset.root, check=True)


def test_changed_and_missing_images_are_named(dataset: DetectionDataset, tmp_path: Path) -> None:
    path = tmp_path / "manifest.txt"
    write_manifest(path, dataset.records, dataset)
    config = CalibrationConfig(manifest=path)
    with pytest.raises(DataError, match=r"images/val/i07\.jpg"):
        calibration_set(dataset.subset([record for record in dataset.records if "i07" not in record.name]), config)
    write_image(dataset[3].path, seed=99)
    with pytest.raises(DataError, match=r"(?s)1 image changed.*images/val/i03.jpg"):
        calibration_set(dataset, config)
    dataset[3].path.unlink()
    with pytest.raises(DataError, match="cannot read the image"):
        calibration_set(dataset, config)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "abc  a.jpg", f"{'0' * 64} a.jpg", f"{'0' * 64}  a.jpg\n{'1' * 64}  a.jpg", "\xff"]
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="manifest"):
        read_manifest(path)


def test_a_failed_write_leaves_the_old_manifest(dataset: DetectionDataset, tmp_path: Path) -> None:
    path = tmp_path / "manifest.txt"
    write_manifest(path, dataset.records[:3], dataset)
    before = path.read_bytes()
    dataset[5].path.unlink()
    with pytest.raises(DataError):
        write_manifest(path, dataset.records, dataset)
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="cannot read the manifest"):
        read_manifest(tmp_path / "absent.txt")


@pytest.mark.parametrize("name", ["coco128", "bccd"])
def test_the_manifests_of_the_project_fit_the_real_data(shared: Path, name: str) -> None:
    dataset = load_dataset(shared / "data" / name / "data.yaml", "train")
    manifest = Path(__file__).resolve().parents[2] / "calib" / f"{name}_train_128.txt"
    named = calibration_set(dataset, CalibrationConfig(manifest=manifest))
    assert named == calibration_set(dataset, CalibrationConfig(images=128, seed=0))
