"""A folder that can be shipped: an engine, its ONNX, what goes in and comes out as JSON, samples, and a model card."""

from repq.deploy.contract import contract, header
from repq.deploy.package import write_package

__all__ = ["contract", "header", "write_package"]
