"""Which layers lose most by quantization, and which of them a plan should keep in float.

``measure`` takes the measures of a ``Measurement``, alone or as one of several processes, and ``collect`` puts them
together; ``top_plan`` and ``search`` turn them into a plan.
"""

from repq.quant.sensitivity.ap import ap_with_changes
from repq.quant.sensitivity.end_to_end import end_to_end_similarity
from repq.quant.sensitivity.guards import image_hashes, overlap_note
from repq.quant.sensitivity.journal import Entry, Journal
from repq.quant.sensitivity.local import local_moments
from repq.quant.sensitivity.measurement import Measurement, collect, measure
from repq.quant.sensitivity.measures import Moments, similarity
from repq.quant.sensitivity.planning import make_plan, plan_remarks
from repq.quant.sensitivity.ranking import MEASURES, harm, rank_correlations, ranking, spearman, top_plan
from repq.quant.sensitivity.search import Assess, Assessment, Detect, Found, ap_assessor, plan_detector, search
from repq.quant.sensitivity.sweep import UNCHANGED, changed_outputs, shard, sweep
from repq.quant.sensitivity.tape import Tape, record

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
    "Moments",
    "Tape",
    "ap_assessor",
    "ap_with_changes",
    "changed_outputs",
    "collect",
    "end_to_end_similarity",
    "harm",
    "image_hashes",
    "local_moments",
    "make_plan",
    "measure",
    "overlap_note",
    "plan_detector",
    "plan_remarks",
    "rank_correlations",
    "ranking",
    "record",
    "search",
    "shard",
    "similarity",
    "spearman",
    "sweep",
    "top_plan",
]
