"""Ablations: variants of a tiny recipe, run for real; and how they are read and summed up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from repq.cli import main
from repq.errors import RecipeError
from repq.pipeline.ablation import range_figures
from repq.recipe import load_ablation
from repq.report.ablation import ablation_markdown, report_name
from repq.results import AblationReport, LayerQuantization, Shipped, TrialFigures

TINY = {
    "name": "schemes",
    "seeds": [3],
    "effects": {"baseline": "symmetric", "together": "asymmetric", "int8": ["asymmetric"]},
    "base": {
        "data": {"demo": {"train_images": 8, "val_images": 4, "size": 64}},
        "imgsz": 64,
        "train": {"model": "yolov6n_v2", "epochs": 1, "batch": 4, "warmup_steps": 1, "workers": 0},
        "ptq": {"calibration": {"method": "max", "images": 4, "batch": 2}},
        "build": {"engines": ["onnxruntime"]},
        "check": {"max_drop": 1.0},
        "bench": {"warmup": 1, "rounds": 2, "runs_per_round": 2, "threads": [1], "settle_ms": 0},
        "report": {"images": 0},
    },
    "variants": {"symmetric": {"ptq": {"scheme": "symmetric"}}, "asymmetric": {"ptq": {"scheme": "asymmetric"}}},
}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return path


def test_variants_share_what_is_the_same_and_end_in_one_table(
    tmp_path: Path, not_drawn: Callable[..., AbstractContextManager[None]]
) -> None:
    path, work = written(tmp_path), tmp_path / "work"
    arguments = ["ablation", str(path), "--work", str(work), "--json"]
    with not_drawn("AP by variant"):
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = AblationReport.model_validate_json((work / "ablation.json").read_text())
    assert [(trial.variant, trial.seed) for trial in report.trials] == [("symmetric", 3), ("asymmetric", 3)]
    assert len([folder for folder in (work / "train").iterdir() if not folder.name.startswith(".")]) == 1
    assert len([folder for folder in (work / "ptq").iterdir() if not folder.name.startswith(".")]) == 2
    first, second = (trial.figures for trial in report.trials)
    assert first["AP FP32"] == second["AP FP32"]
    assert first["AP lost"] == first["AP FP32"] - first["AP INT8 simulated"]
    assert first["largest |weight|"] == second["largest |weight|"] > 0
    assert first["activation SNR, median layer (dB)"] < second["activation SNR, median layer (dB)"]  # a bit more
    assert sorted(page.name for page in (work / "reports").iterdir()) == [
        "asymmetric-seed-3.html",
        "symmetric-seed-3.html",
    ]
    (plain,), (small,) = (trial.shipped.values() for trial in report.trials)
    assert (plain.parameters, plain.macs) == (small.parameters, small.macs) and plain.size_bytes > 2 * small.size_bytes
    assert plain.ap == first["AP FP32"] and small.ap == second["AP INT8 ONNX Runtime"]
    assert "What each change does" in (work / "ablation.html").read_text()
    table = (work / "ablation.md").read_text()
    assert "What is shipped, in ONNX Runtime" in table and "one seed says nothing of the spread" in table
    again = CliRunner().invoke(main, arguments)
    assert json.loads(again.stdout)["trials"] == json.loads(result.stdout)["trials"]
    assert (work / "ablation.md").read_text() == table


def test_variants_change_the_base_and_overrides_change_both(tmp_path: Path) -> None:
    path = written(tmp_path)
    _, trials = load_ablation(path, ["train.epochs=7"], seeds=(1, 2))
    assert [(trial.variant, trial.seed) for trial in trials] == [
        ("symmetric", 1), ("symmetric", 2), ("asymmetric", 1), ("asymmetric", 2),
    ]  # fmt: skip
    for trial in trials:
        assert (trial.recipe.ptq.scheme, trial.recipe.seed) == (trial.variant, trial.seed)
        assert trial.recipe.ptq.calibration.images == 4, "what a variant does not name stays"
        assert trial.recipe.train is not None and trial.recipe.train.epochs == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"odd": {"ptq": {"shceme": "symmetric"}}}, "effects": None}, "variant 'odd'(.|\n)*scheme"),
        ({"variants": {}}, "variants"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 2, 1]}, "a seed is given twice"),
        ({"effects": {"baseline": "symmetric", "together": "both"}}, "'both', which is none of the variants"),
        ({"varaints": {}}, "varaints: unknown key; the closest valid one is|closest valid key is 'variants'"),
        ({"base": {"ptq": {}}}, "data"),
    ],
)
def test_what_is_no_ablation_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_ablation(written(tmp_path, **changes))


def test_every_ablation_of_the_project_is_valid() -> None:
    paths = sorted((Path(__file__).resolve().parents[2] / "recipes/ablations").glob("*.yaml"))
    assert paths
    for path in paths:
        ablation, trials = load_ablation(path)
        assert len(trials) == len(ablation.seeds) * len(ablation.variants) >= 2


def shipped(ap: float, latency: float | None = 10.0) -> dict[str, Shipped]:
    return {"E": Shipped(ap=ap, ap50=ap, parameters=10, macs=1000, latency_ms=latency, size_bytes=2**20)}


def effects_of(**aps: Sequence[float]) -> str:
    """What is said of variants whose AP by seed is given; ``All`` makes all changes."""
    trials = [
        TrialFigures(variant=variant, seed=seed, figures={}, shipped=shipped(ap))
        for variant, values in aps.items()
        for seed, ap in enumerate(values)
    ]
    report = AblationReport(name="a", trials=tuple(trials), effects=("Base", "All"))
    return ablation_markdown(report).replace("\u2212", "-")


def test_changes_that_add_up_have_no_interaction() -> None:
    text = effects_of(Base=(0.25, 0.5), A=(0.375, 0.625), B=(0.3125, 0.5625), All=(0.4375, 0.6875))
    assert "the single changes add up to +0.1875, all together give +0.1875: the same." in text
    assert "Latency" not in text.split("AP50 in E")[1], "nothing is said of what no change moves"


def test_a_latency_that_was_not_measured_everywhere_is_not_compared() -> None:
    def of(last: float | None) -> str:
        found = [("Base", 10.0), ("A", 8.0), ("All", last)]
        trials = [TrialFigures(variant=name, seed=0, figures={}, shipped=shipped(0.5, ms)) for name, ms in found]
        return ablation_markdown(AblationReport(name="a", trials=tuple(trials), effects=("Base", "All")))

    assert "Latency, ms" in of(7.0)
    text = of(None)
    assert "Latency" not in text
    assert "AP50" in text


def test_an_interaction_is_said_where_it_is_larger_than_its_spread() -> None:
    base, a, b = (0.2, 0.21, 0.22), (0.3, 0.31, 0.32), (0.3, 0.31, 0.32)
    text = effects_of(Base=base, A=a, B=b, All=(0.34, 0.351, 0.362))
    assert "all together give +0.1410 (+0.1400 … +0.1420): less than that, by -0.0590 (-0.0600 … -0.0580)." in text
    text = effects_of(Base=base, A=a, B=b, All=(0.30, 0.40, 0.48))
    assert "An interaction is not shown: -0.0167 (-0.1000 … +0.0600) over 3 seeds." in text
    text = effects_of(Base=(0.2,), A=(0.3,), B=(0.3,), All=(0.9,))
    assert "An interaction is not shown: one seed says nothing of the spread." in text


def test_effects_go_seed_by_seed_and_doubtful_ones_are_marked() -> None:
    text = effects_of(Base=(0.1, 0.9), A=(0.2, 1.0), B=(0.0, 0.95), All=(0.2, 1.0))
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "+0.1000 |" in rows["A"] and "?" not in rows["A"], "the seeds differ, but the change does the same in each"
    assert "-0.0250 (-0.1000 … +0.0500) ?" in rows["B"]
    assert "× 1.000 |" in rows["B"]


def trial(variant: str, seed: int, **figures: float) -> TrialFigures:
    return TrialFigures(variant=variant, seed=seed, figures=figures)


def test_mean_and_spread_go_over_the_seeds_of_a_variant() -> None:
    report = AblationReport(
        name="a", trials=(trial("x", 0, ap=0.2), trial("x", 1, ap=0.4), trial("y", 0, ap=0.5, only_y=9.0))
    )
    spread = report.spreads()["x"]["ap"]
    assert (spread.mean, spread.low, spread.high) == (pytest.approx(0.3), 0.2, 0.4)
    assert spread.deviation == pytest.approx(0.1 * 2**0.5)
    assert report.spreads()["y"]["ap"].deviation is None
    text = ablation_markdown(report)
    assert "| ap | 0.3000 (0.2000 … 0.4000) | 0.5000, of 1 seed |" in text
    assert "| only_y | – | 9, of 1 seed |" in text


def test_a_mean_over_fewer_seeds_says_so() -> None:
    """A time is no figure of a run whose cores others had."""
    trials = [
        trial(variant, seed, ap=0.1 + 0.1 * seed, **({"speed": 1.0 + seed} if seed < timed else {}))
        for variant, timed in (("all", 3), ("two", 2), ("one", 1), ("none", 0))
        for seed in range(3)
    ]
    rows = ablation_markdown(AblationReport(name="a", trials=tuple(trials))).splitlines()
    (speed,) = (row for row in rows if row.startswith("| speed"))
    assert speed == "| speed | 2 (1 … 3) | 1.5 (1 … 2), of 2 seeds | 1, of 1 seed | – |"
    (ap,) = (row for row in rows if row.startswith("| ap |"))
    assert "seed" not in ap


def test_ranges_leave_out_what_stays_in_float() -> None:
    row = LayerQuantization(
        layer="a", precision="int8", macs=1, weight_range=(-2.0, 1.0), weight_channel_ratio=1.0,
        activation_range=(0.0, 6.0), activation_scale=1.0, activation_zero_point=0, weight_snr_db=30.0,
        activation_snr_db=20.0,
    )  # fmt: skip
    wide = row.model_copy(update={"layer": "b", "precision": "float", "weight_range": (-50.0, 1.0)})
    figures = range_figures([row, wide])
    assert figures["largest |weight|"] == 2.0
    assert figures["weight SNR, median layer (dB)"] == 30.0
    assert range_figures([wide]) == {}


@given(names=st.lists(st.text(max_size=6) | st.sampled_from(["a b", "a-b", "基线", "变体"]), min_size=2, unique=True))
def test_every_run_has_a_report_of_its_own(names: list[str]) -> None:
    files = [report_name(TrialFigures(variant=name, seed=seed, figures={})) for name in names for seed in (0, 1)]
    assert len(set(files)) == len(files)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*\.html", file) for file in files)
