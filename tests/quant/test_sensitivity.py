"""The whole measurement on a small data set: figures as from scratch, shared by processes, continued after a kill."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finding_detector import with_boxes
from small_detectors import SIZE, images

from repq.data import DetectionDataset, image_hashes, load_dataset, make_demo_set, overlap_note
from repq.errors import DataError, QuantizationError
from repq.evaluate import Detections, evaluate
from repq.layers import LayerId, QuantPlan
from repq.machine.torch_device import network_input
from repq.model import layer_ids
from repq.quant import quantize, quantizing
from repq.quant.plan_file import read_plan, write_plan
from repq.quant.sensitivity import (
    MEASURES,
    Detect,
    Journal,
    Measurement,
    ap_assessor,
    collect,
    front_plans,
    make_plan,
    measure_layers,
    plan_detector,
    ranking,
)
from repq.recipe import CalibrationConfig, DemoConfig, EvalConfig, PlanConfig, PtqConfig, SensitivityConfig
from repq.results import PlanReport, Sensitivity

EVAL = EvalConfig(batch=4, confidence=0.0, iou=0.3, max_detections=50, multi_label=False)
CONFIG = SensitivityConfig(images=3, ap=("only_int8", "only_float"), batch=6, group=16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    folder = tmp_path_factory.mktemp("demo")
    return load_dataset(make_demo_set(folder, DemoConfig(train_images=6, val_images=1, size=64, classes=1)), "train")


@pytest.fixture(scope="module")
def job(dataset: DetectionDataset) -> Measurement:
    config = PtqConfig(calibration=CalibrationConfig(method="max", bins=128))
    model = quantize(with_boxes(), [images(4)], config).model
    return Measurement(model, dataset.records[:3], SIZE, CONFIG, EVAL, dataset)


@pytest.fixture(scope="module")
def whole(job: Measurement) -> Sensitivity:
    journal = Journal(None, job.key)
    measure_layers(job, journal)
    return collect(job, journal)


def figures(result: Sensitivity) -> Sensitivity:
    return result.model_copy(update={"seconds": {}})


def test_ap_is_that_of_evaluating_from_scratch(job: Measurement, whole: Sensitivity, dataset: DetectionDataset) -> None:
    def ap(int8: set[LayerId]) -> float:
        with torch.no_grad(), quantizing(job.model, int8):
            return evaluate(lambda images: job.model(network_input(images, "cpu")).numpy(), dataset, SIZE, EVAL).ap

    layers = set(layer_ids(job.model))
    assert whole.ap_float == pytest.approx(ap(set()), abs=1e-12)
    assert whole.ap_int8 == pytest.approx(ap(layers), abs=1e-12)
    assert whole.ap_float > 0
    for row in (whole.layers[2], whole.layers[-20]):
        layer = LayerId(row.layer)
        assert row.ap_only_int8 == pytest.approx(ap({layer}), abs=1e-12)
        assert row.ap_only_float == pytest.approx(ap(layers - {layer}), abs=1e-12)


def test_the_result_is_complete_and_reads_back(whole: Sensitivity, job: Measurement) -> None:
    assert tuple(row.layer for row in whole.layers) == job.layers
    assert set(whole.correlations) == set(MEASURES)
    assert whole.seconds.keys() == {"local", "end_to_end", "ap.only_int8", "ap.only_float"}
    assert all(seconds > 0 for seconds in whole.seconds.values())
    assert len(whole.images) == 3 and len(whole.ap_images) == 6
    assert Sensitivity.model_validate_json(whole.model_dump_json()) == whole


def test_three_processes_one_of_them_killed_measure_the_same(
    job: Measurement, whole: Sensitivity, tmp_path: Path
) -> None:
    for rank in (0, 2):
        measure_layers(job, Journal(tmp_path, job.key, rank), rank=rank, world_size=3)
    with pytest.raises(QuantizationError, match="not complete"):
        collect(job, Journal(tmp_path, job.key))
    journal = Journal(tmp_path, job.key)
    measure_layers(job, journal)
    assert figures(collect(job, journal)) == figures(whole)


def test_the_key_follows_what_the_figures_depend_on(job: Measurement, dataset: DetectionDataset) -> None:
    other = copy.deepcopy(job.model)
    other.backbone.stem.rbr_reparam.weight.data[0, 0, 0, 0] += 1e-3
    others = [
        replace(job, records=dataset.records[:2]),
        replace(job, eval_config=EVAL.model_copy(update={"iou": 0.4})),
        replace(job, dataset=dataset.subset(dataset.records[1:])),
        replace(job, model=other),
    ]
    assert len({job.key, replace(job).key, *(other.key for other in others)}) == 5


def relabelled(dataset: DetectionDataset, part: str) -> DetectionDataset:
    """The same images with one thing changed that AP is measured by."""
    first = dataset[0]
    region = np.array([[0, 0.5, 0.5, 0.9, 0.9]], np.float32)
    changed = {
        "labels": first.labels + np.array([0, 0.01, 0, 0, 0], np.float32),
        "crowds": np.concatenate([first.crowds, region]),
    }
    return dataset.subset([replace(first, **{part: changed[part]}), *dataset.records[1:]])


@pytest.mark.parametrize("part", ["labels", "crowds"])
def test_what_was_measured_by_other_labels_is_not_used(
    job: Measurement, whole: Sensitivity, dataset: DetectionDataset, part: str
) -> None:
    other = relabelled(dataset, part)
    assert replace(job, dataset=other).key != job.key
    journal, judged = Journal(None, job.key), []

    def detect(plan: QuantPlan) -> Detections:
        judged.append(plan)
        return Detections(
            tuple(record.name for record in dataset.records),
            tuple(np.array([[8, 8, 40, 40, 0.9, 0], [0, 0, 60, 60, 0.5, 0]], np.float32) for _ in dataset.records),
        )

    config = PlanConfig(max_drop=1.0, resamples=100)
    for shown, calls in ((dataset, 2), (dataset, 2), (other, 4)):
        ap_assessor(job.layers, detect, shown, config, journal)(frozenset())
        assert len(judged) == calls


def test_bad_images_are_refused(job: Measurement, dataset: DetectionDataset) -> None:
    blank = [replace(r, labels=np.zeros((0, 5), np.float32), areas=np.zeros(0, np.float32)) for r in dataset.records]
    with pytest.raises(DataError, match="AP cannot be measured"):
        measure_layers(replace(job, dataset=dataset.subset(blank)), Journal(None, ""))
    with pytest.raises(QuantizationError, match="labelled data set"):
        measure_layers(replace(job, dataset=None), Journal(None, ""))
    with pytest.raises(QuantizationError, match="no images"):
        measure_layers(replace(job, records=()), Journal(None, ""))


def test_a_budget_needs_labels(job: Measurement, dataset: DetectionDataset) -> None:
    blank = [replace(r, labels=np.zeros((0, 5), np.float32), areas=np.zeros(0, np.float32)) for r in dataset.records]
    for records in ((), blank):
        with pytest.raises(DataError, match="AP cannot be measured"):
            ap_assessor(
                job.layers, lambda plan: Detections((), ()), dataset.subset(records), PlanConfig(max_drop=0.1),
                Journal(None, ""),
            )  # fmt: skip


def test_a_plan_is_judged_by_what_the_float_model_finds_in_several_images(
    job: Measurement, dataset: DetectionDataset
) -> None:
    names = tuple(record.name for record in dataset.records)

    def nothing(plan: QuantPlan) -> Detections:
        return Detections(names, (np.zeros((0, 6), np.float32),) * len(names))

    for bound in (0.0, 0.3, 0.999):
        config = PlanConfig(max_drop=bound, resamples=100)
        with pytest.raises(DataError, match="what INT8 loses cannot be measured"):
            ap_assessor(job.layers, nothing, dataset, config, Journal(None, ""))(frozenset())
        with pytest.raises(DataError, match="by a single one"):
            ap_assessor(job.layers, nothing, dataset.subset(dataset.records[:1]), config, Journal(None, ""))
    unbounded = PlanConfig(max_drop=1.0, resamples=100)
    assert ap_assessor(job.layers, nothing, dataset, unbounded, Journal(None, ""))(frozenset()).drop == 0


def test_a_layer_that_says_nothing_is_noted(job: Measurement) -> None:
    model = copy.deepcopy(job.model)
    silent = model.get_submodule(job.layers[5])
    silent.weight.data.zero_()
    silent.bias.data.zero_()
    quiet = replace(job, model=model, config=CONFIG.model_copy(update={"end_to_end": False, "ap": ()}))
    journal = Journal(None, quiet.key)
    measure_layers(quiet, journal)
    notes = collect(quiet, journal).notes
    assert [note.split(":")[0] for note in notes if "zero on all images" in note] == [job.layers[5]]
    assert not [note for note in collect_notes(job) if "zero on all images" in note]


def collect_notes(job: Measurement) -> tuple[str, ...]:
    plain = replace(job, config=CONFIG.model_copy(update={"end_to_end": False, "ap": ()}))
    journal = Journal(None, plain.key)
    measure_layers(plain, journal)
    return collect(plain, journal).notes


def test_shared_images_are_warned_of(dataset: DetectionDataset) -> None:
    first, last = image_hashes(dataset.records[:4]), image_hashes(dataset.records[3:])
    assert "1 of 4 images" in (overlap_note(first, last) or "")
    assert overlap_note(image_hashes(dataset.records[:3]), last) is None


def test_a_measurement_becomes_a_plan(
    job: Measurement, whole: Sensitivity, dataset: DetectionDataset, tmp_path: Path
) -> None:
    config = PlanConfig(measure="head.snr", top=5)
    plan, report = make_plan(whole, config)
    assert set(plan.float_) == set(ranking(whole, "head.snr")[:5]) == set(report.float_layers)
    remarks = {LayerId(layer): reason for layer, reason in report.reasons.items()}
    write_plan(tmp_path / "plan.yaml", plan, whole.model, remarks=remarks)
    assert read_plan(tmp_path / "plan.yaml").plan(job.layers, whole.model) == plan
    more, _ = make_plan(whole, config, always_float=plan.int8[:1])
    assert set(more.float_) == {*plan.float_, plan.int8[0]}
    assert make_plan(whole, PlanConfig(top=5))[1].measure == "local.snr"


def found_plan(
    job: Measurement, whole: Sensitivity, dataset: DetectionDataset, journal: Journal, detect: Detect, **settings: Any
) -> tuple[QuantPlan, PlanReport]:
    config = PlanConfig(resamples=100, **settings)
    assess = ap_assessor(job.layers, detect, dataset, config, journal)
    return make_plan(whole, config, assess=assess, images=len(dataset), always_float=job.layers[-2:])


def test_an_ap_budget_becomes_a_plan(
    job: Measurement, whole: Sensitivity, dataset: DetectionDataset, tmp_path: Path
) -> None:
    detect = plan_detector(job.model, dataset, SIZE, EVAL)
    journal = Journal(tmp_path, job.key)
    loose, report = found_plan(job, whole, dataset, journal, detect, max_drop=1.0)
    assert loose.float_ == job.layers[-2:] and report.holds
    tight, report = found_plan(job, whole, dataset, journal, detect, max_drop=0.0, min_int8=0.5)
    assert set(job.layers[-2:]) <= set(tight.float_)
    assert report.drop is not None and report.drop_interval is not None
    assert report.drop_interval[0] <= report.drop <= report.drop_interval[1]
    assert all(trial.int8_share >= 0.5 for trial in report.trials)
    assert report.holds == any(trial.fits for trial in report.trials)
    assert set(report.reasons) == set(report.float_layers)
    assert report.reasons[job.layers[-1]].startswith("kept by the settings")

    plans = front_plans(whole, report, None, job.layers[-2:])
    assert plans[0] == set(job.layers[-2:]) and plans[-1] == set(job.layers)
    assert frozenset(tight.float_) in plans

    def refuse(plan: QuantPlan) -> Detections:
        raise AssertionError("this plan was judged before")

    asked = [ap_assessor(job.layers, refuse, dataset, PlanConfig(max_drop=0, resamples=100, risk=risk), journal)
             for risk in (0.5, 0.2, 0.05)]  # fmt: skip
    bounds = [assess(frozenset(tight.float_)).bound for assess in asked]
    assert bounds[0] == pytest.approx(report.drop) and bounds == sorted(bounds) and bounds[0] < bounds[2]
    again = found_plan(job, whole, dataset, Journal(tmp_path, job.key), refuse, max_drop=0.0, min_int8=0.5)
    assert again == (tight, report)
    with pytest.raises(DataError, match="labelled images"):
        make_plan(whole, PlanConfig(max_drop=0.0))
