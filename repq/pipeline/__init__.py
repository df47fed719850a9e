"""A recipe in, a folder of artifacts and a report out; one run or the runs of an ablation."""

from repq.pipeline.runner import RunOutcome, run_recipe

__all__ = ["RunOutcome", "run_recipe"]
