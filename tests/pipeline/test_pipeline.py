"""The whole way through on a tiny drawn set: every stage runs for real, artifacts are reused, changes stay local."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from repq.cli import main
from repq.errors import RecipeError
from repq.log import quiet
from repq.pipeline import RunOutcome, run_recipe
from repq.pipeline.runner import make_artifacts
from repq.progress import silent
from repq.recipe import Recipe, parse_recipe
from repq.report.comparison import built_title
from repq.results import Accuracies, BenchReport, PruneReport, PtqReport

TINY = {
    "name": "tiny",
    "data": {"demo": {"train_images": 8, "val_images": 4, "size": 64}},
    "imgsz": 64,
    "train": {"model": "yolov6n_v2", "epochs": 1, "batch": 4, "warmup_steps": 1, "workers": 0},
    "ptq": {"calibration": {"method": "max", "images": 4, "batch": 2}},
    "export": {"merge_scales": True},
    "build": {"engines": ["onnxruntime"]},
    "max_drop": 1.0,
    "min_speedup": 0,
    "bench": {"warmup": 1, "rounds": 2, "runs_per_round": 2, "threads": [1], "settle_ms": 0},
    "report": {"images": 0},
}
IN_ALL_ENGINES = {"export": {"merge_scales": True, "float16": True}, "build": {}, "report": {"images": 1}}

NotDrawn = Callable[..., AbstractContextManager[None]]


def recipe(**changes: object) -> Recipe:
    return parse_recipe({**TINY, **changes}, source="test", base=Path())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    """A run with every engine that is built by default, in FP16 too."""
    return run_recipe(recipe(**IN_ALL_ENGINES), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def work(whole: RunOutcome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the same data, training and calibration, in which a run with one engine was cut off."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(whole.report.parent, folder)
    make_artifacts(recipe(), folder, "export", silent, quiet)
    return folder


@pytest.fixture(scope="module")
def first(work: Path, not_drawn: NotDrawn) -> RunOutcome:
    with not_drawn():
        return run_recipe(recipe(), work)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def remade(outcome: RunOutcome) -> list[str]:
    return [name for name, artifact in outcome.artifacts.items() if not artifact.reused]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def values(*arguments: object) -> dict:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_stage_leaves_an_artifact_and_the_report_stands_alone(whole: RunOutcome) -> None:
    work = whole.report.parent
    stages = ["data", "train", "fuse", "ptq", "export", "build", "check", "eval", "bench", "package", "report"]
    assert list(whole.artifacts) == stages
    page = (work / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    for stage in stages[:-1]:  # the report cannot hold the hash of itself
        assert whole.artifacts[stage].manifest.key in page
    assert json.loads((work / "report.json").read_text())["summary"]["recipe"] == "tiny"
    trained = whole.artifacts["train"].folder
    assert {"weights.safetensors", "last.safetensors", "results.csv"} <= set(names_in(trained))
    rows = (trained / "results.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,learning_rate,loss_") and len(rows) == 1 + TINY["train"]["epochs"]  # type: ignore[index]
    text = (work / "report.md").read_text()
    assert text.startswith("#") and "Predicted extra kernels" in text
    exported = {path.name for path in whole.artifacts["export"].folder.glob("*.onnx")}
    assert exported == {"float32.onnx", "int8.onnx", "float16.onnx", "int8_float16.onnx"}


def test_what_is_to_ship_lies_in_the_run_folder(whole: RunOutcome) -> None:
    from repq.api.opening import load

    work = whole.report.parent
    deploy = work / "deploy"
    about = json.loads((deploy / "model.json").read_text())
    shipped = load((deploy / about["engine"]["file"]).parent)
    assert (shipped.engine.name, shipped.names) == (about["engine"]["runtime"], tuple(about["classes"]))
    assert about["precision"] in (whole.verdict.ship and "int8", "float32")
    card = (deploy / "README.md").read_text()
    assert "AP50" in card and "GPL-3.0" in card and whole.artifacts["bench"].result(BenchReport).environment.cpu in card
    own = str(work.parent).encode()
    assert not [path for path in deploy.rglob("*") if path.is_file() and own in path.read_bytes()]


@pytest.mark.usefixtures("undrawn")
def test_only_files_of_runs_are_replaced_or_removed(first: RunOutcome, work: Path) -> None:
    deploy, package, own = work / "deploy", first.artifacts["package"], {"notes.txt", "engine/mine.txt"}
    before = package.folder.with_name("of a run before")
    before.mkdir()
    digests = {"engine/old.xml": sha256(b"x").hexdigest(), "README.md": sha256(b"before").hexdigest()}
    manifest = package.manifest.model_copy(update={"files": digests})
    (before / "manifest.json").write_text(manifest.model_dump_json())
    (deploy / "engine/old.xml").write_text("x")
    (deploy / "README.md").write_text("before")
    for name in own:
        (deploy / name).write_text("mine")
    run_recipe(recipe(), work)
    assert not (deploy / "engine/old.xml").exists()
    card = (package / "README.md").read_text()
    assert (deploy / "README.md").read_text() == card and not (deploy / "README.md.before").exists()
    said: list[str] = []
    for edited in ("mine", "mine too"):
        (deploy / "README.md").write_text(edited)
        (work / "report.md").write_text(edited)
        run_recipe(recipe(), work, log=said.append)
    for name, place in (("README.md", deploy), ("report.md", work)):
        assert [(place / f"{name}.before{end}").read_text() for end in ("", "-2")] == ["mine", "mine too"]
        assert any(f"{name}.before" in line for line in said)
    assert (deploy / "README.md").read_text() == card
    assert all((deploy / name).read_text() == "mine" for name in own)
    shutil.rmtree(before)
    for path in [deploy / name for name in own]:
        path.unlink()


@pytest.mark.parametrize("target", [None, "tensorrt"])
def test_the_model_card_lists_what_lies_beside_it(first: RunOutcome, work: Path, target: str | None) -> None:
    made = make_artifacts(recipe(**({} if target is None else {"target": target})), work, "package", silent, quiet)
    card = (made["package"] / "README.md").read_text()
    listed = re.findall(r"^\| ([\w., ]+/?) \|", card.partition("**Files**")[2], re.MULTILINE)[1:]
    there = {path.name for path in made["package"].folder.iterdir()} - {"manifest.json", "README.md"}
    assert {name.rstrip("/") for row in listed for name in row.split(", ")} == there
    assert ("engine" in there) == (target is None) == ("without an engine" not in card)


def test_the_same_run_again_reuses_everything(first: RunOutcome, work: Path) -> None:
    assert remade(run_recipe(recipe(), work)) == []


def test_pruning_is_a_stage_and_all_that_follows_takes_the_smaller_model(first: RunOutcome, work: Path) -> None:
    sweep = {"scope": "sensitivity", "sweep_images": 2, "sweep_levels": 2, "images": 4}
    labels = {"epochs": 1, "batch": 4, "task_weight": 1.0, "class_weight": 0.0, "box_weight": 0.0}
    smaller = recipe(prune={"target_macs": 0.8, **sweep, "recovery": labels})
    outcome = run_recipe(smaller, work)
    assert remade(outcome) == ["prune", *list(first.artifacts)[2:]]
    report = outcome.artifacts["prune"].result(PruneReport)
    assert report.macs_after <= 0.8 * report.macs_before
    assert report.accuracy_recovered is not None and {"class", "iou"} <= set(report.epochs[0].losses)
    for name, macs in (("ptq", report.macs_after), ("ptq of first", report.macs_before)):
        of = first if "first" in name else outcome
        assert sum(layer.macs for layer in of.artifacts["ptq"].result(PtqReport).layers) == macs
    page = (work / "report.html").read_text()
    assert "trials of the sweep" in page and outcome.artifacts["prune"].manifest.key in page
    assert (work / "pruning-sweep.svg").is_file()
    assert remade(run_recipe(smaller, work)) == []
    assert remade(run_recipe(recipe(), work)) == [], "without the section nothing is another artifact"


def test_every_engine_is_evaluated_with_all_passes(whole: RunOutcome) -> None:
    tta = {"scales": [1.0, 0.5], "inside": True, "flip": False}
    asked = recipe(**IN_ALL_ENGINES, eval={"tta": tta})
    made = make_artifacts(asked, whole.report.parent, "eval", silent, quiet)
    found = made["eval"].result(Accuracies).models
    assert set(found) == set(whole.artifacts["eval"].result(Accuracies).models)
    assert [name for name, artifact in made.items() if not artifact.reused] == ["eval"], "nothing else looks twice"
    assert all(accuracy.tta is not None and accuracy.tta.passes == 2 for accuracy in found.values())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"bench": {**TINY["bench"], "rounds": 3}}, ["bench", "package", "report"]),  # type: ignore[dict-item]
        ({"check": {"min_snr_db": 1.0}}, ["check", "report"]),
        ({"report": {"images": 1}, "train": {**TINY["train"], "workers": 1, "cache_mib": 7}}, ["report"]),  # type: ignore[dict-item]
        (
            {"ptq": {**TINY["ptq"], "keep_float": ["detect.*"]}},  # type: ignore[dict-item]
            ["ptq", "export", "build", "check", "eval", "bench", "package", "report"],
        ),
        (
            {"deploy": {"confidence": 0.125}},
            ["export", "build", "check", "eval", "bench", "package", "report"],
        ),
    ],
)
def test_a_changed_setting_redoes_what_depends_on_it(
    first: RunOutcome, work: Path, change: dict, expected: list[str]
) -> None:
    assert remade(run_recipe(recipe(**change), work)) == expected
    about = json.loads((work / "deploy/model.json").read_text())
    assert about["thresholds"]["confidence"] == change.get("deploy", {}).get("confidence", 0.25)


@pytest.mark.usefixtures("undrawn")
def test_training_after_quantization_is_what_gets_deployed(first: RunOutcome, work: Path) -> None:
    outcome = run_recipe(recipe(qat={"epochs": 1, "batch": 4, "warmup_steps": 1, "workers": 0}), work)
    assert remade(outcome) == ["qat", "export", "build", "check", "eval", "bench", "package", "report"]
    trained = json.loads((outcome.artifacts["qat"] / "qat.json").read_text())
    before = json.loads((outcome.artifacts["ptq"] / "ptq.json").read_text())
    assert trained["accuracy_calibrated"] == before["accuracy_quantized"]
    check = json.loads((outcome.artifacts["check"] / "check.json").read_text())
    assert check["reference"] == trained[f"accuracy_{trained['kept']}"]
    assert "Quantization-aware training" in (work / "report.html").read_text()


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(first: RunOutcome) -> None:
    assert remade(first) == ["build", "check", "eval", "bench", "package", "report"]


def test_a_check_outside_its_bound_fails_and_leaves_no_artifact(first: RunOutcome, work: Path) -> None:
    arguments = [first.artifacts["ptq"] / "quantized.safetensors", first.artifacts["build"] / "onnxruntime-int8"]
    data = first.artifacts["data"] / "demo/data.yaml"
    result = invoke("check", *arguments, "--data", data, "--imgsz", 64, "--min-snr", 1000)
    assert result.exit_code == 1
    assert "onnxruntime" in result.output


@pytest.mark.usefixtures("undrawn")
def test_a_run_outside_its_bound_shows_what_it_made(first: RunOutcome, work: Path, tmp_path: Path) -> None:
    asked, line = tmp_path / "recipe.yaml", ("--work", work)
    asked.write_text(json.dumps({**TINY, "min_speedup": 1000}))
    result = CliRunner().invoke(main, ["run", str(asked), *map(str, line), "--json"])
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    assert {"models", "verdict", "report", "deploy", "artifacts"} <= values.keys()
    assert values["verdict"]["ship"] is None and values["error"]["fix"] == values["verdict"]["next"]
    told = invoke("run", asked, *line)
    assert told.exit_code == 1 and str(work / "report.html") in told.output and str(work / "deploy") in told.output
    assert all(built_title(row["model"]) in told.output for row in values["models"])
    report = (work / "report.md").read_text()
    assert "No engine in INT8 is good enough to ship" in report and "does not pay" in report
    shown = invoke("run", write_recipe(tmp_path), *line).output
    assert "next: repq predict" in shown and "To ship: " in (work / "report.md").read_text()


def write_recipe(folder: Path) -> Path:
    path = folder / "good.yaml"
    path.write_text(json.dumps(TINY))
    return path


def test_the_commands_give_the_names_that_scripts_rely_on(first: RunOutcome, tmp_path: Path) -> None:
    data = first.artifacts["data"] / "demo/data.yaml"
    weights = first.artifacts["train"] / "weights.safetensors"
    common = ("--data", data, "--imgsz", 64)

    fused = values("fuse", weights, "-o", tmp_path / "fused.safetensors", *common)
    assert fused["max_rel_error"] < 1e-3
    assert fused["max_abs_error"] >= 0
    assert all(block["max_rel_error"] < 1e-3 for block in fused["blocks"])

    quantized = tmp_path / "int8.safetensors"
    ptq = values("ptq", weights, *common, "--method", "mse", "--images", 4, "--keep-float", "detect.*", "-o", quantized)
    assert {"ap_float", "ap_quantized"} <= ptq.keys()
    assert ptq["layers_int8"]
    assert all(layer.startswith("detect.") for layer in ptq["layers_float"])

    onnx = tmp_path / "int8.onnx"
    assert values("export", quantized, "-o", onnx, "--imgsz", 64)["layers_int8"] == len(ptq["layers_int8"])
    engine = tmp_path / "int8.openvino"
    built = values("build", onnx, "--engine", "openvino", "-o", engine)
    really = {row["layer"]: row["precision"] for row in built["layers"]}
    assert {layer for layer, precision in really.items() if precision == "int8"} <= set(ptq["layers_int8"])
    assert {really[layer] for layer in ptq["layers_float"]} == {"float32"}

    accuracy = values("eval", engine, *common)
    assert {"ap", "ap50", "images"} <= accuracy.keys()
    assert accuracy["images"] == 4
    assert accuracy["engine"] == "openvino"

    timing = values(
        "bench", onnx, engine, "--imgsz", 64, "--batch", 1, "--rounds", 2, "--runs", 2, "--warmup", 1, "--threads", 1
    )
    for row in timing["models"]:
        assert row["latency_ms_median"] > 0 and row["latency_ms_p95"] is None, "of four runs"
        assert row["images_per_s"] > 0


@pytest.mark.usefixtures("undrawn")
def test_a_plan_from_a_measurement_is_what_ptq_keeps_in_float(first: RunOutcome, tmp_path: Path) -> None:
    data = first.artifacts["data"] / "demo/data.yaml"
    fused = first.artifacts["fuse"] / "fused.safetensors"
    common = ("--data", data, "--imgsz", 64)
    few = ("--images", 2, "--calib-images", 4, "--plain", "--top", 3)
    arguments = ("sensitivity", fused, *common, *few, "-o", tmp_path / "out")
    measured = values(*arguments)
    kept = measured["plan"]["float_layers"]
    worst = sorted(measured["layers"], key=lambda row: float(row["local"]["snr_db"]))[:3]
    assert set(kept) == {row["layer"] for row in worst}
    assert values(*arguments)["layers"] == measured["layers"]
    plan = ("--plan", tmp_path / "out/plan.yaml", "-o", tmp_path / "int8.safetensors")
    assert values("ptq", fused, *common, "--images", 4, "--plain", *plan)["layers_float"] == kept


def test_a_recipe_may_find_its_plan(first: RunOutcome, work: Path) -> None:
    """Measured and planned between fusing and quantizing; the report shows both; again, all is reused."""
    changes = {"sensitivity": {"images": 2}, "plan": {"max_drop": 1.0, "resamples": 100},
               "ptq": {**TINY["ptq"], "keep_float": ["detect.*"]}}  # type: ignore[dict-item]  # fmt: skip
    outcome = run_recipe(recipe(**changes), work)
    made = remade(outcome)  # not what follows from a graph that another test has made
    assert made[:2] == ["sensitivity", "ptq"] and made[-1] == "report"
    plan = json.loads((outcome.artifacts["sensitivity"] / "plan.json").read_text())
    rows = json.loads((outcome.artifacts["ptq"] / "ptq.json").read_text())["layers"]
    assert plan["holds"] and plan["trials"]
    assert plan["float_layers"] == [row["layer"] for row in rows if row["precision"] == "float"]
    assert all(layer.startswith("detect.") for layer in plan["float_layers"])  # the rest fits a budget of everything
    summary = json.loads((work / "report.json").read_text())["summary"]["results"]
    assert summary["plan"]["float_layers"] == plan["float_layers"] and summary["sensitivity"]["layers"]
    assert "](measures.svg)" in (work / "report.md").read_text() and (work / "measures.svg").is_file()
    assert remade(run_recipe(recipe(**changes), work)) == []


def test_merging_scales_leaves_lint_nothing_to_warn_of(first: RunOutcome, tmp_path: Path) -> None:
    quantized = first.artifacts["ptq"] / "quantized.safetensors"
    plain, merged = tmp_path / "plain.onnx", tmp_path / "merged.onnx"
    assert values("export", quantized, "-o", plain, "--imgsz", 64)["qdq"]["avoidable"] > 0
    assert invoke("lint", plain).exit_code == 1
    result = values("export", quantized, "-o", merged, "--imgsz", 64, "--merge-scales", "--fp16")
    assert result["precision"] == "int8_float16"
    assert result["qdq"]["avoidable"] == 0 < result["qdq_before_merging"]["avoidable"]
    assert invoke("lint", merged).exit_code == 0


def test_user_errors_say_what_to_do_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "no.pt").write_bytes(b"no checkpoint")
    cases = (
        ("eval", tmp_path / "absent.pt", "--data", tmp_path / "data.yaml"),
        ("fuse", tmp_path / "no.pt", "-o", tmp_path / "out.safetensors"),
        ("run", tmp_path / "absent.yaml"),
        ("build", tmp_path / "no.pt", "--engine", "openvino", "-o", tmp_path / "engine"),
    )
    for arguments in cases:
        result = invoke(*arguments)
        assert result.exit_code == 2, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "error:" in result.output
        assert "Traceback" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.pt"]


def test_a_missing_checkpoint_is_named_before_anything_runs(tmp_path: Path) -> None:
    changes = {"train": None, "weights": str(tmp_path / "absent.pt")}
    with pytest.raises(RecipeError, match=r"absent\.pt"):
        run_recipe(recipe(**changes), tmp_path / "run")
