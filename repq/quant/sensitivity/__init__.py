"""Which layers lose most by quantization, and which of them a plan should keep in float.

``measure_layers`` takes the measures of a ``Measurement``, alone or as one of several processes; ``collect`` puts them
together; ``make_plan`` turns them into a plan, whose AP ``ap_assessor`` judges, or whose SNR ``snr_judge`` does.
"""

from repq.quant.sensitivity.assess import Detect as Detect
from repq.quant.sensitivity.assess import ap_assessor as ap_assessor
from repq.quant.sensitivity.assess import demand_judges as demand_judges
from repq.quant.sensitivity.assess import plan_detector as plan_detector
from repq.quant.sensitivity.assess import snr_judge as snr_judge
from repq.quant.sensitivity.journal import Entry as Entry
from repq.quant.sensitivity.journal import Journal as Journal
from repq.quant.sensitivity.layer_errors import ap_with_changes as ap_with_changes
from repq.quant.sensitivity.layer_errors import local_errors as local_errors
from repq.quant.sensitivity.measurement import Measurement as Measurement
from repq.quant.sensitivity.measurement import collect as collect
from repq.quant.sensitivity.measurement import measure_layers as measure_layers
from repq.quant.sensitivity.planning import front_plans as front_plans
from repq.quant.sensitivity.planning import make_plan as make_plan
from repq.quant.sensitivity.ranking import MEASURES as MEASURES
from repq.quant.sensitivity.ranking import ranking as ranking
from repq.quant.sensitivity.ranking import top_plan as top_plan
from repq.quant.sensitivity.search import Assessment as Assessment
