"""A recipe in, a folder of artifacts and a report out; one run or the runs of an ablation."""

from repq.pipeline.runner import RunError, RunOutcome, run_recipe

__all__ = ["RunError", "RunOutcome", "run_recipe"]
