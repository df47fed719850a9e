"""Starting from trained weights, whatever classes they were trained for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from repq.errors import TrainingError
from repq.model import Detector, build


@dataclass(frozen=True)
class FineTuned:
    """A model with weights of another, ready to train, and what a user should know about it."""

    model: Detector
    notes: tuple[str, ...]


def fine_tuned(trained: Detector, num_classes: int) -> FineTuned:
    """Build the same model for ``num_classes`` and take over every entry of ``trained`` that has its name and shape.

    The class predictions keep their fresh weights when the number of classes differs; nothing is lost otherwise. The
    fresh weights of a detector's class predictions are constants, so the result does not depend on any seed.

    Raises:
        TrainingError: ``trained`` is fused.
    """
    if trained.deploy:
        raise TrainingError("cannot train a fused model", fix="give the checkpoint from before fusing")
    model = build(replace(trained.spec, num_classes=num_classes))
    own = model.state_dict()
    kept = {name: value for name, value in trained.state_dict().items() if own[name].shape == value.shape}
    model.load_state_dict({**own, **kept})
    if len(kept) == len(own):
        return FineTuned(model, ())
    note = (
        f"the class predictions start afresh: {trained.spec.num_classes} classes in the checkpoint, "
        f"{num_classes} in the data set"
    )
    return FineTuned(model, (note,))
