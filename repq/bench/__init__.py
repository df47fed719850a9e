"""Measurements of finished models: latency and agreement with the simulation."""

from repq.bench.agreement import check_agreement
from repq.bench.device_time import DeviceWork, device_ms
from repq.bench.end_to_end import ServedModel, time_service
from repq.bench.latency import Runner, TimedModel, bench, percentile
from repq.bench.plans import layer_milliseconds, plan_engines, time_plans

__all__ = [
    "DeviceWork",
    "Runner",
    "ServedModel",
    "TimedModel",
    "bench",
    "check_agreement",
    "device_ms",
    "layer_milliseconds",
    "percentile",
    "plan_engines",
    "time_plans",
    "time_service",
]
