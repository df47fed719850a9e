"""From a measurement and an aim to a plan."""

from __future__ import annotations

from collections.abc import Mapping

from repq.data import DetectionDataset
from repq.errors import DataError
from repq.layers import LayerId, QuantPlan
from repq.quant.sensitivity.ranking import ranking, top_plan
from repq.quant.sensitivity.search import Detect, ap_assessor, search
from repq.recipe import PlanConfig
from repq.results import PlanReport, Sensitivity


def make_plan(
    sensitivity: Sensitivity,
    config: PlanConfig,
    *,
    detect: Detect | None = None,
    dataset: DetectionDataset | None = None,
) -> tuple[QuantPlan, PlanReport]:
    """Choose the layers that stay in float.

    Args:
        detect: what the quantized model finds in ``dataset`` under a plan (``plan_detector``), for ``config.max_drop``.
        dataset: labelled images to decide on, never those that accuracy is reported on.

    Raises:
        QuantizationError: the layers were not measured by ``config.measure``.
        DataError: ``config.max_drop`` without labelled images.
    """
    if config.max_drop is None:
        assert config.top is not None  # the settings hold one of the two
        plan = top_plan(sensitivity, config.measure, config.top)
        return plan, _report(sensitivity, config, plan)
    if detect is None or dataset is None:
        raise DataError("max_drop needs labelled images to measure AP on", fix="give a data set, or use top")
    layers = tuple(LayerId(row.layer) for row in sensitivity.layers)
    reference = detect(QuantPlan(int8=(), float_=layers))
    assess, drop_of = ap_assessor(layers, detect, reference, dataset, config)
    cost = {LayerId(row.layer): float(row.macs) for row in sensitivity.layers}
    found = search(ranking(sensitivity, config.measure), config.max_drop, assess, cost)
    plan = QuantPlan.keeping_float(layers, found.float_)
    final = drop_of(frozenset(found.float_))
    report = _report(sensitivity, config, plan)
    return plan, report.model_copy(
        update={
            "drop": final.drop,
            "drop_interval": final.interval(),
            "images": len(dataset),
            "trials": found.trials,
        }
    )


def plan_remarks(sensitivity: Sensitivity, config: PlanConfig) -> Mapping[LayerId, str]:
    """A comment for each layer: its place in the ranking, its value, and its share of the multiply-adds."""
    total = sum(row.macs for row in sensitivity.layers)
    places = {layer: place for place, layer in enumerate(ranking(sensitivity, config.measure), start=1)}
    return {
        LayerId(row.layer): f"{config.measure} place {places[LayerId(row.layer)]}, {row.macs / total:.1%} of the MACs"
        for row in sensitivity.layers
    }


def _report(sensitivity: Sensitivity, config: PlanConfig, plan: QuantPlan) -> PlanReport:
    kept = set(plan.float_)
    total = sum(row.macs for row in sensitivity.layers)
    return PlanReport(
        measure=config.measure,
        float_layers=plan.float_,
        int8_macs_share=sum(row.macs for row in sensitivity.layers if row.layer not in kept) / total,
        max_drop=config.max_drop,
    )
