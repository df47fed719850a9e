"""A correction is one object and one entry: it has a setting and an option, is tried, diagnosed and reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from repq.cli import main
from repq.layers import LayerId
from repq.machine.environment import capture_environment
from repq.quant.corrections import CORRECTIONS, Correction, Material
from repq.quant.state import quantized_layers
from repq.recipe import CorrectionConfig, load_recipe
from repq.recipe.base import setting
from repq.report import ReportSummary, render_report


class Shift(Correction):
    """Moves the bias of every quantized layer by a share of the largest input that it has seen."""

    name, title, keeps_images = "shift", "shifted biases", True
    field = (float, setting(0.0, ge=0, le=1, flag="--shift", help="Share of the largest input."))
    cost = "a little patience"
    tries, diagnosed = (0.25, 0.5), 0.25
    acted: ClassVar[list[tuple[float, int, int]]] = []

    @contextmanager
    def watching(self, model: nn.Module, layers: Sequence[LayerId]) -> Iterator[dict[LayerId, float]]:
        seen = dict.fromkeys(layers, 0.0)

        def look(name: LayerId) -> Any:
            return lambda _module, inputs: seen.update({name: max(seen[name], float(inputs[0].abs().max()))})

        hooks = [model.get_submodule(layer).register_forward_pre_hook(look(layer)) for layer in layers]
        yield seen
        for hook in hooks:
            hook.remove()

    def act(self, model: nn.Module, value: float, material: Material) -> str:
        for name, layer in quantized_layers(model).items():
            assert layer.bias is not None
            layer.bias.data += value * material.seen[self.name][name]
        self.acted.append((value, len(material.seen[self.name]), sum(map(len, material.kept))))
        return "some biases were shifted"


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    CORRECTIONS.append(Shift())
    Shift.acted.clear()
    yield
    CORRECTIONS.pop()


def command(tiny: Path, name: str, *options: object) -> tuple[object, ...]:
    common = (
        "--data",
        tiny / "set/data.yaml",
        "--imgsz",
        64,
        "--method",
        "max",
        "--images",
        2,
        "--scheme",
        "asymmetric",
    )
    return (name, tiny / "weights.safetensors", *common, *options)


def test_it_is_an_option(tiny: Path, tmp_path: Path, repq: Callable[..., dict]) -> None:
    assert "--shift" in CliRunner().invoke(main, ["ptq", "--help"]).output
    out = ("-o", tmp_path / "model.safetensors")
    found = repq(*command(tiny, "ptq", "--shift", 0.5, "--equalize", "--max-drop", 1, *out))
    assert [trial["name"] for trial in found["trials"]] == ["max", "+ equalize", "+ shift=0.5"]
    assert found["corrections"][-1] == {"name": "shift", "title": "shifted biases", "cost": "a little patience"}
    assert found["settings"]["correct"]["shift"] == 0.5
    assert Shift.acted == [(0.5, len(found["layers"]), 2)]
    assert "less than or equal to 1" in repq(*command(tiny, "ptq", "--shift", 2, *out), exit=2)["error"]
    auto = ("ptq", tiny / "weights.safetensors", "--data", tiny / "set/data.yaml", "--auto", "--shift", 1, *out)
    assert "--auto has no effect beside --shift" in repq(*auto, exit=2)["error"]


def test_auto_and_diagnose_try_it(tiny: Path, tmp_path: Path, repq: Callable[..., dict]) -> None:
    weights, data = tiny / "weights.safetensors", ("--data", tiny / "set/data.yaml", "--imgsz", 64, "--images", 4)
    few = ("--scheme", "asymmetric", "--keep-float", "neck.*", "--keep-float", "backbone.ERBlock_[345]*")
    found = repq("ptq", weights, *data, *few, "--auto", "--max-drop", 1, "-o", tmp_path / "model.safetensors")
    trials = [trial["name"] for trial in found["trials"]]
    assert trials[-2:] == ["+ shift=0.25", "+ shift=0.5"]
    assert {value for value, *_ in Shift.acted} == {0.25, 0.5}
    Shift.acted.clear()
    ways = {way["name"]: way for way in repq(*command(tiny, "diagnose"))["ways"]}
    assert Shift.acted and ways["corrected"]["evidence"].endswith(" and shifted biases")


def test_it_is_in_recipes_and_in_the_report(tiny: Path, tmp_path: Path) -> None:
    from repq.stages import Context, ptq_checkpoint

    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: tiny\ndata: {{path: {tiny / 'set/data.yaml'}}}\nimgsz: 64\nweights: {tiny / 'weights.safetensors'}\n"
        "ptq: {scheme: asymmetric, calibration: {images: 2}, correct: {shift: 0.125, images: 1}}\n"
    )
    recipe = load_recipe(path)
    report = ptq_checkpoint(
        recipe.weights, tmp_path / "model.safetensors", recipe.ptq,
        Context(recipe.imgsz, recipe.data.path, recipe.eval),
    )  # fmt: skip
    assert Shift.acted == [(0.125, len(report.layers), 1)]
    summary = ReportSummary(title="t", created="2026-01-31", environment=capture_environment(), results={"ptq": report})
    for form in ("html", "md"):
        text = render_report(summary, tmp_path)[form].read_text(encoding="utf-8")
        assert "shifted biases" in text and "a little patience" in text and "+ shift=0.125" in text


def test_float_layers_keep_the_weights_from_before(tiny: Path) -> None:
    from repq.quant import load_weights, quantize, quantizing
    from repq.recipe import PtqConfig
    from repq.reparam import fuse

    fused = fuse(load_weights(tiny / "weights.safetensors").model)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = quantize(fused, [images], PtqConfig(correct=CorrectionConfig(shift=1.0))).model
    with torch.no_grad():
        assert not torch.equal(model(images), fused(images))
        with quantizing(model, ()):
            assert torch.equal(model(images), fused(images))
