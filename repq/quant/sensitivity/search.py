"""Find the smallest set of float layers that keeps AP within a budget.

If the plan with no layer in float fits, that is the answer. Else three steps, over one or more orders of the layers,
those first that should stay in float first:

1. If there are several orders, the plan that spends half of the cost allowed is tried for each. Orders come in families
   (a measure, weighed in several ways): the family is chosen by the middle member of each, then the member. The first
   stays unless another's drop is smaller by more than a standard error: to choose among many by their luck on a few
   images is to choose at random.
2. Bisection finds the smallest ``k`` such that the plan with the first ``k`` layers in float fits. It takes
   ``log2(layers)`` trials and relies on the drop falling with ``k``. The cheapest of its plans that fits is gone on
   with. If no plan within the cost allowed fits, the best of all is, and its drop becomes the budget of step 3.
3. A greedy pass then offers layers INT8 again, those first whose float run costs most and, among equals, the least
   sensitive first. What still fits stays in INT8. If every layer is offered, no layer that was refused can be given
   back on its own at the end, as long as more INT8 never raises AP.

What "fits" means is the caller's: ``Assess`` maps a float set to a drop in AP and to the bound on it that is compared
with the budget (see ``assess``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from repq.layers import LayerId
from repq.quant.sensitivity.ranking import Order
from repq.results import PlanTrial, Range

Phase = Literal["all_int8", "comparison", "bisection", "greedy"]


@dataclass(frozen=True)
class Assessment:
    """The drop in AP of one plan, the bound that must be within the budget, and the drop's standard error and 95 %."""

    drop: float
    bound: float
    error: float = 0.0
    interval: Range = (0.0, 0.0)


Assess = Callable[[frozenset[LayerId]], Assessment]
"""What keeping these layers in float leads to."""


@dataclass(frozen=True)
class Found:
    """The float set in its order, how it was ranked, whether it fits the budget, and all that was tried on the way."""

    float_: tuple[LayerId, ...]
    order: str
    holds: bool
    trials: tuple[PlanTrial, ...]


def search(
    families: Sequence[Sequence[Order]],
    max_drop: float,
    assess: Assess,
    cost: Mapping[LayerId, float] | None = None,
    *,
    max_cost: float = 1.0,
    give_back: int | None = None,
) -> Found:
    """Return the smallest float set found that fits; see the module's docstring. All layers in float always fit.

    Args:
        families: one or more orders each, all of the same layers; a layer that is in none of them stays as ``assess``
            has it.
        cost: what a layer costs in float, such as its multiply-adds; default: all the same.
        max_cost: the share of the whole cost that float layers may have; a layer that alone has more stays in INT8.
        give_back: how many layers are offered INT8 again at most.
    """
    hunt = _Hunt(families[0][0].layers, max_drop, assess, cost)
    given = families[0][0]
    if hunt.fits(given, (), "all_int8"):
        return Found((), given.name, True, hunt.trials)
    families = [[hunt.affordable(order, max_cost) for order in family] for family in families]

    def best(orders: Sequence[Order]) -> Order:
        first, *others = orders
        for other in others:
            one, two = (hunt.assess(order, hunt.prefix(order, max_cost / 2), "comparison") for order in (first, other))
            if two.drop < one.drop - one.error:
                first = other
        return first

    middle_ones = {family[len(family) // 2]: family for family in families}
    chosen = best(list(middle_ones))
    order = best([chosen, *(member for member in middle_ones[chosen] if member != chosen)])
    low, high = 1, len(hunt.prefix(order, max_cost))  # fewer than `low` layers in float do not fit
    while low < high:
        middle = (low + high) // 2
        if hunt.fits(order, order.layers[:middle], "bisection"):
            high = middle
        else:
            low = middle + 1
    hunt.assess(order, order.layers[:high], "bisection")
    order, kept = hunt.best(order, order.layers[:high])
    kept = hunt.without_the_needless(order, kept, give_back)
    return Found(kept, order.name, hunt.fits(order, kept, "greedy"), hunt.trials)


class _Hunt:
    """What was tried so far."""

    def __init__(
        self,
        layers: Sequence[LayerId],
        max_drop: float,
        assess: Assess,
        cost: Mapping[LayerId, float] | None,
    ) -> None:
        self._assess, self._max_drop = assess, max_drop
        total = sum(cost[layer] for layer in layers) if cost else float(len(layers))
        self._cost = {layer: (cost[layer] if cost else 1.0) / (total or 1.0) for layer in layers}
        self._known: dict[frozenset[LayerId], Assessment] = {frozenset(layers): Assessment(0.0, 0.0)}
        self._tried: list[tuple[Order, tuple[LayerId, ...]]] = []
        self._phases: list[Phase] = []

    def affordable(self, order: Order, share: float) -> Order:
        """The order without the layers that alone cost more than ``share`` of everything."""
        return Order(order.name, tuple(layer for layer in order.layers if self._cost[layer] <= share))

    def prefix(self, order: Order, share: float) -> tuple[LayerId, ...]:
        """As many of the first layers as cost ``share`` of everything, all if that is 1."""
        if share >= 1:
            return order.layers
        spent, count = 0.0, 0
        for layer in order.layers:
            spent += self._cost[layer]
            if spent > share:
                break
            count += 1
        return order.layers[:count]

    def assess(self, order: Order, chosen: Sequence[LayerId], phase: Phase) -> Assessment:
        key = frozenset(chosen)
        if key not in self._known:
            self._known[key] = self._assess(key)
            self._tried.append((order, tuple(chosen)))
            self._phases.append(phase)
        return self._known[key]

    def fits(self, order: Order, chosen: Sequence[LayerId], phase: Phase) -> bool:
        return self.assess(order, chosen, phase).bound <= self._max_drop

    def best(self, order: Order, found: tuple[LayerId, ...]) -> tuple[Order, tuple[LayerId, ...]]:
        """The cheapest plan that fits, of ``order`` if one does; if none at all does, that of the least bound."""

        def rank(tried: tuple[Order, tuple[LayerId, ...]]) -> tuple[float, bool, float]:
            bound = self._known[frozenset(tried[1])].bound
            return max(self._max_drop, bound), tried[0] != order, self._spent(tried[1])

        return min(((order, found), *self._tried), key=rank)

    def without_the_needless(self, order: Order, kept: Sequence[LayerId], limit: int | None) -> tuple[LayerId, ...]:
        """The layers that are left when each is offered INT8, the most costly first."""
        budget = max(self._max_drop, self.assess(order, kept, "greedy").bound)
        place = {layer: position for position, layer in enumerate(order.layers)}
        left = list(kept)
        for layer in sorted(kept, key=lambda layer: (-self._cost[layer], -place[layer]))[:limit]:
            without = [other for other in left if other != layer]
            if self.assess(order, without, "greedy").bound <= budget:
                left = without
        return tuple(left)

    @property
    def trials(self) -> tuple[PlanTrial, ...]:
        rows = []
        for (order, chosen), phase in zip(self._tried, self._phases, strict=True):
            outcome = self._known[frozenset(chosen)]
            rows.append(
                PlanTrial(
                    order=order.name,
                    float_layers=len(chosen),
                    int8_share=1 - self._spent(chosen),
                    drop=outcome.drop,
                    drop_interval=outcome.interval,
                    bound=outcome.bound,
                    fits=outcome.bound <= self._max_drop,
                    step=phase,
                )
            )
        return tuple(rows)

    def _spent(self, chosen: Sequence[LayerId]) -> float:
        return sum(self._cost[layer] for layer in chosen)
