"""The whole measurement on a small data set: figures as from scratch, shared by processes, continued after a kill."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from repq.data import DetectionDataset, load_dataset, make_demo_set
from repq.errors import DataError, QuantizationError
from repq.evaluate import evaluate
from repq.layers import LayerId, QuantPlan
from repq.model import build, get_spec, layer_ids
from repq.quant import quantize, quantizing
from repq.quant.plan_file import read_plan, write_plan
from repq.quant.sensitivity import (
    MEASURES,
    Journal,
    Measurement,
    collect,
    image_hashes,
    make_plan,
    measure,
    overlap_note,
    plan_detector,
    plan_remarks,
    ranking,
)
from repq.recipe import CalibrationConfig, DemoConfig, EvalConfig, PlanConfig, PtqConfig, SensitivityConfig
from repq.results import Sensitivity

SIZE = (64, 64)
EVAL = EvalConfig(batch=4, confidence=0.0, iou=0.3, max_detections=50, multi_label=False)
CONFIG = SensitivityConfig(images=3, ap=("only_int8", "only_float"), batch=6, group=16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    folder = tmp_path_factory.mktemp("demo")
    return load_dataset(make_demo_set(folder, DemoConfig(train_images=6, val_images=1, size=64, classes=1)), "train")


@pytest.fixture(scope="module")
def job(dataset: DetectionDataset) -> Measurement:
    torch.manual_seed(0)
    spec = replace(get_spec("yolov6n_v2", 1), backbone_repeats=(1, 1, 1, 1), neck_repeats=(1, 1, 1, 1))
    fused = build(spec, deploy=True).eval()
    for name, parameter in fused.detect.named_parameters():
        if name.endswith("weight"):  # fresh prediction layers are zero: all boxes would be alike
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif "reg_preds" in name:
            parameter.data += 0.5
    config = PtqConfig(calibration=CalibrationConfig(method="max", bins=128))
    images = torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return Measurement(quantize(fused, [images], config).model, dataset.records[:3], SIZE, CONFIG, EVAL, dataset)


@pytest.fixture(scope="module")
def whole(job: Measurement) -> Sensitivity:
    journal = Journal(None, job.key)
    measure(job, journal)
    return collect(job, journal)


def figures(result: Sensitivity) -> Sensitivity:
    return result.model_copy(update={"seconds": {}})


def test_ap_is_that_of_evaluating_from_scratch(job: Measurement, whole: Sensitivity, dataset: DetectionDataset) -> None:
    def ap(int8: set[LayerId]) -> float:
        with torch.no_grad(), quantizing(job.model, int8):
            return evaluate(lambda images: job.model(torch.from_numpy(images)).numpy(), dataset, SIZE, EVAL).ap

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
        measure(job, Journal(tmp_path, job.key, rank), rank=rank, world_size=3)
    with pytest.raises(QuantizationError, match="not complete"):
        collect(job, Journal(tmp_path, job.key))
    journal = Journal(tmp_path, job.key)
    measure(job, journal)
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


def test_bad_images_are_refused(job: Measurement, dataset: DetectionDataset) -> None:
    blank = [replace(r, labels=np.zeros((0, 5), np.float32), areas=np.zeros(0, np.float32)) for r in dataset.records]
    with pytest.raises(DataError, match="AP cannot be measured"):
        measure(replace(job, dataset=dataset.subset(blank)), Journal(None, ""))
    with pytest.raises(QuantizationError, match="labelled data set"):
        measure(replace(job, dataset=None), Journal(None, ""))
    with pytest.raises(QuantizationError, match="no images"):
        measure(replace(job, records=()), Journal(None, ""))


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
    write_plan(tmp_path / "plan.yaml", plan, whole.model, remarks=plan_remarks(whole, config))
    assert read_plan(tmp_path / "plan.yaml", job.layers, whole.model) == plan

    detect = plan_detector(job.model, dataset, SIZE, EVAL)
    searched, report = make_plan(whole, PlanConfig(max_drop=1.0, resamples=100), detect=detect, dataset=dataset)
    assert searched == QuantPlan(int8=job.layers) and report.int8_macs_share == 1
    searched, report = make_plan(
        whole, PlanConfig(max_drop=0.0, risk=0.2, resamples=100), detect=detect, dataset=dataset
    )
    assert report.drop is not None and report.drop <= 0
    assert report.drop_interval is not None and report.trials
    with pytest.raises(DataError, match="labelled images"):
        make_plan(whole, PlanConfig(max_drop=0.0))
