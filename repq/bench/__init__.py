"""Measurements of finished models: latency, agreement with the simulation, and the machine that they were made on."""

from repq.bench.agreement import Candidate, compare
from repq.bench.device_time import DeviceWork, device_ms
from repq.bench.end_to_end import ServedModel, time_service
from repq.bench.latency import Runner, TimedModel, bench, measure
from repq.bench.plans import layer_milliseconds, plan_engines, time_plans
from repq.machine.environment import capture_environment, load_average
from repq.machine.gpu_readings import GpuWatch

__all__ = [
    "Candidate",
    "DeviceWork",
    "GpuWatch",
    "Runner",
    "ServedModel",
    "TimedModel",
    "bench",
    "capture_environment",
    "compare",
    "device_ms",
    "layer_milliseconds",
    "load_average",
    "measure",
    "plan_engines",
    "time_plans",
    "time_service",
]
