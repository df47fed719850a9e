"""Order layers by any measure, alone or against what the layer costs, and compare the orders that measures give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from repq.errors import QuantizationError
from repq.layers import LayerId, QuantPlan
from repq.recipe import Measure
from repq.results import LayerSensitivity, Sensitivity, Similarity

MEASURES: tuple[Measure, ...] = get_args(Measure)


def harm(row: LayerSensitivity, measure: Measure) -> float | None:
    """How much quantizing the layer hurts by a measure, None if that was not measured; more is worse.

    It is the measure itself, with its sign turned where a high value is good: of SNR, of cosine similarity, and of the
    AP with only this layer in INT8. The AP with only this layer in float is high where quantization hurts.
    """
    place, _, name = measure.partition(".")
    if place == "ap":
        ap, sign = (row.ap_only_int8, -1) if name == "only_int8" else (row.ap_only_float, 1)
        return None if ap is None else sign * ap
    similarity: Similarity | None = getattr(row, place)
    if similarity is None:
        return None
    values = {"mse": similarity.mse, "snr": -similarity.snr_db, "cosine": -similarity.cosine}
    return values[name]


def measured(rows: Sequence[LayerSensitivity]) -> tuple[Measure, ...]:
    """The measures that all rows have."""
    return tuple(name for name in MEASURES if rows and all(harm(row, name) is not None for row in rows))


def ranking(sensitivity: Sensitivity, measure: Measure) -> tuple[LayerId, ...]:
    """The layers, most sensitive first; equal ones in the order of the model.

    Raises:
        QuantizationError: the measure was not taken.
    """
    values = _harms(sensitivity.layers, measure)
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return tuple(LayerId(sensitivity.layers[i].layer) for i in order)


@dataclass(frozen=True)
class Order:
    """The layers, those first that are kept in float first, and how they were ranked."""

    name: str
    layers: tuple[LayerId, ...]


def candidate_orders(
    sensitivity: Sensitivity, measures: Iterable[Measure], cost: Mapping[LayerId, float]
) -> tuple[tuple[Order, Order, Order], ...]:
    """Three orders for each measure: by harm, by harm over cost, and between them one by both.

    With the harm ``h`` and the cost ``c`` of a layer in means over the layers, they fall by ``h``, ``h / (1 + c)`` and
    ``h / c``. The first asks for few layers, the last for cheap ones; ``1 + c`` says that a layer in float also costs
    what all cost alike, such as conversions around it. Harm is a power or a difference of AP, which add up over layers:
    ``N/S`` for SNR.

    Raises:
        QuantizationError: a measure was not taken.
    """
    mean = sum(cost.values()) / len(cost) or 1.0
    families = []
    for measure in measures:
        by_harm = ranking(sensitivity, measure)
        amounts = {LayerId(row.layer): _amount(row, measure, sensitivity) for row in sensitivity.layers}
        dear = {layer: max(cost[layer] / mean, _LEAST) for layer in by_harm}
        by_both = _falling({layer: amounts[layer] / (1 + dear[layer]) for layer in by_harm})
        over_cost = _falling({layer: amounts[layer] / dear[layer] for layer in by_harm})
        families.append(
            (Order(measure, by_harm), Order(f"{measure} / (1 + cost)", by_both), Order(f"{measure} / cost", over_cost))
        )
    return tuple(families)


_LEAST = 1e-3  # of the mean cost: what a layer counts at least


def _falling(values: Mapping[LayerId, float]) -> tuple[LayerId, ...]:
    return tuple(sorted(values, key=lambda layer: -values[layer]))


def _amount(row: LayerSensitivity, measure: Measure, sensitivity: Sensitivity) -> float:
    """The harm of one layer on a scale that adds up: 0 is none."""
    value = harm(row, measure)
    assert value is not None  # `ranking` has looked
    place, _, name = measure.partition(".")
    if place == "ap":
        base = sensitivity.ap_float if name == "only_int8" else sensitivity.ap_int8
        return value + (base or 0.0) * (1 if name == "only_int8" else -1)
    if name == "snr":
        return 10 ** (value / 10) if value > -math.inf else 0.0
    return value + 1 if name == "cosine" else value


def top_plan(sensitivity: Sensitivity, measure: Measure, count: int) -> QuantPlan:
    """Keep the ``count`` most sensitive layers in float.

    Raises:
        QuantizationError: the measure was not taken.
    """
    layers = tuple(LayerId(row.layer) for row in sensitivity.layers)
    return QuantPlan.keeping_float(layers, ranking(sensitivity, measure)[:count])


def rank_correlations(rows: Sequence[LayerSensitivity]) -> dict[str, dict[str, float | None]]:
    """Spearman's correlation of what every two measures think of the layers: 1 is the same order, -1 the reverse.

    None stands where a measure gives all layers the same value.
    """
    names = measured(rows)
    columns = {name: _harms(rows, name) for name in names}
    return {one: {other: spearman(columns[one], columns[other]) for other in names} for one in names}


def spearman(one: ArrayLike, other: ArrayLike) -> float | None:
    """Pearson's correlation of the ranks, equal values sharing their mean rank; None if either side does not vary."""
    a, b = _centred_ranks(one), _centred_ranks(other)
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip(a @ b / length, -1, 1)) if length > 0 else None


def _centred_ranks(values: ArrayLike) -> NDArray[np.float64]:
    _, place, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place.reshape(-1)]
    centred: NDArray[np.float64] = ranks - ranks.mean()
    return centred


def _harms(rows: Sequence[LayerSensitivity], measure: Measure) -> list[float]:
    values = [harm(row, measure) for row in rows]
    present: list[float] = [value for value in values if value is not None]
    if len(present) < len(rows) or not rows:
        raise QuantizationError(
            f"the layers were not measured by {measure}",
            found=f"the measures {', '.join(measured(rows)) or 'none'}",
            fix="measure them again with this measure, or rank by one of those found",
        )
    return present
