"""A calibrator is one object and one entry: it is a choice of the command line, of recipes, and of the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError
from torch import Tensor

from repq.cli import main
from repq.machine.environment import capture_environment
from repq.model import layer_ids
from repq.quant import load_weights, quantize, scale_table
from repq.quant.calibration import CALIBRATORS, Calibrator
from repq.recipe import CalibrationConfig, PtqConfig, load_recipe
from repq.recipe.base import setting
from repq.reparam import fuse
from repq.report import ReportSummary, render_report


class Deviation:
    """Watches one tensor: how many values there were, their sum and the sum of their squares."""

    def __init__(self) -> None:
        self.sums = (0.0, 0.0, 0.0)

    def add(self, values: Tensor) -> None:
        wide = values.double()
        new = (wide.numel(), float(wide.sum()), float(wide.square().sum()))
        self.sums = tuple(map(sum, zip(self.sums, new, strict=True)))  # type: ignore[assignment]

    @classmethod
    def joint(cls, several: Sequence[Deviation]) -> Deviation:
        both = cls()
        both.sums = tuple(map(sum, zip(*(one.sums for one in several), strict=True)))  # type: ignore[assignment]
        return both


class Sigmas(Calibrator):
    """So many standard deviations around zero."""

    name, title = "toy", "some standard deviations"
    fields = {"sigmas": (float, setting(4.0, gt=0, le=100, flag="--sigmas", help="How many."))}  # noqa: RUF012

    def observer(self, tensor: str, bins: int) -> Deviation:
        return Deviation()

    def range(self, seen: Deviation, scheme: Any, config: CalibrationConfig) -> tuple[float, float]:
        count, _, squares = seen.sums
        edge = config.sigmas * math.sqrt(squares / count)
        return -edge, edge


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    CALIBRATORS.append(Sigmas())
    yield
    CALIBRATORS.pop()


def ptq(tiny: Path, *options: object) -> tuple[object, ...]:
    """Without a bound, so that no engine judges the result."""
    few = ("--images", 2, "--scheme", "asymmetric", "--max-drop", 1)
    common = ("--data", tiny / "set/data.yaml", "--imgsz", 64, *few)
    return ("ptq", tiny / "weights.safetensors", *common, *options)


def scales(report: dict) -> list[float]:
    return [row["activation_scale"] for row in report["layers"]]


def test_it_is_a_choice_of_the_command_line(tiny: Path, tmp_path: Path, repq: Callable[..., dict]) -> None:
    assert "toy" in CliRunner().invoke(main, ["ptq", "--help"]).output
    out = ("-o", tmp_path / "model.safetensors")
    plain, wider = (repq(*ptq(tiny, "--method", "toy", "--sigmas", sigmas, *out)) for sigmas in (2, 8))
    assert (plain["method"], plain["calibration"]) == ("toy", "some standard deviations")
    assert scales(wider) == pytest.approx([4 * scale for scale in scales(plain)], rel=1e-5)
    assert "no effect" in repq(*ptq(tiny, "--sigmas", 2, *out), exit=2)["error"]


def test_layers_that_share_a_scale_get_what_it_chooses_for_all_of_them(tiny: Path) -> None:
    fused = fuse(load_weights(tiny / "weights.safetensors").model)
    one, other = list(layer_ids(fused))[1:3]
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    config = PtqConfig(share_scales="joint", calibration={"method": "toy"})
    outcome = quantize(fused, [batch], config, groups=[(one, other)])
    assert outcome.own_scales is not None
    own, shared = outcome.own_scales, scale_table(outcome.model)
    assert shared[one].input.scale == shared[other].input.scale
    low, high = sorted(float(own[layer].input.scale) for layer in (one, other))
    assert low < float(shared[one].input.scale) < high


def test_auto_tries_it(tiny: Path, tmp_path: Path, repq: Callable[..., dict]) -> None:
    few = ("--keep-float", "neck.*", "--keep-float", "backbone.ERBlock_[345]*")
    found = repq(*ptq(tiny, "--auto", "--images", 4, *few, "-o", tmp_path / "model.safetensors"))
    assert [trial["name"] for trial in found["trials"][: len(CALIBRATORS)]] == [entry.name for entry in CALIBRATORS]


def test_it_is_in_recipes_and_in_the_report(tiny: Path, tmp_path: Path) -> None:
    from repq.stages import Context, ptq_checkpoint

    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: tiny\ndata: {{path: {tiny / 'set/data.yaml'}}}\nimgsz: 64\nweights: {tiny / 'weights.safetensors'}\n"
        "ptq: {calibration: {method: toy, sigmas: 3, images: 2}, scheme: asymmetric}\n"
    )
    recipe = load_recipe(path)
    assert recipe.weights is not None
    report = ptq_checkpoint(
        recipe.weights, tmp_path / "model.safetensors", recipe.ptq,
        Context(recipe.imgsz, recipe.data.path, recipe.eval),
    )  # fmt: skip
    assert report.settings["calibration"]["sigmas"] == 3
    summary = ReportSummary(title="t", created="2026-01-31", environment=capture_environment(), results={"ptq": report})
    for form in ("html", "md"):
        assert "some standard deviations" in render_report(summary, tmp_path)[form].read_text(encoding="utf-8")


@pytest.mark.parametrize("entry", [*CALIBRATORS, Sigmas()], ids=lambda entry: entry.name)
@pytest.mark.parametrize("chosen", [*CALIBRATORS, Sigmas()], ids=lambda entry: entry.name)
def test_an_option_of_another_calibrator_is_an_error(entry: Calibrator, chosen: Calibrator) -> None:
    for name, (_, info) in entry.fields.items():
        values = {"method": chosen.name, name: info.default - 0.5}
        if entry.name == chosen.name:
            assert getattr(CalibrationConfig(**values), name) == info.default - 0.5
        else:
            with pytest.raises(ValidationError, match=f"{name} is no setting of the method {chosen.name}"):
                CalibrationConfig(**values)
