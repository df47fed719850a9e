"""From images, videos and cameras to boxes in files; decoding, inference and drawing overlap."""

from repq.predict.running import predict
from repq.predict.sources import open_sources

__all__ = ["open_sources", "predict"]
