"""Calibration, corrections, sensitivity and pruning on a GPU find what they find on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import repq
from repq.quant.calibration import CALIBRATORS
from repq.quant.state import scale_table

SIZE = 64


def both(on_cpu: repq.Model, on_gpu: repq.Model, demo: Path, **settings: object) -> list[repq.Model]:
    return [model.quantize(demo, imgsz=SIZE, limit=16, **settings) for model in (on_cpu, on_gpu)]  # type: ignore[arg-type]


def scales_of(model: repq.Model) -> dict[str, np.ndarray]:
    table = scale_table(model.checkpoint("be looked at").model)
    return {f"{name}.{part}": np.atleast_1d(getattr(entry, part).scale) for name, entry in table.items()
            for part in ("input", "weight")}  # fmt: skip


@pytest.mark.parametrize("method", [entry.name for entry in CALIBRATORS])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_scales(on_cpu: repq.Model, on_gpu: repq.Model, demo: Path, method: str, scheme: str) -> None:
    """Nearly all to five digits; where a search chooses among candidates, a last digit may choose the next one."""
    wanted, found = map(scales_of, both(on_cpu, on_gpu, demo, method=method, scheme=scheme))
    assert wanted.keys() == found.keys()
    apart = [np.max(np.abs(found[name] / value - 1)) for name, value in wanted.items()]
    assert np.mean(np.array(apart) > 1e-5) < 0.05
    assert max(apart) < 0.05


CORRECTIONS = [
    {"outputs": "mean"}, {"outputs": "moments"}, {"rounding": "adaptive"}, {"equalize": True}, {"split_below_db": 40.0},
    {"channel_inputs": True},
]  # fmt: skip


def snr_db(model: repq.Model, exact: NDArray[np.float32]) -> float:
    noise = np.square(model.infer(images()) - exact).mean()
    return float(10 * np.log10(np.square(exact).mean() / noise))


def images() -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(0, 1, (4, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("correct", CORRECTIONS, ids=str)
def test_corrections(learned: Path, demo: Path, correct: dict) -> None:
    own, other = (repq.load(learned, device=device) for device in ("cpu", "cuda"))
    exact = own.infer(images())
    wanted, found = (snr_db(model, exact) for model in both(own, other, demo, correct=correct, scheme="asymmetric"))
    assert found == pytest.approx(wanted, abs=1)


def test_auto(learned: Path, demo: Path) -> None:
    own, other = (repq.load(learned, device=device) for device in ("cpu", "cuda"))
    exact = own.infer(images())
    wanted, found = (snr_db(model, exact) for model in both(own, other, demo, auto=True, scheme="asymmetric"))
    assert found == pytest.approx(wanted, abs=2)


def test_sensitivity(learned: Path, demo: Path) -> None:
    wanted, found = (
        repq.load(learned, device=device).sensitivity(
            demo, imgsz=SIZE, count=4, ap=("only_int8",), ap_images=8, ptq=repq.PtqConfig(auto=False)
        )
        for device in ("cpu", "cuda")
    )
    rows = {row.layer: row for row in found.layers}
    for row in wanted.layers:
        own, other = row.local, rows[row.layer].local
        assert own is not None and other is not None
        assert other.snr_db == pytest.approx(own.snr_db, abs=0.5), row.layer
        assert other.cosine == pytest.approx(own.cosine, abs=1e-3), row.layer
    assert found.ap_float == pytest.approx(wanted.ap_float, abs=1e-3)


def test_pruning(on_gpu: repq.Model, demo: Path) -> None:
    smaller = on_gpu.prune(demo, imgsz=SIZE, ratio=0.3)
    assert np.isfinite(smaller.infer(images())).all()
    assert smaller.quantize(demo, imgsz=SIZE, limit=8, auto=False).quantized
