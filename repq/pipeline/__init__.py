"""A recipe in, a folder of artifacts and a report out: the only place with file I/O for stages."""

from repq.pipeline.runner import RunOutcome, run_recipe

__all__ = ["RunOutcome", "run_recipe"]
