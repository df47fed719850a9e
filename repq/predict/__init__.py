"""From images, videos and cameras to boxes in files or for a program; decoding, inference and drawing overlap."""

from repq.predict.running import detected, predict
from repq.predict.sources import open_images, open_sources

__all__ = ["detected", "open_images", "open_sources", "predict"]
