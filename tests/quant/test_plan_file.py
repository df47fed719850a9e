"""Plans on disk: what is written comes back, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from repq.errors import RecipeError, SelectorError
from repq.layers import LayerId, QuantPlan
from repq.quant.plan_file import read_plan, write_plan

LAYERS = tuple(LayerId(name) for name in ("backbone.stem.conv", "backbone.block.0", "neck.conv", "detect.0", "null"))


@pytest.mark.parametrize("kept", [(), ("neck.conv",), LAYERS])
def test_a_plan_comes_back(tmp_path: Path, kept: tuple[str, ...]) -> None:
    plan = QuantPlan.keeping_float(LAYERS, kept)
    path = tmp_path / "plan.yaml"
    write_plan(path, plan, "yolov6n", remarks=dict.fromkeys(LAYERS, "snr: 3 #1\nhere"), title="made\nby hand")
    assert read_plan(path).plan(LAYERS, "yolov6n") == plan
    text = path.read_text()
    assert text.startswith("# made\n# by hand\n")
    assert text.count("# snr: 3 #1 here") == len(kept)


def test_globs_may_be_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("float:\n  - backbone.*  # all of it\n")
    assert read_plan(path).plan(LAYERS).float_ == LAYERS[:2]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("float: [nekc.conv]", SelectorError, "neck.conv"),
        ("flaot: []", RecipeError, "the closest is 'float'"),
        ("model: a", RecipeError, "no key 'float'"),
        ("float: neck.conv", RecipeError, "no list of layers"),
        ("float: [1]", RecipeError, "no list of layers"),
        ("float:", RecipeError, "no list of layers"),
        ("model: other\nfloat: []", RecipeError, "a plan for other"),
        ("- a", RecipeError, "no mapping"),
        ("float: [", RecipeError, "no valid YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_plan(path).plan(LAYERS, "yolov6n")
