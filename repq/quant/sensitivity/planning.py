"""From a measurement and an aim to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repq.amounts import percent
from repq.errors import DataError, QuantizationError
from repq.layers import LayerId, QuantPlan
from repq.quant.sensitivity.assess import Judge
from repq.quant.sensitivity.ranking import Order, candidate_orders, measured, ranking, top_plan
from repq.quant.sensitivity.search import Assess, search
from repq.recipe import Measure, PlanConfig
from repq.results import PlanReport, Sensitivity

COMPARED: tuple[Measure, ...] = ("local.snr", "neck.snr", "head.snr", "ap.only_int8", "ap.only_float")
"""What a search chooses from; MSE and cosine similarity say nearly the same as SNR, MSE without looking at the scale
of the tensor. A number of layers is chosen by the first that was taken, the best on the Lite models
(benchmarks/compare_measures.py)."""

SHARE_MEASURES: tuple[Measure, ...] = ("head.snr", "neck.snr", "local.snr")
"""What layers are ranked by for plans of a share of the multiply-adds; the head's SNR tells which ranking is best."""

NEAR_DB = 1.0
"""Among plans whose SNR is so close to the best, the one with the fewest layers in float is taken: each has conversions
around it, whatever its multiply-adds."""

_POINTS = 5  # plans between the ends of a front, so that each costs about the same more than the one before


def make_plan(
    sensitivity: Sensitivity,
    config: PlanConfig,
    *,
    assess: Assess | None = None,
    judge: Judge | None = None,
    images: int = 0,
    milliseconds: Mapping[LayerId, float] | None = None,
    always_float: Sequence[LayerId] = (),
) -> tuple[QuantPlan, PlanReport]:
    """Choose the layers that stay in float.

    Args:
        assess: what a plan costs in AP (``ap_assessor``), for ``config.max_drop``; on images to decide on, never on
            those that accuracy is reported on.
        judge: the SNR that a plan leads to (``snr_judge``), for ``config.max_float``.
        images: how many those are.
        milliseconds: what each layer costs in float, to weigh by instead of multiply-adds.
        always_float: layers that stay in float whatever they cost.

    Raises:
        QuantizationError: the layers were not measured by ``config.measure``, or by nothing that SNRs follow from.
        DataError: ``config.max_drop`` without labelled images.
    """
    layers = tuple(LayerId(row.layer) for row in sensitivity.layers)
    fixed = frozenset(always_float)
    if config.max_float is not None:
        assert judge is not None
        return _plan_of_share(sensitivity, config, config.max_float, judge, images, fixed)
    if config.max_drop is None:
        assert config.top is not None  # the settings hold one of the three
        measure = _measures(sensitivity, config)[0]
        kept = [*top_plan(sensitivity, measure, config.top).float_, *always_float]
        plan = QuantPlan.keeping_float(layers, kept)
        return plan, _report(sensitivity, plan, measure, fixed)
    if assess is None:
        raise DataError(
            "max_drop needs labelled images to measure AP on", fix="give a data set, or say how many layers: top"
        )
    cost = _costs(sensitivity, milliseconds)
    found = search(
        [
            [_without(order, fixed) for order in family]
            for family in candidate_orders(sensitivity, _measures(sensitivity, config), cost)
        ],
        config.max_drop,
        lambda chosen: assess(chosen | fixed),
        cost,
        max_cost=1 - config.min_int8,
        give_back=config.give_back,
    )
    plan = QuantPlan.keeping_float(layers, [*found.float_, *always_float])
    final = assess(frozenset(plan.float_))
    return plan, _report(sensitivity, plan, found.order, fixed).model_copy(
        update={
            "max_drop": config.max_drop,
            "holds": found.holds,
            "drop": final.drop,
            "drop_interval": final.interval,
            "images": images,
            "trials": found.trials,
        }
    )


def _plan_of_share(
    sensitivity: Sensitivity, config: PlanConfig, share: float, judge: Judge, images: int, fixed: frozenset[LayerId]
) -> tuple[QuantPlan, PlanReport]:
    """The plan of at most ``share`` of the multiply-adds in float with the most SNR of boxes and scores.

    Of each order (`candidate_orders`) the first layers that together cost no more are tried, but for layers that alone
    cost more. If nothing gains, no layer stays in float. See `NEAR_DB`.
    """
    cost = _costs(sensitivity, None)
    allowed = share * sum(cost.values())
    measures = _measures(sensitivity, config, SHARE_MEASURES)
    tried: dict[frozenset[LayerId], str] = {}
    for family in candidate_orders(sensitivity, measures, cost):
        for order in family:
            tried.setdefault(_affordable(order.layers, cost, allowed, fixed), order.name)
    whole = judge(fixed)
    found = {chosen: judge(chosen | fixed) for chosen in tried if chosen}
    gaining = {chosen: snr for chosen, snr in found.items() if snr > whole}
    near = [chosen for chosen, snr in gaining.items() if snr >= max(gaining.values()) - NEAR_DB]
    best = min(near, key=lambda chosen: (len(chosen), -gaining[chosen]), default=frozenset())
    plan = QuantPlan.keeping_float(tuple(LayerId(row.layer) for row in sensitivity.layers), [*best, *fixed])
    name = tried.get(best, measures[0])
    report = _report(sensitivity, plan, name, fixed)
    return plan, report.model_copy(
        update={"images": images, "snr_db": gaining.get(best, whole), "snr_db_int8": whole, "max_float": share}
    )


def _affordable(
    order: Sequence[LayerId], cost: Mapping[LayerId, float], allowed: float, fixed: frozenset[LayerId]
) -> frozenset[LayerId]:
    """The first layers of an order that together cost no more than is allowed, without those that alone do."""
    chosen, spent = set[LayerId](), 0.0
    for layer in order:
        if layer in fixed or cost[layer] > allowed:
            continue
        spent += cost[layer]
        if spent > allowed:
            break
        chosen.add(layer)
    return frozenset(chosen)


def front_plans(
    sensitivity: Sensitivity,
    report: PlanReport,
    milliseconds: Mapping[LayerId, float] | None,
    always_float: Sequence[LayerId] = (),
) -> tuple[frozenset[LayerId], ...]:
    """Float sets from all layers in INT8 to all in float, along the order that the plan was found by, and the plan."""
    layers = tuple(LayerId(row.layer) for row in sensitivity.layers)
    cost = _costs(sensitivity, milliseconds)
    measure: Measure = report.measure.partition(" ")[0]  # type: ignore[assignment]
    (family,) = candidate_orders(sensitivity, (measure,), cost)
    order = next(member for member in family if member.name == report.measure)
    fixed, total = frozenset(always_float), sum(cost.values()) or 1.0
    chosen = {fixed, frozenset(layers), frozenset(map(LayerId, report.float_layers))}
    spent, kept, reached = 0.0, set(fixed), 0
    steps = [0.5 ** (_POINTS - number) for number in range(_POINTS)]  # of the cost: close to INT8 they lie closer
    for layer in order.layers:
        while reached < _POINTS and spent + cost[layer] > steps[reached] * total:
            chosen.add(frozenset(kept))
            reached += 1
        spent += cost[layer]
        kept.add(layer)
    return tuple(sorted(chosen, key=len))


def _costs(sensitivity: Sensitivity, milliseconds: Mapping[LayerId, float] | None) -> dict[LayerId, float]:
    """What each layer costs in float: the milliseconds that it takes longer, or its multiply-adds."""
    if milliseconds is None:
        return {LayerId(row.layer): float(row.macs) for row in sensitivity.layers}
    return {LayerId(row.layer): max(milliseconds.get(LayerId(row.layer), 0.0), 0.0) for row in sensitivity.layers}


def _measures(
    sensitivity: Sensitivity, config: PlanConfig, preferred: tuple[Measure, ...] = COMPARED
) -> tuple[Measure, ...]:
    """What to rank the layers by: as the settings say, else by those of ``preferred`` that were taken, or any."""
    if config.measure is not None:
        return (config.measure,)
    taken = measured(sensitivity.layers)
    chosen = tuple(measure for measure in preferred if measure in taken) or taken
    if not chosen:
        raise QuantizationError("no measure was taken", fix="measure the layers first")
    return chosen


def _without(order: Order, layers: frozenset[LayerId]) -> Order:
    return Order(order.name, tuple(layer for layer in order.layers if layer not in layers))


def _report(sensitivity: Sensitivity, plan: QuantPlan, order: str, fixed: frozenset[LayerId]) -> PlanReport:
    kept = set(plan.float_)
    total = sum(row.macs for row in sensitivity.layers)
    macs = {row.layer: row.macs for row in sensitivity.layers}
    measure: Measure = order.partition(" ")[0]  # type: ignore[assignment]
    places = {layer: place for place, layer in enumerate(ranking(sensitivity, measure), start=1)}
    reasons = {
        layer: f"place {places[layer]} of {len(places)} by {measure}" if layer not in fixed else "kept by the settings"
        for layer in plan.float_
    }
    return PlanReport(
        measure=order,
        float_layers=plan.float_,
        kept_layers=tuple(layer for layer in plan.float_ if layer in fixed),
        int8_macs_share=sum(row.macs for row in sensitivity.layers if row.layer not in kept) / total,
        reasons={layer: f"{reason}, {percent(macs[layer] / total)} of the MACs" for layer, reason in reasons.items()},
    )
