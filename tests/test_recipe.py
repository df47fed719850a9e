"""Recipes: strict keys, helpful errors, overrides, paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from repq.errors import RecipeError
from repq.recipe import load_recipe

MINIMAL = "name: small\ndata: {path: data.yaml}\nweights: ../weights.pt\nimgsz: 320\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.data.path == tmp_path / "data.yaml"
    assert recipe.weights == tmp_path.parent / "weights.pt"
    assert recipe.imgsz == (320, 320)


def test_environment_variables_in_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATERIAL", str(tmp_path / "material"))
    recipe = load_recipe(write(tmp_path, MINIMAL.replace("data.yaml", "$MATERIAL/data.yaml")))
    assert recipe.data.path == tmp_path / "material" / "data.yaml"


def test_overrides_win_and_are_validated(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert load_recipe(path, ["ptq.calibration.images=256"]).ptq.calibration.images == 256
    assert load_recipe(path, ["imgsz=[256, 320]"]).imgsz == (256, 320)
    with pytest.raises(RecipeError, match="greater than or equal to 1"):
        load_recipe(path, ["ptq.calibration.images=0"])
    for wrong in ("ptq", "=3", "name.first=x"):
        with pytest.raises(RecipeError, match="override"):
            load_recipe(path, [wrong])


def test_the_tool_chooses_corrections_or_the_recipe_does(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert load_recipe(path, ["ptq.auto=true"]).ptq.auto
    assert load_recipe(path, ["ptq.correct.rounding=adaptive"]).ptq.correct.rounding == "adaptive"
    with pytest.raises(RecipeError, match="chooses the corrections itself"):
        load_recipe(path, ["ptq.auto=true", "ptq.correct.equalize=true"])


@pytest.mark.parametrize(
    ("extra", "hint"),
    [("wieghts: x", "'weights'"), ("ptq: {kep_float: [a]}", "'keep_float'"), ("bench: {batch: [1]}", "'batches'")],
)
def test_an_unknown_key_names_the_closest(tmp_path: Path, extra: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=hint):
        load_recipe(write(tmp_path, MINIMAL + extra))


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "name: x\ndata: {}\nweights: w\n", MINIMAL + "train: {}\n"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(write(tmp_path, text))


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(RecipeError):
        load_recipe(write(tmp_path, f"name: !!python/object/apply:pathlib.Path.touch [!!python/name:x '{marker}']"))
    assert not marker.exists()


def test_a_recipe_reads_back_from_its_own_json(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe
