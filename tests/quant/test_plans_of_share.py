"""Plans of a share of the multiply-adds: on noise that adds up, and on a model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from finding_detector import with_boxes
from pydantic import ValidationError
from small_detectors import SIZE, images

from repq.data import load_dataset, make_demo_set
from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.quant import quantize, quantizing
from repq.quant.corrections import CORRECTIONS, asked_for, by_layer
from repq.quant.sensitivity import Journal, Measurement, collect, make_plan, measure_layers, snr_judge
from repq.quant.sensitivity.planning import NEAR_DB
from repq.quant.sensitivity.search import Assessment
from repq.quant.similarity import head_snr_db, outputs_of
from repq.recipe import CalibrationConfig, DemoConfig, EvalConfig, PlanConfig, PtqConfig, SensitivityConfig
from repq.results import LayerSensitivity, Sensitivity, Similarity


def decibels(noise: float) -> float:
    return -10 * math.log10(noise) if noise > 0 else math.inf


def similar(noise: float) -> Similarity:
    return Similarity(mse=noise, snr_db=decibels(noise), cosine=1.0)


def toy(seed: int, layers: int = 30) -> tuple[Sensitivity, dict[LayerId, float]]:
    """Layers whose noise adds up at the head; what is seen of it in the layer itself says little."""
    rng = np.random.default_rng(seed)
    noise = {LayerId(f"layer{i}"): float(value) for i, value in enumerate(rng.lognormal(-6, 2, layers))}
    rows = tuple(
        LayerSensitivity(layer=layer, macs=int(rng.lognormal(8, 1)), head=similar(value),
                         local=similar(float(rng.lognormal(-6, 2))))
        for layer, value in noise.items()
    )  # fmt: skip
    return Sensitivity(model="m", scheme="symmetric", layers=rows, images={}), noise


@pytest.mark.parametrize("seed", range(10))
def test_of_noise_that_adds_up_the_layers_that_make_most_for_what_they_cost_stay_in_float(seed: int) -> None:
    measured, noise = toy(seed)
    macs = {LayerId(row.layer): row.macs for row in measured.layers}
    fixed = frozenset(list(noise)[-2:])

    def judge(chosen: frozenset[LayerId]) -> float:
        return decibels(math.fsum(value for layer, value in noise.items() if layer not in chosen))

    by_value = sorted(noise, key=lambda layer: -noise[layer] / macs[layer])
    gains = []
    for share in (0.0, 0.02, 0.05, 0.1, 0.3):
        allowed = share * sum(macs.values())
        plan, report = make_plan(measured, PlanConfig(max_float=share), judge=judge, always_float=tuple(fixed))
        chosen = set(plan.float_) - fixed
        assert fixed <= set(plan.float_) and set(report.kept_layers) == fixed
        assert sum(macs[layer] for layer in chosen) <= allowed
        assert report.adds_nothing == (not chosen) == (share == 0 or report.gain_db == 0)
        assert report.snr_db == judge(frozenset(plan.float_)) and report.snr_db_int8 == judge(fixed)
        greedy, spent = set(fixed), 0.0
        for layer in by_value:
            if layer in fixed or macs[layer] > allowed:
                continue
            spent += macs[layer]
            if spent > allowed:
                break
            greedy.add(layer)
        assert report.snr_db >= judge(frozenset(greedy)) - NEAR_DB
        assert len(plan.float_) <= len(greedy) or report.snr_db > judge(frozenset(greedy))
        gains.append(report.gain_db)
    assert gains[-1] > gains[0] == 0


def test_nothing_stays_in_float_where_nothing_gains() -> None:
    measured, _ = toy(0)
    plan, report = make_plan(measured, PlanConfig(max_float=0.5), judge=lambda chosen: -float(len(chosen)))
    assert not plan.float_ and report.adds_nothing and report.gain_db == 0


@pytest.mark.parametrize("taken", ["local", "head"])
@pytest.mark.parametrize("config", [PlanConfig(max_float=0.5), PlanConfig(top=3), PlanConfig(max_drop=0.1)])
def test_a_plan_is_made_of_whatever_was_measured(taken: str, config: PlanConfig) -> None:
    measured, _ = toy(0)
    missing = {name: None for name in ("local", "head") if name != taken}
    measured = measured.model_copy(update={"layers": tuple(r.model_copy(update=missing) for r in measured.layers)})
    _, report = make_plan(
        measured, config, judge=lambda chosen: -float(len(chosen)), assess=lambda chosen: Assessment(0.0, 0.0)
    )
    assert report.measure == f"{taken}.snr" and len(report.float_layers) == (config.top or 0)
    nothing = measured.model_copy(update={"layers": tuple(r.model_copy(update={taken: None}) for r in measured.layers)})
    with pytest.raises(QuantizationError, match="no measure was taken"):
        make_plan(nothing, config, judge=lambda chosen: 0.0, assess=lambda chosen: Assessment(0.0, 0.0))


def test_what_a_plan_gains_is_a_number_where_all_is_in_float_anyway() -> None:
    measured, noise = toy(0)
    _, report = make_plan(measured, PlanConfig(max_float=0.5), judge=lambda chosen: math.inf, always_float=list(noise))
    assert report.gain_db == 0 and report.adds_nothing


def test_a_measure_that_is_named_alone_ranks() -> None:
    measured, _ = toy(1)
    asked = set[frozenset[LayerId]]()

    def judge(chosen: frozenset[LayerId]) -> float:
        asked.add(chosen)
        return float(len(chosen))

    make_plan(measured, PlanConfig(max_float=0.2, measure="local.snr"), judge=judge)
    assert 2 <= len(asked) <= 4  # three orders of one measure, and none in float


@pytest.mark.parametrize(
    "other", [{"top": 3}, {"max_drop": 0.01}, {"top": 3, "max_drop": 0.01}, {"latency": "openvino"}]
)
def test_a_plan_has_one_aim(other: dict[str, object]) -> None:
    assert PlanConfig(max_float=0.1).max_drop is None
    with pytest.raises(ValidationError):
        PlanConfig(max_float=0.1, **other)


def test_the_snr_of_a_model_is_judged_with_the_float_weights_where_layers_run_in_float(tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("demo")
    made = make_demo_set(folder, DemoConfig(train_images=4, val_images=1, size=64, classes=1))
    dataset = load_dataset(made, "train")
    fused = with_boxes()
    config = PtqConfig(calibration=CalibrationConfig(method="max", bins=128), correct={"rounding": "adaptive"})
    model = quantize(fused, [images(4)], config).model
    job = Measurement(model, dataset.records[:3], SIZE, SensitivityConfig(images=3, batch=2), EvalConfig(), dataset)
    assert job.snr_db(frozenset(job.layers)) == math.inf
    chosen = frozenset(job.layers[:9])
    judge = snr_judge(model, [images(3, seed=1).numpy()])
    with torch.no_grad(), quantizing(model, set(job.layers) - chosen):
        wanted = head_snr_db(model, [images(3, seed=1)], outputs_of(fused, [images(3, seed=1)]))
    assert judge(chosen) == pytest.approx(wanted, abs=1e-6) and judge(frozenset()) != judge(chosen)
    journal = Journal(None, job.key)
    measure_layers(job, journal)
    whole = collect(job, journal)
    _, report = make_plan(whole, PlanConfig(max_float=0.2), judge=job.snr_db, images=3)
    assert report.int8_macs_share >= 0.8 and report.gain_db is not None and report.gain_db > 0
    assert report.snr_db == job.snr_db(frozenset(map(LayerId, report.float_layers)))


def test_corrections_that_make_up_for_other_layers_are_left_out_alone() -> None:
    everything = {entry.name: entry.tries[0] if entry.tries else True for entry in CORRECTIONS}
    config = PtqConfig(correct=everything).correct
    left = {entry.name for entry, _ in asked_for(by_layer(config))}
    assert left == set(everything) - {"outputs"}
    assert by_layer(by_layer(config)) == by_layer(config)
