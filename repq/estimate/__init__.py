"""How fast a graph should run on a device that is not here: an estimate from data sheets, never a measurement."""

from repq.estimate.devices import DEVICES, Device, find_device
from repq.estimate.kernels import kernels_of
from repq.estimate.roofline import Efficiency, estimate

__all__ = ["DEVICES", "Device", "Efficiency", "estimate", "find_device", "kernels_of"]
