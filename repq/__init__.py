"""repq: from a trained, re-parameterized detector to a measured INT8 engine."""

__version__ = "0.1.0"
