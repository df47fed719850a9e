"""Which layers lose most by quantization, and which of them a plan should keep in float.

``measure_layers`` takes the measures of a ``Measurement``, alone or as one of several processes; ``collect`` puts them
together; ``make_plan`` turns them into a plan, whose AP ``ap_assessor`` judges.
"""

from repq.quant.sensitivity.assess import Detect, ap_assessor, plan_detector
from repq.quant.sensitivity.journal import Entry, Journal
from repq.quant.sensitivity.layer_errors import ap_with_changes, end_to_end_similarity, local_errors
from repq.quant.sensitivity.measurement import Measurement, collect, measure_layers
from repq.quant.sensitivity.planning import front_plans, make_plan
from repq.quant.sensitivity.ranking import (
    MEASURES,
    Order,
    candidate_orders,
    harm,
    rank_correlations,
    ranking,
    spearman,
    top_plan,
)
from repq.quant.sensitivity.search import Assess, Assessment, Found, search
from repq.quant.sensitivity.sweep import UNCHANGED, changed_outputs, shard, sweep

__all__ = [
    "MEASURES",
    "UNCHANGED",
    "Assess",
    "Assessment",
    "Detect",
    "Entry",
    "Found",
    "Journal",
    "Measurement",
    "Order",
    "ap_assessor",
    "ap_with_changes",
    "candidate_orders",
    "changed_outputs",
    "collect",
    "end_to_end_similarity",
    "front_plans",
    "harm",
    "local_errors",
    "make_plan",
    "measure_layers",
    "plan_detector",
    "rank_correlations",
    "ranking",
    "search",
    "shard",
    "spearman",
    "sweep",
    "top_plan",
]
