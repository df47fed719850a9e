"""Measurements of finished models: latency, agreement with the simulation, and the machine that they were made on."""

from repq.bench.agreement import Candidate, compare
from repq.bench.environment import capture_environment, load_average
from repq.bench.latency import Runner, TimedModel, bench, measure

__all__ = [
    "Candidate",
    "Runner",
    "TimedModel",
    "bench",
    "capture_environment",
    "compare",
    "load_average",
    "measure",
]
