"""What torch computes on a GPU is what it computes on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import repq
from repq.quant.quantizer import fake_quantize

SIZE = 64


def images(count: int = 4) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(0, 1, (count, 3, SIZE, SIZE)).astype(np.float32)


def snr_db(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    noise = np.square(wanted.astype(np.float64) - found).sum()
    return float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / max(noise, 1e-30)))


def test_float32_is_float32(on_cpu: repq.Model, on_gpu: repq.Model) -> None:
    """TF32 would leave about 60 dB."""
    torch.backends.cudnn.allow_tf32 = True
    on_gpu = on_gpu.on(device="cuda")
    assert snr_db(on_cpu.infer(images()), on_gpu.infer(images())) > 100


@pytest.mark.parametrize("step", ["infer", "fuse"])
def test_every_step_leaves_tf32_off(checkpoint: Path, demo: Path, step: str) -> None:
    torch.backends.cudnn.allow_tf32 = True
    model = repq.load(checkpoint, device="cuda")
    model.infer(images()) if step == "infer" else model.fuse(demo, imgsz=SIZE)
    x, weight = torch.randn(8, 64, 32, 32, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    error = (torch.nn.functional.conv2d(x, weight, padding=1) - exact).norm() / exact.norm()
    assert error < 1e-5


def test_float16_is_close(on_cpu: repq.Model, on_gpu: repq.Model) -> None:
    half = on_gpu.on(half=True)
    assert half.precision == "float16"
    assert snr_db(on_cpu.infer(images()), half.infer(images())) > 40


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_simulated_int8_is_the_same_simulation(learned: Path, demo: Path, scheme: str, tmp_path: Path) -> None:
    """Where a sum differs in its last digit, a value may round to the next integer; no more."""
    float_ = repq.load(learned)
    float_.quantize(demo, imgsz=SIZE, limit=8, scheme=scheme, auto=False).save(tmp_path / "int8.safetensors")
    own, other = (repq.load(tmp_path / "int8.safetensors", device=device) for device in ("cpu", "cuda"))
    wanted, found = own.infer(images()), other.infer(images())
    assert snr_db(wanted, found) > snr_db(float_.infer(images()), wanted) + 10


@pytest.mark.parametrize("shape", [(), (1, 6, 1, 1)])
@pytest.mark.parametrize(("low", "high"), [(-128, 127), (0, 255)])
def test_fake_quantization_is_the_same_to_the_bit(shape: tuple[int, ...], low: int, high: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, 33, 33, generator=generator) * 3
    scale = torch.rand(shape, generator=generator) * 0.02 + 0.01
    x[:4] = ((x[:4] / scale).round() + 0.5) * scale  # halfway between two integers
    found = fake_quantize(x.to("cuda"), scale.to("cuda"), 0, low, high).cpu()
    assert torch.equal(found, fake_quantize(x, scale, 0, low, high))


def test_the_same_boxes_and_the_same_ap(on_cpu: repq.Model, on_gpu: repq.Model, demo: Path) -> None:
    wanted, found = (model.evaluate(demo, imgsz=SIZE) for model in (on_cpu, on_gpu))
    assert found.ap == pytest.approx(wanted.ap, abs=1e-3)


def test_fused_equals_unfused(on_gpu: repq.Model, demo: Path) -> None:
    fused = on_gpu.fuse(demo, imgsz=SIZE)
    assert snr_db(on_gpu.infer(images()), fused.infer(images())) > 80


def test_an_imported_graph(on_cpu: repq.Model, tmp_path: Path) -> None:
    on_cpu.export(tmp_path / "float.onnx", imgsz=SIZE)
    own, other = (repq.load(tmp_path / "float.onnx", engine="torch", device=device) for device in ("cpu", "cuda"))
    assert snr_db(own.infer(images()), other.infer(images())) > 100


def test_bench_has_the_times_of_the_device(on_gpu: repq.Model) -> None:
    row = on_gpu.bench(imgsz=SIZE, warmup=2, rounds=2, runs_per_round=5).rows[0]
    assert row.device_ms_median is not None and row.device_ms_median > 0


@pytest.mark.parametrize("name", ["yolov8n_640.onnx", "yolox_nano_416.onnx"])
def test_detectors_of_others(shared: Path, name: str) -> None:
    size = int(name[-8:-5])
    pixels = np.random.default_rng(0).uniform(0, 1, (1, 3, size, size)).astype(np.float32)
    own, other = (repq.load(shared / "onnx" / name, engine="torch", device=device) for device in ("cpu", "cuda"))
    assert snr_db(own.infer(pixels), other.infer(pixels)) > 80
