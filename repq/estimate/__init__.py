"""How fast a graph should run on a device that is not here: an estimate from data sheets, never a measurement."""

from repq.estimate.devices import DEVICES, Device, find_device
from repq.estimate.kernels import Kernel, kernels_of
from repq.estimate.roofline import T4_EFFICIENCY, Efficiency, estimate

__all__ = ["DEVICES", "T4_EFFICIENCY", "Device", "Efficiency", "Kernel", "estimate", "find_device", "kernels_of"]
