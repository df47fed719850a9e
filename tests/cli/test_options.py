"""Options are those of the settings: no value outside their limits, and none that does nothing, is let through."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import Material, every_option, invoke, items_of, options, refused

from repq.cli import COMMANDS
from repq.cli.generated import bare, choices_of
from repq.cli.relations import several
from repq.recipe.base import Config, settings_in
from repq.recipe.whole import recipe_class

NUMBERS = [(name, option) for name, option in every_option() if bare(items_of(option.annotation)[0])[0] in (int, float)]
FAR = ("-1e300", "1e300", "nan", "inf", "-inf", "1" + "0" * 30, "9" * 5000, "-" + "9" * 400, "x", "", "0x10", "1;2")


def limits(annotation: Any) -> dict[str, float]:
    return {key: getattr(part, key) for part in bare(annotation)[1] for key in ("ge", "gt", "le", "lt")
            if getattr(part, key, None) is not None}  # fmt: skip


def outside(annotation: Any) -> list[str]:
    """Values just outside the limits, and far away ones."""
    item, _ = items_of(annotation)
    found, step = limits(item), 1 if bare(item)[0] is int else 1e-3
    near = [found[key] + move for key, move in (("ge", -step), ("gt", 0), ("le", step), ("lt", 0)) if key in found]
    return [*map(str, near), *FAR]


FIRST_OF_KIND = {repr(option.annotation): id(option) for _, option in reversed(NUMBERS)}


@pytest.mark.parametrize(("command", "option"), NUMBERS, ids=lambda one: one if isinstance(one, str) else one.name)
def test_no_number_outside_its_limits_gets_through(command: str, option, material: Material, folder: Path) -> None:
    key, (_, count) = option.name.strip("-").replace("-", "_"), items_of(option.annotation)
    """What decides is the type with its limits: the values far away are tried with one option of each."""
    values = outside(option.annotation)
    if id(option) != FIRST_OF_KIND[repr(option.annotation)]:
        values = [value for value in values if value not in FAR or value in ("nan", "x")]
    for value in values:
        refused(invoke(*material.line(command, **{key: [value] * max(count, 1)})))
    assert not list(folder.iterdir())


@pytest.mark.parametrize("value", ["0", "-1", "100000", "64x", "x", "64x64x64", "64x0", "nan", "9" * 100, "64,", "6.4"])
@pytest.mark.parametrize("command", [name for name in COMMANDS if any(one.name == "--imgsz" for one in options(name))])
def test_no_size_that_is_none(command: str, value: str, material: Material, folder: Path) -> None:
    refused(invoke(*material.line(command, imgsz=[value])))


@pytest.mark.parametrize(
    ("command", "option"),
    [(name, option) for name, option in every_option() if choices_of(items_of(option.annotation)[0])],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_a_name_that_is_in_no_list(command: str, option, material: Material, folder: Path) -> None:
    key = option.name.strip("-").replace("-", "_")
    message = refused(invoke(*material.line(command, **{key: ["no-such-name"]})))
    for choice in choices_of(items_of(option.annotation)[0]):
        assert choice in message


# --- the settings themselves -----------------------------------------------------------------------------------------


def fields() -> list[tuple[str, str, Any]]:
    """Every field of every settings class of a recipe and of the commands."""
    found: dict[str, tuple[str, str, Any]] = {}

    def visit(kind: type[Config]) -> None:
        for name, info in kind.model_fields.items():
            key = f"{kind.__name__}.{name}"
            if key not in found:
                found[key] = (kind.__name__, name, info)
                nested = settings_in(info)
                if nested is not None:
                    visit(nested)

    visit(recipe_class())
    return list(found.values())


@pytest.mark.parametrize(("kind", "name", "info"), fields(), ids=lambda one: one if isinstance(one, str) else "")
def test_every_field_has_its_help_and_its_limits(kind: str, name: str, info: Any) -> None:
    if settings_in(info) is None or kind != "Recipe":
        assert info.description
    pending = [(info.annotation, list(info.metadata))]
    while pending:
        annotation, noted = pending.pop()
        plain, more = bare(annotation)
        if plain in (int, float):
            found = {key for part in (*noted, *more) for key in ("ge", "gt", "le", "lt")
                     if getattr(part, key, None) is not None}  # fmt: skip
            assert found & {"ge", "gt"} and found & {"le", "lt"}, f"{kind}.{name} has no bounds: {found}"
        elif getattr(plain, "__args__", ()):
            pending += [(part, []) for part in plain.__args__ if isinstance(part, type) or hasattr(part, "__args__")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("kind", "name", "info"), fields(), ids=lambda one: one if isinstance(one, str) else "")
def test_no_field_takes_what_is_not_finite(kind: str, name: str, info: Any, value: float) -> None:
    if bare(info.annotation)[0] is float:
        from pydantic import ValidationError, create_model

        alone = create_model("Alone", __base__=Config, value=(info.annotation, info))
        with pytest.raises(ValidationError):
            alone(value=value)


@pytest.mark.parametrize("text", ["0_1", "1_0", "\uff11"])
def test_other_signs_than_those_of_a_number(text: str, material: Material, folder: Path) -> None:
    """Python's own reading of numbers takes some of them."""
    line = ["eval", material.files["MODEL"], "--data", material.files["--data"]]
    for option in ("--batch", "--conf", "--imgsz"):
        assert repr(text) in refused(invoke(*line, option, text)) or text in refused(invoke(*line, option, text))
    assert "number" in refused(invoke(*line, "--set", f"batch={text}"))
    assert "number" in refused(invoke(*line, "--set", f"batch='{text}'"))


@pytest.mark.parametrize("text", ["yes", "off", "true"])
def test_a_switch_is_no_number(text: str) -> None:
    """YAML reads it as true or false, which Python takes for 1 or 0."""
    from pydantic import ValidationError, create_model

    value = yaml.safe_load(text)
    for _, _, info in fields():
        alone = create_model("Alone", __base__=Config, value=(info.annotation, info))
        if "bool" in repr(info.annotation) or "Any" in repr(info.annotation):
            assert getattr(alone(value=value), "value", None) in (value, text)
        else:
            for given in (value, [value]):
                with pytest.raises(ValidationError):
                    alone(value=given)


# --- options that would do nothing -----------------------------------------------------------------------------------

CONDITIONS = [
    (name, option, need) for name, option in every_option() for need in several(option.marks["needs"])
]  # fmt: skip
EXCLUSIONS = [
    (name, option, entry)
    for name, option in every_option()
    for entry in several(option.marks["excludes"])
    if entry.startswith("-")
]


def names(case: Any) -> str:
    return case if isinstance(case, str) else case.name


def given(material: Material, command: str, option) -> list[str]:
    """An option with a value that fits it."""
    if bare(option.annotation)[0] is bool:
        return [option.names[-1].split("/")[-1]]
    values = material.value(command, option)
    return [option.name, *values]


def test_all_conditions_name_options_of_the_command() -> None:
    for command, option, condition in [*CONDITIONS, *EXCLUSIONS]:
        own = {name for other in options(command) for text in other.names for name in text.split("/")}
        mentioned = [one.partition(" ")[0] for one in condition.split(" or ")]
        if (command, option, condition) in CONDITIONS:
            assert own & set(mentioned), f"{command} {option.name} needs {condition}, which it has not"


@pytest.mark.parametrize(("command", "option", "need"), CONDITIONS, ids=names)
def test_an_option_without_what_it_needs(command: str, option, need: str, material: Material, folder: Path) -> None:
    line = material.line(command)
    own = {name for other in options(command) for name in other.names}
    argument, _, kinds = next(one.partition(" ") for one in need.split(" or ") if one.partition(" ")[0] in own)
    if not argument.startswith("-"):  # a model of another kind
        wanted = set(kinds.split("|"))
        wrong = {"onnx": "model.onnx", "engine": "an engine", "float": "float.pt"}
        also = {"onnx": "float", "float": "checkpoint"}  # such a file may be one of these as well
        kind = next(one for one in wrong if wanted.isdisjoint({one, also.get(one)}))
        (folder / "an engine").mkdir()
        (folder / "an engine/engine.json").write_text('{"manifest": {"engine": "tensorrt"}}')
        for file in ("model.onnx", "float.pt"):
            (folder / file).touch()
        models = [wrong[kind]] * (2 if "alone" in need else 1)
        line = material.line(command, **{argument: models})
    elif need.endswith(" |"):  # an option is not to be there
        name = need.split()[-2]
        other = next(one for one in options(command) if one.name == name)
        line = [*material.line(command), *given(material, command, other)]
    elif "torch|" in need:
        line = [*material.line(command), "--engine", "onnxruntime"]
    elif need.startswith("--engine"):
        line = material.line(command, engine=["openvino"])
    message = refused(invoke(*line, *given(material, command, option)))
    assert "has no effect without" in message


@pytest.mark.parametrize(("command", "option", "other"), EXCLUSIONS, ids=names)
def test_an_option_beside_what_it_excludes(command: str, option, other: str, material: Material, folder: Path) -> None:
    name, _, value = other.partition(" ")
    beside = {one: found for found in options(command) for text in found.names for one in text.split("/")}.get(name)
    if beside is None and name != "--json":
        pytest.skip("the command has not both")
    words = [name] if beside is None else [name, value] if value else given(material, command, beside)
    replaced = {"engine": [value]} if name == "--engine" else {}
    line, needed = material.line(command, **replaced), material.needed(command, option, replaced)
    switched_on = [option.name] if bare(option.annotation)[0] is bool else given(material, command, option)
    message = refused(invoke(*line, *needed, *([] if replaced else words), *switched_on))
    assert "has no effect" in message


@pytest.mark.parametrize(
    ("command", "option"),
    [("eval", "--seed"), ("check", "--seed"), ("lint", "--seed"), ("lint", "--device"), ("describe", "--seed"),
     ("describe", "--device"), ("export", "--device"), ("export", "--seed"), ("estimate", "--seed"),
     ("doctor", "--device"), ("doctor", "--seed"), ("build", "--seed"), ("build", "--device"), ("calib", "--device"),
     ("report", "--seed"), ("report", "--device")],
)  # fmt: skip
def test_options_that_never_do_anything_are_not_offered(command: str, option: str, material: Material) -> None:
    assert "No such option" in refused(invoke(*material.line(command), option, "1"))


@pytest.mark.parametrize(
    "override",
    ["hsv=[0.1,", "learnig_rate=0.1", "learning_rate=1e30", "learning_rate=.nan", "epochs", "=3", "epochs.x=1",
     "epochs=[1]", "hsv=[0.1, 0.2]", "hsv=[1, 2, 3]", "workers=" + "9" * 5000, "eval.iou=0", "eval.letterbox.border=-1",
     "cache_mib=!!int x", "epochs=" + "[" * 2000, "momentum=\ud800"],
)  # fmt: skip
def test_settings_that_are_none(override: str, material: Material, folder: Path) -> None:
    refused(invoke(*material.line("train"), "--set", override))


def test_settings_reach_every_part_of_a_stage(material: Material, folder: Path) -> None:
    for command, override in (("ptq", "eval.letterbox.border=99999"), ("sensitivity", "plan.risk=2"),
                              ("sensitivity", "ptq.calibration.bins=1"), ("eval", "clip=3"),
                              ("qat", "ptq.calibration.bins=1"), ("export", "nms.multi_label=7")):  # fmt: skip
        assert override.partition("=")[0].rpartition(".")[2] in refused(
            invoke(*material.line(command), "--set", override)
        )


@pytest.mark.parametrize(
    "override",
    ["bench.batches=[]", "bench.threads=[1000000]", "seed=-1", "seed=4294967296", "check.max_drop=-1", "imgsz=0",
     "device=../x", "name=a/b", "train.learning_rate=1e30", "ptq.calibration.percentile=10", "imgsz=[32]"],
)  # fmt: skip
def test_a_recipe_fails_before_its_first_stage(override: str, material: Material, folder: Path) -> None:
    refused(invoke("run", material.files["RECIPE"], "--work", folder / "work", "--set", override))
    assert not list(folder.iterdir())
