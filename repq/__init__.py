"""repq: from a trained, re-parameterized detector to a measured INT8 engine."""

from repq.privacy import switch_off_telemetry

__version__ = "0.1.0"

switch_off_telemetry()
