"""Recipes: strict keys, helpful errors, overrides, paths."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from pydantic import Field, create_model

from repq.engine import ENGINES, runtime
from repq.errors import RecipeError
from repq.recipe import for_target, load_ablation, load_recipe
from repq.recipe.base import Config

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


@pytest.mark.parametrize(
    "override", ["weights=here.pt", "train.distill.teacher=here.pt", "train={distill: {teacher: here.pt}}"]
)
def test_a_path_that_is_set_beside_the_recipe_is_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    text = "name: a\ndata: {path: data.yaml}\n" + ("" if "weights" in override else "train: {rep_scales: own.pt}\n")
    text = text if "train=" not in override else text.replace("train: {rep_scales: own.pt}\n", "train: {}\n")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    file = write(tmp_path / "recipes", text)
    ablation = tmp_path / "recipes/ablation.yaml"
    ablation.write_text(f"name: a\nbase: {json.dumps(yaml.safe_load(text))}\nvariants: {{one: {{}}}}\n")
    for recipe in (load_recipe(file, [override]), load_ablation(ablation, [override])[1][0].recipe):
        set_ = recipe.weights if recipe.train is None else recipe.train.distill.teacher
        assert set_ == tmp_path / "work/here.pt"
        assert recipe.data.path == tmp_path / "recipes/data.yaml"
        if "train." in override:
            assert recipe.train.rep_scales == tmp_path / "recipes/own.pt"


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
    assert load_recipe(path).ptq.auto and load_recipe(path, ["ptq.calibration.images=8", "ptq.keep_float=[a]"]).ptq.auto
    for setting in ("ptq.auto=false", "ptq.calibration.method=mse", "ptq.correct.equalize=true"):
        assert not load_recipe(path, [setting]).ptq.auto
    assert load_recipe(path, ["ptq.correct.rounding=adaptive"]).ptq.correct.rounding == "adaptive"
    with pytest.raises(RecipeError, match="chooses the corrections itself"):
        load_recipe(path, ["ptq.auto=true", "ptq.correct.equalize=true"])


def test_one_budget_rules_the_sections_that_do_not_say_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(path, ["max_drop=0.02", "plan={}"])
    assert recipe.max_drop == recipe.plan.max_drop == recipe.check.max_drop == 0.02
    assert (
        load_recipe(path, ["plan={}"]).plan.max_drop == load_recipe(path).check.max_drop == load_recipe(path).max_drop
    )
    assert load_recipe(path, ["max_drop=0.02", "check.max_drop=0.1"]).check.max_drop == 0.1
    assert load_recipe(path, ["max_drop=0.02", "plan.top=3"]).plan.max_drop is None


def test_one_seed_rules_the_sections_that_do_not_say_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(path, ["seed=7", "plan={}", "sensitivity.images=4"])
    assert recipe.ptq.calibration.seed == recipe.plan.seed == recipe.sensitivity.seed == 7 and recipe.ptq.auto
    assert load_recipe(path, ["seed=7"]).sensitivity is None
    assert load_recipe(path, ["seed=7", "ptq.calibration.seed=2"]).ptq.calibration.seed == 2
    assert load_recipe(path, ["seed=7", "data={demo: {}}"]).data.demo.seed == 0


@pytest.mark.parametrize("target", [entry.name for entry in ENGINES])
def test_a_target_says_what_the_recipe_does_not(tmp_path: Path, target: str) -> None:
    path, wanted = write(tmp_path, MINIMAL), runtime(target).settings
    recipe = load_recipe(path, [f"target={target}"])
    for section, settings in wanted.items():
        values = getattr(recipe, section).model_dump()
        assert {name: values[name] for name in settings} == settings
    assert recipe.export.target == target
    nms = for_target(target, {"export": {"nms": {}}})["export"]["nms"]
    assert nms["confidence"] == runtime(target).nms["confidence"] == 0.25
    assert for_target(target, {"export": {"nms": {"confidence": 0.5}}})["export"]["nms"]["confidence"] == 0.5
    assert "nms" not in for_target(target, {})["export"]
    other = {"symmetric": "asymmetric", "asymmetric": "symmetric"}[wanted["ptq"]["scheme"]]
    assert load_recipe(path, [f"target={target}", f"ptq.scheme={other}"]).ptq.scheme == other


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


RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_shipped_recipe_is_known_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads is looked for in the working folder; a file or folder of that name changes nothing but that."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    recipe, of_file = load_recipe(Path(name)), load_recipe(RECIPES / f"{name}.yaml")
    without_paths = [
        one.model_copy(update={"weights": None, "data": one.data.model_copy(update={"path": None})})
        for one in (recipe, of_file)
    ]
    assert without_paths[0] == without_paths[1]
    for path in (recipe.weights, recipe.data.path):
        assert path is None or path.parent == tmp_path


def test_ablations_are_shipped_too_and_other_names_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (RECIPES / "ablations").glob("*.yaml"):
        assert load_ablation(Path(path.stem))[0] == load_ablation(path)[0]
    with pytest.raises(RecipeError, match="ptq, qat"):
        load_recipe(Path("pqt"))
    (tmp_path / "pqt").write_text(MINIMAL)
    assert load_recipe(Path("pqt")).name == "small"


@pytest.fixture
def quick_turns() -> Iterator[None]:
    """Threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("quick_turns")
def test_several_threads_may_use_a_class_for_the_first_time_at_once() -> None:
    """Classes are compiled when they are first used, where pydantic locks that."""
    for number in range(100):
        inner = create_model(f"Inner{number}", __base__=Config, value=(int, 1))
        outer = create_model(f"Outer{number}", __base__=Config, inner=(inner, Field(default_factory=inner)))
        together = threading.Barrier(6)

        def written(value: int, outer: type[Config] = outer, together: threading.Barrier = together) -> str:
            together.wait()
            assert value % 2 or outer.model_json_schema()["properties"]
            return outer.model_validate({"inner": {"value": value}}).model_dump_json()

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(written, range(6))) == [f'{{"inner":{{"value":{value}}}}}' for value in range(6)]
