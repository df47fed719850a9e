"""Rankings, their correlation, and the search for the smallest float set, on problems whose answer is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.quant.sensitivity.ranking import Order, candidate_orders, harm, rank_correlations, ranking, spearman, top_plan
from repq.quant.sensitivity.search import Assess, Assessment, search
from repq.results import LayerSensitivity, Sensitivity, Similarity


def names(count: int) -> tuple[LayerId, ...]:
    return tuple(LayerId(f"layer{i}") for i in range(count))


def order(layers: Sequence[LayerId], name: str = "given") -> Order:
    return Order(name, tuple(layers))


def sensitivity(snr: Sequence[float], ap: Sequence[float] | None = None) -> Sensitivity:
    rows = tuple(
        LayerSensitivity(
            layer=layer,
            macs=10,
            head=Similarity(mse=1.0, snr_db=value, cosine=1.0),
            ap_only_float=None if ap is None else ap[i],
            ap_only_int8=None if ap is None else 1 - ap[i],
        )
        for i, (layer, value) in enumerate(zip(names(len(snr)), snr, strict=True))
    )
    return Sensitivity(model="m", scheme="symmetric", layers=rows, images={})


def additive(drops: dict[LayerId, float], calls: list[frozenset[LayerId]] | None = None) -> Assess:
    def assess(float_: frozenset[LayerId]) -> Assessment:
        if calls is not None:
            calls.append(float_)
        drop = math.fsum(value for layer, value in drops.items() if layer not in float_)
        return Assessment(drop, drop)

    return assess


@pytest.mark.parametrize("seed", range(20))
def test_with_the_right_ranking_the_set_is_the_smallest_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drops = dict(zip(names(9), rng.exponential(1.0, 9), strict=True))
    budget = float(rng.uniform(0, sum(drops.values())))
    found = search([[order(sorted(drops, key=lambda layer: -drops[layer]))]], budget, additive(drops))
    assert found.holds
    assert additive(drops)(frozenset(found.float_)).bound <= budget
    smallest = next(
        size
        for size in range(10)
        for chosen in itertools.combinations(drops, size)
        if additive(drops)(frozenset(chosen)).bound <= budget
    )
    assert len(found.float_) == smallest


@pytest.mark.parametrize("seed", range(20))
def test_with_any_ranking_the_set_fits_and_no_layer_of_it_can_go(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = names(40)
    drops = dict(zip(layers, rng.exponential(1.0, 40), strict=True))
    ranked = [layers[i] for i in rng.permutation(40)]
    budget = float(rng.uniform(0, sum(drops.values())))
    calls: list[frozenset[LayerId]] = []
    assess = additive(drops, calls)
    found = search([[order(ranked)]], budget, assess)
    bisections = [trial for trial in found.trials if trial.step == "bisection"]
    assert len(bisections) <= math.ceil(math.log2(41))
    assert len(calls) == len(set(calls)) == len(found.trials)  # nothing is tried twice
    assert assess(frozenset(found.float_)).bound <= budget
    for layer in found.float_:
        assert assess(frozenset(found.float_) - {layer}).bound > budget


def test_layers_that_are_dear_in_float_are_given_back_first() -> None:
    layers = names(3)
    drops = dict(zip(layers, (1.0, 1.0, 1.0), strict=True))
    cost = dict(zip(layers, (9.0, 1.0, 1.0), strict=True))
    late = {layers[2]: 5.0, layers[0]: 1.0, layers[1]: 1.0}  # only the last of the ranking matters
    given = [[order(layers)]]
    assert search(given, 1.0, additive(late), cost).float_ == layers[1:]
    assert search(given, 1.0, additive(late)).float_ == (layers[0], layers[2])
    nothing = search(given, 3.0, additive(drops))
    assert nothing.float_ == () and len(nothing.trials) == 1
    assert search(given, 0.0, additive(drops)).float_ == layers
    assert len(search(given, 3.0, additive(late), give_back=0).trials) == 2  # bisection alone


@pytest.mark.parametrize("seed", range(10))
def test_of_several_orders_the_best_is_gone_on_with(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = names(30)
    drops = dict(zip(layers, rng.exponential(1.0, 30) ** 3, strict=True))
    right = order(sorted(drops, key=lambda layer: -drops[layer]), "right")
    orders = [order(right.layers[::-1], "reversed"), right, order([layers[i] for i in rng.permutation(30)], "random")]
    found = search([orders], 0.1 * sum(drops.values()), additive(drops))
    apart = search([[one] for one in orders], 0.1 * sum(drops.values()), additive(drops))
    assert (apart.order, apart.float_) == (found.order, found.float_)
    alone = search([[right]], 0.1 * sum(drops.values()), additive(drops))
    assert (found.order, found.float_) == ("right", alone.float_)
    compared = [trial.order for trial in found.trials if trial.step == "comparison"]
    assert sorted(compared) == ["random", "reversed", "right"]


def test_an_order_that_may_only_be_lucky_is_not_gone_on_with() -> None:
    layers = names(4)
    drops = dict(zip(layers, (1.0, 1.0, 0.9, 0.9), strict=True))
    families = [[order(layers[::-1], "first")], [order(layers, "other")]]
    exact = additive(drops)

    def noisy(float_: frozenset[LayerId]) -> Assessment:
        return replace(exact(float_), error=0.3)

    assert search(families, 1.0, exact).order == "other"
    assert search(families, 1.0, noisy).order == "first"


@pytest.mark.parametrize("seed", range(20))
def test_no_plan_goes_beyond_the_cost_allowed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = names(25)
    drops = dict(zip(layers, rng.exponential(1.0, 25), strict=True))
    cost = dict(zip(layers, rng.exponential(1.0, 25), strict=True))
    orders = [order([layers[i] for i in rng.permutation(25)], str(number)) for number in range(3)]
    budget, allowed = float(rng.uniform(0, sum(drops.values()))), float(rng.uniform(0.1, 0.6))
    assess = additive(drops)
    found = search([orders], budget, assess, cost, max_cost=allowed)
    assert sum(cost[layer] for layer in found.float_) <= allowed * sum(cost.values())
    assert all(trial.int8_share >= 1 - allowed - 1e-9 for trial in found.trials)
    assert found.holds == (assess(frozenset(found.float_)).bound <= budget)
    if not found.holds:  # then nothing that was tried loses less
        assert assess(frozenset(found.float_)).bound == min(trial.bound for trial in found.trials)
        assert not any(trial.fits for trial in found.trials)


@pytest.mark.parametrize("seed", range(20))
def test_a_layer_that_alone_costs_too_much_keeps_no_other_from_being_tried(seed: int) -> None:
    """It is most sensitive by every order, and what the cheap ones lose is more than the budget."""
    rng = np.random.default_rng(seed)
    layers = names(20)
    drops = dict(zip(layers, (0.3, *rng.uniform(0.5, 1.5, 19)), strict=True))
    cost = dict(zip(layers, (30.0, *rng.uniform(0.5, 1.5, 19)), strict=True))
    given = [[order([layers[0], *(layers[i] for i in rng.permutation(range(1, 20)))], str(n))] for n in range(2)]
    budget = sum(drops.values()) - sorted(drops.values())[1]
    found = search(given, budget, additive(drops), cost, max_cost=0.1)
    assert found.holds and found.float_ and layers[0] not in found.float_
    assert sum(cost[layer] for layer in found.float_) <= 0.1 * sum(cost.values())
    only = search([[order(layers)]], 0.0, additive(drops), dict.fromkeys(layers, 1.0), max_cost=0.01)
    assert not only.holds and not only.float_  # none is cheap enough


def test_an_order_for_the_cost_puts_cheap_layers_first() -> None:
    data = sensitivity([3.0, 3.0, 20.0], ap=[0.4, 0.3, 0.2]).model_copy(update={"ap_float": 0.9, "ap_int8": 0.1})
    cost = dict(zip(names(3), (100.0, 1.0, 1.0), strict=True))
    ((plain, between, each),) = candidate_orders(data, ("head.snr",), cost)
    assert plain.layers == names(3)
    assert between.layers == tuple(LayerId(f"layer{i}") for i in (1, 0, 2))
    assert each.layers == tuple(LayerId(f"layer{i}") for i in (1, 2, 0))
    assert (plain.name, each.name) == ("head.snr", "head.snr / cost")
    for family in candidate_orders(data, ("ap.only_float", "ap.only_int8"), dict.fromkeys(names(3), 1.0)):
        assert all(found.layers == names(3) for found in family)
    with pytest.raises(QuantizationError, match=r"not measured by local\.mse"):
        candidate_orders(data, ("local.mse",), cost)


def test_more_layers_in_float_hold_fewer() -> None:
    data = sensitivity([3.0, 1.0, math.inf, 1.0, -2.0])
    order = ranking(data, "head.snr")
    assert order == tuple(LayerId(f"layer{i}") for i in (4, 1, 3, 0, 2))
    kept = [set(top_plan(data, "head.snr", count).float_) for count in range(7)]
    assert all(a <= b for a, b in itertools.pairwise(kept))
    assert [len(chosen) for chosen in kept] == [0, 1, 2, 3, 4, 5, 5]
    assert top_plan(data, "head.snr", 2).float_ == ("layer1", "layer4")  # in the order of the model


def test_the_two_ap_sweeps_point_the_right_way() -> None:
    data = sensitivity([0.0, 0.0, 0.0], ap=[0.1, 0.3, 0.2])
    assert ranking(data, "ap.only_float") == ranking(data, "ap.only_int8") == ("layer1", "layer2", "layer0")
    assert harm(data.layers[0], "local.mse") is None
    with pytest.raises(QuantizationError, match=r"not measured by local\.mse"):
        ranking(data, "local.mse")


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_the_correlation_of_mean_ranks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, 6, 30), rng.integers(0, 6, 30)  # many equal values

    def ranks(values: np.ndarray) -> list[float]:
        return [np.sum(values < value) + (np.sum(values == value) + 1) / 2 for value in values]

    assert spearman(one, other) == pytest.approx(np.corrcoef(ranks(one), ranks(other))[0, 1], abs=1e-12)


def test_correlations_between_the_measures() -> None:
    table = rank_correlations(sensitivity([1.0, math.inf, 3.0], ap=[0.3, 0.1, 0.2]).layers)
    assert table["head.snr"]["ap.only_float"] == pytest.approx(1)
    assert table["head.mse"]["head.snr"] is None  # all layers alike
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
