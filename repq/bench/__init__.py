"""Measurements of finished models: latency, agreement with the simulation, and the machine that they were made on."""

from repq.bench.agreement import check_agreement
from repq.bench.device_time import DeviceWork, device_ms
from repq.bench.end_to_end import ServedModel, time_service
from repq.bench.latency import Runner, TimedModel, bench
from repq.bench.plans import layer_milliseconds, plan_engines, time_plans
from repq.machine.environment import capture_environment, load_average
from repq.machine.gpu_readings import GpuWatch

__all__ = [
    "DeviceWork",
    "GpuWatch",
    "Runner",
    "ServedModel",
    "TimedModel",
    "bench",
    "capture_environment",
    "check_agreement",
    "device_ms",
    "layer_milliseconds",
    "load_average",
    "plan_engines",
    "time_plans",
    "time_service",
]
